"""The files of a daemon that works meanwhile: what goes away while one looks is nothing to see."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path


def files_below(*roots: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every regular file, no link followed, and what lstat(2) says of it."""
    for root in roots:
        for directory, _, names in os.walk(root):
            for name in names:
                path = Path(directory, name)
                with contextlib.suppress(FileNotFoundError):
                    about = path.lstat()
                    if stat.S_ISREG(about.st_mode):
                        yield path, about


def content_of(path: Path) -> bytes:
    """What is in a file; nothing when it has gone."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
