"""An EROFS file system that has only metadata: inodes and names over the bytes of a tar.

Sans I/O: a tree comes in, the bytes of the index go out in pieces. The kernel mounts the index with
the tar as its extra device, and reads file contents from the tar where they lie, so a layer costs
one sequential write, no file is created, and nothing of an image is ever a file of the host.

Layout, in blocks of 512 bytes, because that is what a tar aligns contents to::

    0     superblock at byte 1024, the device table (one slot) behind it
    3     inodes: 64 bytes each, extended attributes, then chunk addresses or short contents
    n     contents that do not fit beside their inode: large directories, long link targets

A regular file is one chunk, at the block of the tar where its contents begin, however long it is; a
sparse one has a chunk for each stretch that is stored or a hole. Directories hold their names
sorted, for the kernel searches them by halves.

What cannot be said in this format raises `NotIndexable`; such a layer is unpacked instead. The same
tree always gives the same bytes.

Source: Linux fs/erofs/erofs_fs.h and Documentation/filesystems/erofs.rst (on-disk format), as of
6.12. Features used: chunk-based files and the device table (Linux 5.16), mounting from a file
(6.12). Blocks smaller than a page: 6.4.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from imageservice.unpack.layer_tree import Node, walk
from sandbox.host.errors import Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK_BITS: Final = 9
BLOCK: Final = 1 << BLOCK_BITS

_MAGIC: Final = 0xE0F5E1E2
_SUPER_OFFSET: Final = 1024
#: struct erofs_super_block: magic, checksum, feature_compat, blkszbits, sb_extslots, root_nid,
#: inos, build_time, build_time_nsec, blocks, meta_blkaddr, xattr_blkaddr, uuid, volume_name,
#: feature_incompat, available_compr_algs, extra_devices, devt_slotoff, dirblkbits, and 37 bytes of
#: later fields, all zero.
_SUPER: Final = struct.Struct("<IIIBBHQQIIII16s16sIHHHB37s")
#: struct erofs_deviceslot: tag, blocks, mapped_blkaddr, reserved.
_DEVICE: Final = struct.Struct("<64sII56s")
#: struct erofs_inode_extended: i_format, i_xattr_icount, i_mode, i_reserved, i_size, i_u, i_ino,
#: i_uid, i_gid, i_mtime, i_mtime_nsec, i_nlink, i_reserved2.
_INODE: Final = struct.Struct("<HHHHQIIIIqII16s")
#: struct erofs_dirent: nid, nameoff, file_type, reserved.
_DIRENT: Final = struct.Struct("<QHBB")
#: struct erofs_inode_chunk_index: startblk_hi, device_id, startblk_lo.
_CHUNK: Final = struct.Struct("<HHI")
#: struct erofs_xattr_ibody_header: h_name_filter, h_shared_count, h_reserved2.
_XATTR_HEADER: Final = struct.Struct("<IB7s")
#: struct erofs_xattr_entry: e_name_len, e_name_index, e_value_size.
_XATTR_ENTRY: Final = struct.Struct("<BBH")

_COMPAT_MTIME: Final = 0x2
_INCOMPAT_CHUNKED_FILE: Final = 0x4
_INCOMPAT_DEVICE_TABLE: Final = 0x8
_EXTENDED: Final = 1
_FLAT_PLAIN, _FLAT_INLINE, _CHUNK_BASED = 0 << 1, 2 << 1, 4 << 1
_CHUNK_INDEXES: Final = 0x20
_CHUNK_BITS_MOST: Final = 31
_TAR_DEVICE: Final = 1
_HOLE: Final = 0xFFFFFFFF
_SLOT: Final = 32
_META_BLOCK: Final = 3
#: Highest block of a tar: 32 bits, the last value is the mark of a hole (2 TiB).
_BLOCKS_MOST: Final = 0xFFFFFFFE
#: Chunks of one sparse file: 8 MiB of addresses. Beyond it a file is cheaper as a file.
CHUNKS_MOST: Final = 1 << 20

#: EROFS_FT_*: what a directory says of the kind.
_KINDS: Final = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFLNK: 7,
}
#: EROFS_XATTR_INDEX_*: a whole name, or a prefix that is left out.
_XATTR_NAMES: Final = {"system.posix_acl_access": 2, "system.posix_acl_default": 3}
_XATTR_PREFIXES: Final = (("user.", 1), ("trusted.", 4), ("security.", 6))


class NotIndexable(Unsupported):
    """The layer holds something that an index over its tar cannot say; it can be unpacked."""


@dataclass(slots=True)
class _Placed:
    """A node with its place in the index.

    Attributes:
        nid: its number: the slot of 32 bytes where it begins.
        attributes: the bytes between the inode and what follows it.
        data: contents in the index (names of a directory, target of a link).
        layout: how the contents are found.
        block: first block of contents that are not inline.
        chunk_format, chunks: of a regular file.
    """

    node: Node
    nid: int
    attributes: bytes
    data: bytes = b""
    data_bytes: int = 0
    layout: int = _FLAT_PLAIN
    block: int = 0
    chunk_format: int = 0
    chunks: bytes = b""


def write_index(root: Node, *, tar_bytes: int, uuid: bytes) -> Iterator[bytes]:
    """The index of a layer, piece by piece.

    Args:
        root: from `LayerTree`; offsets of files are multiples of 512.
        tar_bytes: length of the tar.
        uuid: 16 bytes; any that are the same for the same layer.

    Raises:
        NotIndexable: before the first piece.
    """
    if tar_bytes % BLOCK:
        # The kernel reads whole blocks of the device and fails where the file has only a part.
        raise NotIndexable("archive does not end with a whole block", size_bytes=tar_bytes)
    blocks_of_tar = tar_bytes // BLOCK
    if blocks_of_tar > _BLOCKS_MOST:
        raise NotIndexable("archive is too long to be indexed", size_bytes=tar_bytes)
    placed = _place(root)
    meta_end, end = _place_contents(placed)
    yield _head(placed, end // BLOCK, blocks_of_tar, uuid)
    yield from _meta(placed, meta_end)
    for item in placed.values():
        if item.block:
            data = item.data or _names(item.node, placed)
            yield data + bytes(-len(data) % BLOCK)


def _place(root: Node) -> dict[Node, _Placed]:
    """Every inode once, each directory followed by what is in it: names that are near stay near.

    The root is first: the superblock has 16 bits for its number.
    """
    placed: dict[Node, _Placed] = {}
    cursor = _META_BLOCK * BLOCK
    for directory in walk(root):
        assert directory.children is not None
        for node in (directory, *(directory.children[name] for name in sorted(directory.children))):
            if node not in placed and (node.children is None or node is directory):
                cursor = _place_one(node, cursor, placed)
    return placed


def _place_one(node: Node, cursor: int, placed: dict[Node, _Placed]) -> int:
    item = _Placed(node, 0, _attributes(node))
    kind = stat.S_IFMT(node.mode)
    body = _INODE.size + len(item.attributes)
    if kind == stat.S_IFREG:
        if node.size_bytes:
            item.layout = _CHUNK_BASED
            item.chunk_format, item.chunks = _chunks(node)
            body += -body % _CHUNK.size + len(item.chunks)
    elif kind in (stat.S_IFDIR, stat.S_IFLNK):
        item.data = node.target
        item.data_bytes = len(node.target) if kind == stat.S_IFLNK else _names_bytes(node)
        if body + item.data_bytes <= BLOCK:
            item.layout = _FLAT_INLINE
            # Inline contents may not cross a block.
            if (cursor + body) // BLOCK != (cursor + body + item.data_bytes - 1) // BLOCK:
                cursor += -cursor % BLOCK
            body += item.data_bytes
    item.nid = (cursor - _META_BLOCK * BLOCK) // _SLOT
    placed[node] = item
    return cursor + body + -body % _SLOT


def _place_contents(placed: dict[Node, _Placed]) -> tuple[int, int]:
    """Give blocks to what is not inline; where the inodes and where everything ends (bytes)."""
    last = next(reversed(placed.values()))
    meta_end = _META_BLOCK * BLOCK + last.nid * _SLOT + _slot_bytes(last)
    meta_end += -meta_end % BLOCK
    cursor = meta_end
    for item in placed.values():
        if item.layout == _FLAT_PLAIN and item.data_bytes:
            item.block = cursor // BLOCK
            cursor += item.data_bytes + -item.data_bytes % BLOCK
    if cursor // BLOCK > _BLOCKS_MOST:
        raise NotIndexable("layer has too much metadata to be indexed", size_bytes=cursor)
    return meta_end, cursor


def _slot_bytes(item: _Placed) -> int:
    size = _INODE.size + len(item.attributes)
    if item.layout == _CHUNK_BASED:
        size += -size % _CHUNK.size + len(item.chunks)
    elif item.layout == _FLAT_INLINE:
        size += item.data_bytes
    return size


def _head(placed: dict[Node, _Placed], blocks: int, blocks_of_tar: int, uuid: bytes) -> bytes:
    super_block = _SUPER.pack(
        _MAGIC,
        0,
        _COMPAT_MTIME,
        BLOCK_BITS,
        0,
        0,  # the root is the first inode
        len(placed),
        0,
        0,
        blocks,
        _META_BLOCK,
        0,
        uuid,
        bytes(16),
        _INCOMPAT_CHUNKED_FILE | _INCOMPAT_DEVICE_TABLE,
        0,
        1,
        (_SUPER_OFFSET + _SUPER.size) // _DEVICE.size,
        0,
        bytes(37),
    )
    slot = _DEVICE.pack(bytes(64), blocks_of_tar, 0, bytes(56))
    return (bytes(_SUPER_OFFSET) + super_block + slot).ljust(_META_BLOCK * BLOCK, b"\0")


def _meta(placed: dict[Node, _Placed], meta_end: int) -> Iterator[bytes]:
    out = bytearray()
    base = _META_BLOCK * BLOCK
    for item in placed.values():
        out += bytes(_META_BLOCK * BLOCK + item.nid * _SLOT - base - len(out))
        out += _inode(item)
        out += item.attributes
        if item.layout == _CHUNK_BASED:
            out += bytes(-len(item.attributes) % _CHUNK.size)
            out += item.chunks
        elif item.layout == _FLAT_INLINE:
            out += item.data or _names(item.node, placed)
        if len(out) >= 1 << 18:
            yield bytes(out)
            base += len(out)
            out.clear()
    out += bytes(meta_end - base - len(out))
    yield bytes(out)


def _inode(item: _Placed) -> bytes:
    node = item.node
    kind = stat.S_IFMT(node.mode)
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        major, minor = node.device
        # new_encode_dev() of linux/kdev_t.h
        union = (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)
    elif item.layout == _CHUNK_BASED:
        union = item.chunk_format
    else:
        union = item.block
    names, size = node.names, node.size_bytes
    if node.children is not None:
        names = 2 + sum(child.children is not None for child in node.children.values())
        size = item.data_bytes
    seconds, nanoseconds = divmod(node.mtime_ns, 1_000_000_000)
    count = (len(item.attributes) - _XATTR_HEADER.size) // 4 + 1 if item.attributes else 0
    return _INODE.pack(
        _EXTENDED | item.layout,
        count,
        node.mode,
        0,
        size,
        union,
        (item.nid + 1) & 0xFFFFFFFF,
        node.uid,
        node.gid,
        seconds,
        nanoseconds,
        names,
        bytes(16),
    )


def _attributes(node: Node) -> bytes:
    if not node.xattrs:
        return b""
    out = bytearray(_XATTR_HEADER.pack(0, 0, bytes(7)))
    for name in sorted(node.xattrs):
        value = node.xattrs[name]
        index = _XATTR_NAMES.get(name, 0)
        rest = b""
        if not index:
            prefix, index = next(p for p in _XATTR_PREFIXES if name.startswith(p[0]))
            rest = name[len(prefix) :].encode("utf-8", "surrogateescape")
        if len(value) > 0xFFFF or len(rest) > 0xFF:
            raise NotIndexable("extended attribute is too long to be indexed", name=name[:100])
        out += _XATTR_ENTRY.pack(len(rest), index, len(value)) + rest + value
        out += bytes(-len(out) % 4)
    if (len(out) - _XATTR_HEADER.size) // 4 + 1 > 0xFFFF:
        raise NotIndexable("a file has too many extended attributes to be indexed")
    return bytes(out)


def _chunks(node: Node) -> tuple[int, bytes]:
    """The inode's chunk format and the addresses."""
    if node.offset % BLOCK:
        raise NotIndexable("contents are not at a block of the archive", offset=node.offset)
    if node.sparse is not None:
        return _sparse_chunks(node)
    bits = max(0, (node.size_bytes - 1).bit_length() - BLOCK_BITS)
    if bits > _CHUNK_BITS_MOST:
        raise NotIndexable("file is too long to be indexed", size_bytes=node.size_bytes)
    return _CHUNK_INDEXES | bits, _CHUNK.pack(0, _TAR_DEVICE, node.offset >> BLOCK_BITS)


