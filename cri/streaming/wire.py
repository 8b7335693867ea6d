"""One client's TCP or TLS connection on the event loop, bounded in both directions.

Bytes go to a receiver as they come, nothing is collected here; whoever cannot take more holds the
reading. A held connection does not tell when its client goes away, so it is looked at once a
second: a client that was killed must not keep a container's command alive only because its input
is stuck.

Closing well needs care: a connection that is closed while bytes of the client are unread sends a
reset, and that makes the client's kernel throw away what it has not read yet, the exit status for
example. So: flush, say that no more comes, then read on and drop until the client closes.
"""

from __future__ import annotations

import asyncio
import select
from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast

from sandbox.host.errors import Cancelled, PodwrightError
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.host.clock import Clock

#: Bytes that wait in this process for a client to read; beyond it, writers wait.
WRITE_HIGH_BYTES: Final = 256 * 1024
#: How often a held connection is looked at.
LOOK_S: Final = 1.0
#: A client that takes nothing for so long at the end of its session is given up.
FLUSH_S: Final = 10.0
#: How long a client may take to close its side after everything was sent.
LINGER_S: Final = 5.0

_log = get_logger(__name__)


class ClientGone(Cancelled):
    """The client has closed the connection, was killed, or takes nothing any more."""


class Wire(asyncio.Protocol):
    """A connection; `receiver` is to be set when it is made."""

    def __init__(self, made: Callable[[Wire], None], *, clock: Clock) -> None:
        self.receiver: Callable[[bytes], None] = _drop
        self.lost = asyncio.Event()
        self.last_ns = clock.monotonic_ns()
        self._made = made
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._holders: set[object] = set()
        self._looking: asyncio.TimerHandle | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._written_bytes = 0
        self._finished = False
        self._on_lost: list[Callable[[], None]] = []

    @property
    def peer(self) -> str:
        """The client's address, for the log."""
        name = self._transport.get_extra_info("peername") if self._transport is not None else None
        return f"{name[0]}:{name[1]}" if name else "unknown"

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self._made(self)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self.last_ns = self._clock.monotonic_ns()
        if self.lost.is_set():
            return
        try:
            self.receiver(data)
        except PodwrightError as error:
            _log.info("streaming client broke its protocol", peer=self.peer, error=str(error))
            self.abort()

    def eof_received(self) -> None:
        """The client sends no more at all: it is gone, none of them half-closes a connection."""
        self._lose()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._lose()
        self._transport = None
        self._holders.clear()
        self._stop_looking()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._writable.set()

    # Losing the client.

    def when_lost(self, call: Callable[[], None]) -> None:
        """Have `call` called once the client has gone."""
        if self.lost.is_set():
            call()
        else:
            self._on_lost.append(call)

    def _lose(self) -> None:
        if self.lost.is_set():
            return
        self.lost.set()
        self._writable.set()
        calls, self._on_lost = self._on_lost, []
        for call in calls:
            call()

    def leave(self) -> None:
        """The client has said that it leaves."""
        self._lose()
        if self._transport is not None:
            if self._transport.get_write_buffer_size():
                self._transport.abort()  # it says so, and does not read
            else:
                self._transport.close()

    def abort(self) -> None:
        """Drop the connection with all that is queued, unless it was finished. Idempotent."""
        self._lose()
        if self._transport is not None and not self._finished:
            self._transport.abort()

    # Reading.

    def hold(self, holder: object) -> None:
        """Read no more until `holder` releases."""
        if self._transport is None or self._transport.is_closing():
            return
        if not self._holders:
            self._transport.pause_reading()
            self._look_later()
        self._holders.add(holder)

    def release(self, holder: object) -> None:
        """Undo `hold`; idempotent."""
        if holder not in self._holders:
            return
        self._holders.discard(holder)
        if not self._holders:
            self._stop_looking()
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    def _look_later(self) -> None:
        self._looking = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _stop_looking(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def _look(self) -> None:
        if self._transport is None:
            return
        socket = self._transport.get_extra_info("socket")
        if socket is not None and _has_left(socket.fileno()):
            self.abort()
        else:
            self._look_later()

    # Writing.

    @property
    def congested(self) -> bool:
        """Whether the client reads more slowly than we write."""
        return not self._writable.is_set()

    @property
    def sent_bytes(self) -> int:
        """What the kernel has taken so far; where this stands still, the client does not read."""
        queued = self._transport.get_write_buffer_size() if self._transport is not None else 0
        return self._written_bytes - queued

    def write(self, data: bytes) -> None:
        """Queue bytes; `drain` keeps the queue bounded. After the client has gone: dropped."""
        if data and self._transport is not None and not self.lost.is_set():
            self.last_ns = self._clock.monotonic_ns()
            self._written_bytes += len(data)
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until there is room in the queue. Raises ClientGone."""
        await self._writable.wait()
        if self.lost.is_set():
            raise ClientGone("streaming client has gone")

    async def keep_moving(self, work: set[asyncio.Task[None]]) -> None:
        """Wait for `work`, which sends; a client that takes nothing for FLUSH_S is dropped."""
        while work:
            before = self.sent_bytes
            _, work = await asyncio.wait(work, timeout=FLUSH_S)
            if work and self.sent_bytes == before:
                _log.info("streaming client does not read, dropped", peer=self.peer)
                self.abort()

    async def finish(self) -> None:
        """Send what is queued, wait for the client to close, close."""
        transport = self._transport
        if transport is None:
            return
        self.receiver = _drop
        for holder in list(self._holders):
            self.release(holder)
        # From here on writable means empty. Not 0: with TLS asyncio pauses at "at least" the limit.
        transport.set_write_buffer_limits(high=1, low=0)
        await self._flushed()
        if not self.lost.is_set() and transport.can_write_eof() and not transport.is_closing():
            # ENOTCONN: the client has reset the connection, and asyncio has yet to find out.
            with suppress(OSError):
                transport.write_eof()
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await self.lost.wait()
        # With TLS there may be bytes below that we cannot see; asyncio flushes them, with a limit.
        self._finished = True
        transport.close()

    async def _flushed(self) -> None:
        while self.congested and not self.lost.is_set():
            before = self.sent_bytes
            try:
                async with asyncio.timeout(FLUSH_S):
                    await self._writable.wait()
            except TimeoutError:
                if self.sent_bytes == before:
                    self.abort()


def _drop(data: bytes) -> None:
    """Nobody is interested."""


def _has_left(fd: int) -> bool:
    """Whether the other side has closed or reset, also while what it sent is unread."""
    if fd < 0:
        return True
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    return bool(poll.poll(0))
