"""What a control group has used: the files of both versions into the same typed values. Pure.

A reader asks for the texts of several files at once (None when the kernel has no such file) and
makes values of them, so that tests need no kernel and the sampler alone decides how files are
opened. Units are in the names; what the versions count differently is brought together here, and in
`cgroup_detail` for what only a scrape needs:

| value        | version 1                                    | version 2                        |
|--------------|----------------------------------------------|----------------------------------|
| cpu time     | cpuacct.usage, _user, _sys: nanoseconds      | cpu.stat: microseconds           |
| memory       | hierarchical `total_` keys of memory.stat    | memory.stat is hierarchical      |
| swap         | `total_swap`; limit of both less memory's    | memory.swap.*, swap alone        |
| io           | blkio.throttle.*_recursive, bytes and counts | io.stat                          |
| pressure     | of the cgroup2 tree beside (hybrid), if any  | its own files                    |

Every look reads every file. What the kernel then says in the same words as at the look before is
not made into values again: most containers of a node do nothing most of the time, and a look at
one of those takes two thirds of what it took.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec

from metrics.cgroup_grammar import Keyed, limit, number, unlimited
from sandbox.host.cgroup_text import Pressure, psi

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metrics.cgroup_grammar import FilesReader

_USEC_NS: Final = 1_000

_PRESSURES: Final = tuple(("unified", f"{name}.pressure") for name in ("cpu", "memory", "io"))
_TASKS: Final = ("pids", "pids.current")
#: Time, then memory, then pressure.
_USAGE_V1: Final = (
    ("cpuacct", "cpuacct.usage"),
    ("memory", "memory.usage_in_bytes"),
    ("memory", "memory.stat"),
    *_PRESSURES,
)
_LIMITS_V1: Final = (("memory", "memory.limit_in_bytes"), ("memory", "memory.memsw.limit_in_bytes"))
_USAGE_V2: Final = (
    ("cpu", "cpu.stat"),
    ("memory", "memory.current"),
    ("memory", "memory.stat"),
    ("memory", "memory.max"),
    ("memory", "memory.swap.current"),
    ("memory", "memory.swap.max"),
    *_PRESSURES,
)
_USAGE_V1_AND_TASKS: Final = (_TASKS, *_USAGE_V1)
_USAGE_V2_AND_TASKS: Final = (_TASKS, *_USAGE_V2)
_PRESSURES_AT: Final = -len(_PRESSURES)

_cpu_v2: Final = Keyed("usage_usec")
_limit_v1: Final = Keyed("hierarchical_memory_limit")
_memory_v1: Final = Keyed(
    "total_inactive_file",
    "total_rss",
    "total_cache",
    "total_mapped_file",
    "total_pgfault",
    "total_pgmajfault",
    "total_swap",
)
_memory_v2: Final = Keyed("inactive_file", "anon", "file", "file_mapped", "pgfault", "pgmajfault")


class MemoryUsage(msgspec.Struct, frozen=True, gc=False):
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


class PressureUsage(msgspec.Struct, frozen=True, gc=False):
    """Stalls by resource, each by kind ("some", "full"); empty where the kernel does not tell."""

    cpu: Mapping[str, Pressure]
    memory: Mapping[str, Pressure]
    io: Mapping[str, Pressure]


class CgroupStats(msgspec.Struct, frozen=True, gc=False):
    """What stats answers need of one group; `cpu_usage_ns` since it was made.

    `tasks` is None also where nobody asked.
    """

    cpu_usage_ns: int | None
    memory: MemoryUsage | None
    tasks: int | None
    pressure: PressureUsage | None


#: Of what is in no group of its own.
NO_STATS: Final = CgroupStats(None, None, None, None)


class UsageReader:
    """Reads the usage of one group again and again."""

    __slots__ = (
        "_memory",
        "_memory_texts",
        "_pressure",
        "_pressure_texts",
        "_read",
        "_version",
        "shared",
    )

    def __init__(self, version: int, read: FilesReader) -> None:
        """`version` of the control groups; `read` gives the files of the group."""
        self._version = version
        self._read = read
        self._memory_texts: list[bytes | None] = []
        self._memory: MemoryUsage | None = None
        self._pressure_texts: list[bytes | None] = []
        self._pressure: PressureUsage | None = None
        #: What the detail needs as well of the last look: memory.stat, and cpu.stat of version 2.
        self.shared: list[bytes | None] = []

    def read(self, *, tasks: bool = True) -> CgroupStats:
        """Usage; parts whose files are missing are None. Files that make no sense count 0.

        Args:
            tasks: whether they are counted. The kernel takes about as long for each file of a
                group that nobody has read for a second, so none is read that nobody needs.
        """
        one = self._version == 1
        if tasks:
            count, cpu, *memory = self._read(_USAGE_V1_AND_TASKS if one else _USAGE_V2_AND_TASKS)
        else:
            count = None
            cpu, *memory = self._read(_USAGE_V1 if one else _USAGE_V2)
        pressure = memory[_PRESSURES_AT:]
        del memory[_PRESSURES_AT:]
        if one:
            usage_ns = number(cpu)
            self.shared = memory[1:2]
            memory += self._limits_v1(memory[1])
        else:
            [usage_usec] = _cpu_v2(cpu)
            self.shared = [memory[1], cpu]
            usage_ns = None if usage_usec is None else usage_usec * _USEC_NS
        if memory != self._memory_texts:
            self._memory = _of_v1(memory) if one else _of_v2(memory)
            self._memory_texts = memory
        if pressure != self._pressure_texts:
            self._pressure = _pressure_usage(pressure)
            self._pressure_texts = pressure
        return CgroupStats(usage_ns, self._memory, number(count), self._pressure)

    def _limits_v1(self, stat: bytes | None) -> list[bytes | None]:
        """The texts of the group's own limits; none where no group above has one, nor itself."""
        [least] = _limit_v1(stat)
        return [None, None] if unlimited(least) else self._read(_LIMITS_V1)


