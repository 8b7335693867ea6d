"""A SPDY/3.1 session as its server sees it: bytes in, events out, bytes to send; no I/O.

The other end is moby/spdystream in all of Kubernetes' clients. What that does differently from the
draft decides a few things here:

- It knows no flow control: it sends neither SETTINGS nor WINDOW_UPDATE and ignores ours. So both
  windows count from the start, but are only kept to, and only topped up, once the client has sent
  SETTINGS with an initial window or a WINDOW_UPDATE. For all others TCP alone slows the sender.
- It goes on sending data on streams that have been reset meanwhile: dropped without an answer.
- It numbers its pings oddly, and waits for the answer.

Streams are only ever opened by the client, numbers odd and rising. Anything that is not SPDY is
Corrupt: the session cannot go on, since the header compression of both sides may have parted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cri.streaming import spdy_frames as frames
from cri.streaming.spdy_headers import HeaderCompressor, HeaderDecompressor
from sandbox.host.errors import Corrupt

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: A window before anybody changes it, of each stream and of the session.
WINDOW_BYTES: Final = 64 * 1024
_WINDOW_LIMIT: Final = 2**31 - 1
#: Consumed bytes are given back in portions of this size.
_CREDIT_BYTES: Final = WINDOW_BYTES // 2


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The client has opened a stream; accept or refuse it."""

    stream_id: int
    headers: Mapping[str, str]
    fin: bool = False


@dataclass(frozen=True, slots=True)
class StreamData:
    """Data on a stream; after `fin` the client sends no more on it."""

    stream_id: int
    data: bytes
    fin: bool = False


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The client has ended a stream in both directions."""

    stream_id: int
    status: int


@dataclass(frozen=True, slots=True)
class WindowOpened:
    """More may be sent, on one stream or (0) on all."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class Pinged:
    """The client asks for an answer (`pong`)."""

    number: int


@dataclass(frozen=True, slots=True)
class GoneAway:
    """The client will open no more streams."""


Event = StreamOpened | StreamData | StreamReset | WindowOpened | Pinged | GoneAway


@dataclass(slots=True)
class _Stream:
    window_bytes: int
    consumed_bytes: int = 0
    client_done: bool = False
    server_done: bool = False


@dataclass(slots=True)
class _Session:
    streams: dict[int, _Stream] = field(default_factory=dict)
    last_stream_id: int = 0
    initial_window_bytes: int = WINDOW_BYTES
    window_bytes: int = WINDOW_BYTES
    consumed_bytes: int = 0
    flow_control: bool = False


