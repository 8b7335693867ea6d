"""A layer as a tree in memory: what an index over its tar is written from.

The same rules as `apply.TreeBuilder`, which makes files: the last of several entries of one name
wins with all that was below it, parents that are symbolic links are walked inside the layer, hard
links share a node, whiteouts become overlayfs' marks. One contract test holds both against the same
archives. Here nothing can escape, because nothing is a path of the host.

A node costs some 250 bytes, so a layer of 10⁶ entries fits into a worker's address space.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from imageservice.unpack.apply import IMPLIED_KEPT, OPAQUE_XATTR, TreeFacts
from imageservice.unpack.directories import IMPLIED_MODE, MAX_LINKS
from imageservice.unpack.entries import MAX_NAME_BYTES, MAX_PATH_BYTES, Entry, Kind, shown
from sandbox.host.errors import Corrupt, ResourceExhausted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imageservice.unpack.sparse import SparseMap

#: Of names and values of all extended attributes of a layer, which are held here and once more when
#: the index is written. 32 bytes for each of 10⁶ files; a gigabyte of them packs into a megabyte.
XATTRS_LIMIT_BYTES: Final = 32 * 1024 * 1024
_NO_XATTRS: Final[Mapping[str, bytes]] = {}
_SPECIAL: Final = {Kind.CHARACTER: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK, Kind.FIFO: stat.S_IFIFO}


class Node:
    """One inode.

    Attributes:
        mode: with the bits of the kind, as st_mode.
        size_bytes: length of a regular file, or of a link's target.
        names: how many names it has in the layer; of a directory always one.
        device: (major, minor) of a device.
        target: of a symbolic link.
        offset: where a regular file's stored bytes begin in the tar.
        sparse: where they go, when they are not the file.
        children: of a directory.
        parent: of a directory; the root's is itself.
    """

    __slots__ = (
        "children",
        "device",
        "gid",
        "mode",
        "mtime_ns",
        "names",
        "offset",
        "parent",
        "size_bytes",
        "sparse",
        "target",
        "uid",
        "xattrs",
    )

    def __init__(self, mode: int) -> None:
        self.mode = mode
        self.uid = self.gid = 0
        self.mtime_ns = 0
        self.size_bytes = 0
        self.names = 1
        self.device = (0, 0)
        self.target = b""
        self.offset = 0
        self.sparse: SparseMap | None = None
        self.xattrs: Mapping[str, bytes] = _NO_XATTRS
        self.children: dict[bytes, Node] | None = None
        self.parent: Node | None = None

    @property
    def is_whiteout(self) -> bool:
        """A character device 0, 0: what overlayfs takes for one."""
        return stat.S_ISCHR(self.mode) and self.device == (0, 0)


@dataclass(slots=True)
class _Place:
    """A directory and its path without links."""

    node: Node
    path: bytes


class LayerTree:
    """Builds one tree; `apply` each entry in order, then `finish`."""

    def __init__(self, *, max_entries: int) -> None:
        """An empty layer; more than `max_entries` entries are refused."""
        self.root = _directory(None)
        self.root.parent = self.root
        self._max_entries = max_entries
        self._xattrs_bytes = 0
        self._seen = 0
        self._implied: dict[bytes, Node] = {}
        self._places: dict[bytes, _Place] = {b"": _Place(self.root, b"")}
        self._root_described = False
        self._opaque_root = False

    @property
    def implied(self) -> list[bytes]:
        """See `TreeBuilder.implied`."""
        implied = sorted(self._implied, key=lambda path: path.count(b"/"))
        if not self._root_described:
            implied.insert(0, b"")
        return implied[:IMPLIED_KEPT]

    def apply(self, entry: Entry, offset: int) -> None:
        """Put one entry into the tree; its stored bytes begin at `offset` of the tar.

        Raises:
            Corrupt: the layer contradicts itself.
            ResourceExhausted: more entries, or more in their attributes, than allowed.
        """
        self._seen += 1
        self._check_count()
        if entry.xattrs:
            self._check_xattrs(entry.xattrs)
        kind, member = entry.kind, entry.member
        if kind is Kind.ROOT:
            self._root_described = True
            _describe(self.root, entry)
            return
        place = self._reach(entry.parent)
        if kind is Kind.FILE:
            node = Node(stat.S_IFREG | member.mode)
            node.offset, node.size_bytes, node.sparse = offset, member.size_bytes, member.sparse
            self._put(place, entry, node)
        elif kind is Kind.DIRECTORY:
            self._put_directory(place, entry)
        elif kind is Kind.OPAQUE:
            _make_opaque(place.node)
            self._opaque_root = self._opaque_root or place.node is self.root
        elif kind is Kind.WHITEOUT:
            self._put_whiteout(place.node, entry.name)
        elif kind is Kind.HARDLINK:
            self._put_hardlink(place, entry)
        elif kind is Kind.SYMLINK:
            node = Node(stat.S_IFLNK | 0o777)
            node.target, node.size_bytes = member.link_name, len(member.link_name)
            self._put(place, entry, node)
        else:
            node = Node(_SPECIAL[kind] | member.mode)
            node.device = (member.device_major, member.device_minor)
            self._put(place, entry, node)

    def finish(self) -> TreeFacts:
        """What was made.

        Raises:
            ResourceExhausted: more entries than allowed, implied directories counted.
        """
        self._check_count()
        entries = size_bytes = 0
        for directory in walk(self.root):
            assert directory.children is not None
            entries += len(directory.children)
            for child in directory.children.values():
                if stat.S_ISREG(child.mode):
                    size_bytes += child.size_bytes
        return TreeFacts(entries, size_bytes, self._opaque_root)

    def _check_count(self) -> None:
        if self._seen + len(self._implied) > self._max_entries:
            raise ResourceExhausted("layer has too many entries", limit=self._max_entries)

    def _check_xattrs(self, xattrs: Mapping[str, bytes]) -> None:
        self._xattrs_bytes += sum(len(name) + len(value) for name, value in xattrs.items())
        if self._xattrs_bytes > XATTRS_LIMIT_BYTES:
            raise ResourceExhausted(
                "layer has too much in extended attributes", limit_bytes=XATTRS_LIMIT_BYTES
            )

    def _put(self, place: _Place, entry: Entry, node: Node) -> None:
        _describe(node, entry)
        place = self._clear(place, entry)
        _children(place.node)[entry.name] = node

    def _clear(self, place: _Place, entry: Entry) -> _Place:
        """Remove what has the name; the place to use now (it may have been below)."""
        found = _children(place.node).pop(entry.name, None)
        if found is None:
            return place
        if found.children is None:
            found.names -= 1
        else:
            _forget_names(found)
            path = _join(place.path, entry.name)
            below = path + b"/"
            for gone in [p for p in self._implied if p == path or p.startswith(below)]:
                del self._implied[gone]
        self._places = {b"": _Place(self.root, b"")}
        return self._reach(entry.parent)

    def _put_directory(self, place: _Place, entry: Entry) -> None:
        found = _children(place.node).get(entry.name)
        if found is not None and found.is_whiteout:
            found = self._open_whiteout(place.node, entry.name)
        if found is None or found.children is None:
            place = self._clear(place, entry)
            found = _directory(place.node)
            _children(place.node)[entry.name] = found
        self._implied.pop(_join(place.path, entry.name), None)
        opaque = OPAQUE_XATTR in found.xattrs
        _describe(found, entry)
        if opaque:
            _make_opaque(found)

    def _put_whiteout(self, directory: Node, name: bytes) -> None:
        """Hide a name of the layers below; what this layer itself has under the name stays."""
        children = _children(directory)
        found = children.get(name)
        if found is None:
            children[name] = Node(stat.S_IFCHR)
        elif found.children is not None:
            # A directory of this layer in the place of one below must not show its contents.
            _make_opaque(found)

    def _put_hardlink(self, place: _Place, entry: Entry) -> None:
        assert entry.link is not None
        target = self._target(entry)
        if target.children is not None:
            raise Corrupt("layer refused: hard link to a directory", entry=shown(entry.path))
        if _children(place.node).get(entry.name) is target:
            return
        place = self._clear(place, entry)
        # What was removed may have held the target.
        if self._target(entry) is not target:
            raise _no_target(entry)
        target.names += 1
        _children(place.node)[entry.name] = target

    def _target(self, entry: Entry) -> Node:
        assert entry.link is not None
        parent, name = entry.link
        place = self._walk(parent, make=False)
        found = None if place is None else _children(place.node).get(name)
        if found is None:
            raise _no_target(entry)
        return found

    def _reach(self, path: bytes) -> _Place:
        place = self._places.get(path)
        if place is None:
            place = self._walk(path, make=True)
            assert place is not None
            self._places[path] = place
        return place

    def _walk(self, path: bytes, *, make: bool) -> _Place | None:
        pending = path.split(b"/")[::-1]
        place = self._places[b""]
        links = 0
        while pending:
            name = pending.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                place = _above(place)
                continue
            child_path = _join(place.path, name)
            if len(child_path) > MAX_PATH_BYTES:
                raise Corrupt("layer refused: path is too long", entry=shown(path))
            child = _children(place.node).get(name)
            if child is None:
                if not make:
                    return None
                child = self._imply(place.node, name, child_path)
            elif stat.S_ISLNK(child.mode):
                links += 1
                if links > MAX_LINKS:
                    raise Corrupt("layer refused: too many symbolic links", entry=shown(path))
                if child.target.startswith(b"/"):
                    place = self._places[b""]
                pending.extend(child.target.split(b"/")[::-1])
                continue
            elif child.children is None:
                if not make or not child.is_whiteout:
                    raise Corrupt("layer refused: a parent is no directory", entry=shown(path))
                child = self._open_whiteout(place.node, name)
                self._implied[child_path] = child
            place = _Place(child, child_path)
        return place

    def _imply(self, parent: Node, name: bytes, path: bytes) -> Node:
        if len(name) > MAX_NAME_BYTES:  # from a link's target
            raise Corrupt("layer refused: file name too long", entry=shown(path))
        node = _directory(parent)
        _children(parent)[name] = node
        self._implied[path] = node
        return node

    def _open_whiteout(self, parent: Node, name: bytes) -> Node:
        """A whiteout whose name turns out to be a directory of this layer: an opaque one."""
        node = _directory(parent)
        _make_opaque(node)
        _children(parent)[name] = node
        return node


def walk(root: Node) -> Iterator[Node]:
    """All directories, those above before those below, names in the order of their bytes."""
    level = [root]
    while level:
        below: list[Node] = []
        for directory in level:
            yield directory
            children = _children(directory)
            below += [children[n] for n in sorted(children) if children[n].children is not None]
        level = below


def _children(node: Node) -> dict[bytes, Node]:
    assert node.children is not None
    return node.children


def _directory(parent: Node | None) -> Node:
    node = Node(stat.S_IFDIR | IMPLIED_MODE)
    node.children = {}
    node.parent = parent
    return node


def _describe(node: Node, entry: Entry) -> None:
    member = entry.member
    if node.children is not None:
        node.mode = stat.S_IFDIR | member.mode
    node.uid, node.gid, node.mtime_ns = member.uid, member.gid, member.mtime_ns
    xattrs = entry.xattrs
    if xattrs and not (stat.S_ISREG(node.mode) or stat.S_ISDIR(node.mode)):
        # No other kind of file may have them: xattr(7).
        xattrs = {name: value for name, value in xattrs.items() if not name.startswith("user.")}
    node.xattrs = xattrs


def _make_opaque(node: Node) -> None:
    node.xattrs = {**node.xattrs, OPAQUE_XATTR: b"y"}


def _forget_names(directory: Node) -> None:
    for below in walk(directory):
        for child in _children(below).values():
            if child.children is None:
                child.names -= 1


def _join(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name


def _above(place: _Place) -> _Place:
    assert place.node.parent is not None
    return _Place(place.node.parent, place.path.rpartition(b"/")[0])


def _no_target(entry: Entry) -> Corrupt:
    return Corrupt(
        "layer refused: target of hard link is not in the layer", entry=shown(entry.path)
    )
