"""How much is written to log files that are rotated under the eyes of who measures.

Each file is kept open, for nothing but its size (O_PATH), from one look to the next. When another
file has taken its name, what was written to the old one until then is still seen, also when it is
gone already, and the new one is counted from its beginning. Two system calls for a log and look; a
removed log keeps its space until the next look.
"""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sandbox.host.files import Fd

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sandbox.host.clock import Clock

_FLAGS: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Look:
    """What happened between two looks.

    Attributes:
        written_bytes: to all logs.
        rotations: logs that have become other files.
        rates: bytes in a second by key, of logs that were looked at before.
    """

    written_bytes: int = 0
    rotations: int = 0
    rates: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Log:
    file: Fd
    size_bytes: int
    seen_ns: int


class LogFiles:
    """The logs that are watched. Blocking, briefly; for any thread."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._logs: dict[str, _Log] = {}
        self._looked = False

    def look(self, paths: Mapping[str, Path]) -> Look:
        """What was written since the last look; logs not among `paths` are let go afterwards.

        The first look finds logs of a former life and takes them as they are; a log that appears
        later is counted from its beginning.
        """
        with self._lock:
            return self._look(paths)

    def _look(self, paths: Mapping[str, Path]) -> Look:
        written, rotations, rates = 0, 0, {}
        for key in self._logs.keys() - paths.keys():
            gone = self._logs.pop(key)
            written += self._grown(gone)
            gone.file.close()
        for key, path in paths.items():
            known = self._logs.get(key)
            if known is None:
                log = self._opened(path)
                if log is not None:
                    self._logs[key] = log
                    if self._looked:
                        written += self._grown(log)
                    else:
                        self._grown(log)
                continue
            before_ns, grown = known.seen_ns, self._grown(known)
            if not _is(known.file, path) and (new := self._opened(path)) is not None:
                known.file.close()
                self._logs[key] = new
                grown += self._grown(new)
                rotations += 1
            written += grown
            elapsed_ns = self._clock.monotonic_ns() - before_ns
            if elapsed_ns > 0:
                rates[key] = grown * 1e9 / elapsed_ns
        self._looked = True
        return Look(written, rotations, rates)

    def close(self) -> None:
        """Let all files go. Idempotent."""
        with self._lock, ExitStack() as stack:
            while self._logs:
                stack.callback(self._logs.popitem()[1].file.close)

    def _opened(self, path: Path) -> _Log | None:
        try:
            fd = os.open(path, _FLAGS)
        except OSError:
            return None  # not there yet, or between rename and reopening
        return _Log(Fd(fd), 0, self._clock.monotonic_ns())

    def _grown(self, log: _Log) -> int:
        """Bytes since the last time; one that was cut short has written what it has now."""
        size_bytes = os.fstat(log.file.fileno()).st_size
        grown = size_bytes - log.size_bytes
        log.size_bytes, log.seen_ns = size_bytes, self._clock.monotonic_ns()
        return grown if grown >= 0 else size_bytes


def _is(file: Fd, path: Path) -> bool:
    """Whether `path` still names the file; one that is away for a moment is no other."""
    try:
        there = path.lstat()
    except OSError:
        return True
    return os.path.samestat(there, os.fstat(file.fileno()))
