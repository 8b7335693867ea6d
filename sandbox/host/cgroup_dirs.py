"""One directory of one control group hierarchy, and its files; see `cgroupfs` for the whole.

A look at a group is a look at a dozen hierarchies of version 1, several times in each pod's life,
so what is done for each of them is kept to the fewest system calls. Ending what is in an empty
group took 0.88 ms of processor time by `os.walk` and text files, and takes 0.21 ms; and each call
is a change of threads where several are busy.

All functions block, briefly, and raise what the kernel says as a class of `errors`.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import PodwrightError, from_os_error
from sandbox.host.syscalls import errno_of

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Errors of a cgroup file whose directory is going away or never was.
_GONE: Final = (errno.ENOENT, errno.ENODEV)
_READ_BYTES: Final = 16 * 1024
_LINKS_WITHOUT_CHILDREN: Final = 2


def below(directory: Path) -> Iterable[Path]:
    """`directory` and its sub-directories, deepest first; nothing when it does not exist.

    The kernel counts a group's sub-directories in its links (fs/kernfs/inode.c); one without any is
    not listed, which would be four calls and the names of all of its files.
    """
    try:
        if directory.stat().st_nlink == _LINKS_WITHOUT_CHILDREN:
            return (directory,)
    except OSError:
        return ()
    # Symlinks do not exist in cgroup file systems, so os.walk cannot be led away.
    return (Path(at) for at, _, _ in os.walk(directory, topdown=False))


def make(directory: Path) -> bool:
    """Make one; False when it was there."""
    made = False
    try:
        with suppress(FileExistsError):
            directory.mkdir(mode=0o755)
            made = True
        # Our umask cuts that down, and the kernel guards what may be written there by itself. Root
        # of a user namespace has to pass, or a runtime could not show a container its own groups.
        if directory.stat().st_mode & 0o011 != 0o011:
            directory.chmod(0o755)
    except OSError as error:
        raise from_os_error(error, "cannot make cgroup") from error
    return made


def inherit_cpuset(directory: Path) -> None:
    """Copy the lists down where there are none: without them no process may enter (version 1)."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not read(directory / name):
            value = read(directory.parent / name)
            if value:
                write(directory / name, value)


def pids_of(directory: Path) -> set[int]:
    """Processes in this one, those of other pid namespaces left out; none when it is gone."""
    try:
        text = read(directory / "cgroup.procs")
    except PodwrightError as error:
        # A threaded group of version 2 lists its processes in its domain's file only.
        if errno_of(error) == errno.EOPNOTSUPP:
            return set()
        raise
    return {pid for pid in map(int, (text or "").split()) if pid > 0}


def read(file: Path) -> str | None:
    """A file's text without the last line break; None when it does not exist."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts = []
            while part := os.read(fd, _READ_BYTES):
                parts.append(part)
        finally:
            os.close(fd)
        return b"".join(parts).decode().removesuffix("\n")
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise from_os_error(error, "cannot read cgroup file") from error


def write(file: Path, value: str) -> None:
    """Set a value in one system call, as the kernel wants it."""
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise from_os_error(
            error, f"cannot write {value[:64]!r} to cgroup file", path=str(file)
        ) from error


def try_write(file: Path, value: str) -> bool:
    """The same; False when the kernel refuses."""
    try:
        write(file, value)
    except PodwrightError:
        return False
    return True
