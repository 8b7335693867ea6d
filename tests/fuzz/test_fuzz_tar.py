"""Tar archives made of any headers: members or our own error, and nothing without bound.

What is generated is mostly valid, because noise ends at the first checksum: headers with fields of
every sort and right sums, pax and GNU records in front of them, contents of another length than
claimed, and bytes changed afterwards with the sums mended. Three things must hold of all of it:

- only errors of our own classes come out, whatever is in the fields;
- what is read is bounded by what is there: members, names, segments;
- what the standard library and we both accept, we read alike.
"""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imageservice.unpack.apply import TreeBuilder
from imageservice.unpack.archive import META_LIMIT, Member, read_members
from imageservice.unpack.entries import MAX_PATH_BYTES, plan_entry
from imageservice.unpack.sparse import MAX_SEGMENTS
from imageservice.unpack.stream import ChunkStream
from sandbox.host.errors import PodwrightError
from sandbox.host.trees import remove_tree
from tests.kit.fuzzing import fuzzed
from tests.kit.tars import Tar, pax_member

BLOCK = 512
KINDS = b"0123456\x007SgxXLKMVDZA"

components = st.sampled_from(
    [
        b"a", b"b", b"dir", b"..", b".", b"", b".wh.a", b".wh..wh..opq", b".wh..", b".wh...",
        b".wh..wh.plnk", b"\xff\xfe", b"x" * 255, b"x" * 256, b"new\nline",
    ]
)  # fmt: skip
names = st.lists(components, max_size=6).map(b"/".join) | st.binary(max_size=120)
octal = st.integers(0, 8**11 - 1).map(lambda n: b"%o" % n)
number_texts = (
    octal
    | st.sampled_from(
        [
            b"", b" ", b"-1", b"+7", b"0x1", b"1_0", b"9", b"\xd9\xa0", b"77777777777",
            b"\x80" + bytes(11), b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\xbf" + b"\xff" * 11,
            b"\x80" + bytes(3) + b"\x80" + bytes(7),
        ]
    )
    | st.binary(max_size=12)
)  # fmt: skip
decimals = (
    st.integers(-3, 2**70).map(lambda n: b"%d" % n)
    | st.sampled_from([b"", b"1.5", b"-1.5", b"1.", b".5", b"1e5", b"inf", b"nan", b"1_0", b" 1"])
    | st.binary(max_size=8)
)
pax_keys = st.sampled_from(
    [
        b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime", b"atime", b"comment",
        b"GNU.sparse.major", b"GNU.sparse.minor", b"GNU.sparse.name", b"GNU.sparse.realsize",
        b"GNU.sparse.size", b"GNU.sparse.map", b"GNU.sparse.numblocks", b"GNU.sparse.offset",
        b"GNU.sparse.numbytes", b"SCHILY.xattr.user.a", b"SCHILY.xattr.security.capability",
        b"SCHILY.xattr.trusted.overlay.opaque", b"SCHILY.xattr.", b"SCHILY.xattr.user.",
        b"SCHILY.xattr.user.\xff", b"SCHILY.xattr.user." + b"n" * 300,
    ]
)  # fmt: skip
sparse_maps = st.lists(st.integers(0, 5000), max_size=8).map(
    lambda numbers: b",".join(b"%d" % n for n in numbers)
)
pax_values = decimals | names | sparse_maps | st.sampled_from([b"1", b"0", b"a=b", b"\0"])


def record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d" % length + rest


pax_bodies = (
    st.lists(st.tuples(pax_keys, pax_values), max_size=5).map(
        lambda pairs: b"".join(record(*pair) for pair in pairs)
    )
    | st.sampled_from(
        [
            b"0 a=b\n", b"99999999999999999999 a=b\n", b"5 a=b\n6 a=b\n", b"-6 a=b\n",
            b"6 ab\n\n\n", b"9" * 30, b"\xd9\xa0 a=b\n", b"6 =bc\n\0junk",
        ]
    )
    | st.binary(max_size=64)
)  # fmt: skip


def mended(block: bytes) -> bytes:
    """The header with the checksum that it should have."""
    blank = block[:148] + b" " * 8 + block[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


@st.composite
def headers(draw: st.DrawFn, kind: int | None = None, size: int | None = None) -> bytes:
    """One header block; every field of its own sort, the sum right nearly always."""
    block = bytearray(BLOCK)

    def put(at: int, width: int, value: bytes) -> None:
        block[at : at + width] = value[:width].ljust(width, b"\0")

    put(0, 100, draw(names))
    for at, width in ((100, 8), (108, 8), (116, 8), (136, 12), (329, 8), (337, 8)):
        put(at, width, draw(st.just(b"0") | number_texts))
    put(124, 12, b"%o" % size if size is not None else draw(octal | number_texts))
    block[156] = draw(st.sampled_from(list(KINDS))) if kind is None else kind
    put(157, 100, draw(names))
    put(257, 8, draw(st.sampled_from([b"ustar\x0000", b"ustar  \0", b"", b"ustar\0\0\0"])))
    if draw(st.booleans()):
        put(345, 155, draw(names))
    if block[156:157] == b"S":
        for at in range(386, 482, 12):
            put(at, 12, draw(octal | number_texts))
        block[482] = draw(st.sampled_from([0, 0, 1]))
        put(483, 12, draw(octal | number_texts))
    return mended(bytes(block)) if draw(st.integers(0, 19)) else bytes(block)


@st.composite
def parts(draw: st.DrawFn) -> bytes:
    """One piece of an archive: a member with contents, a meta header, blocks of anything."""
    what = draw(st.integers(0, 9))
    if what < 4:
        contents = draw(st.binary(max_size=700))
        kind = draw(st.sampled_from(list(b"00012345")))
        return draw(headers(kind, len(contents))) + padded(contents)
    if what < 7:
        body = draw(pax_bodies)
        return draw(headers(draw(st.sampled_from(list(b"xxxXg"))), len(body))) + padded(body)
    if what < 8:
        body = draw(names) + b"\0"
        return draw(headers(draw(st.sampled_from(list(b"LK"))), len(body))) + padded(body)
    if what < 9:
        return draw(headers()) + padded(draw(st.binary(max_size=600)))
    return padded(draw(st.binary(min_size=1, max_size=600)))


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """Pieces in a row, an end or none, and sometimes damage behind which the sums are right."""
    data = bytearray(b"".join(draw(st.lists(parts(), max_size=6))))
    if draw(st.booleans()):
        data += bytes(BLOCK * 2)
    if data and draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(data) - 1))
        data[at] = draw(st.integers(0, 255))
        start = at - at % BLOCK
        data[start : start + BLOCK] = mended(bytes(data[start : start + BLOCK]))
    return bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.booleans()) else bytes(data)


