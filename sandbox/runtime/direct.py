"""Start a created container without running the runtime: by the named pipe that it waits at.

The first process of a container that crun has created waits for a byte from `exec.fifo` in the
runtime's books (src/libcrun/status.c and container.c, crun 1.8.1 to 1.28). `crun start` opens the
pipe, removes its name, writes the byte and runs the poststart hooks; whether the name is there is
what `crun state` tells created and running apart by. The same is done here, in the same order,
where there is no such hook. A pipe at which nobody waits, an unknown version and anything
unexpected mean: not here, let the runtime do it, and say what is wrong in its own words.

Measured on the reference machine with crun 1.8.1: 3 to 5 ms by `crun start`, 0.1 ms this way.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from sandbox.host.pidfd import Process
from sandbox.runtime.command import version_numbers
from sandbox.runtime.written import read_book

if TYPE_CHECKING:
    from sandbox.model import ProcessRef
    from sandbox.runtime.driver import RuntimeInfo

_PIPE: Final = "exec.fifo"
_NAMELESS: Final = f"/{_PIPE} (deleted)"
#: The oldest that was tried, and the first whose source has not been read.
_FIRST, _BEYOND = (1, 8, 1), (1, 29)
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


class _Hooks(msgspec.Struct):
    poststart: list[msgspec.Raw] = []


class _Config(msgspec.Struct):
    """OCI runtime-spec config.json, the part that matters here."""

    hooks: _Hooks | None = None


_config: Final = msgspec.json.Decoder(_Config)


def is_known(info: RuntimeInfo) -> bool:
    """Whether containers of this program wait in the way described above."""
    return info.name == "crun" and _FIRST <= version_numbers(info.version) < _BEYOND


def start(books: Path) -> bool:
    """Start the container whose books are in this directory. Blocking.

    Returns:
        False when it was not started and the runtime is to be asked. That is also so where the
        waiting process dies between the two steps; the runtime then says that it is dead.
    """
    try:
        directory = os.open(books, _DIRECTORY)
    except OSError:
        return False
    try:
        return _is_plain(directory) and _open_the_way(directory)
    except OSError:
        return False
    finally:
        os.close(directory)


def _open_the_way(directory: int) -> bool:
    # Without a reader this fails instead of waiting for one (fifo(7)).
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
    pipe = os.open(_PIPE, flags, dir_fd=directory)
    try:
        if not stat.S_ISFIFO(os.fstat(pipe).st_mode):
            return False
        os.unlink(_PIPE, dir_fd=directory)
        os.write(pipe, b"\0")
    finally:
        os.close(pipe)
    return True


def complete(init: ProcessRef) -> bool:
    """Go through with a start that was cut off between removing the name and writing the byte.

    The runtime calls such a container running, while its program was never run. Whoever was
    starting it is dead: the daemon in a former life, or a runtime that it had called. Blocking.

    Returns:
        Whether there was such a start.
    """
    process = Process.open(init.pid, init.start_ticks, init.boot_id)
    if process is None:
        return False
    with process:
        for entry in Path(f"/proc/{init.pid}/fd").iterdir():
            if not str(entry.readlink()).endswith(_NAMELESS):
                continue
            pipe = os.open(entry, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                # What was opened is this process's only if it is still alive.
                if not stat.S_ISFIFO(os.fstat(pipe).st_mode) or not process.alive():
                    return False
                os.write(pipe, b"\0")
            finally:
                os.close(pipe)
            return True
    return False


def _is_plain(directory: int) -> bool:
    """Whether the runtime would do nothing after the byte; by its own copy of the document."""
    text = read_book(directory, "config.json")
    try:
        hooks = _config.decode(text).hooks
    except msgspec.DecodeError:
        return False
    return hooks is None or not hooks.poststart
