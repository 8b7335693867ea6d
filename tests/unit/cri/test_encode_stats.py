"""Usage on the wire: what is there, what is absent, and in which units."""

import msgspec
import pytest
from google.protobuf.unknown_fields import UnknownFieldSet

from cri import encode_metrics
from cri.convert_stats import metric_descriptors
from cri.encode_stats import UsageEncoder
from cri.usage import ContainerUsage, PodScrape, PodUsage
from metrics.descriptors import CONTAINER_FAMILIES, POD_FAMILIES
from metrics.disk_usage import LayerUsage
from metrics.pressure import PressureUsage
from protos import api_pb2 as pb
from sandbox.host.cgroup_text import Pressure
from tests.unit.cri.usages import CONTAINER, MEMORY, NETWORK, POD, measured, sample


def parsed(message, body):
    """The message that a client reads, which has all of the bytes in fields that it knows."""
    found = message.FromString(body)
    assert len(found.SerializeToString()) == len(body)
    assert len(UnknownFieldSet(found)) == 0
    return found


def container_stats(usage):
    return parsed(pb.ContainerStats, UsageEncoder().container(usage))


def pod_stats(usage):
    return parsed(pb.PodSandboxStats, UsageEncoder().pod(usage))


def pod_metrics(scrape):
    return parsed(pb.PodSandboxMetrics, encode_metrics.pod_metrics(scrape))


TAKEN = 5_000_000_123
LAYER = LayerUsage(4096, 7, 4_000_000_000)


def usage(**fields):
    return ContainerUsage(CONTAINER, sample(**fields), LAYER, "/layers")


def test_a_running_container():
    stats = container_stats(usage(rate=250_000_000))
    assert stats.attributes == pb.ContainerAttributes(
        id="c",
        metadata=pb.ContainerMetadata(name="web", attempt=2),
        labels={"a": "1"},
        annotations={"b": "2"},
    )
    assert stats.cpu.usage_core_nano_seconds.value == 7_730_000_001
    assert stats.cpu.usage_nano_cores.value == 250_000_000
    memory = stats.memory
    assert (memory.working_set_bytes.value, memory.available_bytes.value) == (90, 910)
    assert (memory.usage_bytes.value, memory.rss_bytes.value) == (100, 40)
    assert (memory.page_faults.value, memory.major_page_faults.value) == (70, 8)
    assert (stats.swap.swap_usage_bytes.value, stats.swap.swap_available_bytes.value) == (6, 494)
    layer = stats.writable_layer
    assert (layer.fs_id.mountpoint, layer.used_bytes.value, layer.inodes_used.value) == (
        "/layers",
        4096,
        7,
    )
    assert layer.timestamp == 4_000_000_000
    parts = (stats.cpu, stats.memory, stats.swap, stats.io)
    assert {part.timestamp for part in parts} == {TAKEN}


def test_pressure_by_kind():
    psi = container_stats(usage()).cpu.psi
    assert (psi.Some.Total, psi.Some.Avg10, psi.Some.Avg60, psi.Some.Avg300) == (77, 1.5, 2.5, 3.5)
    assert not psi.HasField("Full")


def test_what_was_not_measured_is_absent():
    stats = container_stats(ContainerUsage(CONTAINER, sample(pressure=False), None, "/layers"))
    assert not stats.cpu.HasField("usage_nano_cores")
    assert not stats.cpu.HasField("psi")
    assert not stats.HasField("io")
    assert not stats.HasField("writable_layer")


def test_an_exited_container_has_left_its_layer():
    stats = container_stats(ContainerUsage(CONTAINER, None, LAYER, "/layers"))
    assert {field.name for field, _ in stats.ListFields()} == {"attributes", "writable_layer"}


