"""What a control group has used: the files of both versions into the same typed values. Pure.

A reader is a function from the text of a file (None when the kernel has no such file) to a value,
so that tests need no kernel and the sampler alone decides how files are opened. Units are in the
names; what the versions count differently is brought together here and nowhere else:

| value        | version 1                                    | version 2                        |
|--------------|----------------------------------------------|----------------------------------|
| cpu time     | cpuacct.usage, _user, _sys: nanoseconds      | cpu.stat: microseconds           |
| memory       | hierarchical `total_` keys of memory.stat    | memory.stat is hierarchical      |
| swap         | `total_swap`; limit of both less memory's    | memory.swap.*, swap alone        |
| io           | blkio.throttle.*_recursive, bytes and counts | io.stat                          |
| pressure     | of the cgroup2 tree beside (hybrid), if any  | its own files                    |
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from sandbox.host.cgroup_text import Pressure, psi

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Version 1 writes "no limit" as the largest multiple of the page size; nobody means 4 EiB.
_NO_LIMIT: Final = 1 << 62

_USEC_NS: Final = 1_000
#: Units of huge pages and the shift from KiB.
_PAGE_UNITS: Final = (("GB", 20), ("MB", 10), ("KB", 0))


class FileReader(Protocol):
    """Gives the text of one file of one control group."""

    def __call__(self, controller: str, name: str) -> bytes | None:
        """The whole file, or None where there is none; "unified" stands for cgroup2's own."""
        ...


class CpuDetail(msgspec.Struct, frozen=True):
    """Processor time by kind, and what the quota did, since the group was made."""

    user_ns: int = 0
    system_ns: int = 0
    periods: int = 0
    throttled_periods: int = 0
    throttled_ns: int = 0


class MemoryUsage(msgspec.Struct, frozen=True):
    """Memory held by the group and all below it.

    `working_set_bytes` is usage less the file pages that could go at once, as kubelets define it.
    """

    usage_bytes: int
    working_set_bytes: int
    limit_bytes: int | None
    rss_bytes: int
    cache_bytes: int
    mapped_file_bytes: int
    page_faults: int
    major_page_faults: int
    swap_usage_bytes: int
    swap_limit_bytes: int | None

    @property
    def available_bytes(self) -> int:
        """What is left below the limit; 0 where there is no limit, as the field reports it."""
        return 0 if self.limit_bytes is None else max(0, self.limit_bytes - self.working_set_bytes)

    @property
    def swap_available_bytes(self) -> int:
        """Swap that may still be used; 0 where there is no limit."""
        if self.swap_limit_bytes is None:
            return 0
        return max(0, self.swap_limit_bytes - self.swap_usage_bytes)


class MemoryDetail(msgspec.Struct, frozen=True):
    """What only a scrape of all metrics needs. `max_usage_bytes` None: the kernel keeps none."""

    max_usage_bytes: int | None
    limit_hits: int
    kernel_bytes: int
    oom_kills: int
    own_page_faults: int
    own_major_page_faults: int
    reservation_bytes: int


class DeviceIo(msgspec.Struct, frozen=True):
    """Input and output of one block device."""

    major: int
    minor: int
    read_bytes: int = 0
    write_bytes: int = 0
    reads: int = 0
    writes: int = 0


class HugetlbUsage(msgspec.Struct, frozen=True):
    """Huge pages of one size; `page_size` such as 2MB."""

    page_size: str
    usage_bytes: int
    max_usage_bytes: int | None


class PressureUsage(msgspec.Struct, frozen=True):
    """Stalls by resource, each by kind ("some", "full"); empty where the kernel does not tell."""

    cpu: Mapping[str, Pressure]
    memory: Mapping[str, Pressure]
    io: Mapping[str, Pressure]


class CgroupStats(msgspec.Struct, frozen=True):
    """What stats answers need of one group; `cpu_usage_ns` since it was made."""

    cpu_usage_ns: int | None
    memory: MemoryUsage | None
    tasks: int | None
    pressure: PressureUsage | None


#: Of what is in no group of its own.
NO_STATS: Final = CgroupStats(None, None, None, None)


class CgroupDetail(msgspec.Struct, frozen=True):
    """What a scrape needs beyond that. `tasks_limit` None: none is set."""

    cpu: CpuDetail
    memory: MemoryDetail | None
    tasks_limit: int | None
    io: tuple[DeviceIo, ...]
    hugetlb: tuple[HugetlbUsage, ...]


def read_stats(version: int, read: FileReader) -> CgroupStats:
    """Usage; parts whose files are missing are None. Files that cannot be understood count 0."""
    one = version == 1
    return CgroupStats(
        cpu_usage_ns=_number(read("cpuacct", "cpuacct.usage")) if one else _cpu_usage_v2(read),
        memory=_memory_v1(read) if one else _memory_v2(read),
        tasks=_number(read("pids", "pids.current")),
        pressure=_pressure(read),
    )


