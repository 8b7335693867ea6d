"""Files that a runtime writes: its log and the number of a first process for us, its own books."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from sandbox.errors import RuntimeFailed
from sandbox.host import files
from sandbox.host.errors import PodwrightError
from sandbox.runtime.command import LOG_LIMIT_BYTES, runtime_message

if TYPE_CHECKING:
    from pathlib import Path

#: A pid file is a decimal number; anything longer is not one.
_PID_FILE_LIMIT_BYTES: Final = 64
#: A runtime's copy of a document.
_BOOK_LIMIT_BYTES: Final = 8 * 1024 * 1024


def read_log(path: Path) -> str:
    """What a runtime wrote into its log file; empty when there is none. Blocking."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - LOG_LIMIT_BYTES, 0))
            return runtime_message(file.read(LOG_LIMIT_BYTES))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return ""
        return f"its log cannot be read: {error}"


def read_pid_file(path: Path) -> int:
    """A pid that the runtime has just written. Blocking. Raises RuntimeFailed."""
    try:
        text = files.read_limited(path, _PID_FILE_LIMIT_BYTES).strip()
    except PodwrightError as error:
        raise RuntimeFailed("the runtime wrote no pid file", path=str(path)) from error
    pid = int(text) if text.isdigit() and len(text) < 11 else 0
    if pid <= 1:
        raise RuntimeFailed(
            "the runtime's pid file holds no process id", path=str(path), text=repr(text)
        )
    return pid


def read_book(directory: int, name: str) -> bytes:
    """A file of a container's books; no link is followed. Blocking.

    Args:
        directory: descriptor of the books.
        name: of the file.

    Raises:
        OSError: it is not there, no file, or larger than such files are.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    with os.fdopen(os.open(name, flags, dir_fd=directory), "rb") as file:
        content = file.read(_BOOK_LIMIT_BYTES + 1)
    if len(content) > _BOOK_LIMIT_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), name)
    return content
