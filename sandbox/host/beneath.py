"""Directories made inside a root that cannot be trusted, every component resolved inside it."""

from __future__ import annotations

import os
from pathlib import Path

from sandbox.host.errors import InvalidArgument, NotFound, map_os_errors
from sandbox.host.files import open_beneath

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def make_dirs_beneath(
    root: Path, path: str, *, mode: int = 0o755, owner: tuple[int, int] | None = None
) -> Path:
    """Make the directories of `path` inside `root` that are missing; the real path of the last.

    A symbolic link on the way is followed as if `root` were the file system's root, so nothing is
    ever made outside of it. With `owner` (user, group) what is made is given away. Blocking.

    Raises:
        InvalidArgument: a component is there and is not a directory, or a link leads nowhere.
        ResourceExhausted: no space.
    """
    names = [name for name in path.split("/") if name not in ("", ".")]
    if ".." in names:
        raise InvalidArgument("path climbs with ..", path=path[:256])
    with map_os_errors("cannot make directory inside a root", path=path[:256]):
        root_fd = os.open(root, _DIRECTORY)
        parent = os.dup(root_fd)
        try:
            for count, name in enumerate(names, start=1):
                child = _open_or_make(root_fd, parent, "/".join(names[:count]), name, mode, owner)
                os.close(parent)
                parent = child
            return Path(f"/proc/self/fd/{parent}").readlink()
        finally:
            os.close(parent)
            os.close(root_fd)


def _open_or_make(
    root_fd: int, parent: int, prefix: str, name: str, mode: int, owner: tuple[int, int] | None
) -> int:
    try:
        return open_beneath(root_fd, prefix, _DIRECTORY).detach()
    except NotFound:
        pass
    try:
        os.mkdir(name, mode, dir_fd=parent)
        if owner is not None:
            os.chown(name, *owner, dir_fd=parent, follow_symlinks=False)
    except FileExistsError:
        raise InvalidArgument("a link inside the root leads nowhere", path=prefix[:256]) from None
    return open_beneath(root_fd, prefix, _DIRECTORY).detach()
