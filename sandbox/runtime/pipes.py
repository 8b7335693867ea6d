"""Reading pipes on the event loop, with every way they can end.

`asyncio`'s own stream readers wrap a pipe in a transport whose closing is asynchronous and whose
buffer grows while nobody reads; a helper program's pipe needs neither: read what is there, hand it
on, stop at the end, at a deadline, or when told.
"""

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

from sandbox.host.errors import map_os_errors
from sandbox.host.files import Fd
from sandbox.host.pidfd import start_ticks

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.model import ProcessRef

#: A pipe's default capacity (pipe(7)): one read takes all there can be.
READ_BYTES: Final = 64 * 1024
#: What each command may keep however much others keep; a probe's last words are far shorter.
SHARE_BYTES: Final = 64 * 1024
#: Of a pipe that is a standard stream: see `make_pipe`.
STREAM_MODE: Final = 0o666


def make_pipe() -> tuple[Fd, Fd]:
    """(reading end, writing end), both close-on-exec, the reading end non-blocking.

    The command may open it again by name (/dev/stderr), whoever it runs as: only who may look into
    the command's /proc finds that name.

    Raises:
        ResourceExhausted: no descriptor is left.
    """
    with map_os_errors("cannot make a pipe"):
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.fchmod(writing, STREAM_MODE)
    os.set_blocking(reading, False)
    return Fd(reading), Fd(writing)


def open_streams(process: ProcessRef) -> None:
    """Do the same for the streams of a container's first process that are pipes of conmon.

    Runtimes give them to the container's user, but from inside a user namespace runc cannot. Call
    before the container's program runs. Blocking; a process that is gone needs nothing.
    """
    try:
        streams = os.open(f"/proc/{process.pid}/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if start_ticks(process.pid) != process.start_ticks:
            return
        for name in ("0", "1", "2"):
            with suppress(OSError):
                if stat.S_ISFIFO(os.stat(name, dir_fd=streams).st_mode):
                    os.chmod(name, STREAM_MODE, dir_fd=streams)
    finally:
        os.close(streams)


async def drain(pipe: Fd, take: Callable[[bytes], bool]) -> None:
    """Hand everything that comes to `take` until the end, or until `take` returns False.

    The pipe stays open; a cancelled call has handed over whatever it had read.
    """
    loop = asyncio.get_running_loop()
    number = pipe.fileno()
    done: asyncio.Future[None] = loop.create_future()

    def readable() -> None:
        try:
            data = os.read(number, READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            if not done.done():
                done.set_exception(error)
            return
        if (not data or not take(data)) and not done.done():
            done.set_result(None)
            loop.remove_reader(number)

    loop.add_reader(number, readable)
    try:
        with map_os_errors("cannot read from a helper program's pipe"):
            await done
    finally:
        loop.remove_reader(number)


async def read_line(pipe: Fd, *, limit_bytes: int) -> bytes:
    """What comes up to the first newline or the end; beyond `limit_bytes` it is dropped."""
    buffer = bytearray()

    def take(data: bytes) -> bool:
        buffer.extend(data[: limit_bytes - len(buffer)])
        return b"\n" not in data and len(buffer) < limit_bytes

    await drain(pipe, take)
    return bytes(buffer)


class Pool:
    """Bytes that the streams of all commands may hold at once, beyond a share that each has."""

    def __init__(self, limit_bytes: int) -> None:
        self.left_bytes = limit_bytes


class Budget:
    """Bytes that several streams may take together; `exceeded` tells that there was more.

    As a context manager it gives back to the pool what it took from there.
    """

    def __init__(self, limit_bytes: int, pool: Pool | None = None) -> None:
        """A budget of `limit_bytes`; beyond SHARE_BYTES only as long as the pool has some."""
        self._pool = pool
        self._share_bytes = SHARE_BYTES if pool else limit_bytes
        self._taken_bytes = 0
        self.left_bytes = limit_bytes
        self.exceeded = False

    def __enter__(self) -> Self:
        """The budget."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Give back; nothing can be taken any more."""
        self.left_bytes = self._share_bytes = 0
        if self._pool is not None:
            self._pool.left_bytes += self._taken_bytes
            self._taken_bytes = 0

    def grant(self, wanted_bytes: int) -> int:
        """How many of these may be kept; they count as taken."""
        granted = min(wanted_bytes, self.left_bytes)
        from_share = min(granted, self._share_bytes)
        from_pool = granted - from_share
        if self._pool is not None:
            from_pool = min(from_pool, self._pool.left_bytes)
            self._pool.left_bytes -= from_pool
            self._taken_bytes += from_pool
        self._share_bytes -= from_share
        self.left_bytes -= from_share + from_pool
        self.exceeded |= from_share + from_pool < wanted_bytes
        return from_share + from_pool


class Captured:
    """What one stream brought, as far as the budget goes."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._ended = False
        self.data = bytearray()

    def take(self, chunk: bytes) -> bool:
        """Keep what there is room for; always wants more, so that the writer never blocks."""
        kept = 0 if self._ended else self._budget.grant(len(chunk))
        # What comes when there is room again would follow a gap that nobody could see.
        self._ended |= kept < len(chunk)
        self.data += chunk[:kept]
        return True
