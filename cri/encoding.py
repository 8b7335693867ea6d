"""Protobuf's encoding, written down directly: for answers of thousands of small messages.

Making a message object for each number, filling it and serialising it takes several times what its
few bytes do. Numbers and kinds of fields are taken from the contract when the daemon starts, so a
field that does not exist, or is of another kind, is no error on the wire but one at import.

The format: protobuf.dev, "Encoding". A field that has its default value is left out, but an entry
of a repeated field and a message (also an empty one) are not.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from google.protobuf.descriptor import FieldDescriptor

if TYPE_CHECKING:
    from google.protobuf.message import Message

_VARINT, _FIXED_64, _LENGTH = 0, 1, 2
_WIRE_TYPES: Final = {
    FieldDescriptor.TYPE_INT64: _VARINT,
    FieldDescriptor.TYPE_UINT64: _VARINT,
    FieldDescriptor.TYPE_ENUM: _VARINT,
    FieldDescriptor.TYPE_DOUBLE: _FIXED_64,
    FieldDescriptor.TYPE_STRING: _LENGTH,
    FieldDescriptor.TYPE_MESSAGE: _LENGTH,
}
#: Bits of four bytes, which change in a quarter of a second, and what says that more bytes follow.
_STAMP_BITS: Final = 28
_CONTINUED: Final = 0x80808080
_DOUBLE: Final = struct.Struct("<d")


def varint(number: int) -> bytes:
    """A number in bytes of seven bits, the lowest first.

    Raises:
        ValueError: the number is negative or has more than 64 bits.
    """
    if 0 <= number < 0x80:
        return bytes((number,))
    if 0 < number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    if not 0 < number < 1 << 64:
        raise ValueError(f"no unsigned number of 64 bits: {number}")
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def stamp(number: int) -> bytes:
    """The same of a time (ns): of those of one moment only the low bits differ.

    Raises:
        ValueError: as `varint`.
    """
    if not 0 < number >> _STAMP_BITS < 1 << 64 - _STAMP_BITS:
        return varint(number)
    low = (
        _CONTINUED
        | number & 0x7F
        | (number & 0x3F80) << 1
        | (number & 0x1F_C000) << 2
        | (number & 0xFE0_0000) << 3
    )
    return low.to_bytes(4, "little") + _high(number >> _STAMP_BITS)


@lru_cache(maxsize=64)
def _high(number: int) -> bytes:
    return varint(number)


class Field:
    """A field of a message of the contract."""

    def __init__(self, message: type[Message], name: str) -> None:
        """Raises KeyError when the message has no such field, or none of a kind known here."""
        found = message.DESCRIPTOR.fields_by_name[name]
        self._wire_type = _WIRE_TYPES[found.type]
        self._tag = varint(found.number << 3 | self._wire_type)

    @property
    def tag(self) -> bytes:
        """What stands before the value."""
        return self._tag

    def number(self, value: int) -> bytes:
        """Of an integer or an enumeration. Raises ValueError as `varint`."""
        return self._tag + varint(value) if value else b""

    def double(self, value: float) -> bytes:
        """Of a double."""
        return self._tag + _DOUBLE.pack(value) if value else b""

    def head(self, size: int) -> bytes:
        """What stands before a message of `size` bytes."""
        return self._tag + varint(size)

    def message(self, body: bytes) -> bytes:
        """Of a message whose serialised form is `body`; also one entry of several."""
        return self._tag + varint(len(body)) + body

    def text(self, value: str) -> bytes:
        """Of one entry of a repeated string."""
        return self.message(value.encode())


@lru_cache(maxsize=1024)
def uint64_value(number: int) -> bytes:
    """A UInt64Value with its length before it. Kept, because 0 and limits come again and again."""
    body = b"\x08" + varint(number) if number else b""
    return varint(len(body)) + body
