"""SPDY and WebSocket as links: events of the protocols without I/O, applied to streams."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from cri.streaming import spdy, websocket
from cri.streaming.channels import ClientStream, Link

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from cri.streaming.wire import Wire

#: Data in one frame or message: a pipe's capacity.
_PIECE_BYTES: Final = 64 * 1024
#: Answers to pings that may wait for a client that does not read; further ones get none.
_PONGS_LIMIT: Final = 64


class SpdyLink(Link):
    """Streams that the client opens, over SPDY."""

    def __init__(
        self, wire: Wire, *, streams_limit: int, envelope: Callable[[bytes], bytes] | None = None
    ) -> None:
        """Begin after the upgrade.

        Args:
            wire: the connection; `receive` is to be its receiver.
            streams_limit: further streams are refused.
            envelope: puts outgoing bytes into messages, for SPDY inside of WebSocket.
        """
        self._session = spdy.SpdySession(streams_limit=streams_limit)
        self._envelope = envelope
        self._streams: dict[int, ClientStream] = {}
        self._opened: asyncio.Queue[ClientStream] = asyncio.Queue()
        self._refusing = False
        self._window = asyncio.Event()
        self._pongs = 0
        super().__init__(wire)

    def streams(self) -> list[ClientStream]:
        """See `Link`."""
        return list(self._streams.values())

    async def opened(self) -> ClientStream | None:
        """The next stream that the client has opened; None once it has gone."""
        while True:
            stream = await self._opened.get()
            if self.wire.lost.is_set():
                return None
            if not stream.was_reset:
                return stream

    def refuse_more(self) -> None:
        """Reset whatever the client opens from now on, and what nobody has asked for yet."""
        self._refusing = True
        while not self._opened.empty():
            self._opened.get_nowait().reset()

    def receive(self, data: bytes) -> None:
        """Bytes from the client. Raises Corrupt."""
        for event in self._session.receive_data(data):
            self._apply(event)
        self._flush()

    def _apply(self, event: spdy.Event) -> None:
        match event:
            case spdy.StreamOpened(number, headers, fin):
                self._open(number, ClientStream(self, number, headers), fin=fin)
            case spdy.StreamData(number, data, fin):
                if (stream := self._streams.get(number)) is not None:
                    stream.feed(data, last=fin)
                else:
                    self._session.consumed(number, len(data))
            case spdy.StreamReset(number):
                if (stream := self._streams.pop(number, None)) is not None:
                    stream.end(reset=True)
                self._wake()
            case spdy.WindowOpened():
                self._wake()
            case spdy.Pinged(number):
                self._pongs = self._pongs + 1 if self.wire.congested else 0
                if self._pongs <= _PONGS_LIMIT:
                    self._session.pong(number)
            case spdy.GoneAway():
                pass

    def _open(self, number: int, stream: ClientStream, *, fin: bool) -> None:
        if self._refusing:
            self._session.reset(number)
            return
        self._streams[number] = stream
        self._session.accept(number)
        if fin:
            stream.end()
        self._opened.put_nowait(stream)

    def _wake(self) -> None:
        self._window.set()
        self._window = asyncio.Event()

    def _lost(self) -> None:
        super()._lost()
        self._wake()
        # Wakes whoever waits for the next stream; it is never looked at.
        self._opened.put_nowait(ClientStream(self, 0, {}))

    def _flush(self) -> None:
        data = self._session.data_to_send()
        if data:
            self.wire.write(self._envelope(data) if self._envelope is not None else data)

    async def send(self, stream: ClientStream, data: bytes) -> None:
        """See `Link`."""
        view = memoryview(data)
        while view and not stream.was_reset:
            window = self._window
            size_bytes = min(len(view), _PIECE_BYTES, self._session.sendable_bytes(stream.number))
            if size_bytes:
                self._session.send(stream.number, bytes(view[:size_bytes]))
                self._flush()
                view = view[size_bytes:]
            else:
                await window.wait()
            await self.wire.drain()

    def finish(self, stream: ClientStream) -> None:
        """See `Link`."""
        self._session.send(stream.number, b"", fin=True)
        self._flush()

    def reset(self, stream: ClientStream) -> None:
        """See `Link`."""
        self._streams.pop(stream.number, None)
        self._session.reset(stream.number)
        self._flush()
        self._wake()

    def taken(self, stream: ClientStream, size_bytes: int) -> None:
        """See `Link`."""
        self._session.consumed(stream.number, size_bytes)
        self._flush()
        super().taken(stream, size_bytes)

    def forget(self, stream: ClientStream) -> None:
        """Drop a stream that is over in both directions, or reset it."""
        self._streams.pop(stream.number, None)
        self._session.reset(stream.number)
        self._flush()

    async def close(self) -> None:
        """See `Link`."""
        self.refuse_more()
        self._session.go_away()
        self._flush()
        await self.wire.finish()


class TunnelLink(SpdyLink):
    """The same inside of WebSocket messages, as kubectl does it for port-forward."""

    def __init__(self, wire: Wire, *, streams_limit: int) -> None:
        self._tunnel = websocket.WebSocketTunnel()
        super().__init__(wire, streams_limit=streams_limit, envelope=self._tunnel.send)

    def receive(self, data: bytes) -> None:
        """See `SpdyLink`."""
        for event in self._tunnel.receive_data(data):
            match event:
                case websocket.WsPinged(payload):
                    if not self.wire.congested:
                        self.wire.write(self._tunnel.pong(payload))
                case websocket.WsClosed(code, reason):
                    _leave(self.wire, self._tunnel.close(_answer(code), reason))
                    return
                case bytes(payload):
                    super().receive(payload)

    async def close(self) -> None:
        """See `Link`."""
        self.refuse_more()
        self._session.go_away()
        self._flush()
        self.wire.write(self._tunnel.close())
        await self.wire.finish()


class WebSocketLink(Link):
    """A fixed set of channels over WebSocket."""

    def __init__(
        self, wire: Wire, channels: Collection[int], *, base64_text: bool, half_close: bool
    ) -> None:
        """Begin after the handshake.

        Args:
            wire: the connection; `receive` is to be its receiver.
            channels: the numbers in use; data on others is dropped.
            base64_text: see `WebSocketChannels`.
            half_close: likewise.
        """
        self._codec = websocket.WebSocketChannels(base64_text=base64_text, half_close=half_close)
        self._streams = {number: ClientStream(self, number, {}) for number in channels}
        super().__init__(wire)

    def streams(self) -> list[ClientStream]:
        """See `Link`."""
        return list(self._streams.values())

    def channel(self, number: int) -> ClientStream:
        """The stream of a channel in use."""
        return self._streams[number]

    def announce(self, number: int, data: bytes = b"") -> None:
        """A message at the beginning, before anybody could be behind."""
        self.wire.write(self._codec.send(number, data))

    def receive(self, data: bytes) -> None:
        """Bytes from the client. Raises Corrupt."""
        for event in self._codec.receive_data(data):
            match event:
                case websocket.ChannelData(channel, piece):
                    if channel in self._streams:
                        self._streams[channel].feed(piece)
                case websocket.ChannelClosed(channel):
                    if channel in self._streams:
                        self._streams[channel].end()
                case websocket.WsPinged(payload):
                    if not self.wire.congested:
                        self.wire.write(self._codec.pong(payload))
                case websocket.WsClosed(code, reason):
                    _leave(self.wire, self._codec.close(_answer(code), reason))

    async def send(self, stream: ClientStream, data: bytes) -> None:
        """See `Link`."""
        for start in range(0, len(data), _PIECE_BYTES):
            piece = data[start : start + _PIECE_BYTES]
            self.wire.write(self._codec.send(stream.number, piece))
            await self.wire.drain()

    def finish(self, stream: ClientStream) -> None:
        """Nothing: a server cannot close single channels, the end of the connection closes all."""

    def reset(self, stream: ClientStream) -> None:
        """Nothing, likewise."""

    async def close(self) -> None:
        """See `Link`."""
        self.wire.write(self._codec.close())
        await self.wire.finish()


def _answer(code: int) -> int:
    """The code for the closing frame in answer to one with `code`."""
    # 1005 and 1006 mean that there was none; they must not be sent (RFC 6455 7.4.1).
    return websocket.NORMAL_CLOSURE if code in {1005, 1006} else code


def _leave(wire: Wire, farewell: bytes) -> None:
    wire.write(farewell)
    wire.leave()
