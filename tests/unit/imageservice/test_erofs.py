"""The index as bytes, read back by the words of the on-disk format; the kernel's word is elsewhere.

tests/host/test_images_forms.py mounts indexes; here is what no mount shows: that the same tree
gives the same bytes, where things lie, and what is refused.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import replace

import pytest

from imageservice.unpack import erofs
from imageservice.unpack.archive import Member
from imageservice.unpack.entries import Entry, Kind
from imageservice.unpack.erofs import NotIndexable, write_index
from imageservice.unpack.layer_tree import XATTRS_LIMIT_BYTES, LayerTree
from imageservice.unpack.sparse import SparseMap
from sandbox.host.errors import Corrupt, ResourceExhausted

UUID = bytes(range(16))


def entry(
    path: str, kind: Kind = Kind.FILE, *, size: int = 6, sparse: SparseMap | None = None
) -> Entry:
    parent, _, name = path.encode().rpartition(b"/")
    member = Member(
        name=path.encode(),
        type=b"0",
        mode=0o755 if kind is Kind.DIRECTORY else 0o644,
        uid=70_000,
        gid=1,
        stored_bytes=size,
        size_bytes=sparse.size_bytes if sparse else size,
        mtime_ns=-1_500_000_000,
        link_name=b"target",
        device_major=0,
        device_minor=0,
        sparse=sparse,
    )
    return Entry(kind, parent, name, member, None, {})


def index(*entries: tuple[Entry, int], tar_bytes: int = 1 << 20) -> bytes:
    tree = LayerTree(max_entries=10_000)
    for item, offset in entries:
        tree.apply(item, offset)
    return b"".join(write_index(tree.root, tar_bytes=tar_bytes, uuid=UUID))


def inode(data: bytes, nid: int) -> tuple[int, ...]:
    """i_format, xattr count, mode, -, size, union, ino, uid, gid, mtime, mtime_nsec, nlink."""
    return struct.unpack_from("<HHHHQIIIIqII", data, 1536 + nid * 32)


def names(data: bytes, nid: int) -> dict[bytes, int]:
    """The names in a small directory, which stand behind its inode."""
    size = inode(data, nid)[4]
    block = data[1536 + nid * 32 + 64 :][:size]
    count = struct.unpack_from("<H", block, 8)[0] // 12
    entries = [struct.unpack_from("<QHBB", block, 12 * n) for n in range(count)]
    ends = [e[1] for e in entries[1:]] + [size]
    return {block[e[1] : end]: e[0] for e, end in zip(entries, ends, strict=True)}


def test_the_superblock_names_one_device_of_the_tars_length() -> None:
    data = index((entry("f"), 512), tar_bytes=1536)
    magic, _checksum, compat, block_bits = struct.unpack_from("<IIIB", data, 1024)
    assert (magic, compat, block_bits) == (0xE0F5E1E2, 2, 9)
    assert data[1024 + 48 : 1024 + 64] == UUID
    incompat, _, devices, slot = struct.unpack_from("<IHHH", data, 1024 + 80)
    assert (incompat, devices) == (0x4 | 0x8, 1)
    assert struct.unpack_from("<I", data, slot * 128 + 64) == (3,)
    assert struct.unpack_from("<I", data, 1024 + 36) == (len(data) // 512,)
    assert len(data) % 512 == 0


def test_a_file_is_one_chunk_where_its_contents_lie() -> None:
    data = index((entry("f", size=5_000_000), 4096))
    nid = names(data, 0)[b"f"]
    form, _, mode, _, size, union, _, uid, gid, seconds, nanoseconds, links = inode(data, nid)
    assert form == 1 | 4 << 1
    assert (mode, size, uid, gid, links) == (stat.S_IFREG | 0o644, 5_000_000, 70_000, 1, 1)
    assert (seconds, nanoseconds) == (-2, 500_000_000)
    assert 1 << (9 + (union & 31)) >= 5_000_000
    assert union & 0x20
    assert struct.unpack_from("<HHI", data, 1536 + nid * 32 + 64) == (0, 1, 8)


def test_holes_of_a_sparse_file_are_no_blocks() -> None:
    sparse = SparseMap(1 << 20, ((0, 4096), (1 << 19, 8192)))
    data = index((entry("f", size=12288, sparse=sparse), 1024))
    nid = names(data, 0)[b"f"]
    union = inode(data, nid)[5]
    assert 1 << (9 + (union & 31)) == 4096
    chunks = [struct.unpack_from("<HHI", data, 1536 + nid * 32 + 64 + 8 * n) for n in range(1 << 8)]
    stored = {n: chunk[2] for n, chunk in enumerate(chunks) if chunk[2] != 0xFFFFFFFF}
    assert stored == {0: 2, 128: 10, 129: 18}


def test_the_same_layer_gives_the_same_bytes() -> None:
    files = [(entry(f"d{n % 7}/f{n}"), 512 * n) for n in range(300)]
    assert index(*files) == index(*reversed(files))


def test_names_are_sorted_by_bytes_dots_among_them() -> None:
    data = index(*((entry(name), 0) for name in ("b", "-", "a", "\u00e9", "!")))
    assert list(names(data, 0)) == [b"!", b"-", b".", b"..", b"a", b"b", "\u00e9".encode()]


@pytest.mark.parametrize(
    "sparse",
    [
        pytest.param(SparseMap(9000, ((100, 512),)), id="begins within a block"),
        pytest.param(SparseMap(9000, ((512, 100),)), id="ends within a block"),
        pytest.param(SparseMap(1 << 40, ((512, 512),)), id="two thousand million chunks"),
    ],
)
def test_what_no_index_can_say_is_refused(sparse: SparseMap) -> None:
    stored = sum(length for _offset, length in sparse.segments)
    with pytest.raises(NotIndexable):
        index((entry("f", size=stored, sparse=sparse), 512))


def test_lengths_beyond_the_format_are_refused() -> None:
    with pytest.raises(NotIndexable):
        index((entry("f"), 512), tar_bytes=1 << 42)
    with pytest.raises(NotIndexable):
        index((entry("f"), 512), tar_bytes=1025)
    with pytest.raises(NotIndexable):
        index((entry("f", size=1 << 42), 512))
    with pytest.raises(NotIndexable):
        index((entry("f"), 513))


def test_entries_are_counted_with_what_they_imply() -> None:
    tree = LayerTree(max_entries=3)
    tree.apply(entry("a/b/f"), 0)
    with pytest.raises(ResourceExhausted):
        tree.apply(entry("g"), 0)


def test_extended_attributes_are_counted_together() -> None:
    """Each is small, and a gigabyte of them would be a megabyte on its way here."""
    tree = LayerTree(max_entries=10_000)
    value = {"user.a": bytes(60_000)}
    most = XATTRS_LIMIT_BYTES // 60_006
    for number in range(most):
        tree.apply(replace(entry(f"f{number}"), xattrs=value), 0)
    with pytest.raises(ResourceExhausted, match="extended attributes"):
        tree.apply(replace(entry("last"), xattrs=value), 0)


def test_a_name_that_a_link_makes_too_long_is_refused() -> None:
    tree = LayerTree(max_entries=10)
    link = entry("l", Kind.SYMLINK)
    link.member.link_name = b"t" * 256
    tree.apply(link, 0)
    with pytest.raises(Corrupt, match="too long"):
        tree.apply(entry("l/f"), 0)


def test_a_hole_as_long_as_the_file_needs_one_chunk() -> None:
    sparse = SparseMap(10_000_000, ())
    data = index((entry("f", size=0, sparse=sparse), 512))
    nid = names(data, 0)[b"f"]
    assert struct.unpack_from("<HHI", data, 1536 + nid * 32 + 64) == (0, 0, 0xFFFFFFFF)
    assert erofs.CHUNKS_MOST == 1 << 20
