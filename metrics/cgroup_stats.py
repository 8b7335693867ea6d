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

What the kernel says in the same words as at the look before is not made into values again: most
containers of a node do nothing most of the time, and a look at one of those takes two thirds of
what it took. Files that cannot have changed are not read: those of pressure where nobody above has
waited (`pressure`), and the number of tasks of a group that has not run, since who forks or ends
runs. A file that nobody has read for a second costs the kernel ten times one that was just read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from metrics import pressure
from metrics.cgroup_grammar import Keyed, limit, number, unlimited
from metrics.pressure import Look, PressureReader

if TYPE_CHECKING:
    from metrics.cgroup_grammar import FilesReader
    from metrics.pressure import PressureUsage

_USEC_NS: Final = 1_000

_TASKS: Final = (("pids", "pids.current"),)
#: Time, then memory.
_USAGE_V1: Final = (
    ("cpuacct", "cpuacct.usage"),
    ("memory", "memory.usage_in_bytes"),
    ("memory", "memory.stat"),
)
_LIMITS_V1: Final = (("memory", "memory.limit_in_bytes"), ("memory", "memory.memsw.limit_in_bytes"))
_USAGE_V2: Final = (
    ("cpu", "cpu.stat"),
    ("memory", "memory.current"),
    ("memory", "memory.stat"),
    ("memory", "memory.max"),
    ("memory", "memory.swap.current"),
    ("memory", "memory.swap.max"),
)
#: With what is due of pressure, by its bits: all of a look in one reading.
_LOOKS_V1: Final = tuple(_USAGE_V1 + files for files in pressure.FILES)
_LOOKS_V2: Final = tuple(_USAGE_V2 + files for files in pressure.FILES)
_ALL_DUE: Final = len(pressure.FILES) - 1

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
        "_counted_ns",
        "_last",
        "_memory",
        "_read",
        "_tasks",
        "_texts",
        "_unlimited",
        "_usage_ns",
        "_version",
        "pressure",
        "shared",
    )

    def __init__(self, version: int, read: FilesReader) -> None:
        """`version` of the control groups; `read` gives the files of the group."""
        self._version = version
        self._read = read
        #: Time, memory and its limits, as they were last.
        self._texts: list[bytes | None] = []
        self._usage_ns: int | None = None
        self._memory: MemoryUsage | None = None
        self._last = NO_STATS
        self._unlimited = False
        #: When tasks were counted.
        self._counted_ns: int | None = None
        self._tasks: int | None = None
        self.pressure = PressureReader(read)
        #: What the detail needs as well of the last look: memory.stat, and cpu.stat of version 2.
        self.shared: list[bytes | None] = []

    def read(
        self, *, tasks: bool = True, look: Look | None = None, above: PressureReader | None = None
    ) -> CgroupStats:
        """Usage; parts whose files are missing are None. Files that make no sense count 0.

        Args:
            tasks: whether they are counted. The kernel takes about as long for each file of a
                group that nobody has read for a second, so none is read that nobody needs.
            look: the round that this is part of; None for one of its own.
            above: the pressure of a group above this one, of the same round.
        """
        look = Look(0) if look is None else look
        one = self._version == 1
        due = self.pressure.due(look, above)
        texts = self._read((_LOOKS_V1 if one else _LOOKS_V2)[due])
        usual = len(_USAGE_V1) if one else len(_USAGE_V2)
        if due:
            self.pressure.take(look, due, texts[usual:])
            del texts[usual:]
        if one:
            texts += self._limits_v1(texts[2])
        # Word for word as they were, for groups that sleep: then nothing is made of them.
        if texts != self._texts:
            was, self._texts = self._texts, texts
            usage_ns = number(texts[0]) if one else _time_v2(texts[0])
            if due != _ALL_DUE and (usage_ns is None or usage_ns < (self._usage_ns or 0)):
                # Perhaps the group was made anew.
                self.pressure.forget()
                self.pressure.look(look)
            self._usage_ns = usage_ns
            self.shared = texts[2:3] if one else [texts[2], texts[0]]
            if texts[1:] != was[1:]:
                self._memory = _of_v1(texts[1:]) if one else _of_v2(texts[1:])
        count = self._count() if tasks else None
        last, waited = self._last, self.pressure.value
        if (
            last.cpu_usage_ns != self._usage_ns
            or last.memory is not self._memory
            or last.pressure is not waited
            or last.tasks != count
        ):
            self._last = CgroupStats(self._usage_ns, self._memory, count, waited)
        return self._last

    def _count(self) -> int | None:
        """How many tasks there are; of a group that has not run since, as many as there were."""
        if self._usage_ns is None or self._usage_ns != self._counted_ns:
            [text] = self._read(_TASKS)
            self._tasks, self._counted_ns = number(text), self._usage_ns
        return self._tasks

    def _limits_v1(self, stat: bytes | None) -> list[bytes | None]:
        """The texts of the group's own limits; none where no group above has one, nor itself."""
        was = self._texts
        if not was or was[2] != stat:
            [least] = _limit_v1(stat)
            self._unlimited = unlimited(least)
        return [None, None] if self._unlimited else self._read(_LIMITS_V1)


def read_stats(version: int, read: FilesReader) -> CgroupStats:
    """One look, see `UsageReader.read`."""
    return UsageReader(version, read).read()


def _time_v2(text: bytes | None) -> int | None:
    [usage_usec] = _cpu_v2(text)
    return None if usage_usec is None else usage_usec * _USEC_NS


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
