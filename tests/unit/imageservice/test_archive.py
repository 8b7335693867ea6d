"""The tar grammar against the standard library's writer, GNU tar's forms, and lies."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imageservice.unpack.archive import Member, read_members
from imageservice.unpack.stream import ChunkStream
from sandbox.host.errors import Corrupt, PodwrightError, ResourceExhausted, Unsupported
from tests.kit.tars import EPOCH_S, Tar, members, pax_member


def stream_of(data: bytes, step: int = 700) -> ChunkStream:
    """Chunks of an odd size, so that headers and contents cross their borders."""
    chunks: Iterator[bytes] = (data[at : at + step] for at in range(0, len(data), step))
    return ChunkStream(lambda: next(chunks, b""))


def read(data: bytes) -> list[Member]:
    return list(read_members(stream_of(data)))


def read_contents(data: bytes) -> list[tuple[bytes, bytes]]:
    stream = stream_of(data)
    return [(member.name, stream.read(member.stored_bytes)) for member in read_members(stream)]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_reads_what_the_standard_library_writes(form: int) -> None:
    long_name = "/".join(["directory-of-some-length"] * 5) + "/file"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, kind, link in (
            (long_name, tarfile.REGTYPE, ""),
            ("d", tarfile.DIRTYPE, ""),
            ("s", tarfile.SYMTYPE, "t" * 99),
            ("h", tarfile.LNKTYPE, "d/x"),
            ("c", tarfile.CHRTYPE, ""),
            ("b", tarfile.BLKTYPE, ""),
            ("f", tarfile.FIFOTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = kind, link, 0o4751
            info.uid, info.gid, info.mtime = 1000, 2000, EPOCH_S
            info.devmajor, info.devminor = 8, 17
            info.size = 3000 if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(b"z" * 3000))
    found = read(buffer.getvalue())
    expected = members(buffer.getvalue())
    assert [m.name.decode().rstrip("/") for m in found] == [m.name for m in expected]
    assert [m.type for m in found] == [m.type for m in expected]
    assert [m.link_name.decode() for m in found] == [m.linkname for m in expected]
    assert {(m.mode, m.uid, m.gid, m.mtime_ns) for m in found} == {
        (0o4751, 1000, 2000, EPOCH_S * 10**9)
    }
    devices = {m.name: (m.device_major, m.device_minor) for m in found}
    assert devices[b"c"] == devices[b"b"] == (8, 17)
    assert read_contents(buffer.getvalue())[0] == (long_name.encode(), b"z" * 3000)


def test_gnu_base_256_numbers() -> None:
    info = tarfile.TarInfo("a")
    info.uid, info.gid, info.mtime = 3_000_000, 4_000_000_000, -5
    (member,) = read(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert (member.uid, member.gid, member.mtime_ns) == (3_000_000, 4_000_000_000, -5 * 10**9)


def test_pax_time_keeps_nanoseconds() -> None:
    data = pax_member({"mtime": b"1580601600.123456789"}) + Tar().file("a").done()
    assert read(data)[0].mtime_ns == 1_580_601_600_123_456_789


def test_impossible_time_is_clamped_to_what_ext4_stores() -> None:
    data = pax_member({"mtime": b"9999999999999999"}) + Tar().file("a").done()
    assert read(data)[0].mtime_ns == ((1 << 34) - (1 << 31) - 1) * 10**9


def test_pax_values_may_be_any_bytes() -> None:
    data = (
        pax_member({"path": b"caf\xe9\n=x", "SCHILY.xattr.user.n": b"\0\xff\n"})
        + Tar().file("other").done()
    )
    (member,) = read(data)
    assert member.name == b"caf\xe9\n=x"
    assert member.xattrs == {"user.n": b"\0\xff\n"}


def test_old_tar_directory_is_a_file_with_a_slash() -> None:
    (member,) = read(Tar().add("d/", kind=tarfile.AREGTYPE).done())
    assert (member.type, member.name) == (tarfile.DIRTYPE, b"d/")


def test_size_of_a_link_is_no_contents() -> None:
    data = Tar().add("l", kind=tarfile.SYMTYPE, link="t", size=4096).file("after").done()
    assert [m.name for m in read(data)] == [b"l", b"after"]


def test_global_header_is_passed_over() -> None:
    data = Tar().add("g", kind=tarfile.XGLTYPE, content=b"16 comment=hello\n").file("a").done()
    assert [m.name for m in read(data)] == [b"a"]


def test_contents_not_read_are_skipped() -> None:
    data = Tar().file("a", b"x" * 5000).file("b", b"y").done()
    assert [m.name for m in read(data)] == [b"a", b"b"]


def test_end_without_marker_is_an_end() -> None:
    assert len(read(Tar().file("a").done()[:-1024])) == 1


def test_empty_archive_and_empty_stream() -> None:
    assert read(bytes(1024)) == []
    assert read(b"") == []


def test_what_follows_the_end_marker_is_not_parsed_but_counted() -> None:
    data = Tar().file("a").done() + bytes(8192)
    stream = stream_of(data)
    assert len(list(read_members(stream))) == 1
    stream.drain()
    assert stream.position == len(data)


GNU_SPARSE_1_0 = pax_member(
    {
        "GNU.sparse.major": b"1",
        "GNU.sparse.minor": b"0",
        "GNU.sparse.name": b"holes",
        "GNU.sparse.realsize": b"9000",
    }
)


def test_sparse_1_0() -> None:
    inline = b"2\n4096\n3\n8997\n3\n"
    content = inline + bytes(512 - len(inline)) + b"abcdef"
    data = GNU_SPARSE_1_0 + Tar().file("GNUSparseFile.0/holes", content).done()
    stream = stream_of(data)
    for member in read_members(stream):
        assert (member.name, member.size_bytes, member.stored_bytes) == (b"holes", 9000, 6)
        assert member.sparse is not None
        assert member.sparse.segments == ((4096, 3), (8997, 3))
        assert stream.read(6) == b"abcdef"


def test_sparse_map_of_blanks_is_not_collected_to_its_end() -> None:
    """2 GiB of map without a line in it: given up after what the longest honest map takes."""
    header = Tar().add("h", size=2 << 30).done()[:512]
    chunks = iter([GNU_SPARSE_1_0 + header + b"400000\n".ljust(512, b"0")])
    stream = ChunkStream(lambda: next(chunks, b"0" * (1 << 20)))
    with pytest.raises(ResourceExhausted, match="map"):
        list(read_members(stream))
    assert stream.position < 17 << 20


def test_sparse_0_1() -> None:
    header = pax_member(
        {"GNU.sparse.map": b"0,2,100,1", "GNU.sparse.size": b"200", "GNU.sparse.name": b"n"}
    )
    (member,) = read(header + Tar().file("x", b"abc").done())
    assert member.sparse is not None
    assert (member.size_bytes, member.sparse.segments) == (200, ((0, 2), (100, 1)))


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ({"GNU.sparse.map": b"0,2,1,1", "GNU.sparse.size": b"200"}, "overlapping"),
        ({"GNU.sparse.map": b"0,2,100", "GNU.sparse.size": b"200"}, "odd"),
        ({"GNU.sparse.map": b"0,3", "GNU.sparse.size": b"2"}, "contradicts"),
        ({"GNU.sparse.map": b"0,99999", "GNU.sparse.size": b"99999"}, "contradicts"),
        ({"GNU.sparse.map": b"0,-3", "GNU.sparse.size": b"3"}, "malformed"),
    ],
)
def test_sparse_maps_that_lie_are_refused(records: dict[str, bytes], why: str) -> None:
    with pytest.raises(Corrupt, match=why):
        read(pax_member(records) + Tar().file("x", b"abc").done())


def broken_checksum(data: bytes) -> bytes:
    return data[:148] + b"0000000\0" + data[156:]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        pytest.param(broken_checksum(Tar().file("a").done()), Corrupt, id="checksum"),
        pytest.param(Tar().file("a").done()[:514], Corrupt, id="cut in contents"),
        pytest.param(Tar().file("a").done()[:300], Corrupt, id="cut in header"),
        pytest.param(Tar().add("a", size=8 << 60).done(), Corrupt, id="8 EiB claimed"),
        pytest.param(Tar().add("a", size=-1).done(), Corrupt, id="negative size"),
        pytest.param(
            bytes(512) + Tar().file("hidden").done(), Corrupt, id="members behind the end"
        ),
        pytest.param(Tar().add("a", kind=b"M").done(), Unsupported, id="multi-volume"),
        pytest.param(
            Tar().add("x", kind=tarfile.XHDTYPE, size=2 << 20).done(),
            ResourceExhausted,
            id="2 MiB pax header",
        ),
        pytest.param(
            Tar().add("x", kind=tarfile.GNUTYPE_LONGNAME, size=8 << 20).done(),
            ResourceExhausted,
            id="8 MiB name",
        ),
        pytest.param(pax_member({"a": b"b"}) * 9 + Tar().file("f").done(), Corrupt, id="9 headers"),
        pytest.param(pax_member({"a": b"b"}) + bytes(1024), Corrupt, id="header without member"),
        pytest.param(pax_member({"size": b"1_0"}) + Tar().file("f").done(), Corrupt, id="digits"),
        pytest.param(pax_member({"uid": b"-1"}) + Tar().file("f").done(), Corrupt, id="uid -1"),
        pytest.param(
            Tar().add("x", kind=tarfile.XHDTYPE, content=b"99 a=b\n").done(), Corrupt, id="length"
        ),
        pytest.param(
            Tar().add("x", kind=tarfile.XHDTYPE, content=b"7 a=bcd").done(), Corrupt, id="newline"
        ),
    ],
)
def test_lies_are_refused(data: bytes, error: type[PodwrightError]) -> None:
    with pytest.raises(error):
        read(data)


SEED = (
    pax_member({"mtime": b"1.5", "path": b"p", "SCHILY.xattr.user.a": b"v"})
    + Tar().file("a", b"c" * 600).directory("d").symlink("s", "t").done()
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(SEED) - 1), st.integers(0, 255)), min_size=1, max_size=12
    ),
    st.booleans(),
)
def test_any_damage_ends_in_members_or_in_our_error(
    changes: list[tuple[int, int]], repair: bool
) -> None:
    data = bytearray(SEED)
    for at, value in changes:
        data[at] = value
    if repair:  # get past the checksum
        for at in range(0, len(data), 512):
            block = data[at : at + 512]
            block[148:156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    try:
        found = read(bytes(data))
    except PodwrightError:
        return
    assert len(found) <= len(SEED) // 512


def test_the_padding_of_the_last_member_may_be_missing_but_not_its_contents() -> None:
    whole = Tar().file("a", b"first").file("b", b"x" * 700).done().rstrip(b"\0")
    assert len(whole) % 512
    assert read_contents(whole) == [(b"a", b"first"), (b"b", b"x" * 700)]
    assert [member.name for member in read(whole)] == [b"a", b"b"]
    with pytest.raises(Corrupt, match="ends early"):
        read(whole[:-1])
