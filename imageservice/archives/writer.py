"""The bytes of an archive: plain tar members that are the same every time they are written."""

from __future__ import annotations

from typing import Final

BLOCK: Final = 512
#: Two zero blocks end an archive (POSIX.1-2008 pax(1)).
END: Final = bytes(2 * BLOCK)
#: Largest size that eleven octal digits hold; larger ones are written in base 256, as GNU tar does.
_OCTAL_LIMIT: Final = 8**11


#: A name longer than the header's field (that of a blob by SHA-512) comes as GNU tar writes it: the
#: contents of a member of type L before the one that it names.
_NAME_BYTES: Final = 100
_LONG_NAME: Final = "././@LongLink"


def header(name: str, size_bytes: int) -> bytes:
    """What comes before the contents of one member: root's, of 1970, readable by all."""
    raw = name.encode("ascii")
    if len(raw) <= _NAME_BYTES:
        return _block(raw, size_bytes, b"0")
    long = raw + b"\0"
    before = _block(_LONG_NAME.encode(), len(long), b"L") + long + padding(len(long))
    return before + _block(raw[:_NAME_BYTES], size_bytes, b"0")


def _block(raw: bytes, size_bytes: int, kind: bytes) -> bytes:
    size = (
        b"%011o\0" % size_bytes
        if size_bytes < _OCTAL_LIMIT
        else b"\x80" + size_bytes.to_bytes(11, "big")
    )
    start = b"".join(
        (
            raw.ljust(_NAME_BYTES, b"\0"),
            b"0000644\0",
            b"0000000\0",
            b"0000000\0",
            size,
            b"%011o\0" % 0,
        )
    )
    rest = kind.ljust(101, b"\0") + b"ustar\00000"
    block = (start + b" " * 8 + rest).ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def padding(size_bytes: int) -> bytes:
    """What follows the contents of a member."""
    return bytes(-size_bytes % BLOCK)
