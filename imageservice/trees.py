"""Counting a layer's tree, to tell whether it is still the one that was written."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def count_tree(root: Path) -> tuple[int, int]:
    """(entries, size_bytes): names below `root`, and lengths of regular files, once for each name.

    Blocking; a million files take a few seconds. Raises OSError.
    """
    root_fd = os.open(root, _DIRECTORY_FLAGS)
    try:
        return count_below(root_fd)
    finally:
        os.close(root_fd)


def count_below(root_fd: int) -> tuple[int, int]:
    """The same for an open directory."""
    entries = size_bytes = 0
    pending = [b"."]
    while pending:
        path = pending.pop()
        fd = os.open(path, _DIRECTORY_FLAGS, dir_fd=root_fd)
        try:
            with os.scandir(fd) as found:
                for item in found:
                    entries += 1
                    if item.is_dir(follow_symlinks=False):
                        pending.append(path + b"/" + os.fsencode(item.name))
                    elif item.is_file(follow_symlinks=False):
                        size_bytes += item.stat(follow_symlinks=False).st_size
        finally:
            os.close(fd)
    return entries, size_bytes
