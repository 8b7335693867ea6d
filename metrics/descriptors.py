"""Metrics of pods and containers as the CRI lists them: one table, from which both RPCs come.

Names, label keys and meanings are those that cAdvisor has given to every dashboard: whoever has
graphs of a node keeps them. A row says how its numbers come out of what was measured, so a family
cannot be described and forgotten, or delivered and not described.

Numbers on this wire are whole (UInt64Value): seconds are cut, never rounded up, so that a counter
does not run ahead of what it counts. "No limit" is 0, as cAdvisor has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from metrics.cgroup_detail import CpuDetail, DeviceIo, MemoryDetail
    from metrics.cgroup_stats import MemoryUsage
    from metrics.disk_usage import LayerUsage
    from metrics.followed import Sample
    from metrics.network_stats import InterfaceUsage
    from metrics.pressure import PressureUsage
    from sandbox.host.cgroup_text import Pressure

#: Labels of every metric, in the order of their values; `id` is the cgroup, `name` the CRI id.
BASE_LABELS: Final = ("container", "id", "image", "name", "namespace", "pod")

_NS_PER_S: Final = 1_000_000_000
_USEC_PER_S: Final = 1_000_000

#: Values of a family's own labels, and the number.
Row = tuple[tuple[str, ...], int]


class Filesystem(msgspec.Struct, frozen=True):
    """The file system that holds writable layers; one for all."""

    device: str
    size_bytes: int
    inodes: int
    inodes_free: int


class Limits(msgspec.Struct, frozen=True):
    """What was asked for a container, in cgroup version 1 terms; 0 is not limited."""

    cpu_period_usec: int = 100_000
    cpu_quota_usec: int = 0
    cpu_shares: int = 1024


class Measured(msgspec.Struct, frozen=True, gc=False):
    """Everything that a container's metrics come from; `sample` has its detail."""

    cgroup: str
    sample: Sample
    started_at_ns: int
    limits: Limits
    layer: LayerUsage | None
    filesystem: Filesystem | None
    devices: Mapping[tuple[int, int], str]


class Family(msgspec.Struct, frozen=True):
    """One metric: `labels` are its own, after `BASE_LABELS`; a gauge unless it is a counter."""

    name: str
    help: str
    rows: Callable[[Measured], Iterable[Row]]
    labels: tuple[str, ...] = ()
    counter: bool = False


class NetworkFamily(msgspec.Struct, frozen=True):
    """A counter of each interface of a pod."""

    name: str
    help: str
    value: Callable[[InterfaceUsage], int]

    @property
    def labels(self) -> tuple[str, ...]:
        """Its own labels."""
        return ("interface",)


def _one(value: Callable[[Measured], int | None]) -> Callable[[Measured], Iterable[Row]]:
    def rows(m: Measured) -> Iterable[Row]:
        number = value(m)
        return () if number is None else (((), number),)

    return rows


def _cpu_usage(m: Measured) -> int | None:
    usage_ns = m.sample.stats.cpu_usage_ns
    return None if usage_ns is None else usage_ns // _NS_PER_S


def _cpu(value: Callable[[CpuDetail], int]) -> Callable[[Measured], Iterable[Row]]:
    def number(m: Measured) -> int | None:
        return None if m.sample.detail is None else value(m.sample.detail.cgroup.cpu)

    return _one(number)


def _memory(value: Callable[[MemoryUsage], int]) -> Callable[[Measured], Iterable[Row]]:
    def number(m: Measured) -> int | None:
        memory = m.sample.stats.memory
        return None if memory is None else value(memory)

    return _one(number)


def _detail(value: Callable[[MemoryDetail], int]) -> Callable[[Measured], Iterable[Row]]:
    def number(m: Measured) -> int | None:
        detail = m.sample.detail
        memory = None if detail is None else detail.cgroup.memory
        return None if memory is None else value(memory)

    return _one(number)


def _max_memory(m: Measured) -> int | None:
    detail, memory = m.sample.detail, m.sample.stats.memory
    if memory is None:
        return None
    peak = None if detail is None or detail.cgroup.memory is None else detail.cgroup.memory
    # Kernels before 5.19 keep no peak on version 2.
    known = None if peak is None else peak.max_usage_bytes
    return max(known or 0, memory.usage_bytes)


def _swap_limit(memory: MemoryUsage) -> int:
    if memory.limit_bytes is None or memory.swap_limit_bytes is None:
        return 0
    return memory.limit_bytes + memory.swap_limit_bytes


def _failures(m: Measured) -> Iterable[Row]:
    detail, memory = m.sample.detail, m.sample.stats.memory
    if detail is None or detail.cgroup.memory is None or memory is None:
        return
    own = detail.cgroup.memory
    yield ("pgfault", "container"), own.own_page_faults
    yield ("pgmajfault", "container"), own.own_major_page_faults
    yield ("pgfault", "hierarchy"), memory.page_faults
    yield ("pgmajfault", "hierarchy"), memory.major_page_faults


