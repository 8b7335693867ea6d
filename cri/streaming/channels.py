"""Streams of one client, whichever protocol carries them: read, send, finish, reset.

What a client sends is kept until somebody reads it; when all streams of a connection together
hold too much, the connection is not read any more. That is the connection's business, not the
stream's, because TCP can only be slowed as a whole: the same limit, and the same consequence, that
Kubernetes' own servers have.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cri.streaming.wire import Wire

#: Unread bytes of all streams of a connection; above it, reading stops until half is taken.
UNREAD_LIMIT_BYTES: Final = 256 * 1024
#: Most of one read: a pipe's capacity.
READ_BYTES: Final = 64 * 1024


class ClientStream:
    """One stream; reading and sending are independent of each other."""

    def __init__(self, link: Link, number: int, headers: Mapping[str, str]) -> None:
        """Made by a link.

        Args:
            link: what it belongs to.
            number: SPDY stream id or channel number.
            headers: names in lower case; empty for channels.
        """
        self.number = number
        self.headers = headers
        self.was_reset = False
        #: Set once nothing can come or go any more: reset by either side, or the client is gone.
        self.over = asyncio.Event()
        self._link = link
        self._unread = bytearray()
        self._ended = False
        self._dropping = False
        self._finished = False
        self._changed = asyncio.Event()

    # Reading.

    async def read(self) -> bytes:
        """What came next; empty once the client sends no more (finished, reset or gone)."""
        while not self._unread:
            if self._ended:
                return b""
            self._changed.clear()
            await self._changed.wait()
        data = bytes(self._unread[:READ_BYTES])
        del self._unread[:READ_BYTES]
        self._link.taken(self, len(data))
        return data

    def discard(self) -> None:
        """Nobody will read: drop what is there and what comes, so that the client is not held."""
        self._dropping = True
        size_bytes = len(self._unread)
        self._unread.clear()
        if size_bytes:
            self._link.taken(self, size_bytes)

    def feed(self, data: bytes, *, last: bool = False) -> None:
        """For the link: bytes from the client."""
        if data and not self._ended:
            self._link.held(len(data))
            if self._dropping:
                self._link.taken(self, len(data))
            else:
                self._unread += data
        if last:
            self._ended = True
        self._changed.set()

    def end(self, *, reset: bool = False) -> None:
        """For the link: the client sends no more; after a reset what is unread is void."""
        self._ended = True
        if reset:
            self.was_reset = True
            self.discard()
            self.over.set()
        self._changed.set()

    # Sending.

    async def send(self, data: bytes) -> None:
        """Send, and wait for as long as the client is behind. Raises ClientGone.

        After `finish` or a reset by the client it is dropped.
        """
        if data and not self._finished and not self.was_reset:
            await self._link.send(self, data)

    def finish(self) -> None:
        """Send no more. Idempotent."""
        if not self._finished:
            self._finished = True
            self._link.finish(self)

    def reset(self) -> None:
        """End it in both directions at once."""
        self._finished = True
        self._link.reset(self)
        self.end(reset=True)


class Link(ABC):
    """A connection seen as its streams; made after the upgrade."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._unread_bytes = 0
        wire.when_lost(self._lost)

    @abstractmethod
    def streams(self) -> list[ClientStream]:
        """All there are now."""

    @abstractmethod
    async def send(self, stream: ClientStream, data: bytes) -> None:
        """For streams: see `ClientStream.send`."""

    @abstractmethod
    def finish(self, stream: ClientStream) -> None:
        """For streams: see `ClientStream.finish`."""

    @abstractmethod
    def reset(self, stream: ClientStream) -> None:
        """For streams: see `ClientStream.reset`."""

    @abstractmethod
    async def close(self) -> None:
        """Say good-bye in the protocol's own way, then close the connection well."""

    def held(self, size_bytes: int) -> None:
        """For streams: so much more is unread."""
        self._unread_bytes += size_bytes
        if self._unread_bytes > UNREAD_LIMIT_BYTES:
            self.wire.hold(self)

    def taken(self, stream: ClientStream, size_bytes: int) -> None:
        """For streams: so much less is unread."""
        self._unread_bytes -= size_bytes
        if self._unread_bytes <= UNREAD_LIMIT_BYTES // 2:
            self.wire.release(self)

    def _lost(self) -> None:
        for stream in self.streams():
            stream.end()
            stream.over.set()