def read_detail(version: int, read: FileReader, page_sizes: Iterable[str]) -> CgroupDetail:
    """The rest; `page_sizes` are the huge pages of this machine (`hugepage_sizes`)."""
    one = version == 1
    return CgroupDetail(
        cpu=_cpu_v1(read) if one else _cpu_v2(read),
        memory=_memory_detail_v1(read) if one else _memory_detail_v2(read),
        tasks_limit=_limit(read("pids", "pids.max")),
        io=_io_v1(read) if one else _io_v2(read),
        hugetlb=tuple(_hugetlb(version, read, page_sizes)),
    )


def hugepage_sizes(directories: Iterable[str]) -> tuple[str, ...]:
    """Names of sizes as cgroup files have them, from those in /sys/kernel/mm/hugepages."""
    sizes = []
    for name in directories:
        digits = name.removeprefix("hugepages-").removesuffix("kB")
        if digits.isdecimal() and int(digits):
            kib = int(digits)
            # mm/hugetlb_cgroup.c, mem_fmt: the largest unit that is not below one.
            unit, shift = next(u for u in _PAGE_UNITS if kib >= 1 << u[1])
            sizes.append((kib, f"{kib >> shift}{unit}"))
    return tuple(name for _, name in sorted(sizes))


# Processor.


def _cpu_usage_v2(read: FileReader) -> int | None:
    usage_usec = _pairs(read("cpu", "cpu.stat")).get(b"usage_usec")
    return None if usage_usec is None else usage_usec * _USEC_NS


def _cpu_v1(read: FileReader) -> CpuDetail:
    stat = _pairs(read("cpu", "cpu.stat"))
    return CpuDetail(
        user_ns=_number(read("cpuacct", "cpuacct.usage_user")) or 0,
        system_ns=_number(read("cpuacct", "cpuacct.usage_sys")) or 0,
        periods=stat.get(b"nr_periods", 0),
        throttled_periods=stat.get(b"nr_throttled", 0),
        throttled_ns=stat.get(b"throttled_time", 0),
    )


def _cpu_v2(read: FileReader) -> CpuDetail:
    stat = _pairs(read("cpu", "cpu.stat"))
    return CpuDetail(
        user_ns=stat.get(b"user_usec", 0) * _USEC_NS,
        system_ns=stat.get(b"system_usec", 0) * _USEC_NS,
        periods=stat.get(b"nr_periods", 0),
        throttled_periods=stat.get(b"nr_throttled", 0),
        throttled_ns=stat.get(b"throttled_usec", 0) * _USEC_NS,
    )


# Memory.


def _memory_v1(read: FileReader) -> MemoryUsage | None:
    usage = _number(read("memory", "memory.usage_in_bytes"))
    if usage is None:
        return None
    stat = _pairs(read("memory", "memory.stat"))
    limit = _limit(read("memory", "memory.limit_in_bytes"))
    both = _limit(read("memory", "memory.memsw.limit_in_bytes"))
    return MemoryUsage(
        usage_bytes=usage,
        working_set_bytes=max(0, usage - stat.get(b"total_inactive_file", 0)),
        limit_bytes=limit,
        rss_bytes=stat.get(b"total_rss", 0),
        cache_bytes=stat.get(b"total_cache", 0),
        mapped_file_bytes=stat.get(b"total_mapped_file", 0),
        page_faults=stat.get(b"total_pgfault", 0),
        major_page_faults=stat.get(b"total_pgmajfault", 0),
        swap_usage_bytes=stat.get(b"total_swap", 0),
        # Version 1 limits memory and swap together.
        swap_limit_bytes=None if limit is None or both is None else max(0, both - limit),
    )


def _memory_v2(read: FileReader) -> MemoryUsage | None:
    usage = _number(read("memory", "memory.current"))
    if usage is None:
        return None
    stat = _pairs(read("memory", "memory.stat"))
    return MemoryUsage(
        usage_bytes=usage,
        working_set_bytes=max(0, usage - stat.get(b"inactive_file", 0)),
        limit_bytes=_limit(read("memory", "memory.max")),
        rss_bytes=stat.get(b"anon", 0),
        cache_bytes=stat.get(b"file", 0),
        mapped_file_bytes=stat.get(b"file_mapped", 0),
        page_faults=stat.get(b"pgfault", 0),
        major_page_faults=stat.get(b"pgmajfault", 0),
        swap_usage_bytes=_number(read("memory", "memory.swap.current")) or 0,
        swap_limit_bytes=_limit(read("memory", "memory.swap.max")),
    )


def _memory_detail_v1(read: FileReader) -> MemoryDetail | None:
    text = read("memory", "memory.stat")
    if text is None:
        return None
    stat = _pairs(text)
    return MemoryDetail(
        max_usage_bytes=_number(read("memory", "memory.max_usage_in_bytes")),
        limit_hits=_number(read("memory", "memory.failcnt")) or 0,
        kernel_bytes=_number(read("memory", "memory.kmem.usage_in_bytes")) or 0,
        oom_kills=_pairs(read("memory", "memory.oom_control")).get(b"oom_kill", 0),
        own_page_faults=stat.get(b"pgfault", 0),
        own_major_page_faults=stat.get(b"pgmajfault", 0),
        reservation_bytes=_limit(read("memory", "memory.soft_limit_in_bytes")) or 0,
    )