class SpdySession:
    """See the module text; every method but `receive_data` appends to what is to be sent."""

    def __init__(self, *, streams_limit: int) -> None:
        self._limit = streams_limit
        self._decoder = frames.FrameDecoder()
        self._compressor = HeaderCompressor()
        self._decompressor = HeaderDecompressor()
        self._out = bytearray()
        self._state = _Session()

    @property
    def flow_control(self) -> bool:
        """Whether the client takes part in it."""
        return self._state.flow_control

    def data_to_send(self) -> bytes:
        """What has been queued since the last call."""
        out = bytes(self._out)
        self._out.clear()
        return out

    # From the client.

    def receive_data(self, data: bytes) -> Iterator[Event]:
        """What these bytes mean.

        Raises:
            Corrupt: the session cannot go on.
        """
        for frame in self._decoder.feed(data):
            if isinstance(frame, frames.Data):
                yield from self._on_data(frame)
            else:
                yield from self._on_control(frame)

    def _on_data(self, frame: frames.Data) -> Iterator[Event]:
        stream = self._state.streams.get(frame.stream_id)
        if stream is None or stream.client_done:
            self._credit_session(len(frame.data))
            return
        if frame.fin:
            stream.client_done = True
        yield StreamData(frame.stream_id, frame.data, frame.fin)
        self._forget_when_done(frame.stream_id)

    def _on_control(self, frame: frames.Control) -> Iterator[Event]:
        match frame.kind:
            case frames.SYN_STREAM:
                yield from self._on_syn_stream(frame)
            case frames.HEADERS | frames.SYN_REPLY:
                # Of no meaning here, but part of the compressed stream.
                stream_id, block = frames.parse_block_frame(frame.payload)
                self._decompressor.decompress(block)
                if frame.flags & frames.FLAG_FIN:
                    yield from self._on_data(frames.Data(stream_id, b"", fin=True))
            case frames.RST_STREAM:
                stream_id, status = frames.parse_pair(frame.payload)
                if self._state.streams.pop(stream_id, None) is not None:
                    yield StreamReset(stream_id, status)
            case frames.SETTINGS:
                yield from self._on_settings(frames.parse_settings(frame.payload))
            case frames.PING:
                number = frames.parse_ping(frame.payload)
                if number % 2:
                    yield Pinged(number)
            case frames.GOAWAY:
                frames.parse_pair(frame.payload)
                yield GoneAway()
            case frames.WINDOW_UPDATE:
                yield from self._on_window_update(*frames.parse_pair(frame.payload))
            case _:
                return  # unknown kinds are to be ignored

    def _on_syn_stream(self, frame: frames.Control) -> Iterator[Event]:
        state = self._state
        stream_id, block = frames.parse_syn_stream(frame.payload)
        headers = self._decompressor.decompress(block)
        if not stream_id % 2 or stream_id <= state.last_stream_id:
            raise Corrupt(f"SPDY client opened stream {stream_id} after {state.last_stream_id}")
        state.last_stream_id = stream_id
        if len(state.streams) >= self._limit:
            self._out += frames.rst_stream(stream_id, frames.REFUSED_STREAM)
            return
        fin = bool(frame.flags & frames.FLAG_FIN)
        state.streams[stream_id] = _Stream(
            window_bytes=state.initial_window_bytes,
            client_done=fin,
            server_done=bool(frame.flags & frames.FLAG_UNIDIRECTIONAL),
        )
        yield StreamOpened(stream_id, headers, fin)
        self._forget_when_done(stream_id)

    def _on_settings(self, values: Mapping[int, int]) -> Iterator[Event]:
        size = values.get(frames.INITIAL_WINDOW_SIZE)
        if size is None:
            return
        if size > _WINDOW_LIMIT:
            raise Corrupt(f"SPDY initial window of {size} bytes is too large")
        state = self._state
        state.flow_control = True
        change = size - state.initial_window_bytes
        state.initial_window_bytes = size
        for stream in state.streams.values():
            stream.window_bytes += change
        yield WindowOpened(0)

    def _on_window_update(self, stream_id: int, delta_bytes: int) -> Iterator[Event]:
        state = self._state
        state.flow_control = True
        delta_bytes &= _WINDOW_LIMIT
        if stream_id == 0:
            state.window_bytes += delta_bytes
            if state.window_bytes > _WINDOW_LIMIT:
                raise Corrupt("SPDY session window grew beyond its limit")
            yield WindowOpened(0)
            return
        stream = state.streams.get(stream_id)
        if stream is None:
            return
        stream.window_bytes += delta_bytes
        if stream.window_bytes > _WINDOW_LIMIT:
            self.reset(stream_id, frames.FLOW_CONTROL_ERROR)
            yield StreamReset(stream_id, frames.FLOW_CONTROL_ERROR)
            return
        yield WindowOpened(stream_id)

    # To the client.

    def accept(self, stream_id: int) -> None:
        """Reply to a stream that was opened; clients wait for it."""
        if stream_id in self._state.streams:
            self._out += frames.syn_reply(stream_id, self._compressor.compress({}))

    def sendable_bytes(self, stream_id: int) -> int:
        """How much may be sent on a stream now."""
        stream = self._state.streams.get(stream_id)
        if stream is None or stream.server_done:
            return 0
        if not self._state.flow_control:
            return frames.DATA_LIMIT_BYTES
        return max(0, min(stream.window_bytes, self._state.window_bytes))

    def send(self, stream_id: int, data: bytes, *, fin: bool = False) -> None:
        """Data on a stream, not more than `sendable_bytes`; on one that is over it is dropped."""
        stream = self._state.streams.get(stream_id)
        if stream is None or stream.server_done:
            return
        stream.window_bytes -= len(data)
        self._state.window_bytes -= len(data)
        stream.server_done = fin
        self._out += frames.data_frame(stream_id, data, fin=fin)
        self._forget_when_done(stream_id)

    def reset(self, stream_id: int, status: int = frames.CANCEL) -> None:
        """End a stream in both directions."""
        if self._state.streams.pop(stream_id, None) is not None:
            self._out += frames.rst_stream(stream_id, status)

    def consumed(self, stream_id: int, size_bytes: int) -> None:
        """So much of what came on a stream has been taken by whom it was for."""
        stream = self._state.streams.get(stream_id)
        if stream is not None and not stream.client_done:
            stream.consumed_bytes += size_bytes
            if self._state.flow_control and stream.consumed_bytes >= _CREDIT_BYTES:
                self._out += frames.window_update(stream_id, stream.consumed_bytes)
                stream.consumed_bytes = 0
        self._credit_session(size_bytes)

    def pong(self, number: int) -> None:
        """Answer a ping."""
        self._out += frames.ping(number)

    def go_away(self) -> None:
        """Tell that no more streams will be accepted."""
        self._out += frames.goaway(self._state.last_stream_id)

    def _credit_session(self, size_bytes: int) -> None:
        state = self._state
        state.consumed_bytes += size_bytes
        if state.flow_control and state.consumed_bytes >= _CREDIT_BYTES:
            self._out += frames.window_update(0, state.consumed_bytes)
            state.consumed_bytes = 0

    def _forget_when_done(self, stream_id: int) -> None:
        stream = self._state.streams.get(stream_id)
        if stream is not None and stream.client_done and stream.server_done:
            del self._state.streams[stream_id]
