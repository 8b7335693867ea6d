"""What a blob is, and that neither bombs nor damage get past."""

from __future__ import annotations

import gzip
import io
import zlib

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from imageservice.unpack.compression import (
    MIB,
    Compression,
    declared,
    expansion_limit,
    plain_chunks,
    sniff,
)
from sandbox.host.errors import Corrupt, PodwrightError, ResourceExhausted, Unsupported

PLAIN = b"".join(b"%d,%d;" % (n, n * n) for n in range(60_000))
SKIPPABLE = b"\x53\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"extra"


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def unpack(blob: bytes, limit_bytes: int = 64 * MIB) -> bytes:
    return b"".join(plain_chunks(io.BytesIO(blob), sniff(blob[:16]), limit_bytes=limit_bytes))


@pytest.mark.parametrize(
    ("blob", "kind"),
    [
        (gzip.compress(b"x"), Compression.GZIP),
        (zstd(b"x"), Compression.ZSTD),
        (SKIPPABLE + zstd(b"x"), Compression.ZSTD),
        (b"usr/", Compression.NONE),
        (b"", Compression.NONE),
    ],
)
def test_the_magic_number_decides(blob: bytes, kind: Compression) -> None:
    assert sniff(blob[:16]) is kind


@pytest.mark.parametrize("head", [b"\xfd7zXZ\0\0\x04", b"BZh91AY"])
def test_other_compressions_are_named_and_refused(head: bytes) -> None:
    with pytest.raises(Unsupported, match="xz or bzip2"):
        sniff(head)


@pytest.mark.parametrize(
    ("media_type", "kind"),
    [
        ("application/vnd.oci.image.layer.v1.tar+gzip", Compression.GZIP),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", Compression.GZIP),
        ("application/vnd.oci.image.layer.v1.tar+zstd", Compression.ZSTD),
        ("application/vnd.oci.image.layer.v1.tar", Compression.NONE),
        ("application/octet-stream", None),
    ],
)
def test_media_types(media_type: str, kind: Compression | None) -> None:
    assert declared(media_type) is kind


@pytest.mark.parametrize(
    "blob",
    [
        pytest.param(PLAIN, id="plain"),
        pytest.param(gzip.compress(PLAIN), id="gzip"),
        pytest.param(gzip.compress(PLAIN[:99]) + gzip.compress(PLAIN[99:]), id="two members"),
        pytest.param(gzip.compress(PLAIN) + bytes(3000), id="gzip with padding"),
        pytest.param(gzip.compress(PLAIN) + gzip.compress(b""), id="empty member"),
        pytest.param(zstd(PLAIN), id="zstd"),
        pytest.param(SKIPPABLE + zstd(PLAIN[:50]) + SKIPPABLE + zstd(PLAIN[50:]), id="frames"),
    ],
)
def test_plain_bytes(blob: bytes) -> None:
    assert unpack(blob) == PLAIN


@pytest.mark.parametrize(
    "blob",
    [
        pytest.param(gzip.compress(PLAIN)[:-9], id="cut"),
        pytest.param(gzip.compress(PLAIN)[:5], id="cut in header"),
        pytest.param(gzip.compress(PLAIN)[:-8] + bytes(8), id="wrong checksum"),
        pytest.param(gzip.compress(PLAIN) + b"junk", id="junk behind"),
        pytest.param(gzip.compress(PLAIN) + bytes(20) + b"x", id="junk behind padding"),
        pytest.param(zstd(PLAIN)[:200] + b"\xff" * 99_999, id="zstd damaged"),
        pytest.param(zstd(PLAIN) + b"junk", id="junk behind zstd"),
    ],
)
def test_damage_is_found(blob: bytes) -> None:
    with pytest.raises(Corrupt):
        unpack(blob)


@pytest.mark.parametrize("blob", [gzip.compress(bytes(8 * MIB)), zstd(bytes(8 * MIB))])
def test_bombs_stop_at_their_limit(blob: bytes) -> None:
    lengths: list[int] = []
    chunks = plain_chunks(io.BytesIO(blob), sniff(blob[:16]), limit_bytes=MIB)
    with pytest.raises(ResourceExhausted):
        lengths.extend(len(chunk) for chunk in chunks)
    assert sum(lengths) <= MIB


def test_a_window_too_large_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=30)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    blob = compressor.compress(b"x" * 1000) + compressor.flush()
    with pytest.raises(ResourceExhausted, match="window"):
        unpack(blob)


def test_expansion_limit() -> None:
    gib = 1024 * MIB
    assert expansion_limit(100, max_layer_bytes=8 * gib, max_ratio=200) == gib
    assert expansion_limit(10 * MIB, max_layer_bytes=8 * gib, max_ratio=200) == 2000 * MIB
    assert expansion_limit(gib, max_layer_bytes=8 * gib, max_ratio=200) == 8 * gib


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b""]))
def test_any_bytes_end_in_bytes_or_in_our_error(tail: bytes, magic: bytes) -> None:
    try:
        unpack(magic + tail)
    except PodwrightError:
        pass
    except (zlib.error, EOFError) as error:
        pytest.fail(f"foreign error: {error!r}")
