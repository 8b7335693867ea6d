"""What a chain of layers shows as one tree, read from the layers: overlayfs' rules, without it.

    topmost layer   a/  a/x  a/y(whiteout)            merged:  a/  a/x  a/z  b
    layer below     a/  a/y  a/z   b

A name is what the topmost layer that has it says: a file there, nothing (a whiteout: a character
device 0:0), or a directory, which then goes on with what layers below have in theirs until one of
them is marked opaque or has something else under that name (Documentation/filesystems/overlayfs).
A directory looks (owner, mode, times, attributes) as the topmost layer says that describes it; see
`upper` for layers that do not.

Each directory of the result comes once, before those in it; nothing is held but the one that is
looked at and the names of those to come, so a tree may have any size and depth.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OPAQUE: Final = "trusted.overlay.opaque"
_LIST: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Layer:
    """An open layer: its directory, and those in it that its archive does not describe."""

    fd: int
    implied: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True)
class File:
    """Anything but a directory: its name, and where it lies.

    Attributes:
        name: in its directory.
        layer: place of its layer in the sequence.
        parent: descriptor of the directory that holds it there; open while its `Directory` is the
            current one.
        status: of the file itself, a link is not followed.
    """

    name: bytes
    layer: int
    parent: int
    status: os.stat_result


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory of the result.

    Attributes:
        path: below the root, which is b"".
        looks: the layer whose directory it looks like; None when no layer describes the root.
        files: what is in it, directories excepted.
        directories: names of those in it.
    """

    path: bytes
    looks: int | None
    files: tuple[File, ...]
    directories: tuple[bytes, ...]


def open_directory(layer: Layer, path: bytes) -> int:
    """The directory of that path in a layer; every part of the way is known to be a directory."""
    return os.open(path or b".", _LIST, dir_fd=layer.fd)


def walk(layers: Sequence[Layer]) -> Iterator[Directory]:
    """Every directory of the merged tree, the root first; `layers` lowest first. Blocking.

    Raises:
        OSError: a layer cannot be read.
    """
    top_down = range(len(layers) - 1, -1, -1)
    pending: list[tuple[bytes, tuple[int, ...]]] = [(b"", tuple(top_down))]
    while pending:
        path, parts = pending.pop()
        opened: list[tuple[int, int]] = []
        try:
            for number in parts:  # those before one that fails are to be closed
                opened.append((number, open_directory(layers[number], path)))  # noqa: PERF401
            files, below = _merge(opened)
            yield Directory(path, _looks(layers, path, parts), files, tuple(below))
        finally:
            for _, fd in opened:
                os.close(fd)
        for name, having in below.items():
            pending.append((path + b"/" + name if path else name, having))


def _merge(
    opened: Sequence[tuple[int, int]],
) -> tuple[tuple[File, ...], dict[bytes, tuple[int, ...]]]:
    """The files in a directory, and its sub-directories with the layers that are part of each."""
    files: list[File] = []
    directories: dict[bytes, list[int]] = {}
    closed: set[bytes] = set()
    for number, fd in opened:
        for name in os.listdir(fd):  # noqa: PTH208 - of a descriptor
            raw = os.fsencode(name)
            if raw in closed:
                continue
            status = os.lstat(raw, dir_fd=fd)
            if stat.S_ISDIR(status.st_mode):
                directories.setdefault(raw, []).append(number)
                if _is_opaque(fd, raw):
                    closed.add(raw)
                continue
            closed.add(raw)
            is_whiteout = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
            if raw not in directories and not is_whiteout:
                files.append(File(raw, number, fd, status))
    return tuple(files), {name: tuple(having) for name, having in directories.items()}


def _looks(layers: Sequence[Layer], path: bytes, parts: Sequence[int]) -> int | None:
    described = (number for number in parts if path not in layers[number].implied)
    return next(described, parts[0] if path and parts else None)


def _is_opaque(parent: int, name: bytes) -> bool:
    try:
        value = os.getxattr(b"/proc/self/fd/%d/%s" % (parent, name), OPAQUE, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise
    return value == b"y"
