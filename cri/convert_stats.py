"""Usage, metrics and events to protobuf; only ever to the wire.

Whatever was not measured is absent, never 0: a client can tell "none" from "not known". Pressure
totals stay in microseconds as the kernel has them and as every runtime passes them on, although the
kubelet's documentation calls them nanoseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cri.convert_container import container_status
from cri.convert_pod import metadata_message, pod_status
from cri.events import ContainerEvent, EventType
from metrics.descriptors import BASE_LABELS, CONTAINER_FAMILIES, POD_FAMILIES
from protos import api_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cri.usage import ContainerUsage, PodScrape, PodUsage
    from metrics.descriptors import Measured
    from metrics.network_stats import InterfaceUsage, NetworkUsage
    from metrics.sampler import Sample
    from sandbox.host.cgroup_text import Pressure
    from sandbox.model import Container, PodSandbox

_EVENT_TYPES: Final = {
    EventType.CREATED: pb.CONTAINER_CREATED_EVENT,
    EventType.STARTED: pb.CONTAINER_STARTED_EVENT,
    EventType.STOPPED: pb.CONTAINER_STOPPED_EVENT,
    EventType.DELETED: pb.CONTAINER_DELETED_EVENT,
}

# Stats.


def container_stats(usage: ContainerUsage) -> pb.ContainerStats:
    """A container's usage; of an exited one what it left on disk."""
    message = pb.ContainerStats(attributes=_container_attributes(usage.container))
    if usage.sample is not None:
        sample = usage.sample
        message.cpu.CopyFrom(_cpu(sample))
        message.memory.CopyFrom(_memory(sample))
        if sample.stats.memory is not None:
            memory = sample.stats.memory
            message.swap.CopyFrom(
                pb.SwapUsage(
                    timestamp=sample.taken_at_ns,
                    swap_available_bytes=_number(memory.swap_available_bytes),
                    swap_usage_bytes=_number(memory.swap_usage_bytes),
                )
            )
        io = _io(sample)
        if io is not None:
            message.io.CopyFrom(io)
    if usage.layer is not None:
        message.writable_layer.CopyFrom(
            pb.FilesystemUsage(
                timestamp=usage.layer.measured_at_ns,
                fs_id=pb.FilesystemIdentifier(mountpoint=usage.mountpoint),
                used_bytes=_number(usage.layer.used_bytes),
                inodes_used=_number(usage.layer.inodes),
            )
        )
    return message


def pod_stats(usage: PodUsage) -> pb.PodSandboxStats:
    """A pod's usage, from its own control group, and that of its containers."""
    pod = usage.pod
    message = pb.PodSandboxStats(
        attributes=pb.PodSandboxAttributes(
            id=pod.id,
            metadata=metadata_message(pod.config.metadata),
            labels=pod.config.labels,
            annotations=pod.config.annotations,
        )
    )
    linux = message.linux
    sample = usage.sample
    if sample is not None:
        linux.cpu.CopyFrom(_cpu(sample))
        linux.memory.CopyFrom(_memory(sample))
        linux.process.CopyFrom(
            pb.ProcessUsage(timestamp=sample.taken_at_ns, process_count=_number(usage.processes))
        )
        if sample.network is not None:
            linux.network.CopyFrom(_network(sample.network, sample.taken_at_ns))
        io = _io(sample)
        if io is not None:
            linux.io.CopyFrom(io)
    linux.containers.extend(container_stats(container) for container in usage.containers)
    return message


def _container_attributes(container: Container) -> pb.ContainerAttributes:
    config = container.config
    return pb.ContainerAttributes(
        id=container.id,
        metadata=pb.ContainerMetadata(name=config.name, attempt=config.attempt),
        labels=config.labels,
        annotations=config.annotations,
    )


def _number(value: int) -> pb.UInt64Value:
    return pb.UInt64Value(value=value)


def _cpu(sample: Sample) -> pb.CpuUsage:
    message = pb.CpuUsage(timestamp=sample.taken_at_ns)
    if sample.stats.cpu_usage_ns is not None:
        message.usage_core_nano_seconds.value = sample.stats.cpu_usage_ns
    if sample.usage_nano_cores is not None:
        message.usage_nano_cores.value = sample.usage_nano_cores
    if sample.stats.pressure is not None:
        message.psi.CopyFrom(_psi(sample.stats.pressure.cpu))
    return message


def _memory(sample: Sample) -> pb.MemoryUsage:
    message = pb.MemoryUsage(timestamp=sample.taken_at_ns)
    memory = sample.stats.memory
    if memory is not None:
        message.working_set_bytes.value = memory.working_set_bytes
        message.available_bytes.value = memory.available_bytes
        message.usage_bytes.value = memory.usage_bytes
        message.rss_bytes.value = memory.rss_bytes
        message.page_faults.value = memory.page_faults
        message.major_page_faults.value = memory.major_page_faults
    if sample.stats.pressure is not None:
        message.psi.CopyFrom(_psi(sample.stats.pressure.memory))
    return message