def _disks(m: Measured) -> Iterable[tuple[str, DeviceIo]]:
    for io in m.sample.detail.cgroup.io if m.sample.detail is not None else ():
        yield m.devices.get((io.major, io.minor), f"{io.major}:{io.minor}"), io


def _disk(value: Callable[[DeviceIo], int]) -> Callable[[Measured], Iterable[Row]]:
    return lambda m: [((device,), value(io)) for device, io in _disks(m)]


def _blkio(m: Measured) -> Iterable[Row]:
    for device, io in _disks(m):
        place = (device, str(io.major), str(io.minor))
        yield (*place, "Read"), io.read_bytes
        yield (*place, "Write"), io.write_bytes


def _filesystem(value: Callable[[Filesystem], int]) -> Callable[[Measured], Iterable[Row]]:
    def rows(m: Measured) -> Iterable[Row]:
        fs = m.filesystem
        return () if fs is None else (((fs.device,), value(fs)),)

    return rows


def _layer_bytes(m: Measured) -> Iterable[Row]:
    if m.layer is not None:
        yield (m.filesystem.device if m.filesystem else "",), m.layer.used_bytes


def _hugetlb(*, most: bool) -> Callable[[Measured], Iterable[Row]]:
    def rows(m: Measured) -> Iterable[Row]:
        for pages in m.sample.detail.cgroup.hugetlb if m.sample.detail is not None else ():
            number = pages.max_usage_bytes if most else pages.usage_bytes
            yield (pages.page_size,), number or 0

    return rows


def _pressure(
    resource: Callable[[PressureUsage], Mapping[str, Pressure]], kind: str
) -> Callable[[Measured], Iterable[Row]]:
    def value(m: Measured) -> int | None:
        usage = m.sample.stats.pressure
        line = None if usage is None else resource(usage).get(kind)
        return None if line is None else line.total_usec // _USEC_PER_S

    return _one(value)


def _held(*, sockets: bool) -> Callable[[Measured], Iterable[Row]]:
    def value(m: Measured) -> int | None:
        if m.sample.detail is None:
            return None
        held = m.sample.detail.processes
        return held.sockets if sockets else held.file_descriptors

    return _one(value)


def _threads_max(m: Measured) -> int | None:
    return None if m.sample.detail is None else m.sample.detail.cgroup.tasks_limit or 0


def _open_files(m: Measured) -> Iterable[Row]:
    if m.sample.detail is not None:
        yield ("max_open_files",), m.sample.detail.processes.open_files_soft or 0


_PRESSURES: Final[Mapping[str, Callable[[PressureUsage], Mapping[str, Pressure]]]] = {
    "cpu": lambda usage: usage.cpu,
    "io": lambda usage: usage.io,
    "memory": lambda usage: usage.memory,
}

