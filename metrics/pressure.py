"""What groups have waited for (PSI), read only where it can have changed.

Whoever waits makes every group above wait: the kernel counts a stall in the task's group and in all
those around it up to the machine (kernel/sched/psi.c, psi_task_change). So where a total above has
not moved, none below has, and of a container's three files often one is read, or none: a node that
is well has no memory pressure and seldom any of input and output. Shares of time (avg10 and so on)
move by themselves until they have decayed, so only a group that shows 0.00 is left alone, and only
when it was read once more after the last move above, when its own averages had caught up.

Exact but for rounding: totals above weigh processors by how busy they are and count whole
microseconds, so a stall of less than a microsecond for each processor may be seen late.

With 100 containers in 20 pods that sleep, statistics of all containers read 370 files instead of
600, and those of all pods 430 instead of 820, of which 100 were counts of tasks.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec

from sandbox.host.cgroup_text import Pressure, psi

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metrics.cgroup_grammar import FileName, FilesReader

_NAMES: Final = ("cpu", "memory", "io")
_ALL: Final = (1 << len(_NAMES)) - 1
_MACHINE: Final = "/proc/pressure/"
_READ_BYTES: Final = 4096
#: Averages are brought up to date every two seconds (PSI_FREQ), each group at moments of its own:
#: what is read this long after a stall has it in its averages.
SETTLED_NS: Final = 5_000_000_000
_STILL: Final = b" avg10=0.00 avg60=0.00 avg300=0.00 "


def _files(due: int) -> tuple[FileName, ...]:
    return tuple(("unified", f"{name}.pressure") for n, name in enumerate(_NAMES) if due & 1 << n)


#: By bits of what is due.
FILES: Final = tuple(_files(due) for due in range(_ALL + 1))


class PressureUsage(msgspec.Struct, frozen=True, gc=False):
    """Stalls by resource, each by kind ("some", "full"); empty where the kernel does not tell."""

    cpu: Mapping[str, Pressure]
    memory: Mapping[str, Pressure]
    io: Mapping[str, Pressure]


class Look:
    """One round of readings, begun at `at_ns` (monotonic): in it nothing is read twice."""

    __slots__ = ("at_ns",)

    def __init__(self, at_ns: int) -> None:
        self.at_ns = at_ns


class PressureReader:
    """Pressure of one group, or of the machine; for one thread."""

    __slots__ = ("_look", "_moved_ns", "_read", "_read_ns", "_still", "_texts", "value")

    def __init__(self, read: FilesReader) -> None:
        """`read` gives the texts of `FILES`."""
        self._read = read
        self._look: Look | None = None
        self._texts: list[bytes | None] = [None] * len(_NAMES)
        #: When each text was first seen as it is, and when it was read last.
        self._moved_ns = [0] * len(_NAMES)
        self._read_ns = [0] * len(_NAMES)
        #: Bits of those whose averages are nothing.
        self._still = 0
        #: As of the last look; None where the kernel tells nothing.
        self.value: PressureUsage | None = None

    def look(self, look: Look, above: PressureReader | None = None) -> None:
        """Read what is due, unless that was done in this round. `above` was looked at in it."""
        if due := self.due(look, above):
            self.take(look, due, self._read(FILES[due]))

    def due(self, look: Look, above: PressureReader | None) -> int:
        """Bits of what has to be read, an index of `FILES`; then `take` must be called."""
        if self._look is look:
            return 0
        if above is None:
            return _ALL
        due = _ALL & ~self._still
        if self._still:
            texts, moved_ns = above._texts, above._moved_ns
            for n, read_ns in enumerate(self._read_ns):
                if texts[n] is None or read_ns < moved_ns[n] + SETTLED_NS:
                    due |= 1 << n
        if not due:
            self._look = look
        return due

    def take(self, look: Look, due: int, texts: list[bytes | None]) -> None:
        """Take what was read of what was due."""
        self._look = look
        if due == _ALL and texts == self._texts:
            self._read_ns = [look.at_ns] * len(_NAMES)
            return
        changed = False
        found = iter(texts)
        for n, was in enumerate(self._texts):
            if not due & 1 << n:
                continue
            text = next(found)
            self._read_ns[n] = look.at_ns
            if text != was:
                changed = True
                self._texts[n] = text
                self._moved_ns[n] = look.at_ns
                self._still = self._still & ~(1 << n) | _is_still(text) << n
        if changed:
            self.value = _usage(self._texts)

    def is_of(self, look: Look) -> bool:
        """Whether `value` is of this round."""
        return self._look is look

    def forget(self) -> None:
        """The group was made anew: all of it is due."""
        self._look = None
        self._still = 0


def machine_files(names: tuple[FileName, ...]) -> list[bytes | None]:
    """The machine's own files in place of a group's; opened each time, for they are but three."""
    return [_text(f"{_MACHINE}{name.removesuffix('.pressure')}") for _, name in names]


def _text(path: str) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, _READ_BYTES)
    except OSError:
        return None
    finally:
        os.close(fd)


def _is_still(text: bytes | None) -> bool:
    return text is not None and text.count(_STILL) == text.count(b"\n")


def _usage(texts: list[bytes | None]) -> PressureUsage | None:
    if all(text is None for text in texts):
        return None
    return PressureUsage(*(_psi(text or b"") for text in texts))


@lru_cache(maxsize=256)
def _psi(text: bytes) -> Mapping[str, Pressure]:
    """One value for all groups that never waited: a thousand groups have three each."""
    return psi(text.decode())
