"""What only a scrape of all metrics needs of a control group, of both versions. Pure.

Every look reads every file; as in `cgroup_stats`, nothing is made anew of the same words.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec

from metrics.cgroup_grammar import Keyed, device, limit, number

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from metrics.cgroup_grammar import FileName, FilesReader

    _Texts = Mapping[FileName, bytes | None]

_HUGETLB: Final = "hugetlb"
_ZERO: Final = b"0\n"
_USEC_NS: Final = 1_000
#: Units of huge pages and the shift from KiB.
_PAGE_UNITS: Final = (("GB", 20), ("MB", 10), ("KB", 0))

#: What `UsageReader` has read already in the same look.
_SHARED_V1: Final = (("memory", "memory.stat"),)
_SHARED_V2: Final = (("memory", "memory.stat"), ("cpu", "cpu.stat"))
_FILES_V1: Final = (
    ("cpu", "cpu.stat"),
    ("cpuacct", "cpuacct.usage_user"),
    ("cpuacct", "cpuacct.usage_sys"),
    ("memory", "memory.max_usage_in_bytes"),
    ("memory", "memory.failcnt"),
    ("memory", "memory.kmem.usage_in_bytes"),
    ("memory", "memory.oom_control"),
    ("memory", "memory.soft_limit_in_bytes"),
    ("pids", "pids.max"),
    ("blkio", "blkio.throttle.io_service_bytes_recursive"),
    ("blkio", "blkio.throttle.io_serviced_recursive"),
)
_FILES_V2: Final = (
    ("memory", "memory.peak"),
    ("memory", "memory.events"),
    ("memory", "memory.events.local"),
    ("memory", "memory.low"),
    ("pids", "pids.max"),
    ("io", "io.stat"),
)

_cpu_stat_v1: Final = Keyed("nr_periods", "nr_throttled", "throttled_time")
_cpu_stat_v2: Final = Keyed(
    "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec"
)
_faults: Final = Keyed("pgfault", "pgmajfault")
_kernel: Final = Keyed("kernel", "kernel_stack", "slab")
_oom_kills: Final = Keyed("oom_kill")
_events: Final = Keyed("max", "oom_kill")


class CpuDetail(msgspec.Struct, frozen=True, gc=False):
    """Processor time by kind, and what the quota did, since the group was made."""

    user_ns: int = 0
    system_ns: int = 0
    periods: int = 0
    throttled_periods: int = 0
    throttled_ns: int = 0


class MemoryDetail(msgspec.Struct, frozen=True, gc=False):
    """What only a scrape of all metrics needs. `max_usage_bytes` None: the kernel keeps none."""

    max_usage_bytes: int | None
    limit_hits: int
    kernel_bytes: int
    oom_kills: int
    own_page_faults: int
    own_major_page_faults: int
    reservation_bytes: int


class DeviceIo(msgspec.Struct, frozen=True, gc=False):
    """Input and output of one block device."""

    major: int
    minor: int
    read_bytes: int = 0
    write_bytes: int = 0
    reads: int = 0
    writes: int = 0


class HugetlbUsage(msgspec.Struct, frozen=True, gc=False):
    """Huge pages of one size; `page_size` such as 2MB."""

    page_size: str
    usage_bytes: int
    max_usage_bytes: int | None


class CgroupDetail(msgspec.Struct, frozen=True, gc=False):
    """What a scrape needs beyond that. `tasks_limit` None: none is set."""

    cpu: CpuDetail
    memory: MemoryDetail | None
    tasks_limit: int | None
    io: tuple[DeviceIo, ...]
    hugetlb: tuple[HugetlbUsage, ...]


class DetailReader:
    """Reads the detail of one group again and again."""

    __slots__ = (
        "_detail",
        "_files",
        "_most_pages",
        "_page_sizes",
        "_pages",
        "_read",
        "_texts",
        "_version",
    )

    def __init__(self, version: int, read: FilesReader, page_sizes: Iterable[str]) -> None:
        """`page_sizes` are the huge pages of this machine (`hugepage_sizes`)."""
        self._version = version
        self._read = read
        self._page_sizes = tuple(page_sizes)
        self._files = _FILES_V1 if version == 1 else _FILES_V2
        self._pages = _page_files(version, self._page_sizes)
        self._most_pages = _most_page_files(version, self._page_sizes)
        self._texts: list[bytes | None] = []
        self._detail: CgroupDetail | None = None

    def read(self, shared: list[bytes | None]) -> CgroupDetail:
        """Parts whose files are missing are None or empty; what makes no sense counts 0.

        Args:
            shared: what `UsageReader.shared` has after the same look, so that a file is read once
                and agrees with itself.
        """
        texts = [*shared, *self._read(self._files), *self._read_pages()]
        if self._detail is None or texts != self._texts:
            names = (
                *(_SHARED_V1 if self._version == 1 else _SHARED_V2),
                *self._files,
                *self._most_pages,
                *self._pages,
            )
            self._detail = self._made(dict(zip(names, texts, strict=True)))
            self._texts = texts
        return self._detail

    def _read_pages(self) -> list[bytes | None]:
        """Those who never had huge pages have none: most groups, and half of the files."""
        most = self._read(self._most_pages) if self._most_pages else []
        if most and all(text == _ZERO for text in most):
            return most * 2
        return most + self._read(self._pages)

    def _made(self, texts: _Texts) -> CgroupDetail:
        one = self._version == 1
        return CgroupDetail(
            cpu=_cpu_v1(texts) if one else _cpu_v2(texts),
            memory=_memory_v1(texts) if one else _memory_v2(texts),
            tasks_limit=limit(texts["pids", "pids.max"]),
            io=_io_v1(texts) if one else _io_v2(texts),
            hugetlb=tuple(_hugetlb(self._version, texts, self._page_sizes)),
        )


def read_detail(version: int, read: FilesReader, page_sizes: Iterable[str]) -> CgroupDetail:
    """One look, see `DetailReader.read`."""
    shared = read(_SHARED_V1 if version == 1 else _SHARED_V2)
    return DetailReader(version, read, page_sizes).read(shared)


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


def _cpu_v1(texts: _Texts) -> CpuDetail:
    periods, throttled, throttled_ns = _cpu_stat_v1(texts["cpu", "cpu.stat"])
    return CpuDetail(
        user_ns=number(texts["cpuacct", "cpuacct.usage_user"]) or 0,
        system_ns=number(texts["cpuacct", "cpuacct.usage_sys"]) or 0,
        periods=periods or 0,
        throttled_periods=throttled or 0,
        throttled_ns=throttled_ns or 0,
    )


def _cpu_v2(texts: _Texts) -> CpuDetail:
    user, system, periods, throttled, throttled_usec = _cpu_stat_v2(texts["cpu", "cpu.stat"])
    return CpuDetail(
        user_ns=(user or 0) * _USEC_NS,
        system_ns=(system or 0) * _USEC_NS,
        periods=periods or 0,
        throttled_periods=throttled or 0,
        throttled_ns=(throttled_usec or 0) * _USEC_NS,
    )


# Memory.


def _memory_v1(texts: _Texts) -> MemoryDetail | None:
    stat = texts["memory", "memory.stat"]
    if stat is None:
        return None
    faults, major_faults = _faults(stat)
    [oom_kills] = _oom_kills(texts["memory", "memory.oom_control"])
    return MemoryDetail(
        max_usage_bytes=number(texts["memory", "memory.max_usage_in_bytes"]),
        limit_hits=number(texts["memory", "memory.failcnt"]) or 0,
        kernel_bytes=number(texts["memory", "memory.kmem.usage_in_bytes"]) or 0,
        oom_kills=oom_kills or 0,
        own_page_faults=faults or 0,
        own_major_page_faults=major_faults or 0,
        reservation_bytes=limit(texts["memory", "memory.soft_limit_in_bytes"]) or 0,
    )


def _memory_v2(texts: _Texts) -> MemoryDetail | None:
    stat = texts["memory", "memory.stat"]
    if stat is None:
        return None
    faults, major_faults = _faults(stat)
    kernel, kernel_stack, slab = _kernel(stat)
    hits, oom_kills = _events(texts["memory", "memory.events"])
    if oom_kills is None:
        [oom_kills] = _oom_kills(texts["memory", "memory.events.local"])
    return MemoryDetail(
        max_usage_bytes=number(texts["memory", "memory.peak"]),
        limit_hits=hits or 0,
        kernel_bytes=(kernel_stack or 0) + (slab or 0) if kernel is None else kernel,
        oom_kills=oom_kills or 0,
        # Version 2 counts faults for the whole sub-tree only; containers seldom have one.
        own_page_faults=faults or 0,
        own_major_page_faults=major_faults or 0,
        reservation_bytes=limit(texts["memory", "memory.low"]) or 0,
    )


# Input and output, huge pages.


def _io_v1(texts: _Texts) -> tuple[DeviceIo, ...]:
    sizes = _device_lines(texts["blkio", "blkio.throttle.io_service_bytes_recursive"])
    counts = _device_lines(texts["blkio", "blkio.throttle.io_serviced_recursive"])
    return tuple(
        DeviceIo(
            *place,
            read_bytes=sizes.get(place, {}).get(b"Read", 0),
            write_bytes=sizes.get(place, {}).get(b"Write", 0),
            reads=counts.get(place, {}).get(b"Read", 0),
            writes=counts.get(place, {}).get(b"Write", 0),
        )
        for place in sorted({*sizes, *counts})
    )


def _device_lines(text: bytes | None) -> dict[tuple[int, int], dict[bytes, int]]:
    """`MAJ:MIN Operation N` lines of version 1."""
    found: dict[tuple[int, int], dict[bytes, int]] = {}
    for line in (text or b"").splitlines():
        words = line.split()
        place = device(words[0]) if len(words) == 3 else None
        if place is not None and words[2].isdigit():
            found.setdefault(place, {})[words[1]] = int(words[2])
    return found


def _io_v2(texts: _Texts) -> tuple[DeviceIo, ...]:
    found = []
    for line in (texts["io", "io.stat"] or b"").splitlines():
        name, *pairs = line.split()
        place = device(name)
        if place is None:
            continue
        values = {key: int(n) for key, _, n in (p.partition(b"=") for p in pairs) if n.isdigit()}
        found.append(
            DeviceIo(
                *place,
                read_bytes=values.get(b"rbytes", 0),
                write_bytes=values.get(b"wbytes", 0),
                reads=values.get(b"rios", 0),
                writes=values.get(b"wios", 0),
            )
        )
    return tuple(found)


@lru_cache(maxsize=4)
def _page_files(version: int, sizes: tuple[str, ...]) -> tuple[FileName, ...]:
    return tuple((_HUGETLB, _page_file(version, size)) for size in sizes)


@lru_cache(maxsize=4)
def _most_page_files(version: int, sizes: tuple[str, ...]) -> tuple[FileName, ...]:
    if version != 1:
        return ()
    return tuple((_HUGETLB, _most_page_file(size)) for size in sizes)


def _page_file(version: int, size: str) -> str:
    return f"hugetlb.{size}.usage_in_bytes" if version == 1 else f"hugetlb.{size}.current"


def _most_page_file(size: str) -> str:
    return f"hugetlb.{size}.max_usage_in_bytes"


def _hugetlb(version: int, texts: _Texts, page_sizes: Iterable[str]) -> Iterator[HugetlbUsage]:
    for size in page_sizes:
        usage = number(texts[_HUGETLB, _page_file(version, size)])
        if usage is not None:
            yield HugetlbUsage(size, usage, number(texts.get((_HUGETLB, _most_page_file(size)))))
