"""Usage on the wire: what is there, what is absent, and in which units."""

import pytest

from cri.convert_stats import (
    container_stats,
    event_message,
    metric_descriptors,
    pod_metrics,
    pod_stats,
)
from cri.events import ContainerEvent, EventType
from cri.usage import ContainerUsage, PodScrape, PodUsage
from metrics.disk_usage import LayerUsage
from protos import api_pb2 as pb
from sandbox.model import Container, ContainerConfig, PodConfig, PodMetadata, PodSandbox
from sandbox.states import ContainerState, PodState
from tests.unit.cri.usages import NETWORK, measured, sample

TAKEN = 5_000_000_123
CONTAINER = Container(
    id="c",
    pod_id="p",
    config=ContainerConfig(name="web", attempt=2, labels={"a": "1"}, annotations={"b": "2"}),
    state=ContainerState.RUNNING,
    created_at_ns=1,
    image_name="registry/web:1",
)
POD = PodSandbox(
    id="p",
    config=PodConfig(metadata=PodMetadata(name="pod", uid="u", namespace="ns"), labels={"l": "1"}),
    state=PodState.READY,
    created_at_ns=1,
)
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


@pytest.mark.parametrize("type_", EventType)
def test_an_event_on_the_wire(type_):
    message = event_message(ContainerEvent("c", type_, 99, POD, (CONTAINER,)))
    assert message.container_event_type == type_.value
    assert pb.ContainerEventType.Name(message.container_event_type).startswith(
        f"CONTAINER_{type_.name}"
    )
    assert (message.container_id, message.created_at) == ("c", 99)
    assert message.pod_sandbox_status.metadata.uid == "u"
    assert [status.id for status in message.containers_statuses] == ["c"]