def _memory_detail_v2(read: FileReader) -> MemoryDetail | None:
    text = read("memory", "memory.stat")
    if text is None:
        return None
    stat = _pairs(text)
    events = _pairs(read("memory", "memory.events"))
    local = _pairs(read("memory", "memory.events.local"))
    return MemoryDetail(
        max_usage_bytes=_number(read("memory", "memory.peak")),
        limit_hits=events.get(b"max", 0),
        kernel_bytes=stat.get(b"kernel", stat.get(b"kernel_stack", 0) + stat.get(b"slab", 0)),
        oom_kills=events.get(b"oom_kill", local.get(b"oom_kill", 0)),
        # Version 2 counts faults for the whole sub-tree only; containers seldom have one.
        own_page_faults=stat.get(b"pgfault", 0),
        own_major_page_faults=stat.get(b"pgmajfault", 0),
        reservation_bytes=_limit(read("memory", "memory.low")) or 0,
    )


# Input and output, huge pages, pressure.


def _io_v1(read: FileReader) -> tuple[DeviceIo, ...]:
    sizes = _device_lines(read("blkio", "blkio.throttle.io_service_bytes_recursive"))
    counts = _device_lines(read("blkio", "blkio.throttle.io_serviced_recursive"))
    return tuple(
        DeviceIo(
            *device,
            read_bytes=sizes.get(device, {}).get(b"Read", 0),
            write_bytes=sizes.get(device, {}).get(b"Write", 0),
            reads=counts.get(device, {}).get(b"Read", 0),
            writes=counts.get(device, {}).get(b"Write", 0),
        )
        for device in sorted({*sizes, *counts})
    )


def _device_lines(text: bytes | None) -> dict[tuple[int, int], dict[bytes, int]]:
    """`MAJ:MIN Operation N` lines of version 1."""
    found: dict[tuple[int, int], dict[bytes, int]] = {}
    for line in (text or b"").splitlines():
        words = line.split()
        device = _device(words[0]) if len(words) == 3 else None
        if device is not None and words[2].isdigit():
            found.setdefault(device, {})[words[1]] = int(words[2])
    return found


def _io_v2(read: FileReader) -> tuple[DeviceIo, ...]:
    found = []
    for line in (read("io", "io.stat") or b"").splitlines():
        name, *pairs = line.split()
        device = _device(name)
        if device is None:
            continue
        values = {key: int(n) for key, _, n in (p.partition(b"=") for p in pairs) if n.isdigit()}
        found.append(
            DeviceIo(
                *device,
                read_bytes=values.get(b"rbytes", 0),
                write_bytes=values.get(b"wbytes", 0),
                reads=values.get(b"rios", 0),
                writes=values.get(b"wios", 0),
            )
        )
    return tuple(found)


def _device(word: bytes) -> tuple[int, int] | None:
    major, _, minor = word.partition(b":")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


def _hugetlb(version: int, read: FileReader, page_sizes: Iterable[str]) -> Iterable[HugetlbUsage]:
    name, peak = ("usage_in_bytes", "max_usage_in_bytes") if version == 1 else ("current", "")
    for size in page_sizes:
        usage = _number(read("hugetlb", f"hugetlb.{size}.{name}"))
        if usage is not None:
            most = _number(read("hugetlb", f"hugetlb.{size}.{peak}")) if peak else None
            yield HugetlbUsage(size, usage, most)


def _pressure(read: FileReader) -> PressureUsage | None:
    texts = [read("unified", f"{resource}.pressure") for resource in ("cpu", "memory", "io")]
    if all(text is None for text in texts):
        return None
    return PressureUsage(*(_psi(text or b"") for text in texts))


@lru_cache(maxsize=4096)
def _psi(text: bytes) -> Mapping[str, Pressure]:
    """Parsed once for each text: that of an idle container does not change."""
    return psi(text.decode())


# Grammar, on bytes: these run for every file of every container.


@lru_cache(maxsize=8)
def _pairs(text: bytes | None) -> Mapping[bytes, int]:
    """`KEY N` lines; empty when anything else is among them. Kept for who asks again at once."""
    words = (text or b"").split()
    try:
        return dict(zip(words[::2], map(int, words[1::2]), strict=True))
    except ValueError:
        return _pairs_one_by_one(text or b"")


def _pairs_one_by_one(text: bytes) -> dict[bytes, int]:
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[1].isdigit():
            found[words[0]] = int(words[1])
    return found


def _number(text: bytes | None) -> int | None:
    word = (text or b"").strip()
    return int(word) if word.isdigit() else None


def _limit(text: bytes | None) -> int | None:
    number = _number(text)
    return None if number is None or number >= _NO_LIMIT else number
