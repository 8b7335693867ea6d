"""What happens in one directory, as an asynchronous iterator of (mask, name).

inotify where it can be had. Its instances are few (128 for a user, fs.inotify.max_user_instances)
and other programs use them up; then the directory is listed every second instead, and the same
masks are made up from the differences. A watcher that loses events says so with IN_Q_OVERFLOW:
list the directory again.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from collections import deque
from typing import TYPE_CHECKING, Final, Self

from sandbox.host import syscalls as sc
from sandbox.host.clock import Clock, SystemClock
from sandbox.host.errors import PodwrightError, from_os_error
from sandbox.host.journal import get_logger
from sandbox.host.libc import LibcSyscalls

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sandbox.host.syscalls import Syscalls

_log = get_logger(__name__)

#: Names that are complete and names that went, whichever way; the watched directory itself.
DEFAULT_MASK: Final = (
    sc.IN_CLOSE_WRITE
    | sc.IN_CREATE
    | sc.IN_MOVED_TO
    | sc.IN_MOVED_FROM
    | sc.IN_DELETE
    | sc.IN_DELETE_SELF
    | sc.IN_MOVE_SELF
)
#: Between two listings, where inotify cannot be had.
POLL_S: Final = 1.0
_EVENT: Final = struct.Struct("iIII")  # struct inotify_event without its name
_READ_BYTES: Final = 64 * 1024
_ENDS: Final = sc.IN_DELETE_SELF | sc.IN_MOVE_SELF | sc.IN_UNMOUNT | sc.IN_IGNORED

Stamp = tuple[int, int, int, int]


class DirWatch:
    """Open it first, then list the directory: nothing is missed between the two.

    The iteration ends when the directory itself is gone (its last mask says how) or after `close`.
    """

    def __init__(self, path: Path, mask: int, clock: Clock, syscalls: Syscalls) -> None:
        self._path = path
        self._mask = mask
        self._clock = clock
        self._syscalls = syscalls
        self._events: deque[tuple[int, str]] = deque()
        self._ready = asyncio.Event()
        self._ended = False
        self._fd = -1
        self._seen: Mapping[str, Stamp] = {}
        self._loop = asyncio.get_running_loop()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        mask: int = DEFAULT_MASK,
        clock: Clock | None = None,
        syscalls: Syscalls | None = None,
    ) -> Self:
        """Begin to watch the directory `path`.

        Raises:
            NotFound: no such directory.
            InvalidArgument: not a directory.
        """
        watch = cls(path, mask, clock or SystemClock(), syscalls or LibcSyscalls())
        watch._begin()
        return watch

    @property
    def polling(self) -> bool:
        """Whether the directory is being listed because inotify could not be had."""
        return self._fd < 0 and not self._ended

    def _begin(self) -> None:
        try:
            self._fd = self._syscalls.inotify_init1()
            self._syscalls.inotify_add_watch(self._fd, self._path, self._mask | sc.IN_ONLYDIR)
        except PodwrightError as error:
            self._close_fd()
            # EMFILE: no instance left; ENOSPC: no watch left; ENOMEM as both.
            if sc.errno_of(error) not in (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ENOMEM):
                raise
            try:
                self._seen = _listing(self._path)
            except OSError as failure:
                raise from_os_error(failure, "cannot watch directory") from failure
        else:
            self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        try:
            chunk = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        at = 0
        while at < len(chunk):
            _, mask, _, length = _EVENT.unpack_from(chunk, at)
            name = chunk[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
            at += _EVENT.size + length
            if mask & sc.IN_IGNORED:
                self._finish()
            else:
                self._events.append((mask, os.fsdecode(name)))
                if mask & _ENDS:
                    self._finish()
        self._ready.set()

    def _finish(self) -> None:
        self._ended = True
        self._close_fd()
        self._ready.set()

    def _close_fd(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            if not self._loop.is_closed():
                self._loop.remove_reader(fd)
            os.close(fd)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, str]:
        while not self._events:
            if self._ended:
                raise StopAsyncIteration
            if self._fd < 0:
                await self._clock.sleep(POLL_S)
                if not self._ended:
                    await self._poll()
            else:
                self._ready.clear()
                await self._ready.wait()
        return self._events.popleft()

    async def _poll(self) -> None:
        try:
            self._compare(await asyncio.to_thread(_listing, self._path))
        except (FileNotFoundError, NotADirectoryError):
            self._events.append((sc.IN_DELETE_SELF, ""))
            self._ended = True
        except OSError as error:
            # No descriptor left, most likely: a watch outlives that, the next listing catches up.
            _log.warning("directory not listed", path=str(self._path), error=error)

    def _compare(self, now: Mapping[str, Stamp]) -> None:
        before, self._seen = self._seen, now
        events = [(sc.IN_DELETE, name) for name in before if name not in now]
        for name, stamp in now.items():
            if name not in before:
                events += [(sc.IN_CREATE, name), (sc.IN_CLOSE_WRITE, name)]
            elif before[name] != stamp:
                events.append((sc.IN_CLOSE_WRITE, name))
        self._events.extend((mask, name) for mask, name in events if mask & self._mask)

    def close(self) -> None:
        """Stop; an iteration that waits ends. Idempotent."""
        self._finish()


def _listing(path: Path) -> dict[str, Stamp]:
    found: dict[str, Stamp] = {}
    with os.scandir(path) as entries:
        for entry in entries:
            try:
                info = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            found[entry.name] = (info.st_ino, info.st_mtime_ns, info.st_ctime_ns, info.st_size)
    return found