def _io(sample: Sample) -> pb.IoUsage | None:
    if sample.stats.pressure is None:
        return None
    return pb.IoUsage(timestamp=sample.taken_at_ns, psi=_psi(sample.stats.pressure.io))


def _psi(kinds: Mapping[str, Pressure]) -> pb.PsiStats:
    return pb.PsiStats(Full=_psi_data(kinds.get("full")), Some=_psi_data(kinds.get("some")))


def _psi_data(line: Pressure | None) -> pb.PsiData | None:
    if line is None:
        return None
    return pb.PsiData(
        Total=line.total_usec,
        Avg10=line.avg10_percent,
        Avg60=line.avg60_percent,
        Avg300=line.avg300_percent,
    )


def _network(usage: NetworkUsage, taken_at_ns: int) -> pb.NetworkUsage:
    message = pb.NetworkUsage(
        timestamp=taken_at_ns,
        interfaces=[_interface(i) for i in usage.interfaces if i is not usage.default],
    )
    if usage.default is not None:
        message.default_interface.CopyFrom(_interface(usage.default))
    return message


def _interface(usage: InterfaceUsage) -> pb.NetworkInterfaceUsage:
    return pb.NetworkInterfaceUsage(
        name=usage.name,
        rx_bytes=_number(usage.rx_bytes),
        rx_errors=_number(usage.rx_errors),
        tx_bytes=_number(usage.tx_bytes),
        tx_errors=_number(usage.tx_errors),
    )


# Metrics.


def metric_descriptors() -> pb.ListMetricDescriptorsResponse:
    """Every family with its help and label keys."""
    families = [
        *((family.name, family.help, family.labels) for family in CONTAINER_FAMILIES),
        *((family.name, family.help, family.labels) for family in POD_FAMILIES),
    ]
    return pb.ListMetricDescriptorsResponse(
        descriptors=[
            pb.MetricDescriptor(name=name, help=text, label_keys=[*BASE_LABELS, *labels])
            for name, text, labels in families
        ]
    )


def pod_metrics(scrape: PodScrape) -> pb.PodSandboxMetrics:
    """All metrics of a pod and its containers; network is the pod's, the rest its containers'.

    Written in place: a node has thousands of them, and a message that is made by itself is copied
    into the one around it.
    """
    message = pb.PodSandboxMetrics(pod_sandbox_id=scrape.pod.id)
    _write_pod_metrics(message, scrape)
    for container, measured in scrape.containers:
        own = message.container_metrics.add(container_id=container.id)
        _write_container_metrics(own, scrape, container, measured)
    return message


def _write_pod_metrics(message: pb.PodSandboxMetrics, scrape: PodScrape) -> None:
    sample = scrape.sample
    if sample is None or sample.network is None:
        return
    pod = scrape.pod
    labels = _labels(pod, "", scrape.cgroup, "", pod.id)
    for family in POD_FAMILIES:
        for interface in sample.network.interfaces:
            metric = message.metrics.add(
                name=family.name,
                timestamp=sample.taken_at_ns,
                metric_type=pb.COUNTER,
                label_values=[*labels, interface.name],
            )
            metric.value.value = family.value(interface)


def _write_container_metrics(
    message: pb.ContainerMetrics, scrape: PodScrape, container: Container, measured: Measured
) -> None:
    labels = _labels(
        scrape.pod,
        container.config.name,
        measured.cgroup,
        container.image_name,
        container.id,
    )
    taken_at_ns = measured.sample.taken_at_ns
    add = message.metrics.add
    for family in CONTAINER_FAMILIES:
        kind = pb.COUNTER if family.counter else pb.GAUGE
        for own, value in family.rows(measured):
            metric = add(
                name=family.name,
                timestamp=taken_at_ns,
                metric_type=kind,
                label_values=[*labels, *own],
            )
            metric.value.value = value


def _labels(pod: PodSandbox, container: str, cgroup: str, image: str, name: str) -> tuple[str, ...]:
    """In the order of `BASE_LABELS`."""
    metadata = pod.config.metadata
    return (container, cgroup, image, name, metadata.namespace, metadata.name)


# Events.


def event_message(event: ContainerEvent) -> pb.ContainerEventResponse:
    """An event with the statuses that it carries."""
    return pb.ContainerEventResponse(
        container_id=event.object_id,
        container_event_type=_EVENT_TYPES[event.type],
        created_at=event.at_ns,
        pod_sandbox_status=pod_status(event.pod),
        containers_statuses=[container_status(container) for container in event.containers],
    )
