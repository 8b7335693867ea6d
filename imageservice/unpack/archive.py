"""The tar grammar: ustar, old tar, pax and GNU headers, read strictly and within bounds.

Why not `tarfile`: its headers cost about as much time a file as the kernel needs to create the
file, its parser has looped for ever and grown without bound on crafted headers (CVE-2019-20907,
CVE-2024-6232), it guesses where this refuses, and it decodes names that are bytes to the kernel.
Here a number is digits or it is an error, a checksum counts, a meta header is at most `META_LIMIT`,
and names stay bytes. What every real layer needs is read: long names, base-256 numbers, pax times,
extended attributes, all four forms of sparse files.

Sources: POSIX.1-2008 pax(1) "ustar Interchange Format" and "pax Header Block", GNU tar manual
"Standard Format" and "Sparse Formats", the SCHILY.xattr convention of star(1).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from imageservice.unpack.sparse import SparseMap, map_from_pax, read_inline_map, read_old_gnu_map
from sandbox.host.errors import Corrupt, ResourceExhausted, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageservice.unpack.stream import ChunkStream

BLOCK: Final = 512
_ADLER_MODULUS: Final = 65521
#: One pax or GNU long-name header. Linux allows 64 KiB for all names of an inode's attributes and
#: 64 KiB for a value; ext4 holds far less, and a path has at most 4096 bytes.
META_LIMIT: Final = 1024 * 1024
#: Meta headers in front of one member: pax, GNU name and GNU link name, each perhaps twice.
META_HEADERS: Final = 8

REGULAR: Final = b"0"
HARDLINK: Final = b"1"
SYMLINK: Final = b"2"
CHARACTER: Final = b"3"
BLOCK_DEVICE: Final = b"4"
DIRECTORY: Final = b"5"
FIFO: Final = b"6"

_ZERO_BLOCK: Final = bytes(BLOCK)
_DATA_TYPES: Final = frozenset({b"0", b"\0", b"7", b"S"})
_MEMBER_TYPES: Final = frozenset(
    {REGULAR, HARDLINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO, b"\0", b"7", b"S"}
)
_NS: Final = 1_000_000_000
#: Years 1901 to 2446: what ext4 can store; XFS and tmpfs clamp by themselves.
_TIME_RANGE_S: Final = (-(1 << 31), (1 << 34) - (1 << 31) - 1)


@dataclass(slots=True)
class Member:
    """One file of the archive as its headers describe it; names raw, without any judgement.

    Attributes:
        type: one of the type flags above; old and contiguous kinds are REGULAR already.
        stored_bytes: bytes of contents that follow in the stream; the reader skips what is left.
        size_bytes: the file's length; larger than `stored_bytes` where it has holes.
        sparse: where the stored bytes go, or None when they are the file.
    """

    name: bytes
    type: bytes
    mode: int
    uid: int
    gid: int
    stored_bytes: int
    size_bytes: int
    mtime_ns: int
    link_name: bytes
    device_major: int
    device_minor: int
    xattrs: dict[str, bytes] = field(default_factory=dict)
    sparse: SparseMap | None = None


class _Pending:
    """Meta headers seen in front of the next member."""

    __slots__ = ("count", "link_name", "name", "pax", "sparse_pairs")

    def __init__(self) -> None:
        self.count = 0
        self.name: bytes | None = None
        self.link_name: bytes | None = None
        self.pax: dict[bytes, bytes] = {}
        self.sparse_pairs: list[tuple[bytes, bytes]] = []


def read_members(stream: ChunkStream) -> Iterator[Member]:
    """The members in order; between two steps the consumer may read the contents, or not.

    At most `stored_bytes` may be taken from the stream before the next step; the rest and the
    padding are skipped. After the end marker the stream is left where it is.

    Raises:
        Corrupt: the archive breaks the grammar, or ends early.
        ResourceExhausted: a meta header is beyond its limit.
        Unsupported: multi-volume and incremental archives.
    """
    pending = _Pending()
    while True:
        block = stream.read_block(BLOCK)
        if not block:
            if pending.count:
                raise Corrupt("archive ends after an extended header")
            return
        if block == _ZERO_BLOCK:
            if pending.count:
                raise Corrupt("archive ends after an extended header")
            _check_end(stream)
            return
        kind = block[156:157]
        _verify_checksum(block, stream.position)
        if kind in _MEMBER_TYPES:
            member = _member(block, kind, pending, stream)
            if pending.count:
                pending = _Pending()
            end = stream.position + member.stored_bytes
            yield member
            stream.skip(end - stream.position)
            # Contents must be whole; the padding behind the last of them is not always written
            # (umoci insert leaves it and the end marker out, and Go's reader takes it).
            if member.stored_bytes and not stream.pad(-end % BLOCK):
                return
        elif kind in b"xgLKX":
            _read_meta(block, kind, pending, stream)
        else:
            raise Unsupported(f"archive member of type {kind!a}", offset=stream.position - BLOCK)


def _check_end(stream: ChunkStream) -> None:
    """After one zero block only another, or the end; anything else hides members from someone."""
    second = stream.read_block(BLOCK)
    if second and second != _ZERO_BLOCK:
        raise Corrupt("archive continues after an end marker", offset=stream.position - BLOCK)


def _verify_checksum(block: bytes, position: int) -> None:
    stored = _octal(block[148:156])
    in_field = sum(block[148:156])
    # Adler-32 (RFC 1950) begins with one and the sum of all bytes modulo 65521, and comes without
    # a Python number for each byte, which took a fifth of the time of reading headers. It cannot
    # tell sums apart that differ by the modulus; no damage that a sum of bytes finds looks like so.
    if (stored + in_field - 8 * 32 + 1) % _ADLER_MODULUS == zlib.adler32(block) & 0xFFFF:
        return
    # Some old tars summed signed characters.
    signed = sum(block) - in_field + 8 * 32
    signed -= 256 * sum(byte > 127 for byte in block[:148] + block[156:])
    if stored != signed:
        raise Corrupt("archive header has a wrong checksum", offset=position - BLOCK)


def _read_meta(block: bytes, kind: bytes, pending: _Pending, stream: ChunkStream) -> None:
    size = _number(block[124:136])
    if not 0 <= size <= META_LIMIT:
        raise ResourceExhausted("archive has an extended header beyond the limit", size_bytes=size)
    pending.count += 1
    if pending.count > META_HEADERS:
        raise Corrupt("archive has too many extended headers in a row")
    body = stream.read(size)
    stream.skip(-size % BLOCK)
    if kind == b"L":
        pending.name = body.rstrip(b"\0")
    elif kind == b"K":
        pending.link_name = body.rstrip(b"\0")
    elif kind in b"xX":
        _parse_pax(body, pending)
    else:
        # A global header names defaults for all members. `git archive` puts a comment there;
        # no image builder uses more, and Go's reader ignores the records too.
        pending.count -= 1


def _parse_pax(body: bytes, pending: _Pending) -> None:
    """Records of length, blank, key, `=`, value, newline; the length counts the whole record."""
    at = 0
    while at < len(body):
        if body[at] == 0:
            break  # padding that some writers count into the size
        space = body.find(b" ", at, at + 20)
        digits = body[at:space]
        if space < 0 or not digits.isdigit():
            raise Corrupt("extended header has a malformed record")
        end = at + int(digits)
        equals = body.find(b"=", space, end)
        if end > len(body) or equals < 0 or body[end - 1 : end] != b"\n":
            raise Corrupt("extended header has a malformed record")
        key, value = body[space + 1 : equals], body[equals + 1 : end - 1]
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            pending.sparse_pairs.append((key, value))  # these repeat, and their order counts
        else:
            pending.pax[key] = value
        at = end


def _member(block: bytes, kind: bytes, pending: _Pending, stream: ChunkStream) -> Member:
    name = _text(block[0:100])
    link_name = _text(block[157:257])
    if block[257:263] == b"ustar\0" and block[345]:
        # POSIX only: the GNU format ("ustar  ") keeps times and sparse maps there.
        name = _text(block[345:500]) + b"/" + name
    size = _number(block[124:136])
    mtime_s = _number(block[136:148])
    low, high = _TIME_RANGE_S
    member = Member(
        name=name,
        type=kind,
        mode=_number(block[100:108]) & 0o7777,
        uid=_number(block[108:116]),
        gid=_number(block[116:124]),
        stored_bytes=size,
        size_bytes=size,
        mtime_ns=min(max(mtime_s, low), high) * _NS,
        link_name=link_name,
        device_major=0,
        device_minor=0,
    )
    if kind in b"34":
        member.device_major = _number(block[329:337])
        member.device_minor = _number(block[337:345])
    if pending.count:
        _apply_meta(member, pending)
    if member.type not in _DATA_TYPES:
        member.stored_bytes = 0  # a size here is a leftover of the file that was described
    elif kind == b"S":
        member.sparse = read_old_gnu_map(block, member.stored_bytes, stream)
    elif pending.pax and b"GNU.sparse.major" in pending.pax:
        member.sparse = _pax_one_map(member, pending.pax, stream)
    elif pending.sparse_pairs or b"GNU.sparse.map" in pending.pax:
        member.sparse = map_from_pax(pending.pax, pending.sparse_pairs, member.stored_bytes)
    if member.sparse is not None:
        member.size_bytes = member.sparse.size_bytes
    if member.stored_bytes < 0:
        raise Corrupt("archive member has a negative size", name=_shown(member.name))
    if kind in b"7S\0":
        # In old tars a directory is a file whose name ends in a slash.
        is_directory = kind == b"\0" and member.name.endswith(b"/")
        member.type = DIRECTORY if is_directory else REGULAR
        if is_directory:
            member.stored_bytes = 0
    return member


def _pax_one_map(member: Member, pax: dict[bytes, bytes], stream: ChunkStream) -> SparseMap:
    """Format 1.0: the map stands in front of the contents and is counted into the stored size."""
    if pax.get(b"GNU.sparse.major") != b"1" or pax.get(b"GNU.sparse.minor") != b"0":
        raise Unsupported("sparse file of an unknown format", name=_shown(member.name))
    sparse, consumed = read_inline_map(pax, member.stored_bytes, stream)
    member.stored_bytes -= consumed
    return sparse


def _apply_meta(member: Member, pending: _Pending) -> None:
    if pending.name is not None:
        member.name = pending.name
    if pending.link_name is not None:
        member.link_name = pending.link_name
    pax = pending.pax
    for key, value in pax.items():
        if key == b"path":
            member.name = value
        elif key == b"linkpath":
            member.link_name = value
        elif key == b"size":
            member.stored_bytes = member.size_bytes = decimal(value)
        elif key == b"uid":
            member.uid = decimal(value)
        elif key == b"gid":
            member.gid = decimal(value)
        elif key == b"mtime":
            member.mtime_ns = _time_ns(value)
        elif key.startswith(b"SCHILY.xattr."):
            member.xattrs[key[13:].decode("utf-8", "surrogateescape")] = value
    if b"GNU.sparse.name" in pax:
        member.name = pax[b"GNU.sparse.name"]  # the path record holds a made-up one


def decimal(value: bytes) -> int:
    """A non-negative decimal number of at most 19 digits; raises Corrupt."""
    if not value.isdigit() or len(value) > 19:
        raise Corrupt("extended header has a malformed number", value=_shown(value))
    return int(value)


def _time_ns(value: bytes) -> int:
    """`-1.5` -> -1500000000; exact, because a float loses nanoseconds of today's dates."""
    whole, _, fraction = value.partition(b".")
    negative = whole.startswith(b"-")
    digits = whole[1:] if negative else whole
    if not digits.isdigit() or len(digits) > 19 or not (fraction.isdigit() or not fraction):
        raise Corrupt("extended header has a malformed time", value=_shown(value))
    seconds = int(digits)
    nanoseconds = int((fraction + b"000000000")[:9] or b"0")
    total = seconds * _NS + nanoseconds
    low, high = _TIME_RANGE_S
    return min(max(-total if negative else total, low * _NS), high * _NS)


