"""What an archive member means for a layer: a checked path, a kind, and what goes with it.

Pure: members in, entries out, no file system. Paths are judged here, links are not: where a parent
is a symbolic link of the image, only the tree itself can tell, and `apply` walks it.

Rules, with their reasons:

- A leading `/` and `.` components mean nothing; `a/../b` is `b`, as Docker and containerd clean it;
  a path that climbs out of the root is refused.
- The root itself can only be a directory (CVE-2021-29136: a link in its place redirects all).
- `.wh.NAME` hides NAME of the layers below, `.wh..wh..opq` hides everything below its directory
  (OCI image-spec, layer.md). aufs' own bookkeeping (`.wh..wh.plnk` and two more) is dropped. Every
  other name with that prefix is refused: no tool writes one, and what it hides is anyone's guess.
- Attributes: file capabilities, `user.*`, `trusted.*` and POSIX ACLs are kept. overlayfs' own marks
  (`*.overlay.*`) would let an image redirect directories, and the labels of SELinux, IMA and EVM
  are the host's policy: dropped.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from imageservice.unpack import archive
from sandbox.host.errors import Corrupt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imageservice.unpack.archive import Member

WHITEOUT_PREFIX: Final = b".wh."
OPAQUE_NAME: Final = b".wh..wh..opq"
_AUFS_NAMES: Final = frozenset({b".wh..wh.plnk", b".wh..wh.aufs", b".wh..wh.orph"})
#: PATH_MAX of Linux without its NUL; NAME_MAX of every file system layers are kept on.
MAX_PATH_BYTES: Final = 4095
MAX_NAME_BYTES: Final = 255
#: The highest id; (uid_t)-1 means "leave as it is" to chown(2).
MAX_ID: Final = (1 << 32) - 2
_XATTR_NAMESPACES: Final = ("user.", "trusted.")
_XATTR_NAMES: Final = frozenset(
    {"security.capability", "system.posix_acl_access", "system.posix_acl_default"}
)
_OVERLAY_PREFIXES: Final = ("trusted.overlay.", "user.overlay.")
#: XATTR_NAME_MAX and XATTR_SIZE_MAX of linux/limits.h.
_XATTR_NAME_BYTES: Final = 255
_XATTR_VALUE_BYTES: Final = 65536


class Kind(enum.Enum):
    """What to make."""

    ROOT = "root"
    DIRECTORY = "directory"
    FILE = "file"
    HARDLINK = "hard link"
    SYMLINK = "symbolic link"
    CHARACTER = "character device"
    BLOCK = "block device"
    FIFO = "fifo"
    WHITEOUT = "whiteout"
    OPAQUE = "opaque marker"


_KINDS: Final[Mapping[bytes, Kind]] = {
    archive.REGULAR: Kind.FILE,
    archive.HARDLINK: Kind.HARDLINK,
    archive.SYMLINK: Kind.SYMLINK,
    archive.CHARACTER: Kind.CHARACTER,
    archive.BLOCK_DEVICE: Kind.BLOCK,
    archive.DIRECTORY: Kind.DIRECTORY,
    archive.FIFO: Kind.FIFO,
}


@dataclass(slots=True)
class Entry:
    """One thing to make.

    Attributes:
        kind: see `Kind`; for WHITEOUT `name` is the hidden one, for OPAQUE and ROOT it is empty.
        parent: the directory's path without slashes at the ends, b"" for the root.
        link: HARDLINK: (parent, name) of the target; otherwise None.
        member: mode, owner, times, contents, symlink target, device numbers.
        xattrs: those that may be set.
    """

    kind: Kind
    parent: bytes
    name: bytes
    member: Member
    link: tuple[bytes, bytes] | None
    xattrs: Mapping[str, bytes]

    @property
    def path(self) -> bytes:
        """The whole path, for messages."""
        return self.parent + b"/" + self.name if self.parent else self.name


_NO_XATTRS: Final[Mapping[str, bytes]] = {}


def plan_entry(member: Member) -> Entry | None:
    """What to make of `member`; None for bookkeeping that is dropped.

    Raises:
        Corrupt: a path, link target, owner, device number or attribute that no honest layer has.
    """
    parent, name = split_path(member.name)
    if not 0 <= member.uid <= MAX_ID or not 0 <= member.gid <= MAX_ID:
        raise _refused("owner is out of range", member.name)
    kind = _KINDS[member.type]
    if not name:
        if kind is not Kind.DIRECTORY:
            raise _refused(f"a {kind.value} would replace the root directory", member.name)
        return Entry(Kind.ROOT, b"", b"", member, None, _kept_xattrs(member))
    if WHITEOUT_PREFIX in member.name and _is_marked(parent, name):
        return _plan_whiteout(parent, name, kind, member)
    link: tuple[bytes, bytes] | None = None
    if kind is Kind.HARDLINK:
        link = split_path(member.link_name)
        if not link[1]:
            raise _refused("hard link to the root directory", member.name)
        if link == (parent, name):
            raise _refused("hard link to itself", member.name)
    elif kind is Kind.SYMLINK:
        target = member.link_name
        if not target or b"\0" in target or len(target) > MAX_PATH_BYTES:
            raise _refused("symbolic link with an impossible target", member.name)
    elif kind in (Kind.CHARACTER, Kind.BLOCK) and not (
        0 <= member.device_major < 1 << 12 and 0 <= member.device_minor < 1 << 20
    ):
        raise _refused("device number is out of range", member.name)
    xattrs = _kept_xattrs(member) if member.xattrs else _NO_XATTRS
    return Entry(kind, parent, name, member, link, xattrs)


def split_path(raw: bytes) -> tuple[bytes, bytes]:
    """(parent, name) of a member's path, cleaned; (b"", b"") is the root.

    Raises:
        Corrupt: it climbs out of the root, holds a NUL, or is longer than the kernel allows.
    """
    if len(raw) > MAX_PATH_BYTES or b"\0" in raw:
        raise _refused("path is too long or holds a NUL", raw)
    # The usual member needs no cleaning: no empty, `.` or `..` components.
    path = raw.rstrip(b"/")
    if path.startswith(b"./"):
        path = path[2:]
    if b"//" in path or b"/." in path or path[:1] in (b".", b"/", b""):
        path = _cleaned(path, raw)
    parent, _, name = path.rpartition(b"/")
    if len(path) > MAX_NAME_BYTES and max(map(len, path.split(b"/"))) > MAX_NAME_BYTES:
        raise _refused("file name is too long", raw)
    return parent, name


def _cleaned(path: bytes, raw: bytes) -> bytes:
    kept: list[bytes] = []
    for component in path.split(b"/"):
        if component in (b"", b"."):
            continue
        if component != b"..":
            kept.append(component)
        elif kept:
            kept.pop()
        else:
            raise _refused("path leads out of the layer", raw)
    return b"/".join(kept)


def _is_marked(parent: bytes, name: bytes) -> bool:
    """Whether a component has the prefix; `a.wh.b` is an ordinary name."""
    return any(part.startswith(WHITEOUT_PREFIX) for part in (*parent.split(b"/"), name))


def _plan_whiteout(parent: bytes, name: bytes, kind: Kind, member: Member) -> Entry | None:
    components = parent.split(b"/")
    if name in _AUFS_NAMES or not _AUFS_NAMES.isdisjoint(components):
        return None
    if any(part.startswith(WHITEOUT_PREFIX) for part in components):
        raise _refused("whiteout used as a directory", member.name)
    # aufs made its whiteouts hard links of one empty file.
    if kind not in (Kind.FILE, Kind.HARDLINK):
        raise _refused(f"whiteout is a {kind.value}", member.name)
    if name == OPAQUE_NAME:
        return Entry(Kind.OPAQUE, parent, b"", member, None, _NO_XATTRS)
    hidden = name[len(WHITEOUT_PREFIX) :]
    if hidden in (b"", b".", b"..") or hidden.startswith(WHITEOUT_PREFIX):
        raise _refused("whiteout of an impossible name", member.name)
    return Entry(Kind.WHITEOUT, parent, hidden, member, None, _NO_XATTRS)


def _kept_xattrs(member: Member) -> Mapping[str, bytes]:
    kept: dict[str, bytes] = {}
    for name, value in member.xattrs.items():
        if "\0" in name or len(name) > _XATTR_NAME_BYTES or len(value) > _XATTR_VALUE_BYTES:
            raise _refused("extended attribute is too long", member.name)
        if name.startswith(_OVERLAY_PREFIXES):
            continue
        if name.startswith(_XATTR_NAMESPACES) or name in _XATTR_NAMES:
            kept[name] = value
    return kept


def _refused(why: str, name: bytes) -> Corrupt:
    return Corrupt(f"layer refused: {why}", entry=shown(name))


def shown(name: bytes) -> str:
    """A stranger's path fit for a message: escaped and bounded."""
    return ascii(name[:300].decode("utf-8", "backslashreplace"))[1:-1]