def test_a_pod_with_its_containers():
    stats = pod_stats(PodUsage(POD, sample(network=NETWORK), (usage(), usage(processes=2))))
    assert stats.attributes.metadata.namespace == "ns"
    assert dict(stats.attributes.labels) == {"l": "1"}
    linux = stats.linux
    assert linux.cpu.usage_core_nano_seconds.value == 7_730_000_001
    assert linux.process.process_count.value == 4 + 2 + 1
    assert [c.attributes.id for c in linux.containers] == ["c", "c"]
    default = linux.network.default_interface
    assert (default.name, default.rx_bytes.value, default.tx_errors.value) == ("eth0", 1, 7)
    assert [i.name for i in linux.network.interfaces] == ["net1"]


def test_a_pod_in_the_nodes_network_has_none_of_its_own():
    assert not pod_stats(PodUsage(POD, sample(), ())).linux.HasField("network")


def test_a_pod_whose_group_is_gone():
    linux = pod_stats(PodUsage(POD, None, ())).linux
    assert linux == pb.LinuxPodSandboxStats()


def test_descriptors_and_metrics_have_the_same_labels():
    keys = {d.name: list(d.label_keys) for d in metric_descriptors().descriptors}
    scrape = PodScrape(POD, "/pods/p", sample(network=NETWORK), ((CONTAINER, measured()),))
    message = pod_metrics(scrape)
    [of_container] = message.container_metrics
    assert (message.pod_sandbox_id, of_container.container_id) == ("p", "c")
    assert len(message.metrics) == 8 * 2
    for metric in [*message.metrics, *of_container.metrics]:
        labels = dict(zip(keys[metric.name], metric.label_values, strict=True))
        assert (labels["namespace"], labels["pod"]) == ("ns", "pod")
        assert metric.timestamp == TAKEN
        assert metric.HasField("value")


def test_whose_a_metric_is():
    scrape = PodScrape(POD, "/pods/p", sample(network=NETWORK), ((CONTAINER, measured()),))
    message = pod_metrics(scrape)
    assert list(message.metrics[0].label_values) == ["", "/pods/p", "", "p", "ns", "pod", "net1"]
    [of_container] = message.container_metrics
    [usage_metric] = [
        m for m in of_container.metrics if m.name == "container_cpu_usage_seconds_total"
    ]
    assert usage_metric == pb.Metric(
        name="container_cpu_usage_seconds_total",
        timestamp=TAKEN,
        metric_type=pb.COUNTER,
        label_values=["web", "/pods/p/c", "registry/web:1", "c", "ns", "pod"],
        value=pb.UInt64Value(value=7),
    )


# Against messages that protobuf itself makes.

EDGES = (0, 1, 127, 128, 16_383, 16_384, 2**32, 2**63, 2**64 - 1)


def u64(number):
    return pb.UInt64Value(value=number)


@pytest.mark.parametrize("number", EDGES)
def test_every_number_arrives(number):
    memory = msgspec.structs.replace(
        MEMORY, usage_bytes=number, page_faults=number, swap_usage_bytes=number
    )
    look = sample(rate=number, pressure=False)
    stats = msgspec.structs.replace(look.stats, cpu_usage_ns=number, memory=memory)
    look = msgspec.structs.replace(look, stats=stats)
    layer = LayerUsage(number, number, TAKEN)
    assert container_stats(ContainerUsage(CONTAINER, look, layer, "/layers")) == pb.ContainerStats(
        attributes=pb.ContainerAttributes(
            id="c",
            metadata=pb.ContainerMetadata(name="web", attempt=2),
            labels={"a": "1"},
            annotations={"b": "2"},
        ),
        cpu=pb.CpuUsage(
            timestamp=TAKEN, usage_core_nano_seconds=u64(number), usage_nano_cores=u64(number)
        ),
        memory=pb.MemoryUsage(
            timestamp=TAKEN,
            working_set_bytes=u64(90),
            available_bytes=u64(910),
            usage_bytes=u64(number),
            rss_bytes=u64(40),
            page_faults=u64(number),
            major_page_faults=u64(8),
        ),
        swap=pb.SwapUsage(
            timestamp=TAKEN,
            swap_available_bytes=u64(max(0, 500 - number)),
            swap_usage_bytes=u64(number),
        ),
        writable_layer=pb.FilesystemUsage(
            timestamp=TAKEN,
            fs_id=pb.FilesystemIdentifier(mountpoint="/layers"),
            used_bytes=u64(number),
            inodes_used=u64(number),
        ),
    )


