"""Whole directory trees of untrusted content: removed, and measured.

Both walk by descriptor, one directory open at a time, and keep names instead of calling
themselves: neither a depth of 5000 nor a million files is a limit. The way up is ".." checked
against the inode remembered on the way down, so a directory moved meanwhile stops the walk instead
of leading it elsewhere. No symlink is followed and no mount is entered.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from sandbox.host import syscalls as sc
from sandbox.host.errors import Busy, FailedPrecondition, PodwrightError, from_os_error
from sandbox.host.libc import LibcSyscalls

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandbox.host.syscalls import Syscalls

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Blocks of st_blocks, whatever the file system's own (stat(2)).
_BLOCK_BYTES: Final = 512
#: Times a directory that keeps getting new entries is scanned again.
_RESCANS: Final = 8


@dataclass(frozen=True, slots=True)
class TreeUsage:
    """What a tree takes: allocated bytes and inodes, each hard-linked file once."""

    used_bytes: int
    inodes: int

    def __iter__(self) -> Iterator[int]:
        """(used_bytes, inodes)."""
        return iter((self.used_bytes, self.inodes))


@dataclass(slots=True)
class _Level:
    """A directory on the way from where the walk began to where it is."""

    name: str
    identity: tuple[int, int]
    pending: list[str] = field(default_factory=list)
    rescans: int = 0


class _Walk:
    """A place in a tree: one open directory, and the names that lead back."""

    def __init__(self, start: Path, syscalls: Syscalls) -> None:
        self._syscalls = syscalls
        self.fd = os.open(start, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.levels = [_Level(str(start), _identity(self.fd))]

    def down(self, name: str) -> _Level:
        """Enter a sub-directory; OSError EXDEV when a mount lies on it, ELOOP for a link."""
        resolve = sc.RESOLVE_NO_XDEV | sc.RESOLVE_NO_SYMLINKS | sc.RESOLVE_BENEATH
        try:
            below = self._syscalls.openat2(self.fd, name, _DIRECTORY, 0, resolve)
        except PodwrightError as error:
            if isinstance(error.__cause__, OSError):
                raise error.__cause__ from None
            raise
        self._move_to(below)
        self.levels.append(_Level(name, _identity(below)))
        return self.levels[-1]

    def up(self) -> _Level:
        """Leave the directory; the level that was left."""
        left = self.levels.pop()
        self._move_to(os.open("..", _DIRECTORY, dir_fd=self.fd))
        if _identity(self.fd) != self.levels[-1].identity:
            raise FailedPrecondition("directory was moved while being walked", directory=left.name)
        return left

    def _move_to(self, fd: int) -> None:
        old, self.fd = self.fd, fd
        os.close(old)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def _identity(fd: int) -> tuple[int, int]:
    info = os.fstat(fd)
    return info.st_dev, info.st_ino


def remove_tree(path: Path, *, syscalls: Syscalls | None = None) -> None:
    """Remove `path` and all below it; one that does not exist is fine. Blocking.

    Immutable and append-only flags are cleared where they are in the way.

    Raises:
        Busy: `path` is or holds a mount point (what was walked before is gone, nothing beyond the
            mount was touched), or something keeps making files in it.
        FailedPrecondition: a directory was moved meanwhile, or `path` is "/".
        Denied: as the kernel says.
    """
    if not path.name:
        raise FailedPrecondition("refusing to remove a root directory", path=str(path))
    calls = syscalls or LibcSyscalls()
    try:
        try:
            walk = _Walk(path.parent, calls)
        except FileNotFoundError:
            return
        try:
            _Remover(walk, calls).remove(path.name)
        finally:
            walk.close()
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise Busy("a mount point is in the way of removing", path=str(path)) from error
        raise from_os_error(error, "cannot remove tree", path=str(path)) from error


class _OnName(Protocol):
    """os.unlink and os.rmdir."""

    def __call__(self, path: str, *, dir_fd: int) -> None: ...


class _Remover:
    def __init__(self, walk: _Walk, syscalls: Syscalls) -> None:
        self._walk = walk
        self._syscalls = syscalls

    def remove(self, name: str) -> None:
        """`name` in the directory where the walk stands."""
        walk = self._walk
        walk.levels[0].pending.append(name)
        while True:
            level = walk.levels[-1]
            if level.pending:
                self._take(level.pending.pop())
            elif len(walk.levels) == 1:
                return
            else:
                self._remove_directory(walk.up())

    def _take(self, name: str) -> None:
        try:
            level = self._walk.down(name)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            self._unlink(name)
            return
        self._scan(level)

    def _scan(self, level: _Level) -> None:
        with os.scandir(self._walk.fd) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    level.pending.append(entry.name)
                else:
                    self._unlink(entry.name)

    def _unlink(self, name: str) -> None:
        try:
            self._persist(name, os.unlink)
        except IsADirectoryError:
            self._walk.levels[-1].pending.append(name)

    def _remove_directory(self, left: _Level) -> None:
        try:
            self._persist(left.name, os.rmdir)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # Deleting while listing may skip entries on some file systems: look again.
            if left.rescans >= _RESCANS:
                raise Busy("directory keeps getting new files", directory=left.name) from error
            again = self._walk.down(left.name)
            again.rescans = left.rescans + 1
            self._scan(again)

    def _persist(self, name: str, call: _OnName) -> None:
        """`call` on `name`, once more without immutable flags if it is not permitted."""
        try:
            call(name, dir_fd=self._walk.fd)
        except FileNotFoundError:
            return
        except PermissionError:
            if not self._clear_flags(name):
                raise
            call(name, dir_fd=self._walk.fd)

    def _clear_flags(self, name: str) -> bool:
        """Take immutable and append-only from `name` and its directory; whether any had them."""
        cleared = self._clear_flags_of(self._walk.fd)
        mode = os.lstat(name, dir_fd=self._walk.fd).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            return cleared  # opening a device could do something; it has no such flags anyway
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        fd = os.open(name, flags, dir_fd=self._walk.fd)
        try:
            return self._clear_flags_of(fd) or cleared
        finally:
            os.close(fd)

    def _clear_flags_of(self, fd: int) -> bool:
        try:
            flags = self._syscalls.get_inode_flags(fd)
            kept = flags & ~(sc.FS_IMMUTABLE_FL | sc.FS_APPEND_FL)
            if kept != flags:
                self._syscalls.set_inode_flags(fd, kept)
            return kept != flags
        except PodwrightError:
            return False


def filesystem_usage(path: Path, *, syscalls: Syscalls | None = None) -> TreeUsage:
    """What `path` and all below it take; other mounts and what vanishes meanwhile left out.

    Blocking. A path that does not exist takes nothing.

    Raises:
        Denied: as the kernel says.
        FailedPrecondition: a directory was moved meanwhile.
    """
    calls = syscalls or LibcSyscalls()
    try:
        info = os.lstat(path)
        if not stat.S_ISDIR(info.st_mode):
            return TreeUsage(info.st_blocks * _BLOCK_BYTES, 1)
        walk = _Walk(path, calls)
    except FileNotFoundError:
        return TreeUsage(0, 0)
    except OSError as error:
        raise from_os_error(error, "cannot measure tree", path=str(path)) from error
    try:
        return _measure(walk, info)
    except OSError as error:
        raise from_os_error(error, "cannot measure tree", path=str(path)) from error
    finally:
        walk.close()


def _measure(walk: _Walk, root: os.stat_result) -> TreeUsage:
    blocks, inodes = root.st_blocks, 1
    linked: set[int] = set()  # files with several names, counted already; all on one device
    level = walk.levels[0]
    fresh = True
    while True:
        if fresh:
            for info in _files(walk, level):
                if info.st_nlink > 1:
                    if info.st_ino in linked:
                        continue
                    linked.add(info.st_ino)
                blocks, inodes = blocks + info.st_blocks, inodes + 1
        if level.pending:
            fresh = _try_down(walk, level.pending.pop())
            if fresh:
                blocks, inodes = blocks + os.fstat(walk.fd).st_blocks, inodes + 1
        elif len(walk.levels) == 1:
            return TreeUsage(blocks * _BLOCK_BYTES, inodes)
        else:
            walk.up()
            fresh = False
        level = walk.levels[-1]


def _files(walk: _Walk, level: _Level) -> Iterator[os.stat_result]:
    """Entries that are no directories; the names of those that are go to `level.pending`."""
    with os.scandir(walk.fd) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                level.pending.append(entry.name)
                continue
            with suppress(FileNotFoundError):
                yield entry.stat(follow_symlinks=False)


def _try_down(walk: _Walk, name: str) -> bool:
    try:
        walk.down(name)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
            raise
        return False
    return True