def chunked(data: bytes, size: int) -> ChunkStream:
    pieces = [data[at : at + size] for at in range(0, len(data), size)][::-1]
    return ChunkStream(lambda: pieces.pop() if pieces else b"")


def read_all(data: bytes, chunk: int = 1 << 20) -> tuple[list[Member], PodwrightError | None]:
    """What was read before the end or the error."""
    found: list[Member] = []
    try:
        found.extend(read_members(chunked(data, chunk)))
    except PodwrightError as error:
        return found, error
    return found, None


@fuzzed(600)
@given(archives())
@example(pax_member({"size": b"9223372036854775808"}) + Tar().file("a").done())
@example(pax_member({"size": b"9999999999999999999"}) + Tar().file("a").done())
@example(mended(b"\xff" * BLOCK))
def test_any_archive_ends_in_members_or_in_our_error(data: bytes) -> None:
    members, _ = read_all(data)
    assert len(members) <= len(data) // BLOCK
    for member in members:
        assert len(member.name) <= max(META_LIMIT, BLOCK)
        assert member.stored_bytes >= 0
        assert member.sparse is None or len(member.sparse.segments) <= MAX_SEGMENTS
        with contextlib.suppress(PodwrightError):
            entry = plan_entry(member)
            if entry is not None:
                assert len(entry.path) <= MAX_PATH_BYTES
                assert b".." not in entry.path.split(b"/")
                assert entry.link is None or b".." not in b"/".join(entry.link).split(b"/")


@fuzzed(150)
@given(archives(), st.integers(1, 2000))
def test_how_the_bytes_arrive_makes_no_difference(data: bytes, chunk: int) -> None:
    """The same members, and the same words of failure, in pieces of any size."""
    whole, error = read_all(data)
    pieces, other = read_all(data, chunk)
    assert whole == pieces
    assert type(error) is type(other)


@fuzzed(300)
@given(archives())
def test_what_the_standard_library_reads_as_well_is_the_same(data: bytes) -> None:
    """Differential: a reader that disagrees with everybody else's is how layers smuggle files."""
    ours, error = read_all(data)
    if error is not None or not ours:
        return
    try:
        with tarfile.open(fileobj=io.BytesIO(data), encoding="latin-1") as archive:
            theirs = archive.getmembers()
    except (tarfile.TarError, ValueError, OverflowError, IndexError, KeyError):
        return  # its own limits, and its own faults
    # It stops without a word where it does not understand; what it did read must agree. Left out:
    # global headers, which are defaults to it and nothing to us, and name prefixes in headers that
    # do not call themselves POSIX, which it believes and Go's reader (so all other runtimes) not.
    for at in range(0, len(data) - BLOCK + 1, BLOCK):
        block = data[at : at + BLOCK]
        if block[156:157] == b"g" or (block[345] and block[257:263] != b"ustar\0"):
            return
    for mine, other in zip(ours, theirs, strict=False):
        if other.sparse is not None or mine.sparse is not None:
            continue
        # It drops trailing slashes, and NULs in pax values end nothing in either of us.
        assert mine.name.rstrip(b"/") == other.name.encode("latin-1", "replace").rstrip(b"/") or (
            any(byte > 127 for byte in mine.name)
        )
        if other.isreg():
            assert mine.size_bytes == other.size


@fuzzed(150)
@given(archives())
@pytest.mark.root
def test_any_archive_becomes_a_tree_or_our_error_and_nothing_beside_it(data: bytes) -> None:
    """Carried out for real below a directory that has a neighbour."""
    old = os.umask(0)
    try:
        with tempfile.TemporaryDirectory() as name:
            base = Path(name)
            tree, beside = base / "tree", base / "a"
            tree.mkdir()
            beside.write_text("untouched")
            before = beside.lstat()
            root_fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
            builder = TreeBuilder(root_fd, max_entries=100)
            stream = chunked(data, 4096)
            try:
                for member in read_members(stream):
                    entry = plan_entry(member)
                    if entry is not None:
                        builder.apply(entry, stream)
                builder.finish()
            except PodwrightError:
                pass
            finally:
                builder.close()
                os.close(root_fd)
            after = beside.lstat()
            assert (before.st_mtime_ns, before.st_ctime_ns, before.st_nlink, before.st_mode) == (
                after.st_mtime_ns, after.st_ctime_ns, after.st_nlink, after.st_mode,
            )  # fmt: skip
            assert beside.read_text() == "untouched"
            assert {path.name for path in base.iterdir()} == {"tree", "a"}
            remove_tree(tree)
    finally:
        os.umask(old)