def _sparse_chunks(node: Node) -> tuple[int, bytes]:
    """Chunks of the largest size that every stored stretch is made of."""
    assert node.sparse is not None
    size, segments = node.size_bytes, node.sparse.segments
    edges = 0
    for offset, length in segments:
        # The last stretch may end with the file, in the middle of a block.
        edges |= offset | (0 if offset + length == size else length)
    # The lowest bit that is set in any of them; without stretches the whole file is one hole.
    bits = (edges & -edges).bit_length() - 1 if edges else size.bit_length()
    if edges and bits < BLOCK_BITS:
        raise NotIndexable("a sparse file's parts are not of whole blocks", size_bytes=size)
    bits = min(max(bits, BLOCK_BITS), size.bit_length() + 1, BLOCK_BITS + _CHUNK_BITS_MOST)
    bits = max(bits, BLOCK_BITS)
    count = (size + (1 << bits) - 1) >> bits
    if count > CHUNKS_MOST:
        raise NotIndexable("a sparse file has too many parts to be indexed", parts=count)
    out = bytearray(_CHUNK.pack(0, 0, _HOLE) * count)
    stored = node.offset
    for offset, length in segments:
        for at in range(0, length, 1 << bits):
            _CHUNK.pack_into(
                out,
                (offset + at >> bits) * _CHUNK.size,
                0,
                _TAR_DEVICE,
                stored + at >> BLOCK_BITS,
            )
        stored += length
    return _CHUNK_INDEXES | (bits - BLOCK_BITS), bytes(out)


