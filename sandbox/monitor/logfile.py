"""The path of a container's log: conmon opens it by name and follows links, so it is guarded here.

The path comes from the client and the directory may be shared with others on the node, yet conmon
creates the file as root. Two guards: the parent is resolved once and must still be the same real
directory later, and the file is made by us first, without following a link, so that conmon finds a
plain file. (conmon also leaves for good when it cannot open the new file, with the container's
output then going nowhere: another reason to find out before it is told to.)
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandbox.errors import LogPathRefused
from sandbox.host.errors import PodwrightError, from_os_error

#: Readable by the log collector's group, as other runtimes make it; conmon itself would use 0600.
LOG_MODE: Final = 0o640
#: conmon writes the new file under this suffix and renames it (src/ctr_logging.c, v2.1.6).
TEMPORARY_SUFFIX: Final = ".tmp"
_NAME_LIMIT: Final = 255 - len(TEMPORARY_SUFFIX)


def check_log_path(path: str) -> Path:
    """A log path that conmon understands as one path. Pure. Raises LogPathRefused."""
    log = Path(path)
    if not log.is_absolute() or not log.name or ".." in log.parts:
        raise LogPathRefused(
            "log path must be absolute and without '..'",
            path=path[:256],
            hint="log_directory and log_path of the request make it up",
        )
    if ":" in path or any(ord(char) < 0x20 or ord(char) == 0x7F for char in path):
        # conmon splits its option at every colon and would write to another file.
        raise LogPathRefused("log path contains ':' or a control character", path=repr(path[:256]))
    if len(os.fsencode(log.name)) > _NAME_LIMIT or len(os.fsencode(path)) > 4000:
        raise LogPathRefused("log path is too long", path=path[:256])
    return log


@dataclass(frozen=True, slots=True)
class PreparedLog:
    """A log file that is there; `created` tells whether it was made now."""

    path: Path
    created: bool

    def discard(self) -> None:
        """Undo: remove the file if it was made now. Blocking."""
        if self.created:
            self.path.unlink(missing_ok=True)


def prepare_log(path: str) -> PreparedLog:
    """Make the log file and its directories, or accept a plain file that is there. Blocking.

    Returns:
        The path with its parent resolved: what conmon is to be given.

    Raises:
        LogPathRefused: the path leads to something other than a plain file of its own.
        PodwrightError: as the kernel says.
    """
    wanted = check_log_path(path)
    try:
        wanted.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        real = wanted.parent.resolve(strict=True) / wanted.name
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(real, flags, LOG_MODE)
            created = True
        except FileExistsError:
            # Looked at without opening it: a FIFO or a device would notice.
            fd = os.open(real, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            created = False
        try:
            about = os.fstat(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise _log_error(error, path) from error
    if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1:
        raise LogPathRefused("log path is not a plain file of its own", path=path)
    check_log_path(str(real))
    return PreparedLog(real, created)


def prepare_reopen(log: Path) -> int:
    """Make the file that conmon will rename to the log's name; its inode number. Blocking.

    Raises:
        LogPathRefused: the directory is gone, or is another one than when the log was made.
        PodwrightError: the file cannot be made; nothing was changed.
    """
    temporary = temporary_of(log)
    try:
        if log.parent.resolve(strict=True) != log.parent:
            raise LogPathRefused(
                "the log's directory has been replaced by a link", path=str(log.parent)
            )
        temporary.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, LOG_MODE)
        try:
            return os.fstat(fd).st_ino
        finally:
            os.close(fd)
    except FileNotFoundError as error:
        raise LogPathRefused("the log's directory is gone", path=str(log.parent)) from error
    except OSError as error:
        raise _log_error(error, str(log)) from error


def temporary_of(log: Path) -> Path:
    """Where conmon makes the new log before it takes the name."""
    return log.with_name(log.name + TEMPORARY_SUFFIX)


def inode_of(path: Path) -> tuple[int, int] | None:
    """(device, inode) of the file itself, links not followed; None when absent. Blocking."""
    try:
        about = path.lstat()
    except OSError:
        return None
    return about.st_dev, about.st_ino


def is_written_by(pid: int, log: Path, *, proc: Path = Path("/proc")) -> bool:
    """Whether process `pid` has the file now called `log` open. Blocking."""
    wanted = inode_of(log)
    if wanted is None:
        return False
    try:
        names = list((proc / str(pid) / "fd").iterdir())
    except OSError:
        return False
    for name in names:
        try:
            about = name.stat()
        except OSError:
            continue
        if (about.st_dev, about.st_ino) == wanted:
            return True
    return False


def _log_error(error: OSError, path: str) -> PodwrightError:
    if isinstance(error, NotADirectoryError | IsADirectoryError) or error.errno in _LINK_ERRORS:
        return LogPathRefused(
            "log path does not lead to a plain file", path=path, reason=error.strerror
        )
    return from_os_error(error, "cannot make the container's log file", path=path)


#: O_NOFOLLOW on a link; a FIFO without reader, a socket or a device that has no driver.
_LINK_ERRORS: Final = frozenset({errno.ELOOP, errno.ENXIO, errno.ENODEV})
