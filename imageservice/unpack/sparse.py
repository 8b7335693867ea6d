"""Where the stored bytes of a sparse file go: the four ways GNU tar has written that down.

A map is a list of (offset, length) in ascending order without overlap; what lies between is a hole.
All lengths together are exactly the bytes stored, or the map is a lie and refused: a reader that
trusted it would take the next member for contents.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import Corrupt, ResourceExhausted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from imageservice.unpack.stream import ChunkStream

_BLOCK: Final = 512
#: Segments of one file: 16 MiB of map text at most, far beyond any real file.
MAX_SEGMENTS: Final = 400_000
#: The text of a map of that many segments, each number with its newline in 20 bytes.
_MAP_LIMIT_BYTES: Final = (1 + 2 * MAX_SEGMENTS) * 20
#: Longest file: ext4's own limit with 4 KiB blocks.
MAX_FILE_BYTES: Final = 16 << 40


@dataclass(frozen=True, slots=True)
class SparseMap:
    """`segments` of (offset, length) in bytes; `size_bytes` is the length with the holes."""

    size_bytes: int
    segments: tuple[tuple[int, int], ...]


def checked_map(
    segments: Iterable[tuple[int, int]], size_bytes: int, stored_bytes: int
) -> SparseMap:
    """The map, if it holds together; raises Corrupt, ResourceExhausted."""
    kept: list[tuple[int, int]] = []
    at = total = 0
    for offset, length in segments:
        if offset < at or length < 0:
            raise Corrupt("sparse file has overlapping or unordered parts")
        at = offset + length
        total += length
        if length:
            kept.append((offset, length))
        if len(kept) > MAX_SEGMENTS:
            raise ResourceExhausted("sparse file has too many parts", limit=MAX_SEGMENTS)
    if at > size_bytes or total != stored_bytes:
        raise Corrupt("sparse map contradicts the file's size")
    if size_bytes > MAX_FILE_BYTES:
        raise ResourceExhausted("file is too long", size_bytes=size_bytes)
    return SparseMap(size_bytes, tuple(kept))


def map_from_pax(
    pax: Mapping[bytes, bytes], pairs: Sequence[tuple[bytes, bytes]], stored_bytes: int
) -> SparseMap:
    """Formats 0.0 (offset and numbytes records in turn) and 0.1 (one comma-separated record)."""
    if b"GNU.sparse.map" in pax:
        numbers = [_decimal(text) for text in pax[b"GNU.sparse.map"].split(b",") if text]
    else:
        expected = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
        if any(key != expected[index % 2] for index, (key, _) in enumerate(pairs)):
            raise Corrupt("sparse map records are out of order")
        numbers = [_decimal(value) for _, value in pairs]
    size = _decimal(pax.get(b"GNU.sparse.size", b"") or pax.get(b"GNU.sparse.realsize", b""))
    return checked_map(_paired(numbers), size, stored_bytes)


def read_inline_map(
    pax: Mapping[bytes, bytes], stored_bytes: int, stream: ChunkStream
) -> tuple[SparseMap, int]:
    """Format 1.0: decimal lines in whole blocks before the contents; map and bytes it took."""
    text = bytearray()
    lines_needed = 1
    lines_seen = taken = 0
    while lines_seen < lines_needed:
        if taken + _BLOCK > stored_bytes:
            raise Corrupt("sparse map is longer than the file")
        if taken > _MAP_LIMIT_BYTES:
            raise ResourceExhausted("sparse map is too long", limit=_MAP_LIMIT_BYTES)
        block = stream.read(_BLOCK)
        text += block
        taken += _BLOCK
        lines_seen += block.count(b"\n")
        if lines_needed == 1 and lines_seen:
            count = _decimal(bytes(text[: text.index(b"\n")]))
            if count > MAX_SEGMENTS:
                raise ResourceExhausted("sparse file has too many parts", limit=MAX_SEGMENTS)
            lines_needed = 1 + 2 * count
        elif lines_needed == 1:
            raise Corrupt("sparse map is malformed")
    lines = bytes(text).split(b"\n")
    numbers = [_decimal(line) for line in lines[1:lines_needed]]
    size = _decimal(pax.get(b"GNU.sparse.realsize", b""))
    return checked_map(_paired(numbers), size, stored_bytes - taken), taken


def read_old_gnu_map(header: bytes, stored_bytes: int, stream: ChunkStream) -> SparseMap:
    """The pre-pax GNU header: four parts at byte 386, then whole blocks of 21 parts each."""
    parts = [_old_parts(header[386:482], 4)]
    is_extended = header[482] != 0
    size = _old_number(header[483:495])
    count = 4
    while is_extended:
        block = stream.read(_BLOCK)
        parts.append(_old_parts(block[:504], 21))
        is_extended = block[504] != 0
        count += 21
        if count > MAX_SEGMENTS:
            raise ResourceExhausted("sparse file has too many parts", limit=MAX_SEGMENTS)
    return checked_map(chain.from_iterable(parts), size, stored_bytes)


def _old_parts(raw: bytes, count: int) -> list[tuple[int, int]]:
    parts: list[tuple[int, int]] = []
    for at in range(0, count * 24, 24):
        if raw[at] == 0:
            break
        parts.append((_old_number(raw[at : at + 12]), _old_number(raw[at + 12 : at + 24])))
    return parts


def _old_number(raw: bytes) -> int:
    if raw[0] & 0x80:
        return int.from_bytes(raw, "big") & ((1 << (len(raw) * 8 - 1)) - 1)
    digits = raw.split(b"\0", 1)[0].strip(b" ")
    if not digits.isdigit() or any(digit > 0x37 for digit in digits):
        raise Corrupt("sparse map has a malformed number")
    return int(digits, 8)


def _paired(numbers: Sequence[int]) -> Iterable[tuple[int, int]]:
    if len(numbers) % 2:
        raise Corrupt("sparse map has an odd count of numbers")
    return zip(numbers[::2], numbers[1::2], strict=True)


def _decimal(value: bytes) -> int:
    if not value.isdigit() or len(value) > 19:
        raise Corrupt("sparse map has a malformed number")
    return int(value)