def _entries(directory: Node) -> list[tuple[bytes, Node]]:
    assert directory.children is not None
    assert directory.parent is not None
    own = ((b".", directory), (b"..", directory.parent))
    return sorted((*own, *directory.children.items()), key=lambda entry: entry[0])


def _blocks(entries: list[tuple[bytes, Node]]) -> Iterator[list[tuple[bytes, Node]]]:
    """As many entries as fit into a block, in turn."""
    block: list[tuple[bytes, Node]] = []
    used = 0
    for entry in entries:
        need = _DIRENT.size + len(entry[0])
        if used + need > BLOCK:
            yield block
            block, used = [], 0
        block.append(entry)
        used += need
    yield block


def _names_bytes(directory: Node) -> int:
    blocks = list(_blocks(_entries(directory)))
    last = sum(_DIRENT.size + len(name) for name, _node in blocks[-1])
    return (len(blocks) - 1) * BLOCK + last


def _names(directory: Node, placed: dict[Node, _Placed]) -> bytes:
    out = bytearray()
    for block in _blocks(_entries(directory)):
        out += bytes(-len(out) % BLOCK)
        at = len(block) * _DIRENT.size
        for name, node in block:
            out += _DIRENT.pack(placed[node].nid, at, _KINDS[stat.S_IFMT(node.mode)], 0)
            at += len(name)
        for name, _node in block:
            out += name
    return bytes(out)
