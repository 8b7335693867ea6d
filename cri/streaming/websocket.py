"""Channels in WebSocket messages: bytes in, events out, bytes to send; on wsproto, no I/O.

A message's first byte is the channel's number (in the base64 forms a digit, then base64 text). In
v5 a message of 255 and a number closes that channel. Messages come in pieces as their bytes do, so
a client that announces a message of 2**62 bytes costs nothing.

`WebSocketTunnel` is the other use: all binary messages together are one stream of bytes.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from wsproto import ConnectionType
from wsproto.connection import Connection, ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from sandbox.host.errors import Corrupt

if TYPE_CHECKING:
    from collections.abc import Iterator

#: First byte of the message that closes a channel (v5).
CLOSE_SIGNAL: Final = 255
NORMAL_CLOSURE: Final = 1000
PROTOCOL_ERROR: Final = 1002
GOING_AWAY: Final = 1001


@dataclass(frozen=True, slots=True)
class ChannelData:
    """Data on a channel."""

    channel: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    """The client sends no more on a channel."""

    channel: int


@dataclass(frozen=True, slots=True)
class WsPinged:
    """The client asks for an answer (`pong`)."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class WsClosed:
    """The client has closed the connection, or has broken the protocol."""

    code: int
    reason: str = ""


Event = ChannelData | ChannelClosed | WsPinged | WsClosed


class _Endpoint:
    """What both uses share: one wsproto connection after its handshake."""

    def __init__(self) -> None:
        self._connection = Connection(ConnectionType.SERVER)

    def _events(self, data: bytes) -> Iterator[BytesMessage | TextMessage | WsPinged | WsClosed]:
        if self._connection.state not in {ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING}:
            return
        self._connection.receive_data(data)
        for event in self._connection.events():
            if isinstance(event, Ping):
                yield WsPinged(bytes(event.payload))
            elif isinstance(event, CloseConnection):
                yield WsClosed(int(event.code), event.reason or "")
                return
            elif isinstance(event, BytesMessage | TextMessage):
                yield event

    def pong(self, payload: bytes) -> bytes:
        """The answer to a ping; empty once the connection is closing."""
        return self._connection.send(Pong(payload)) if self._writable else b""

    def close(self, code: int = NORMAL_CLOSURE, reason: str = "") -> bytes:
        """The closing frame; empty when it was sent already."""
        if self._connection.state not in {ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING}:
            return b""
        return self._connection.send(CloseConnection(code, reason[:100] or None))

    @property
    def _writable(self) -> bool:
        return self._connection.state is ConnectionState.OPEN


class WebSocketChannels(_Endpoint):
    """A connection whose messages belong to numbered channels."""

    def __init__(self, *, base64_text: bool = False, half_close: bool = False) -> None:
        """Begin after the handshake.

        Args:
            base64_text: text messages of a digit and base64.
            half_close: v5: the client may close single channels.
        """
        super().__init__()
        self._base64 = base64_text
        self._half_close = half_close
        #: Of the message that comes in: its channel, None before the first byte.
        self._channel: int | None = None
        #: Characters of base64 that do not make a whole group yet, or a close signal's bytes.
        self._partial = b""

    def receive_data(self, data: bytes) -> Iterator[Event]:
        """What these bytes mean; nothing after `WsClosed`.

        Raises:
            Corrupt: a message that no client of these protocols sends.
        """
        for event in self._events(data):
            if isinstance(event, WsPinged | WsClosed):
                yield event
                continue
            if isinstance(event, TextMessage) is not self._base64:
                raise Corrupt("WebSocket message is of the wrong type, text or binary")
            payload = event.data
            piece = payload.encode() if isinstance(payload, str) else bytes(payload)
            yield from self._piece(piece, last=event.message_finished)

    def _piece(self, piece: bytes, *, last: bool) -> Iterator[Event]:
        if self._channel is None and piece:
            self._channel = piece[0] - ord("0") if self._base64 else piece[0]
            piece = piece[1:]
            if not 0 <= self._channel <= CLOSE_SIGNAL:
                raise Corrupt("WebSocket message begins with no channel number")
        channel = self._channel
        if channel is not None:
            if channel == CLOSE_SIGNAL and self._half_close:
                yield from self._signal(piece, last=last)
            else:
                data = self._decode(piece, last=last) if self._base64 else piece
                if data:
                    yield ChannelData(channel, data)
        if last:
            self._channel = None

    def _signal(self, piece: bytes, *, last: bool) -> Iterator[Event]:
        self._partial += piece
        if len(self._partial) > 1 or (last and not self._partial):
            raise Corrupt("WebSocket close signal must name one channel")
        if last:
            channel, self._partial = self._partial[0], b""
            yield ChannelClosed(channel)

    def _decode(self, piece: bytes, *, last: bool) -> bytes:
        text = self._partial + piece
        whole = len(text) if last else len(text) // 4 * 4
        self._partial = text[whole:]
        try:
            return base64.b64decode(text[:whole], validate=True)
        except binascii.Error as error:
            raise Corrupt(f"WebSocket message is not base64: {error}") from error

    def send(self, channel: int, data: bytes) -> bytes:
        """One message; empty once the connection is closing."""
        if not self._writable:
            return b""
        if self._base64:
            text = chr(ord("0") + channel) + base64.b64encode(data).decode("ascii")
            return self._connection.send(TextMessage(text))
        return self._connection.send(BytesMessage(bytes((channel,)) + data))


class WebSocketTunnel(_Endpoint):
    """A connection whose binary messages are one stream of bytes."""

    def receive_data(self, data: bytes) -> Iterator[bytes | WsPinged | WsClosed]:
        """What these bytes mean. Raises Corrupt for a text message."""
        for event in self._events(data):
            if isinstance(event, WsPinged | WsClosed):
                yield event
            elif isinstance(event, BytesMessage):
                if event.data:
                    yield bytes(event.data)
            else:
                raise Corrupt("WebSocket message is of the wrong type, text or binary")

    def send(self, data: bytes) -> bytes:
        """One message; empty once the connection is closing."""
        return self._connection.send(BytesMessage(data)) if self._writable else b""