def _text(raw: bytes) -> bytes:
    """A field that ends at the first NUL, or fills its place."""
    end = raw.find(b"\0")
    return raw if end < 0 else raw[:end]


def _number(raw: bytes) -> int:
    """A number field: octal digits, or base-256 when the top bit is set (GNU)."""
    if raw[0] & 0x80:
        value = int.from_bytes(raw, "big")
        bits = len(raw) * 8
        if raw[0] & 0x40:
            return value - (1 << bits)  # two's complement; the marker bit is the sign
        return value & ((1 << (bits - 1)) - 1)
    return _octal(raw)


def _octal(raw: bytes) -> int:
    if raw[-1] in b"\0 " and raw[:-1].isdigit():  # as nearly every writer does it
        digits = raw[:-1]
        try:
            return int(digits, 8)
        except ValueError:
            raise Corrupt("archive header has a malformed number", value=_shown(digits)) from None
    digits = raw.split(b"\0", 1)[0].strip(b" ")
    if not digits:
        return 0
    try:
        # int() would accept signs and underscores; isdigit() does not.
        if digits.isdigit():
            return int(digits, 8)
    except ValueError:
        pass
    raise Corrupt("archive header has a malformed number", value=_shown(digits))


def _shown(raw: bytes) -> str:
    """Bytes of a stranger fit for a message."""
    return ascii(raw[:200].decode("utf-8", "backslashreplace"))[1:-1]
