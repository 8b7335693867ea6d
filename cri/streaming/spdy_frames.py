"""SPDY/3.1 frames: bytes in, frames out, and the other way; no streams, no I/O.

    control: 1 | version 15 | type 16      data: 0 | stream id 31
             flags 8 | length 24                 flags 8 | length 24
             payload                             payload

Lengths are judged as soon as the eight bytes of a frame's head are there. Control frames are
collected up to a small limit. Data frames, which may announce 16 MiB, are never collected: every
piece is handed on as it comes, the last one marked.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import Corrupt

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION: Final = 3
#: Most of a control frame that is collected. What Kubernetes' clients send has some 100 bytes.
CONTROL_LIMIT_BYTES: Final = 16 * 1024
DATA_LIMIT_BYTES: Final = 0xFFFFFF

SYN_STREAM: Final = 1
SYN_REPLY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PING: Final = 6
GOAWAY: Final = 7
HEADERS: Final = 8
WINDOW_UPDATE: Final = 9

FLAG_FIN: Final = 0x01
FLAG_UNIDIRECTIONAL: Final = 0x02

#: RST_STREAM status codes.
PROTOCOL_ERROR: Final = 1
INVALID_STREAM: Final = 2
REFUSED_STREAM: Final = 3
CANCEL: Final = 5
INTERNAL_ERROR: Final = 6
FLOW_CONTROL_ERROR: Final = 7
STREAM_CLOSED: Final = 9

INITIAL_WINDOW_SIZE: Final = 7  # of SETTINGS

_HEAD: Final = struct.Struct(">II")
_ONE: Final = struct.Struct(">I")
_TWO: Final = struct.Struct(">II")
_SYN: Final = struct.Struct(">IIBB")
_ID_MASK: Final = 0x7FFFFFFF


@dataclass(frozen=True, slots=True)
class Control:
    """A whole control frame."""

    kind: int
    flags: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Data:
    """A piece of a data frame; `fin` on the last piece of the stream's last frame."""

    stream_id: int
    data: bytes
    fin: bool = False


Frame = Control | Data


class FrameDecoder:
    """Bytes of one direction into frames; what was once Corrupt stays so."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        #: The data frame whose payload comes in: (stream id, fin, bytes to come).
        self._open: tuple[int, bool, int] | None = None

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames and pieces that are now there.

        Raises:
            Corrupt: not SPDY/3, or a control frame over the limit.
        """
        self._buffer += data
        while True:
            frame = self._next()
            if frame is None:
                return
            yield frame

    def _next(self) -> Frame | None:
        if self._open is not None:
            return self._piece(*self._open)
        if len(self._buffer) < _HEAD.size:
            return None
        first, second = _HEAD.unpack_from(self._buffer)
        flags, length = second >> 24, second & DATA_LIMIT_BYTES
        if not first >> 31:
            if first == 0:
                raise Corrupt("SPDY data frame without a stream")
            del self._buffer[: _HEAD.size]
            return self._piece(first, bool(flags & FLAG_FIN), length)
        version, kind = first >> 16 & 0x7FFF, first & 0xFFFF
        if version != VERSION:
            raise Corrupt(f"SPDY version {version} is not supported")
        if length > CONTROL_LIMIT_BYTES:
            raise Corrupt(f"SPDY control frame of {length} bytes is over the limit")
        if len(self._buffer) < _HEAD.size + length:
            return None
        payload = bytes(self._buffer[_HEAD.size : _HEAD.size + length])
        del self._buffer[: _HEAD.size + length]
        return Control(kind, flags, payload)

    def _piece(self, stream_id: int, fin: bool, length: int) -> Data | None:
        """What there is of a data frame of which `length` bytes are still to come."""
        if length and not self._buffer:
            self._open = (stream_id, fin, length)
            return None
        data = bytes(self._buffer[:length])
        del self._buffer[: len(data)]
        length -= len(data)
        self._open = (stream_id, fin, length) if length else None
        return Data(stream_id, data, fin and not length)


