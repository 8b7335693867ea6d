"""Usage as the bytes of their messages; only ever to the wire.

Whatever was not measured is absent, never 0: a client can tell "none" from "not known". Pressure
totals stay in microseconds as the kernel has them and as every runtime passes them on, although the
kubelet's documentation calls them nanoseconds.

Written with `cri.encoding` and not as protobuf's messages, of which a container has twenty: that
takes a twelfth of the time for containers that did nothing since the last answer but for a little
processor time (1.3 us).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from cri.convert_pod import metadata_message
from cri.encoding import Field, stamp, uint64_value
from protos import api_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cri.usage import ContainerUsage, PodUsage
    from metrics.cgroup_stats import MemoryUsage
    from metrics.disk_usage import LayerUsage
    from metrics.network_stats import InterfaceUsage, NetworkUsage
    from metrics.pressure import PressureUsage
    from sandbox.host.cgroup_text import Pressure
    from sandbox.model import Container, PodSandbox

#: Entries of objects that are gone are dropped when there are this many more than objects.
_SLACK: Final = 64


class _Numbers:
    """Fields of one message that are each a UInt64Value."""

    def __init__(self, *fields: Field) -> None:
        self._tags = [field.tag for field in fields]

    def __call__(self, *numbers: int | None) -> bytes:
        """All but those that are None."""
        parts = [
            tag + uint64_value(number)
            for tag, number in zip(self._tags, numbers, strict=True)
            if number is not None
        ]
        return b"".join(parts)


_ATTRIBUTES: Final = Field(pb.ContainerStats, "attributes")
_CPU: Final = Field(pb.ContainerStats, "cpu")
_MEMORY: Final = Field(pb.ContainerStats, "memory")
_LAYER: Final = Field(pb.ContainerStats, "writable_layer")
_SWAP: Final = Field(pb.ContainerStats, "swap")
_IO: Final = Field(pb.ContainerStats, "io")

_POD_ATTRIBUTES: Final = Field(pb.PodSandboxStats, "attributes")
_POD_LINUX: Final = Field(pb.PodSandboxStats, "linux")
_POD_CPU: Final = Field(pb.LinuxPodSandboxStats, "cpu")
_POD_MEMORY: Final = Field(pb.LinuxPodSandboxStats, "memory")
_POD_NETWORK: Final = Field(pb.LinuxPodSandboxStats, "network")
_POD_PROCESS: Final = Field(pb.LinuxPodSandboxStats, "process")
_POD_CONTAINER: Final = Field(pb.LinuxPodSandboxStats, "containers")
_POD_IO: Final = Field(pb.LinuxPodSandboxStats, "io")

_CPU_TIME: Final = Field(pb.CpuUsage, "timestamp").tag
_CPU_PSI: Final = Field(pb.CpuUsage, "psi")
_cpu_numbers: Final = _Numbers(
    Field(pb.CpuUsage, "usage_core_nano_seconds"), Field(pb.CpuUsage, "usage_nano_cores")
)
_MEMORY_TIME: Final = Field(pb.MemoryUsage, "timestamp").tag
_MEMORY_PSI: Final = Field(pb.MemoryUsage, "psi")
_memory_numbers: Final = _Numbers(
    Field(pb.MemoryUsage, "working_set_bytes"),
    Field(pb.MemoryUsage, "available_bytes"),
    Field(pb.MemoryUsage, "usage_bytes"),
    Field(pb.MemoryUsage, "rss_bytes"),
    Field(pb.MemoryUsage, "page_faults"),
    Field(pb.MemoryUsage, "major_page_faults"),
)
_SWAP_TIME: Final = Field(pb.SwapUsage, "timestamp").tag
_swap_numbers: Final = _Numbers(
    Field(pb.SwapUsage, "swap_available_bytes"), Field(pb.SwapUsage, "swap_usage_bytes")
)
_IO_TIME: Final = Field(pb.IoUsage, "timestamp").tag
_IO_PSI: Final = Field(pb.IoUsage, "psi")

_PSI_FULL: Final = Field(pb.PsiStats, "Full")
_PSI_SOME: Final = Field(pb.PsiStats, "Some")
_PSI_TOTAL: Final = Field(pb.PsiData, "Total")
_PSI_10: Final = Field(pb.PsiData, "Avg10")
_PSI_60: Final = Field(pb.PsiData, "Avg60")
_PSI_300: Final = Field(pb.PsiData, "Avg300")

_LAYER_TIME: Final = Field(pb.FilesystemUsage, "timestamp")
_LAYER_PLACE: Final = Field(pb.FilesystemUsage, "fs_id")
_MOUNTPOINT: Final = Field(pb.FilesystemIdentifier, "mountpoint")
_layer_numbers: Final = _Numbers(
    Field(pb.FilesystemUsage, "used_bytes"), Field(pb.FilesystemUsage, "inodes_used")
)

_PROCESS_TIME: Final = Field(pb.ProcessUsage, "timestamp").tag
_process_numbers: Final = _Numbers(Field(pb.ProcessUsage, "process_count"))

_NETWORK_TIME: Final = Field(pb.NetworkUsage, "timestamp").tag
_NETWORK_DEFAULT: Final = Field(pb.NetworkUsage, "default_interface")
_NETWORK_OTHER: Final = Field(pb.NetworkUsage, "interfaces")
_INTERFACE_NAME: Final = Field(pb.NetworkInterfaceUsage, "name")
_interface_numbers: Final = _Numbers(
    Field(pb.NetworkInterfaceUsage, "rx_bytes"),
    Field(pb.NetworkInterfaceUsage, "rx_errors"),
    Field(pb.NetworkInterfaceUsage, "tx_bytes"),
    Field(pb.NetworkInterfaceUsage, "tx_errors"),
)


V = TypeVar("V", bound="Container | PodSandbox")


class UsageEncoder:
    """Makes the bytes of statistics; those of values that are the same (`is`) are made once.

    What an object is called does not change, and the sampler hands out the same value as long as
    the kernel says the same: then only times and processor usage are left to be written. For
    several threads.
    """

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def __len__(self) -> int:
        return len(self._known)

    def trim(self, total: int) -> None:
        """Begin anew when most of what is kept is of objects that are gone; there are `total`."""
        if len(self._known) > 2 * total + _SLACK:
            self._known = {}

    def container(self, usage: ContainerUsage) -> bytes:
        """A ContainerStats; of an exited container what it left on disk."""
        known = self._of(usage.container, _container_attributes)
        sample, layer = usage.sample, usage.layer
        if sample is None:
            return known.attributes + _layer_entry(layer, usage.mountpoint)
        at = stamp(sample.taken_at_ns)
        stats = sample.stats
        parts = known.parts
        if (
            parts is None
            or parts.layer is not layer
            or parts.memory is not stats.memory
            or parts.pressure is not stats.pressure
            or parts.mountpoint is not usage.mountpoint
            or parts.at_bytes != len(at)
        ):
            seen = known.seen(stats.memory, stats.pressure)
            parts = known.parts = _Parts(len(at), seen, layer=layer, mountpoint=usage.mountpoint)
        cpu = _CPU_TIME + at + _cpu_numbers(stats.cpu_usage_ns, sample.usage_nano_cores)
        return b"".join(
            (
                known.attributes,
                _CPU.message(cpu + parts.cpu_psi),
                at.join(parts.others),
            )
        )

    def pod(self, usage: PodUsage) -> bytes:
        """A PodSandboxStats: from the pod's own control group, and those of its containers."""
        known = self._of(usage.pod, _pod_attributes)
        inside = [_POD_CONTAINER.message(self.container(one)) for one in usage.containers]
        sample = usage.sample
        if sample is None:
            return known.attributes + _POD_LINUX.message(b"".join(inside))
        at = stamp(sample.taken_at_ns)
        stats = sample.stats
        parts = known.parts
        processes = usage.processes
        if (
            parts is None
            or parts.processes != processes
            or parts.memory is not stats.memory
            or parts.pressure is not stats.pressure
            or parts.at_bytes != len(at)
        ):
            seen = known.seen(stats.memory, stats.pressure)
            parts = known.parts = _Parts(len(at), seen, processes=processes)
        cpu = _CPU_TIME + at + _cpu_numbers(stats.cpu_usage_ns, sample.usage_nano_cores)
        network = b""
        if sample.network is not None:
            network = _POD_NETWORK.message(_NETWORK_TIME + at + _network(sample.network))
        body = (_POD_CPU.message(cpu + parts.cpu_psi), at.join(parts.others), network, *inside)
        return known.attributes + _POD_LINUX.message(b"".join(body))

    def _of(self, value: V, attributes: Callable[[V], bytes]) -> _Known:
        known = self._known.get(value.id)
        if known is None or known.value is not value:
            known = self._known[value.id] = _Known(value, attributes(value))
        return known


