"""What a container's processes hold open, from /proc; for a scrape of all metrics."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

_PROC: Final = "/proc"
#: Descriptors of one container that are looked at for being sockets: a link is read for each, and
#: a proxy with a million connections must not hold up a scrape. All are counted.
LOOKED_AT_LIMIT: Final = 65_536
_OPEN_FILES: Final = b"Max open files"
#: The file has 17 lines of 79 characters (fs/proc/base.c).
_LIMITS_BYTES: Final = 4096


class ProcessStats(msgspec.Struct, frozen=True, gc=False):
    """Of all processes of a container. `open_files_soft` is its first process's limit, or None."""

    file_descriptors: int
    sockets: int
    open_files_soft: int | None


def read_processes(pids: Iterable[int], first_pid: int) -> ProcessStats:
    """Count what `pids` hold; one that has ended counts nothing. Blocking."""
    descriptors = sockets = 0
    for pid in pids:
        left = LOOKED_AT_LIMIT - descriptors
        held, of_sockets = _descriptors(f"{_PROC}/{pid}/fd", left)
        descriptors, sockets = descriptors + held, sockets + of_sockets
    return ProcessStats(descriptors, sockets, open_files_limit(first_pid))


def open_files_limit(pid: int) -> int | None:
    """The soft limit of open files; None: unlimited or unknown.

    By prlimit(2) where that may be asked, which takes a tenth of what reading a file of it does.
    """
    if pid <= 0:
        return None
    try:
        soft, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    except PermissionError:  # somebody else's process, and this one has no CAP_SYS_RESOURCE
        return open_files_limit_from(f"{_PROC}/{pid}/limits")
    except OSError:
        return None
    return None if soft == resource.RLIM_INFINITY else soft


def open_files_limit_from(path: str) -> int | None:
    """The same from /proc/PID/limits (proc(5))."""
    try:
        # Without pathlib and file objects, which take thrice as long as the kernel does.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.read(fd, _LIMITS_BYTES)
    except OSError:
        return None
    finally:
        os.close(fd)
    word = text.partition(_OPEN_FILES)[2].partition(b"\n")[0].split(None, 1)[:1]
    return int(word[0]) if word and word[0].isdigit() else None


def _descriptors(directory: str, look_at: int) -> tuple[int, int]:
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return 0, 0
    sockets = 0
    try:
        names = os.listdir(fd)  # noqa: PTH208 - by descriptor, so that links are read without a path
        for name in names[: max(0, look_at)]:
            try:
                sockets += os.readlink(name, dir_fd=fd).startswith("socket:")
            except OSError:
                continue  # closed meanwhile
    except OSError:
        return 0, 0
    finally:
        os.close(fd)
    return len(names), sockets