def test_pressure_of_every_resource_and_kind():
    lines = [Pressure(n + 0.25, n + 0.5, n + 0.75, n) for n in range(6)]
    look = sample()
    pressure = PressureUsage(
        *({"some": some, "full": full} for some, full in zip(lines[::2], lines[1::2], strict=True))
    )
    stats = msgspec.structs.replace(look.stats, pressure=pressure)
    message = container_stats(
        ContainerUsage(CONTAINER, msgspec.structs.replace(look, stats=stats), None, "")
    )
    data = [pb.PsiData(Avg10=n + 0.25, Avg60=n + 0.5, Avg300=n + 0.75, Total=n) for n in range(6)]
    psis = [pb.PsiStats(Some=data[n], Full=data[n + 1]) for n in (0, 2, 4)]
    assert [message.cpu.psi, message.memory.psi, message.io.psi] == psis


def test_every_family_is_delivered_as_it_is_described():
    found = measured()
    scrape = PodScrape(POD, "/pods/p", sample(network=NETWORK), ((CONTAINER, found),))
    message = pod_metrics(scrape)
    of_pod = ["", "/pods/p", "", "p", "ns", "pod"]
    assert list(message.metrics) == [
        pb.Metric(
            name=family.name,
            timestamp=TAKEN,
            metric_type=pb.COUNTER,
            label_values=[*of_pod, interface.name],
            value=u64(family.value(interface)),
        )
        for family in POD_FAMILIES
        for interface in NETWORK.interfaces
    ]
    [of_container] = message.container_metrics
    labels = ["web", "/pods/p/c", "registry/web:1", "c", "ns", "pod"]
    assert list(of_container.metrics) == [
        pb.Metric(
            name=family.name,
            timestamp=TAKEN,
            metric_type=pb.COUNTER if family.counter else pb.GAUGE,
            label_values=[*labels, *own],
            value=u64(value),
        )
        for family in CONTAINER_FAMILIES
        for own, value in family.rows(found)
    ]


# What is kept.


def test_bytes_that_are_kept_are_those_of_the_present():
    """Whatever changes of an object, one at a time and back."""
    encoder = UsageEncoder()
    other = msgspec.structs.replace(CONTAINER, image_name="registry/web:2")
    young = msgspec.structs.replace(sample(rate=1), taken_at_ns=TAKEN + 1)
    later = msgspec.structs.replace(young, taken_at_ns=1_700_000_000_000_000_000)
    quiet, waits = sample(pressure=False), sample()
    memory = msgspec.structs.replace(MEMORY, rss_bytes=41)
    grown = msgspec.structs.replace(
        waits, stats=msgspec.structs.replace(waits.stats, memory=memory)
    )
    bare = msgspec.structs.replace(waits, stats=msgspec.structs.replace(waits.stats, memory=None))
    for container in (CONTAINER, other):
        for look in (waits, quiet, waits, young, later, grown, waits, bare, None, waits):
            for layer in (LAYER, None):
                usage = ContainerUsage(container, look, layer, "/layers")
                container_stats(usage)
                assert encoder.container(usage) == UsageEncoder().container(usage)
                pod = PodUsage(POD, look, (usage,))
                assert encoder.pod(pod) == UsageEncoder().pod(pod)
    assert len(encoder) == 2


def test_what_is_gone_is_dropped():
    encoder = UsageEncoder()
    for number in range(100):
        gone = msgspec.structs.replace(CONTAINER, id=f"c{number}")
        encoder.container(ContainerUsage(gone, None, None, ""))
    encoder.trim(50)
    assert len(encoder) == 100
    encoder.trim(10)
    assert len(encoder) == 0