def control(kind: int, payload: bytes, flags: int = 0) -> bytes:
    """A control frame's bytes."""
    return _HEAD.pack(1 << 31 | VERSION << 16 | kind, flags << 24 | len(payload)) + payload


def data_frame(stream_id: int, data: bytes, *, fin: bool = False) -> bytes:
    """A data frame's bytes; `data` must not be over DATA_LIMIT_BYTES."""
    return _HEAD.pack(stream_id, (FLAG_FIN if fin else 0) << 24 | len(data)) + data


def syn_stream(stream_id: int, block: bytes, *, fin: bool = False) -> bytes:
    """Opens a stream; for tests and stand-ins, a server of ours never does."""
    return control(SYN_STREAM, _SYN.pack(stream_id, 0, 0, 0) + block, FLAG_FIN if fin else 0)


def syn_reply(stream_id: int, block: bytes) -> bytes:
    """Accepts a stream."""
    return control(SYN_REPLY, _ONE.pack(stream_id) + block)


def rst_stream(stream_id: int, status: int) -> bytes:
    """Ends a stream at once."""
    return control(RST_STREAM, _TWO.pack(stream_id, status))


def ping(number: int) -> bytes:
    """Asks for, or answers with, the same number."""
    return control(PING, _ONE.pack(number))


def goaway(last_stream_id: int, status: int = 0) -> bytes:
    """No more streams from here on."""
    return control(GOAWAY, _TWO.pack(last_stream_id, status))


def window_update(stream_id: int, delta_bytes: int) -> bytes:
    """So many more bytes may be sent; stream 0 is the whole session."""
    return control(WINDOW_UPDATE, _TWO.pack(stream_id, delta_bytes))


def settings(values: dict[int, int]) -> bytes:
    """Settings by id; for tests and stand-ins."""
    entries = b"".join(_TWO.pack(number, value) for number, value in values.items())
    return control(SETTINGS, _ONE.pack(len(values)) + entries)


def parse_syn_stream(payload: bytes) -> tuple[int, bytes]:
    """(stream id, header block). Raises Corrupt."""
    if len(payload) < _SYN.size:
        raise Corrupt("SPDY SYN_STREAM frame is too short")
    return _SYN.unpack_from(payload)[0] & _ID_MASK, payload[_SYN.size :]


def parse_block_frame(payload: bytes) -> tuple[int, bytes]:
    """(stream id, header block) of SYN_REPLY and HEADERS. Raises Corrupt."""
    if len(payload) < _ONE.size:
        raise Corrupt("SPDY frame with headers is too short")
    return _ONE.unpack_from(payload)[0] & _ID_MASK, payload[_ONE.size :]


def parse_pair(payload: bytes) -> tuple[int, int]:
    """The two numbers of RST_STREAM, GOAWAY and WINDOW_UPDATE. Raises Corrupt."""
    if len(payload) != _TWO.size:
        raise Corrupt(f"SPDY frame of {len(payload)} bytes should have {_TWO.size}")
    first, second = _TWO.unpack(payload)
    return first & _ID_MASK, second


def parse_ping(payload: bytes) -> int:
    """The number. Raises Corrupt."""
    if len(payload) != _ONE.size:
        raise Corrupt(f"SPDY PING frame of {len(payload)} bytes should have {_ONE.size}")
    number: int = _ONE.unpack(payload)[0]
    return number


def parse_settings(payload: bytes) -> dict[int, int]:
    """Values by id, later ones winning; flags are dropped. Raises Corrupt.

    The count is compared with the bytes before anything is made of it (CVE-2026-35469).
    """
    if len(payload) < _ONE.size:
        raise Corrupt("SPDY SETTINGS frame is too short")
    count = _ONE.unpack_from(payload)[0]
    entries = payload[_ONE.size :]
    if count * _TWO.size != len(entries):
        raise Corrupt(f"SPDY SETTINGS frame says {count} entries in {len(entries)} bytes")
    return {number & 0xFFFFFF: value for number, value in _TWO.iter_unpack(entries)}
