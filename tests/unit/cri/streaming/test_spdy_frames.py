import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.streaming import spdy_frames as frames
from cri.streaming.spdy_headers import (
    BLOCK_LIMIT_BYTES,
    DICTIONARY,
    HEADERS_LIMIT,
    HeaderCompressor,
    HeaderDecompressor,
    parse_block,
)
from sandbox.host.errors import Corrupt

names = st.text(st.characters(codec="ascii", exclude_categories=("Cc", "Lu")), max_size=20)
values = st.text(st.characters(codec="latin-1", exclude_categories=("Cc",)), max_size=40)
header_sets = st.dictionaries(names, values, max_size=8)


def test_the_dictionary_is_the_drafts():
    # 1423 bytes whose checksum zlib puts into every stream that uses them (DICTID).
    assert len(DICTIONARY) == 1423
    assert zlib.adler32(DICTIONARY) == 0xE3C6A7C2


@given(st.lists(header_sets, min_size=1, max_size=5))
def test_header_blocks_round_trip_as_one_stream(blocks):
    compressor, decompressor = HeaderCompressor(), HeaderDecompressor()
    for headers in blocks:
        block = compressor.compress(headers)
        expected = {name: value.encode().decode("latin-1") for name, value in headers.items()}
        assert decompressor.decompress(block) == expected


def test_names_come_in_lower_case_and_the_first_of_two_counts():
    plain = b"\0\0\0\2" + b"\0\0\0\1A\0\0\0\1x" + b"\0\0\0\1a\0\0\0\1y"
    assert parse_block(plain) == {"a": "x"}


def number(value):
    return struct.pack(">I", value)


@pytest.mark.parametrize(
    "plain",
    [
        b"",
        b"\0\0",
        number(2**32 - 1),
        number(HEADERS_LIMIT + 1) + b"\0" * 8 * (HEADERS_LIMIT + 1),
        number(1),
        number(1) + number(2**32 - 1),
        number(1) + number(5) + b"abc",
        number(1) + number(1) + b"a" + number(2**31),
        number(1) + number(1) + b"a" + number(1) + b"b" + b"more",
    ],
)
def test_counts_and_lengths_that_lie(plain):
    with pytest.raises(Corrupt):
        parse_block(plain)


def test_a_bomb_is_cut_at_the_limit():
    compressor = zlib.compressobj(9, zdict=DICTIONARY)
    bomb = compressor.compress(b"\0" * 10_000_000) + compressor.flush(zlib.Z_SYNC_FLUSH)
    assert len(bomb) < frames.CONTROL_LIMIT_BYTES, "small enough for a frame"
    tracemalloc.start()
    with pytest.raises(Corrupt, match="larger"):
        HeaderDecompressor().decompress(bomb)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 20 * BLOCK_LIMIT_BYTES


def test_a_stream_that_ends():
    compressor = zlib.compressobj(zdict=DICTIONARY)
    block = compressor.compress(number(0)) + compressor.flush()
    with pytest.raises(Corrupt, match="ended"):
        HeaderDecompressor().decompress(block)


@given(st.binary(max_size=200))
def test_garbage_blocks_are_corrupt(block):
    with pytest.raises(Corrupt):
        HeaderDecompressor().decompress(b"\xff" + block)


# Frames.

stream_ids = st.integers(1, 2**31 - 1)
controls = st.builds(
    frames.Control,
    kind=st.integers(1, 20),
    flags=st.integers(0, 255),
    payload=st.binary(max_size=300),
)
data_frames = st.builds(frames.Data, stream_ids, st.binary(max_size=300), st.booleans())


def encode(frame):
    if isinstance(frame, frames.Control):
        return frames.control(frame.kind, frame.payload, frame.flags)
    return frames.data_frame(frame.stream_id, frame.data, fin=frame.fin)


def merged(found):
    """Data pieces of one stream that follow each other, joined: cuts add pieces, nothing else."""
    result = []
    for frame in found:
        last = result[-1] if result else None
        if (
            isinstance(frame, frames.Data)
            and isinstance(last, frames.Data)
            and last.stream_id == frame.stream_id
            and not last.fin
        ):
            result[-1] = frames.Data(frame.stream_id, last.data + frame.data, frame.fin)
        else:
            result.append(frame)
    return [f for f in result if not isinstance(f, frames.Data) or f.data or f.fin]


@given(st.lists(controls | data_frames, max_size=6), st.data())
def test_frames_round_trip_however_they_are_cut(wanted, data):
    wire = b"".join(map(encode, wanted))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=10)))
    decoder = frames.FrameDecoder()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        found += decoder.feed(wire[start:end])
    assert merged(found) == merged(wanted)


@given(st.binary(max_size=500))
def test_garbage_gives_frames_or_corrupt(garbage):
    try:
        for frame in frames.FrameDecoder().feed(garbage):
            assert isinstance(frame, frames.Control | frames.Data)
    except Corrupt:
        pass


def test_a_data_frame_of_16_mib_is_never_collected():
    decoder = frames.FrameDecoder()
    head = struct.pack(">II", 1, 0x01FFFFFF)
    assert list(decoder.feed(head)) == []
    piece = b"x" * 64 * 1024
    tracemalloc.start()
    total = 0
    for _ in range(255):
        for frame in decoder.feed(piece):
            total += len(frame.data)
            assert not frame.fin
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == 255 * len(piece)
    assert peak_bytes < 8 * len(piece)
    *_, last = decoder.feed(piece[: 0xFFFFFF - total])
    assert last.fin


def test_the_limit_of_a_control_frame_is_judged_by_its_head():
    head = struct.pack(">II", 1 << 31 | 3 << 16 | frames.SETTINGS, 0xFFFFFF)
    decoder = frames.FrameDecoder()
    with pytest.raises(Corrupt, match="limit"):
        list(decoder.feed(head))


@pytest.mark.parametrize("version", [0, 1, 2, 4, 0x7FFF])
def test_other_versions(version):
    head = struct.pack(">II", 1 << 31 | version << 16 | frames.PING, 4) + b"\0" * 4
    with pytest.raises(Corrupt, match="version"):
        list(frames.FrameDecoder().feed(head))


def test_data_without_a_stream():
    with pytest.raises(Corrupt, match="stream"):
        list(frames.FrameDecoder().feed(b"\0" * 8))


@pytest.mark.parametrize("count", [1, 2**16, 2**32 - 1])
def test_settings_whose_count_lies(count):
    with pytest.raises(Corrupt, match="entries"):
        frames.parse_settings(number(count) + b"\0" * 16)


def test_settings():
    assert frames.parse_settings(number(1) + number(1 << 24 | 7) + number(5)) == {7: 5}
    assert frames.parse_settings(number(0)) == {}


@pytest.mark.parametrize(
    ("parse", "payload"),
    [
        (frames.parse_pair, b""),
        (frames.parse_pair, b"\0" * 9),
        (frames.parse_ping, b"\0" * 3),
        (frames.parse_ping, b"\0" * 5),
        (frames.parse_settings, b"\0"),
        (frames.parse_syn_stream, b"\0" * 9),
        (frames.parse_block_frame, b"\0" * 3),
    ],
)
def test_payloads_of_the_wrong_size(parse, payload):
    with pytest.raises(Corrupt):
        parse(payload)
