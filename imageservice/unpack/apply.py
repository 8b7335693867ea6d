"""Entries carried out below one directory descriptor: the tree of one layer.

Nothing is ever written through a link: parents come from `Directories`, names are made with O_EXCL
or their like, and owner, mode, attributes and times go through the descriptor of the file just made
or through calls that do not follow. Nothing is durable: the snapshotter syncs.

The kernel dictates the order. Owner first: chown(2) clears the set-user-id bits and the file
capability. Then mode, then extended attributes, and the times last, because the others move them.
Directories get theirs at the very end: each file made in one moves its times, a set-group-id bit
would decide the group of its files, and a default ACL their modes.

The umask of the process must be 0: modes then come with the creating call, and the usual file of
root costs open, write, utimensat, close and nothing else.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from imageservice.trees import count_below
from imageservice.unpack.directories import Directories, remove_at
from imageservice.unpack.entries import Entry, Kind, shown
from sandbox.host.errors import Corrupt, PodwrightError, ResourceExhausted, from_os_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imageservice.unpack.stream import ChunkStream

OPAQUE_XATTR: Final = "trusted.overlay.opaque"
_FILE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SPECIAL_BITS: Final = 0o7000
IMPLIED_KEPT: Final = 4096
_WHITEOUT_DEVICE: Final = os.makedev(0, 0)
#: What only a layer that contradicts itself can cause, here where all paths are fresh.
_LAYER_FAULTS: Final = frozenset(
    {
        errno.EEXIST,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENOENT,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EINVAL,
        errno.EMLINK,
        errno.ENOTEMPTY,
    }
)


@dataclass(frozen=True, slots=True)
class TreeFacts:
    """What was made, for a later check that it is still there.

    Attributes:
        entries: names in the tree, the root not counted.
        size_bytes: lengths of regular files, once for each name.
        opaque_root: the layer hides everything below it.
    """

    entries: int
    size_bytes: int
    opaque_root: bool


class TreeBuilder:
    """Builds one tree; `apply` each entry in order, then `finish`."""

    def __init__(self, root_fd: int, *, max_entries: int) -> None:
        """`root_fd` is an empty directory, open for reading; it stays the caller's.

        Raises:
            OSError: the directory cannot be written.
        """
        self._root_fd = root_fd
        self._max_entries = max_entries
        self._seen = 0
        self._entries = 0
        self._size_bytes = 0
        self._recount = False
        self._opaque_root = False
        self._described: dict[bytes, Entry] = {}
        self._directories = Directories(root_fd, open_whiteout=self._whiteout_to_directory)
        self._inherits = _inherits(root_fd)
        self._makers = {
            Kind.DIRECTORY: self._directory,
            Kind.HARDLINK: self._hardlink,
            Kind.SYMLINK: self._symlink,
            Kind.CHARACTER: self._node,
            Kind.BLOCK: self._node,
            Kind.FIFO: self._node,
            Kind.WHITEOUT: self._whiteout,
        }

    @property
    def implied(self) -> list[bytes]:
        """Directories no entry describes, the root (b"") among them when that is so; shallow first.

        At most `IMPLIED_KEPT`: they matter where a layer below has the same directory, and those
        are few and near the root.
        """
        implied = sorted(self._directories.implied, key=lambda path: path.count(b"/"))
        if b"" not in self._described:
            implied.insert(0, b"")
        return implied[:IMPLIED_KEPT]

    def close(self) -> None:
        """Close what is open, whether finished or not."""
        self._directories.close()

    def apply(self, entry: Entry, stream: ChunkStream) -> None:
        """Make one entry; its contents are taken from `stream`.

        Raises:
            Corrupt: the layer contradicts itself.
            ResourceExhausted: no space, or more entries than allowed.
            PodwrightError: what the kernel said.
        """
        self._seen += 1
        self._check_count()
        try:
            if entry.kind is Kind.ROOT:
                self._described[b""] = entry
                return
            parent, fd = self._directories.reach(entry.parent)
            if entry.kind is Kind.FILE:
                self._file(entry, fd, stream)
            elif entry.kind is Kind.OPAQUE:
                os.setxattr(fd, OPAQUE_XATTR, b"y")
                self._opaque_root = self._opaque_root or not parent
            else:
                self._makers[entry.kind](entry, parent, fd)
        except OSError as error:
            raise _failure(error, entry.path) from error

    def finish(self) -> TreeFacts:
        """Give directories their owners, modes, attributes and times; what was made.

        Raises:
            ResourceExhausted: more entries than allowed, implied directories counted.
            PodwrightError: what the kernel said.
        """
        self._check_count()
        for path, entry in self._described.items():
            try:
                self._finish_directory(path, entry)
            except OSError as error:
                raise _failure(error, path) from error
        entries, size_bytes = self._entries + self._directories.made, self._size_bytes
        self._directories.close()
        if self._recount:
            entries, size_bytes = count_below(self._root_fd)
        return TreeFacts(entries, size_bytes, self._opaque_root)

    def _check_count(self) -> None:
        if self._seen + self._directories.made > self._max_entries:
            raise ResourceExhausted("layer has too many entries", limit=self._max_entries)

    def _file(self, entry: Entry, dir_fd: int, stream: ChunkStream) -> None:
        member = entry.member
        try:
            fd = os.open(entry.name, _FILE_FLAGS, member.mode & 0o777, dir_fd=dir_fd)
        except FileExistsError:
            self._remove(dir_fd, entry.name)
            dir_fd = self._directories.reach(entry.parent)[1]
            fd = os.open(entry.name, _FILE_FLAGS, member.mode & 0o777, dir_fd=dir_fd)
        try:
            if member.sparse is None:
                _copy(stream, member.stored_bytes, fd)
            else:
                for offset, length in member.sparse.segments:
                    os.lseek(fd, offset, os.SEEK_SET)
                    _copy(stream, length, fd)
                os.ftruncate(fd, member.size_bytes)
            if member.uid or member.gid or self._inherits:
                os.fchown(fd, member.uid, member.gid)
            if member.mode & _SPECIAL_BITS or self._inherits:
                os.fchmod(fd, member.mode)
            if entry.xattrs:
                _set_xattrs(fd, entry.xattrs)
            os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))
        finally:
            os.close(fd)
        self._entries += 1
        self._size_bytes += member.size_bytes

    def _directory(self, entry: Entry, parent: bytes, dir_fd: int) -> None:
        path = parent + b"/" + entry.name if parent else entry.name
        try:
            os.mkdir(entry.name, entry.member.mode & 0o777, dir_fd=dir_fd)
            self._entries += 1
        except FileExistsError:
            status = os.lstat(entry.name, dir_fd=dir_fd)
            if not stat.S_ISDIR(status.st_mode) and not self._whiteout_to_directory(
                dir_fd, entry.name
            ):
                self._remove(dir_fd, entry.name)
                # What was removed may have been a link that led here.
                parent, dir_fd = self._directories.reach(entry.parent)
                path = parent + b"/" + entry.name if parent else entry.name
                os.mkdir(entry.name, entry.member.mode & 0o777, dir_fd=dir_fd)
                self._entries += 1
            self._directories.implied.pop(path, None)
        self._described[path] = entry

    def _hardlink(self, entry: Entry, _parent: bytes, dir_fd: int) -> None:
        assert entry.link is not None
        target_parent, target = entry.link
        # A copy of the number: finding the target may close descriptors that were kept.
        own_fd = os.dup(dir_fd)
        try:
            found = self._directories.find(target_parent)
            if found is None:
                raise FileNotFoundError(errno.ENOENT, "target of hard link is not in the layer")
            status = os.lstat(target, dir_fd=found[1])
            if stat.S_ISDIR(status.st_mode):
                raise Corrupt("layer refused: hard link to a directory", entry=shown(entry.path))
            try:
                _link(found[1], target, own_fd, entry.name)
            except FileExistsError:
                if os.path.samestat(os.lstat(entry.name, dir_fd=own_fd), status):
                    return
                self._remove(own_fd, entry.name)
                found = self._directories.find(target_parent)
                if found is None:
                    raise
                _link(found[1], target, own_fd, entry.name)
        finally:
            os.close(own_fd)
        self._entries += 1
        if stat.S_ISREG(status.st_mode):
            self._size_bytes += status.st_size

    def _symlink(self, entry: Entry, _parent: bytes, dir_fd: int) -> None:
        member = entry.member
        try:
            os.symlink(member.link_name, entry.name, dir_fd=dir_fd)
        except FileExistsError:
            self._remove(dir_fd, entry.name)
            dir_fd = self._directories.reach(entry.parent)[1]
            os.symlink(member.link_name, entry.name, dir_fd=dir_fd)
        self._describe_node(entry, dir_fd)

    def _node(self, entry: Entry, _parent: bytes, dir_fd: int) -> None:
        member = entry.member
        kind, device = {
            Kind.CHARACTER: (stat.S_IFCHR, os.makedev(member.device_major, member.device_minor)),
            Kind.BLOCK: (stat.S_IFBLK, os.makedev(member.device_major, member.device_minor)),
            Kind.FIFO: (stat.S_IFIFO, 0),
        }[entry.kind]
        try:
            os.mknod(entry.name, kind | (member.mode & 0o777), device, dir_fd=dir_fd)
        except FileExistsError:
            self._remove(dir_fd, entry.name)
            dir_fd = self._directories.reach(entry.parent)[1]
            os.mknod(entry.name, kind | (member.mode & 0o777), device, dir_fd=dir_fd)
        self._describe_node(entry, dir_fd)

    def _describe_node(self, entry: Entry, dir_fd: int) -> None:
        member, name = entry.member, entry.name
        if member.uid or member.gid or self._inherits:
            os.chown(name, member.uid, member.gid, dir_fd=dir_fd, follow_symlinks=False)
        has_mode = entry.kind is not Kind.SYMLINK
        if entry.xattrs or (has_mode and (member.mode & _SPECIAL_BITS or self._inherits)):
            # These have no form that takes a directory and a name and follows no link; a
            # descriptor that only names the file, seen through /proc, is exactly that file.
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
            try:
                itself = Path(f"/proc/self/fd/{fd}")
                if has_mode:
                    itself.chmod(member.mode)
                _set_xattrs(itself, entry.xattrs)
            finally:
                os.close(fd)
        times = (member.mtime_ns, member.mtime_ns)
        os.utime(name, ns=times, dir_fd=dir_fd, follow_symlinks=False)
        self._entries += 1

    def _whiteout(self, entry: Entry, _parent: bytes, dir_fd: int) -> None:
        """Hide a name of the layers below; what this layer itself has under the name stays."""
        try:
            os.mknod(entry.name, stat.S_IFCHR, _WHITEOUT_DEVICE, dir_fd=dir_fd)
            self._entries += 1
        except FileExistsError:
            status = os.lstat(entry.name, dir_fd=dir_fd)
            if stat.S_ISDIR(status.st_mode):
                # A directory of this layer in the place of one below must not show its contents.
                fd = os.open(entry.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
                try:
                    os.setxattr(fd, OPAQUE_XATTR, b"y")
                finally:
                    os.close(fd)

    def _whiteout_to_directory(self, dir_fd: int, name: bytes) -> bool:
        """A whiteout whose name turns out to be a directory of this layer: an opaque one."""
        if not _is_whiteout(os.lstat(name, dir_fd=dir_fd)):
            return False
        os.unlink(name, dir_fd=dir_fd)
        os.mkdir(name, 0o755, dir_fd=dir_fd)
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            os.setxattr(fd, OPAQUE_XATTR, b"y")
        finally:
            os.close(fd)
        return True

    def _remove(self, dir_fd: int, name: bytes) -> None:
        """The last of several entries of one name wins; what was there goes, with all below it."""
        remove_at(dir_fd, name)
        self._recount = True
        self._directories.forget()

    def _finish_directory(self, path: bytes, entry: Entry) -> None:
        member = entry.member
        if not path:
            fd = self._root_fd
        else:
            try:
                fd = self._directories.descriptor(path)
            except (FileNotFoundError, NotADirectoryError):
                return  # replaced by a later entry
        if member.uid or member.gid or self._inherits:
            os.fchown(fd, member.uid, member.gid)
        # Always, though mkdir had the mode: it may have been made as an implied parent.
        os.fchmod(fd, member.mode)
        if entry.xattrs:
            _set_xattrs(fd, entry.xattrs)
        os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))


def _copy(stream: ChunkStream, size: int, fd: int) -> None:
    for view in stream.views(size):
        written = os.write(fd, view)
        while written < len(view):
            written += os.write(fd, view[written:])


def _link(target_fd: int, target: bytes, dir_fd: int, name: bytes) -> None:
    os.link(target, name, src_dir_fd=target_fd, dst_dir_fd=dir_fd, follow_symlinks=False)


def _set_xattrs(where: int | Path, xattrs: Mapping[str, bytes]) -> None:
    for name, value in xattrs.items():
        try:
            os.setxattr(where, name, value)
        except OSError as error:
            # The file system has no such attributes, or (user.* on links and devices) no file of
            # this type may have them. Docker and containerd go on without, and so do images.
            skippable = error.errno == errno.EPERM and name.startswith("user.")
            if error.errno != errno.EOPNOTSUPP and not skippable:
                raise


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == _WHITEOUT_DEVICE


def _inherits(root_fd: int) -> bool:
    """Whether new files take group or mode from their directory (`grpid` mounts, default ACLs)."""
    name = ".probe"
    os.mkdir(name, 0o777, dir_fd=root_fd)
    try:
        # The group of a new directory's file tells; the tree's own directory may be of any group.
        os.chown(name, 0, 1, dir_fd=root_fd, follow_symlinks=False)
        fd = os.open(f"{name}/file", _FILE_FLAGS, 0o777, dir_fd=root_fd)
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
            os.unlink(f"{name}/file", dir_fd=root_fd)
    finally:
        os.rmdir(name, dir_fd=root_fd)
    return status.st_gid != 0 or stat.S_IMODE(status.st_mode) != 0o777


def _failure(error: OSError, path: bytes) -> PodwrightError:
    if error.errno in _LAYER_FAULTS:
        reason = error.strerror or str(error)
        return Corrupt(f"layer refused: {reason.lower()}", entry=shown(path))
    return from_os_error(error, "cannot unpack layer", entry=shown(path))