class _Known:
    """An object's attributes, and what was seen of it last."""

    __slots__ = ("_seen", "attributes", "parts", "value")

    def __init__(self, value: Container | PodSandbox, attributes: bytes) -> None:
        self.value = value
        self.attributes = attributes
        self._seen = _Seen(None, None)
        self.parts: _Parts | None = None

    def seen(self, memory: MemoryUsage | None, pressure: PressureUsage | None) -> _Seen:
        # A value of its own, not fields that are changed: another thread may encode a younger
        # sample of the same object meanwhile.
        seen = self._seen
        if seen.memory is not memory or seen.pressure is not pressure:
            seen = self._seen = _Seen(memory, pressure)
        return seen


class _Seen:
    """What follows the time in messages of these values; None where there is no message."""

    __slots__ = ("cpu_psi", "io_psi", "memory", "memory_rest", "pressure", "swap_rest")

    def __init__(self, memory: MemoryUsage | None, pressure: PressureUsage | None) -> None:
        self.memory = memory
        self.pressure = pressure
        self.memory_rest = b""
        self.swap_rest: bytes | None = None
        self.cpu_psi = b""
        self.io_psi: bytes | None = None
        if memory is not None:
            self.memory_rest = _memory_numbers(
                memory.working_set_bytes,
                memory.available_bytes,
                memory.usage_bytes,
                memory.rss_bytes,
                memory.page_faults,
                memory.major_page_faults,
            )
            self.swap_rest = _swap_numbers(memory.swap_available_bytes, memory.swap_usage_bytes)
        if pressure is not None:
            self.memory_rest += _MEMORY_PSI.message(_psi(pressure.memory))
            self.cpu_psi = _CPU_PSI.message(_psi(pressure.cpu))
            self.io_psi = _IO_PSI.message(_psi(pressure.io))


