"""The bytes of one connection: what has come and was not taken yet, within bounds.

What a read brings is handed on as the object that the event loop made of it, up to 256 KiB, without
a copy in between. A consumer that is slow stops the reading, and with it the sender.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from contextlib import suppress
from typing import Final

KIB: Final = 1024
#: So much untaken stops the reading; one read more may be on its way.
FULL_BYTES: Final = 512 * KIB
#: Reading goes on below this, so that it is not stopped and begun for every read.
ROOM_BYTES: Final = 256 * KIB
_TLS_READ_BYTES: Final = 256 * KIB


class Wire(asyncio.Protocol):
    """A connection to a registry, or to a proxy on the way there."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._chunks: deque[bytes] = deque()
        self._held_bytes = 0
        self._is_paused = False
        self._is_over = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_quiet(self) -> bool:
        """Whether the other side has neither closed it nor sent what was not taken."""
        return not self._is_over and not self._chunks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.BaseProtocol`."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._chunks.append(data)
        self._held_bytes += len(data)
        if self._held_bytes >= FULL_BYTES and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        """See `asyncio.Protocol`. With TLS only its own farewell is an end, not TCP's."""
        self._is_over = True
        if not self._has_farewell():
            self._error = ConnectionResetError("TLS was cut off")
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""
        if not self._is_over:
            self._is_over = True
            if exc is not None or not self._take_rest():
                self._error = _reason(exc)
        self._wake()

    async def read(self, most: int) -> bytes:
        """The next bytes, at most so many; empty at the end. For one task at a time.

        Raises:
            OSError: the connection broke; with TLS also when it ended without TLS's farewell, as
                then anybody on the way may have cut it off (RFC 9112, 9.8).
        """
        if not self._chunks and not self._is_over:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if not self._chunks:
            if self._error is not None:
                raise self._error
            return b""
        chunk = self._chunks.popleft()
        if len(chunk) > most:
            self._chunks.appendleft(chunk[most:])
            chunk = chunk[:most]
        self._held_bytes -= len(chunk)
        if self._is_paused and self._held_bytes <= ROOM_BYTES and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()
        return chunk

    def write(self, data: bytes) -> None:
        """Send; a request is small, so nobody waits until it is gone."""
        assert self._transport is not None
        self._transport.write(data)

    async def start_tls(self, context: ssl.SSLContext, name: str) -> None:
        """Speak TLS from here on, with whoever has that name.

        Raises:
            OSError: it failed; `ssl.SSLError` where TLS itself did.
            UnicodeError: no certificate can have that name.
        """
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        try:
            transport = await loop.start_tls(self._transport, self, context, server_hostname=name)
        except TypeError as error:
            if isinstance(error.__context__, OSError):  # see `_reason`
                raise error.__context__ from None
            raise
        if transport is None:  # what asyncio has when the handshake ended with the connection
            raise ConnectionResetError("closed within the handshake")
        self._transport = transport

    def abort(self) -> None:
        """Close at once, whatever is on its way."""
        if self._transport is not None:
            # One of TLS that was closed twice has forgotten how (Python 3.11.2), and is closed.
            with suppress(AttributeError):
                self._transport.abort()

    def _has_farewell(self) -> bool:
        """Whether the other side has ended TLS, which asyncio does not tell; true without TLS."""
        tls = self._tls()
        try:
            return tls is None or not tls.read(1)  # all that came was handed over
        except ssl.SSLError:
            return False

    def _take_rest(self) -> bool:
        """Take what TLS still holds; whether the other side's farewell is its end.

        It holds some when the reading was stopped. TCP's end then waits until it goes on, but that
        of a proxy's TLS, within which this one is, does not: the connection is lost at once.
        """
        tls = self._tls()
        try:
            while tls is not None and (data := tls.read(_TLS_READ_BYTES)):
                self._chunks.append(data)
                self._held_bytes += len(data)
        except ssl.SSLError:
            return False
        return tls is not None

    def _tls(self) -> ssl.SSLObject | None:
        tls = None if self._transport is None else self._transport.get_extra_info("ssl_object")
        return tls if isinstance(tls, ssl.SSLObject) else None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _reason(exc: Exception | None) -> OSError:
    """Why a connection was lost, from what asyncio says.

    Within TLS, asyncio of Python 3.11.2 stumbles over its own method while it tells of a failure
    (`SSLProtocol._abort`), and it is the TypeError that arrives.
    """
    for error in (exc, exc and exc.__context__):
        if isinstance(error, OSError):
            return error
    return ConnectionResetError("closed without a word")
