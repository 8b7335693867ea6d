"""What a blob really is, and its plain bytes with a bound on how many they may become.

The magic number decides, not the media type: registries and builders mislabel layers, and what a
stranger calls his bytes is no reason to misread them. A media type that names another compression
is therefore only reported. What is neither gzip nor zstd is taken for a plain tar, whose header
checksum then says whether it is one; xz and bzip2, which no image specification allows, are refused
by name (a malformed xz once hung the reader for ever, CVE-2021-20291).

No program of the image or the host is run for any of it.
"""

from __future__ import annotations

import enum
from typing import IO, TYPE_CHECKING, Final, Protocol, cast

import zstandard
from isal import igzip_lib

from sandbox.host.errors import Corrupt, ResourceExhausted, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB: Final = 1024 * 1024
#: Compressed bytes read at once.
INPUT_BYTES: Final = 256 * 1024
#: Plain bytes in one piece: large enough to hash and write well, small enough for the cache.
OUTPUT_BYTES: Final = 512 * 1024
#: Window of a zstd frame, and so the memory to decode it. RFC 8878 asks decoders for 8 MiB and
#: `zstd --ultra` needs 128 MiB; `--long=31` asks for 2 GiB, which is a bomb here.
ZSTD_WINDOW_BYTES: Final = 128 * MIB
# isal's stubs call the class an instance.
_GZIP_ERRORS: Final = (cast("type[Exception]", igzip_lib.IsalError), EOFError, ValueError)


class Readable(Protocol):
    """A file read forwards."""

    def read(self, size: int, /) -> bytes:
        """At most `size` of the next bytes; b"" at the end."""
        ...


class Compression(enum.Enum):
    """How a layer's tar is wrapped."""

    GZIP = "gzip"
    ZSTD = "zstd"
    NONE = "none"


def sniff(head: bytes) -> Compression:
    """The compression that the first bytes show.

    Raises:
        Unsupported: xz or bzip2.
    """
    if head.startswith(b"\x1f\x8b"):
        return Compression.GZIP
    # RFC 8878: a frame, or a skippable frame in front of one (0x184D2A50 to 5F, little-endian).
    if head.startswith(b"\x28\xb5\x2f\xfd") or (
        head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50
    ):
        return Compression.ZSTD
    if head.startswith((b"\xfd7zXZ\0", b"BZh")):
        raise Unsupported("layer is compressed with xz or bzip2", hint="use gzip or zstd")
    return Compression.NONE


def declared(media_type: str) -> Compression | None:
    """What a layer's media type says, or None when it says nothing we know."""
    if media_type.endswith((".tar+gzip", ".tar.gzip")):
        return Compression.GZIP
    if media_type.endswith((".tar+zstd", ".tar.zstd")):
        return Compression.ZSTD
    if media_type.endswith((".tar", ".v1.tar")):
        return Compression.NONE
    return None


def expansion_limit(compressed_bytes: int, *, max_layer_bytes: int, max_ratio: int) -> int:
    """Plain bytes a blob may become.

    The first GiB is free: small layers of zeros are honest and compress a thousandfold, and a GiB
    of time and disk is no attack. Beyond it the ratio counts.
    """
    return min(max_layer_bytes, max(1024 * MIB, compressed_bytes * max_ratio))


def plain_chunks(file: Readable, kind: Compression, *, limit_bytes: int) -> Iterator[bytes]:
    """The plain bytes, in non-empty chunks of at most about `OUTPUT_BYTES`.

    Args:
        file: the blob, read from where it stands to its end.
        kind: what `sniff` said.
        limit_bytes: more than this is a bomb.

    Raises:
        Corrupt: malformed, truncated, or junk behind the compressed data.
        ResourceExhausted: more than `limit_bytes`, or a window too large to decode.
    """
    decoders = {
        Compression.GZIP: _gunzip,
        Compression.ZSTD: _unzstd,
        Compression.NONE: _plain,
    }
    total = 0
    for chunk in decoders[kind](file):
        total += len(chunk)
        if total > limit_bytes:
            raise ResourceExhausted("layer grows beyond its limit", limit_bytes=limit_bytes)
        yield chunk


def _plain(file: Readable) -> Iterator[bytes]:
    while chunk := file.read(OUTPUT_BYTES):
        yield chunk


def _gunzip(file: Readable) -> Iterator[bytes]:
    """Members one after another (pigz, stargz write many); zeros behind the last are padding."""
    data = file.read(INPUT_BYTES)
    while data:
        decoder = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        while not decoder.eof:
            if decoder.needs_input and not data:
                data = file.read(INPUT_BYTES)
                if not data:
                    raise Corrupt("gzip layer ends early")
            try:
                chunk = decoder.decompress(data, OUTPUT_BYTES)
            except _GZIP_ERRORS as error:
                raise Corrupt(f"gzip layer is malformed: {error}") from error
            data = b""
            if chunk:
                yield chunk
        data = decoder.unused_data or file.read(INPUT_BYTES)
        if data and data[0] == 0:
            _only_zeros(data, file)
            return


def _only_zeros(data: bytes, file: Readable) -> None:
    while data:
        if data.count(0) != len(data):
            raise Corrupt("gzip layer has junk behind its end")
        data = file.read(INPUT_BYTES)


def _unzstd(file: Readable) -> Iterator[bytes]:
    """Frames one after another, skippable ones included (zstd:chunked ends with two).

    A frame that is cut short ends the bytes without an error of zstandard's; the tar in it is then
    cut short too, and its hash is not the diffID.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
    source = cast("IO[bytes]", file)  # of a file it only calls read
    reader = decompressor.stream_reader(source, read_size=INPUT_BYTES, read_across_frames=True)
    while True:
        try:
            chunk = reader.read(OUTPUT_BYTES)
        except zstandard.ZstdError as error:
            if "memory" in str(error):
                raise ResourceExhausted(
                    "zstd layer needs too large a window", limit_bytes=ZSTD_WINDOW_BYTES
                ) from error
            raise Corrupt(f"zstd layer is malformed: {error}") from error
        if not chunk:
            return
        yield chunk
