"""conmon's control FIFOs in the bundle: `ctl` (log reopening) and `winsz` (terminal size).

conmon 2.1.6 has a fault here (src/ctrl.c, fixed upstream later): when two messages arrive before it
reads, it handles the first one twice and loses the second. It reads at most 199 bytes at once, so
every message is padded with blanks to exactly 199: then one read is one message, in that version
and in later ones. Sizes go to `winsz` directly, since `ctl` would forward them unpadded.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from sandbox.errors import MonitorGone
from sandbox.host.errors import from_os_error

if TYPE_CHECKING:
    from pathlib import Path

#: CTLBUFSZ - 1: what conmon reads at once.
MESSAGE_BYTES: Final = 199
#: Later versions of conmon refuse larger sizes, and a pty has no use for them.
SIZE_LIMIT: Final = 1000

#: src/config.h, v2.1.6.
_REOPEN_LOGS: Final = 2


def _padded(text: str) -> bytes:
    message = text.ljust(MESSAGE_BYTES - 1).encode() + b"\n"
    assert len(message) == MESSAGE_BYTES
    return message


def reopen_message() -> bytes:
    """Close the log and open it anew."""
    return _padded(f"{_REOPEN_LOGS} 0 0")


def resize_message(width: int, height: int) -> bytes | None:
    """Set the terminal's size; None for a size that is none (a client that has no terminal)."""
    if width < 1 or height < 1:
        return None
    return _padded(f"{min(height, SIZE_LIMIT)} {min(width, SIZE_LIMIT)}")


def send(fifo: Path, message: bytes) -> None:
    """Write one message without ever blocking.

    Raises:
        MonitorGone: nobody reads the FIFO, it is absent, or it is full (the monitor is stuck).
    """
    try:
        fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            # Atomic: a message is far smaller than PIPE_BUF (pipe(7)).
            os.write(fd, message)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in {errno.ENXIO, errno.ENOENT, errno.EPIPE}:
            raise MonitorGone("the container's monitor is dead", fifo=str(fifo)) from error
        if error.errno == errno.EAGAIN:
            raise MonitorGone(
                "the container's monitor does not read its control messages", fifo=str(fifo)
            ) from error
        raise from_os_error(error, "cannot write to the monitor's FIFO") from error
