"""Plugins that a daemon left running when it was killed in the middle of ADD.

Such a plugin would finish its work after the new daemon's DEL, and the address it reserves would
be nobody's. So before anything else is run, they are ended. Only processes that are certainly
plugins of ours are touched: they carry our mark in their environment, lead the session the runner
made for them and run a program of the plugin directories; then whatever carries the mark in the
same session. A resolver or DHCP daemon that a plugin has put in the background for a living pod
has left that session, and stays.
"""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cni.invoke import OWNER_VARIABLE
from sandbox.host.journal import get_logger
from sandbox.host.pidfd import Process, boot_id, start_ticks

if TYPE_CHECKING:
    from collections.abc import Sequence

_log = get_logger(__name__)

#: How long they may take to end by themselves, as a kill in the middle of ADD can leave what no DEL
#: finds (`invoke.ADD_FINISH_S`). Shorter than there: they have run since before this start.
FINISH_S: Final = 1.0
#: How long to wait for killed processes to be gone: one stuck in the kernel must not stop us.
END_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Marked:
    pid: int
    start_ticks: int
    session: int
    program: str


async def end_leftovers(owner: Path, directories: Sequence[Path]) -> int:
    """Have the plugins of an earlier life gone, killed if they must be; how many there were.

    Args:
        owner: the cache directory, by which our plugins are marked.
        directories: where plugins are.
    """
    boot = boot_id()
    held: list[Process] = []
    try:
        for found in await asyncio.to_thread(_find, owner, directories):
            process = Process.open(found.pid, found.start_ticks, boot)
            if process is not None:
                held.append(process)
                _log.warning("a plugin was left running", pid=found.pid, program=found.program)
        if not await _ended(held, FINISH_S):
            for process in held:
                process.send_signal(signal.SIGKILL)
            if not await _ended(held, END_TIMEOUT_S):
                alive = [process.pid for process in held if process.alive()]
                _log.error("a killed plugin does not end", pids=str(alive))
        return len(held)
    finally:
        for process in held:
            process.close()


async def _ended(processes: Sequence[Process], seconds: float) -> bool:
    """Whether all of them have ended within the time."""
    try:
        async with asyncio.timeout(seconds):
            for process in processes:
                await process.wait()
    except TimeoutError:
        return False
    return True


def _find(owner: Path, directories: Sequence[Path]) -> list[_Marked]:
    mark = f"{OWNER_VARIABLE}={owner}".encode()
    marked = [
        found
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit()
        and (found := _inspect(int(entry.name), mark, directories)) is not None
    ]
    sessions = {found.session for found in marked if found.pid == found.session and found.program}
    return [found for found in marked if found.session in sessions]


def _inspect(pid: int, mark: bytes, directories: Sequence[Path]) -> _Marked | None:
    ticks = start_ticks(pid)
    if ticks is None:
        return None
    try:
        if mark not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return None
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        session = os.getsid(pid)
    except OSError:
        return None
    # A script's own path comes second, after its interpreter's; or third, after an option.
    paths = [Path(word.decode(errors="replace")) for word in words[:3]]
    program = next((str(path) for path in paths if path.parent in directories), "")
    return _Marked(pid, ticks, session, program)
