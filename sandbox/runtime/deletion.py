"""Delete a dead container from the runtime's books without running the runtime.

What `crun delete` and `runc delete` do with a container whose first process has ended was read in
their sources: crun 1.8.1 to 1.28 (src/libcrun/container.c, `container_delete_internal`, and
status.c), runc 1.1.5 to 1.5.1 (libcontainer/state_linux.go, `destroy`). They end what is left in
its cgroup and remove that, remove its resctrl group, run its poststop hooks, and remove the
directory of its books. The engine does the first by itself before and after `delete`, for any
container, as the programs leave some of it behind. So where there is no hook and no resctrl group,
the directory is all there is, and it is removed here.

It is left to the program where anything is otherwise: the first process lives or is not the one in
the books, systemd made the cgroup, the version has not been read, a file is missing, large or not
as expected. Whoever has the daemon killed in the middle leaves half a directory: that, too, is the
program's, and what it cannot read is removed in the end as always.

Measured on the reference machine, busy with other work, at best and as a median: 7.1 and 13.4 ms by
`crun delete` (1.8.1), 1.0 and 2.5 ms this way; 5.6 and 9.7 ms by `runc delete` (1.1.5), 0.8 and
1.0 ms this way. RemoveContainer takes two thirds of the time, which it owes to fewer syncs as well.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import msgspec

from sandbox.host import files
from sandbox.host.errors import PodwrightError
from sandbox.host.pidfd import Process, boot_id
from sandbox.runtime.command import version_numbers
from sandbox.runtime.written import read_book

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandbox.runtime.driver import RuntimeInfo

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


class _Hooks(msgspec.Struct):
    poststop: list[msgspec.Raw] | None = None


class _Linux(msgspec.Struct):
    intel_rdt: msgspec.Raw | None = msgspec.field(default=None, name="intelRdt")


class _CrunConfig(msgspec.Struct):
    """OCI runtime-spec config.json, the part that matters here."""

    hooks: _Hooks | None = None
    linux: _Linux | None = None


class _CrunStatus(msgspec.Struct):
    """`libcrun_write_container_status`."""

    pid: int
    ticks: int = msgspec.field(name="process-start-time")
    systemd: bool = msgspec.field(name="systemd-cgroup")
    scope: str = ""


class _RuncGroups(msgspec.Struct):
    systemd: bool = msgspec.field(name="Systemd")


class _RuncConfig(msgspec.Struct):
    """`configs.Config`, which has no names of its own for these two."""

    cgroups: _RuncGroups
    hooks: _Hooks | None = msgspec.field(default=None, name="Hooks")
    intel_rdt: msgspec.Raw | None = None


class _RuncState(msgspec.Struct):
    """`libcontainer.State`."""

    pid: int = msgspec.field(name="init_process_pid")
    ticks: int = msgspec.field(name="init_process_start")
    config: _RuncConfig
    intel_rdt_path: str = ""


_crun_config: Final = msgspec.json.Decoder(_CrunConfig)
_crun_status: Final = msgspec.json.Decoder(_CrunStatus)
_runc_state: Final = msgspec.json.Decoder(_RuncState)

#: Of a container for which the directory is all there is: its first process, by number and start.
_First = tuple[int, int]


def _of_crun(directory: int) -> _First | None:
    status = _crun_status.decode(read_book(directory, "status"))
    config = _crun_config.decode(read_book(directory, "config.json"))
    hooks, linux = config.hooks, config.linux
    if status.systemd or status.scope or (hooks is not None and hooks.poststop):
        return None
    if linux is not None and linux.intel_rdt is not None:
        return None
    return status.pid, status.ticks


def _of_runc(directory: int) -> _First | None:
    state = _runc_state.decode(read_book(directory, "state.json"))
    config = state.config
    if config.cgroups.systemd or (config.hooks is not None and config.hooks.poststop):
        return None
    if config.intel_rdt is not None or state.intel_rdt_path:
        return None
    return state.pid, state.ticks


#: By name of the program: the oldest that was tried, the first whose source has not been read, and
#: how its books are read.
_KNOWN: Final = {
    "crun": ((1, 8, 1), (1, 29), _of_crun),
    "runc": ((1, 1, 5), (1, 6), _of_runc),
}


def known(info: RuntimeInfo) -> Callable[[Path], bool] | None:
    """How containers of this program are deleted: `delete` with its books; None where unknown."""
    first, beyond, read = _KNOWN.get(info.name, ((), (), None))
    if read is None or not first <= version_numbers(info.version) < beyond:
        return None
    return lambda books: delete(books, read)


def delete(books: Path, read: Callable[[int], _First | None]) -> bool:
    """Remove the books of a dead container. Blocking.

    Its cgroup is the caller's to empty and remove.

    Args:
        books: its directory.
        read: what that says.

    Returns:
        False when nothing, or not all, was done and the runtime is to be asked.
    """
    try:
        directory = os.open(books, _DIRECTORY)
    except OSError:
        return False
    try:
        first = read(directory)
    except (OSError, msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
    finally:
        os.close(directory)
    if first is None:
        return False
    try:
        if not _has_ended(*first):
            return False
        files.remove_tree(books)
    except PodwrightError:
        return False
    return True


def _has_ended(pid: int, ticks: int) -> bool:
    # Without both numbers a process cannot be told from another that has got its own since.
    if pid <= 1 or ticks <= 0 or pid == os.getpid():
        return False
    process = Process.open(pid, ticks, boot_id())
    if process is None:
        return True
    with process:
        # A first thread that has ended before the others looks like a zombie; the pidfd knows.
        return not process.alive()