def read_stats(version: int, read: FilesReader) -> CgroupStats:
    """One look, see `UsageReader.read`."""
    return UsageReader(version, read).read()


def _of_v1(texts: list[bytes | None]) -> MemoryUsage | None:
    usage_text, stat, limit_text, both_text = texts
    usage = number(usage_text)
    if usage is None:
        return None
    inactive, rss, cache, mapped, faults, major, swap = _memory_v1(stat)
    most, both = limit(limit_text), limit(both_text)
    return MemoryUsage(
        usage_bytes=usage,
        working_set_bytes=max(0, usage - (inactive or 0)),
        limit_bytes=most,
        rss_bytes=rss or 0,
        cache_bytes=cache or 0,
        mapped_file_bytes=mapped or 0,
        page_faults=faults or 0,
        major_page_faults=major or 0,
        swap_usage_bytes=swap or 0,
        # Version 1 limits memory and swap together.
        swap_limit_bytes=None if most is None or both is None else max(0, both - most),
    )


def _of_v2(texts: list[bytes | None]) -> MemoryUsage | None:
    usage_text, stat, limit_text, swap_text, swap_limit_text = texts
    usage = number(usage_text)
    if usage is None:
        return None
    inactive, anon, file, mapped, faults, major = _memory_v2(stat)
    return MemoryUsage(
        usage_bytes=usage,
        working_set_bytes=max(0, usage - (inactive or 0)),
        limit_bytes=limit(limit_text),
        rss_bytes=anon or 0,
        cache_bytes=file or 0,
        mapped_file_bytes=mapped or 0,
        page_faults=faults or 0,
        major_page_faults=major or 0,
        swap_usage_bytes=number(swap_text) or 0,
        swap_limit_bytes=limit(swap_limit_text),
    )


def _pressure_usage(texts: list[bytes | None]) -> PressureUsage | None:
    if all(text is None for text in texts):
        return None
    return PressureUsage(*(_psi(text or b"") for text in texts))


@lru_cache(maxsize=256)
def _psi(text: bytes) -> Mapping[str, Pressure]:
    """One value for all groups that never waited: a thousand groups have three each."""
    return psi(text.decode())
