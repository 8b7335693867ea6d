"""Directories of a tree being built, reached without ever following a link by the kernel's hand.

Every step into the tree opens one component below a descriptor with O_NOFOLLOW. A component that
is a symbolic link of the layer (a parent such as `lib` -> `usr/lib`) is read and walked here, as if
the tree were the root of the file system: an absolute target starts at the tree's root and `..`
stops there. So even someone who swaps a directory for a link while a layer is unpacked
(CVE-2025-47290) gains nothing: the open fails, or it is walked inside the tree. openat2 with
RESOLVE_IN_ROOT would do the same for parents that exist; missing ones have to be made step by step
anyway, and descriptors kept open make the common case, many files of one directory, free of both.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from imageservice.unpack.entries import MAX_PATH_BYTES, shown
from sandbox.host.errors import Corrupt
from sandbox.host.trees import remove_tree

if TYPE_CHECKING:
    from collections.abc import Callable

#: Descriptors kept; archives list a directory's files together, so a few dozen would do.
_KEPT_DIRECTORIES: Final = 256
#: The kernel's own limit of links in one path (path_resolution(7)).
MAX_LINKS: Final = 40
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Mode of a directory that the archive does not mention, as Docker and containerd make it.
IMPLIED_MODE: Final = 0o755


class Directories:
    """Descriptors by canonical path: the path in the tree, without links, b"" for its root.

    Attributes:
        implied: directories made because an entry lies in them, and not described (yet).
        made: how many of them were made.
    """

    def __init__(self, root_fd: int, *, open_whiteout: Callable[[int, bytes], bool]) -> None:
        """`open_whiteout(dir_fd, name)` turns a whiteout into a directory, or says it is none."""
        self._root_fd = root_fd
        self._open_whiteout = open_whiteout
        self._fds: dict[bytes, int] = {b"": root_fd}
        self._aliases: dict[bytes, bytes] = {}
        self.implied: dict[bytes, None] = {}
        self.made = 0

    def close(self) -> None:
        """Close all but the root, which is the caller's."""
        fds, self._fds = self._fds, {b"": self._root_fd}
        for fd in fds.values():
            if fd != self._root_fd:
                os.close(fd)

    def forget(self) -> None:
        """Something was removed or replaced: no descriptor or link seen before holds any more."""
        self.close()
        self._aliases.clear()

    def reach(self, path: bytes) -> tuple[bytes, int]:
        """(canonical path, descriptor) of the directory that entries of `path` go into.

        Missing directories are made. The descriptor is good until the next call.

        Raises:
            Corrupt: a component is a file, too many links, a path too long.
            OSError: what the kernel said.
        """
        fd = self._fds.get(path)
        if fd is not None:
            return path, fd
        canonical = self._aliases.get(path)
        if canonical is None:
            canonical = self._walk(path, make=True)
            assert canonical is not None
            if canonical != path:
                self._aliases[path] = canonical
        return canonical, self.descriptor(canonical)

    def find(self, path: bytes) -> tuple[bytes, int] | None:
        """The same for a directory that must be there, or None."""
        canonical = self._walk(path, make=False)
        return None if canonical is None else (canonical, self.descriptor(canonical))

    def descriptor(self, canonical: bytes) -> int:
        """The descriptor of a canonical path; raises OSError when it is one no longer."""
        fd = self._fds.get(canonical)
        if fd is not None:
            return fd
        # Deep trees reopen from the root, without recursion: the names may be thousands.
        known = canonical
        while known not in self._fds:
            known = known.rpartition(b"/")[0]
        rest = canonical[len(known) :].strip(b"/").split(b"/")
        fd = self._fds[known]
        for name in rest:
            child = known + b"/" + name if known else name
            fd = self._remember(child, os.open(name, _DIRECTORY_FLAGS, dir_fd=fd))
            known = child
        return fd

    def _walk(self, path: bytes, *, make: bool) -> bytes | None:
        pending = path.split(b"/")[::-1]
        current = b""
        links = 0
        while pending:
            name = pending.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                current = current.rpartition(b"/")[0]
                continue
            child = current + b"/" + name if current else name
            if len(child) > MAX_PATH_BYTES:
                raise Corrupt("layer refused: path is too long", entry=shown(path))
            if child in self._fds:
                current = child
                continue
            parent_fd = self.descriptor(current)
            try:
                self._remember(child, os.open(name, _DIRECTORY_FLAGS, dir_fd=parent_fd))
                current = child
            except FileNotFoundError:
                if not make:
                    return None
                os.mkdir(name, IMPLIED_MODE, dir_fd=parent_fd)
                self.implied[child] = None
                self.made += 1
                pending.append(name)
            except NotADirectoryError as error:
                target = _link_target(parent_fd, name)
                if target is None:
                    if make and self._open_whiteout(parent_fd, name):
                        self.implied[child] = None
                        pending.append(name)
                        continue
                    raise Corrupt(
                        "layer refused: a parent is no directory", entry=shown(path)
                    ) from error
                links += 1
                if links > MAX_LINKS:
                    raise Corrupt(
                        "layer refused: too many symbolic links", entry=shown(path)
                    ) from error
                if target.startswith(b"/"):
                    current = b""
                pending.extend(target.split(b"/")[::-1])
        return current

    def _remember(self, path: bytes, fd: int) -> int:
        if len(self._fds) >= _KEPT_DIRECTORIES:
            self.close()
        self._fds[path] = fd
        return fd


def _link_target(dir_fd: int, name: bytes) -> bytes | None:
    """Where the symbolic link points; None when it is no link."""
    status = os.lstat(name, dir_fd=dir_fd)
    return os.readlink(name, dir_fd=dir_fd) if stat.S_ISLNK(status.st_mode) else None


def remove_at(dir_fd: int, name: bytes) -> None:
    """Remove what `name` is, a directory with all that is in it; links are not followed."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except IsADirectoryError:
        # Through /proc the descriptor is a path again, and no other directory than this one.
        remove_tree(Path(f"/proc/self/fd/{dir_fd}") / os.fsdecode(name))
