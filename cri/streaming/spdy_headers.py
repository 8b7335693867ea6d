"""SPDY/3 header blocks: names and values, compressed as one zlib stream for each direction.

The stream is shared by all frames of a direction, so every block must be decompressed in order,
also those of streams that are refused. Decompression stops at a limit, before any name or value is
taken out (a block of some kilobytes can stand for gigabytes); counts and lengths are compared with
what is really there.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import Corrupt

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Decompressed size of one block. Kubernetes' clients send three headers of a few bytes.
BLOCK_LIMIT_BYTES: Final = 16 * 1024
HEADERS_LIMIT: Final = 64

_COUNT: Final = struct.Struct(">I")
_WORDS: Final = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language "
    "accept-ranges age allow authorization cache-control connection content-base content-encoding "
    "content-language content-length content-location content-md5 content-range content-type date "
    "etag expect expires from host if-match if-modified-since if-none-match if-range "
    "if-unmodified-since last-modified location max-forwards pragma proxy-authenticate "
    "proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url "
    "public set-cookie keep-alive origin"
)
_TEXT: Final = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request"
    "401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented"
    "503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 "
    "Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,"
    "application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age="
    "gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
#: The preset dictionary of the SPDY/3 draft, section 2.6.10.1: words with their lengths, then text.
DICTIONARY: Final = (
    b"".join(_COUNT.pack(len(word)) + word.replace("_", " ").encode() for word in _WORDS.split(" "))
    + _TEXT.encode()
)


class HeaderCompressor:
    """One direction's blocks, going out."""

    def __init__(self) -> None:
        # A window of 2 KiB is enough for the dictionary and costs a tenth of the usual memory.
        self._zlib = zlib.compressobj(wbits=11, memLevel=1, zdict=DICTIONARY)

    def compress(self, headers: Mapping[str, str]) -> bytes:
        """The block of one frame."""
        plain = [_COUNT.pack(len(headers))]
        for name, value in headers.items():
            for text in (name.lower().encode(), value.encode()):
                plain += [_COUNT.pack(len(text)), text]
        block = self._zlib.compress(b"".join(plain))
        return block + self._zlib.flush(zlib.Z_SYNC_FLUSH)


class HeaderDecompressor:
    """One direction's blocks, coming in."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(zdict=DICTIONARY)

    def decompress(self, block: bytes) -> dict[str, str]:
        """The headers of one frame; a name that occurs twice keeps its first value.

        Raises:
            Corrupt: not a block, or larger than the limits.
        """
        try:
            plain = self._zlib.decompress(block, BLOCK_LIMIT_BYTES + 1)
        except zlib.error as error:
            raise Corrupt(f"SPDY header block cannot be decompressed: {error}") from error
        if len(plain) > BLOCK_LIMIT_BYTES or self._zlib.unconsumed_tail:
            raise Corrupt(f"SPDY header block is larger than {BLOCK_LIMIT_BYTES} bytes")
        if self._zlib.eof:
            raise Corrupt("SPDY header compression was ended by the client")
        return parse_block(plain)


def parse_block(plain: bytes) -> dict[str, str]:
    """Names and values of a decompressed block. Raises Corrupt."""
    count, rest = _number(plain)
    if count > HEADERS_LIMIT:
        raise Corrupt(f"SPDY header block has {count} headers, {HEADERS_LIMIT} are allowed")
    headers: dict[str, str] = {}
    for _ in range(count):
        name, rest = _text(rest)
        value, rest = _text(rest)
        headers.setdefault(name.lower(), value)
    if rest:
        raise Corrupt("SPDY header block is longer than its headers")
    return headers


def _number(data: bytes) -> tuple[int, bytes]:
    if len(data) < _COUNT.size:
        raise Corrupt("SPDY header block ends in the middle of a number")
    return _COUNT.unpack_from(data)[0], data[_COUNT.size :]


def _text(data: bytes) -> tuple[str, bytes]:
    length, rest = _number(data)
    if length > len(rest):
        raise Corrupt("SPDY header is longer than its block")
    return rest[:length].decode("latin-1"), rest[length:]