class _Parts:
    """What stands between the times of an object of which only the processor usage has changed."""

    __slots__ = (
        "at_bytes",
        "cpu_psi",
        "layer",
        "memory",
        "mountpoint",
        "others",
        "pressure",
        "processes",
    )

    def __init__(
        self,
        at_bytes: int,
        seen: _Seen,
        *,
        layer: LayerUsage | None = None,
        mountpoint: str = "",
        processes: int | None = None,
    ) -> None:
        """Of a container, or of a pod if `processes` are told.

        `at_bytes`: how long a time is, which the messages around it count.
        """
        self.at_bytes = at_bytes
        self.layer = layer
        self.mountpoint = mountpoint
        self.memory = seen.memory
        self.pressure = seen.pressure
        self.processes = processes
        self.cpu_psi = seen.cpu_psi
        if processes is None:
            messages = [
                (_MEMORY, _MEMORY_TIME, seen.memory_rest),
                (_SWAP, _SWAP_TIME, seen.swap_rest),
                (_IO, _IO_TIME, seen.io_psi),
            ]
        else:
            messages = [
                (_POD_MEMORY, _MEMORY_TIME, seen.memory_rest),
                (_POD_PROCESS, _PROCESS_TIME, _process_numbers(processes)),
                (_POD_IO, _IO_TIME, seen.io_psi),
            ]
        #: To be joined by the time.
        self.others = [b""]
        for field, time, rest in messages:
            if rest is not None:
                self.others[-1] += field.head(len(time) + at_bytes + len(rest)) + time
                self.others.append(rest)
        self.others[-1] += _layer_entry(layer, mountpoint)


def _container_attributes(container: Container) -> bytes:
    config = container.config
    message = pb.ContainerAttributes(
        id=container.id,
        metadata=pb.ContainerMetadata(name=config.name, attempt=config.attempt),
        labels=config.labels,
        annotations=config.annotations,
    )
    return _ATTRIBUTES.message(message.SerializeToString())


def _pod_attributes(pod: PodSandbox) -> bytes:
    message = pb.PodSandboxAttributes(
        id=pod.id,
        metadata=metadata_message(pod.config.metadata),
        labels=pod.config.labels,
        annotations=pod.config.annotations,
    )
    return _POD_ATTRIBUTES.message(message.SerializeToString())


def _psi(kinds: Mapping[str, Pressure]) -> bytes:
    full, some = kinds.get("full"), kinds.get("some")
    return (b"" if full is None else _PSI_FULL.message(_psi_data(full))) + (
        b"" if some is None else _PSI_SOME.message(_psi_data(some))
    )


def _psi_data(line: Pressure) -> bytes:
    return (
        _PSI_TOTAL.number(line.total_usec)
        + _PSI_10.double(line.avg10_percent)
        + _PSI_60.double(line.avg60_percent)
        + _PSI_300.double(line.avg300_percent)
    )


def _layer_entry(layer: LayerUsage | None, mountpoint: str) -> bytes:
    if layer is None:
        return b""
    return _LAYER.message(
        _LAYER_TIME.number(layer.measured_at_ns)
        + _LAYER_PLACE.message(_MOUNTPOINT.text(mountpoint))
        + _layer_numbers(layer.used_bytes, layer.inodes)
    )


def _network(usage: NetworkUsage) -> bytes:
    parts = [
        _NETWORK_OTHER.message(_interface(interface))
        for interface in usage.interfaces
        if interface is not usage.default
    ]
    if usage.default is not None:
        parts.append(_NETWORK_DEFAULT.message(_interface(usage.default)))
    return b"".join(parts)


def _interface(usage: InterfaceUsage) -> bytes:
    return _INTERFACE_NAME.text(usage.name) + _interface_numbers(
        usage.rx_bytes, usage.rx_errors, usage.tx_bytes, usage.tx_errors
    )