CONTAINER_FAMILIES: Final = (
    Family("container_blkio_device_usage_total", "Bytes read from and written to block devices",
           _blkio, ("device", "major", "minor", "operation"), counter=True),
    Family("container_cpu_cfs_periods_total", "Elapsed enforcement periods of the CPU quota",
           _cpu(lambda c: c.periods), counter=True),
    Family("container_cpu_cfs_throttled_periods_total", "Enforcement periods that were throttled",
           _cpu(lambda c: c.throttled_periods), counter=True),
    Family("container_cpu_cfs_throttled_seconds_total", "Time spent throttled, in seconds",
           _cpu(lambda c: c.throttled_ns // _NS_PER_S), counter=True),
    Family("container_cpu_system_seconds_total", "System CPU time, in seconds",
           _cpu(lambda c: c.system_ns // _NS_PER_S), counter=True),
    Family("container_cpu_usage_seconds_total", "CPU time on all processors, in seconds",
           _one(_cpu_usage), counter=True),
    Family("container_cpu_user_seconds_total", "User CPU time, in seconds",
           _cpu(lambda c: c.user_ns // _NS_PER_S), counter=True),
    Family("container_file_descriptors", "Open file descriptors of all processes",
           _held(sockets=False)),
    Family("container_fs_inodes_free", "Free inodes of the file system of writable layers",
           _filesystem(lambda fs: fs.inodes_free), ("device",)),
    Family("container_fs_inodes_total", "Inodes of the file system of writable layers",
           _filesystem(lambda fs: fs.inodes), ("device",)),
    Family("container_fs_limit_bytes", "Size of the file system of writable layers, in bytes",
           _filesystem(lambda fs: fs.size_bytes), ("device",)),
    Family("container_fs_reads_bytes_total", "Bytes read",
           _disk(lambda io: io.read_bytes), ("device",), counter=True),
    Family("container_fs_reads_total", "Completed reads",
           _disk(lambda io: io.reads), ("device",), counter=True),
    Family("container_fs_usage_bytes", "Bytes in the writable layer", _layer_bytes, ("device",)),
    Family("container_fs_writes_bytes_total", "Bytes written",
           _disk(lambda io: io.write_bytes), ("device",), counter=True),
    Family("container_fs_writes_total", "Completed writes",
           _disk(lambda io: io.writes), ("device",), counter=True),
    Family("container_hugetlb_max_usage_bytes", "Highest usage of huge pages, in bytes",
           _hugetlb(most=True), ("pagesize",)),
    Family("container_hugetlb_usage_bytes", "Usage of huge pages, in bytes",
           _hugetlb(most=False), ("pagesize",)),
    Family("container_last_seen", "When the container was looked at last, in seconds since 1970",
           _one(lambda m: m.sample.taken_at_ns // _NS_PER_S)),
    Family("container_memory_cache", "Page cache memory, in bytes",
           _memory(lambda x: x.cache_bytes)),
    Family("container_memory_failcnt", "How often memory usage hit its limit",
           _detail(lambda x: x.limit_hits), counter=True),
    Family("container_memory_failures_total", "Memory allocation failures",
           _failures, ("failure_type", "scope"), counter=True),
    Family("container_memory_kernel_usage", "Kernel memory, in bytes",
           _detail(lambda x: x.kernel_bytes)),
    Family("container_memory_mapped_file", "Memory mapped files, in bytes",
           _memory(lambda x: x.mapped_file_bytes)),
    Family("container_memory_max_usage_bytes", "Highest memory usage, in bytes",
           _one(_max_memory)),
    Family("container_memory_rss", "Anonymous memory, in bytes", _memory(lambda x: x.rss_bytes)),
    Family("container_memory_swap", "Swap usage, in bytes",
           _memory(lambda x: x.swap_usage_bytes)),
    Family("container_memory_usage_bytes", "Memory usage, caches included, in bytes",
           _memory(lambda x: x.usage_bytes)),
    Family("container_memory_working_set_bytes", "Memory that cannot be dropped, in bytes",
           _memory(lambda x: x.working_set_bytes)),
    Family("container_oom_events_total", "Processes killed for lack of memory",
           _detail(lambda x: x.oom_kills), counter=True),
    *(
        Family(f"container_pressure_{resource}_{word}_seconds_total", f"{text}, in seconds",
               _pressure(_PRESSURES[resource], kind), counter=True)
        for resource, word, kind, text in (
            ("cpu", "stalled", "full", "Time in which no task could run for lack of CPU"),
            ("cpu", "waiting", "some", "Time in which some task waited for CPU"),
            ("io", "stalled", "full", "Time in which no task could run for waiting on IO"),
            ("io", "waiting", "some", "Time in which some task waited for IO"),
            ("memory", "stalled", "full", "Time in which no task could run for lack of memory"),
            ("memory", "waiting", "some", "Time in which some task waited for memory"),
        )
    ),
    Family("container_processes", "Processes", _one(lambda m: m.sample.processes)),
    Family("container_sockets", "Open sockets of all processes", _held(sockets=True)),
    Family("container_spec_cpu_period", "CPU period, in microseconds",
           _one(lambda m: m.limits.cpu_period_usec)),
    Family("container_spec_cpu_quota", "CPU quota in each period, in microseconds",
           _one(lambda m: m.limits.cpu_quota_usec)),
    Family("container_spec_cpu_shares", "CPU shares", _one(lambda m: m.limits.cpu_shares)),
    Family("container_spec_memory_limit_bytes", "Memory limit, in bytes",
           _memory(lambda x: x.limit_bytes or 0)),
    Family("container_spec_memory_reservation_limit_bytes", "Memory reservation, in bytes",
           _detail(lambda x: x.reservation_bytes)),
    Family("container_spec_memory_swap_limit_bytes", "Limit of memory and swap, in bytes",
           _memory(_swap_limit)),
    Family("container_start_time_seconds", "When the container started, in seconds since 1970",
           _one(lambda m: m.started_at_ns // _NS_PER_S)),
    Family("container_threads", "Threads", _one(lambda m: m.sample.stats.tasks)),
    Family("container_threads_max", "Limit of threads", _one(_threads_max)),
    Family("container_ulimits_soft", "Soft limits of the container's first process",
           _open_files, ("ulimit",)),
)  # fmt: skip

POD_FAMILIES: Final = (
    NetworkFamily("container_network_receive_bytes_total", "Bytes received", lambda i: i.rx_bytes),
    NetworkFamily("container_network_receive_errors_total", "Errors while receiving",
                  lambda i: i.rx_errors),
    NetworkFamily("container_network_receive_packets_dropped_total",
                  "Packets dropped while receiving", lambda i: i.rx_dropped),
    NetworkFamily("container_network_receive_packets_total", "Packets received",
                  lambda i: i.rx_packets),
    NetworkFamily("container_network_transmit_bytes_total", "Bytes sent", lambda i: i.tx_bytes),
    NetworkFamily("container_network_transmit_errors_total", "Errors while sending",
                  lambda i: i.tx_errors),
    NetworkFamily("container_network_transmit_packets_dropped_total",
                  "Packets dropped while sending", lambda i: i.tx_dropped),
    NetworkFamily("container_network_transmit_packets_total", "Packets sent",
                  lambda i: i.tx_packets),
)  # fmt: skip
