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
    from collections.abc import Collection, Sequence

_log = get_logger(__name__)

#: How long they may take to end by themselves, as a kill in the middle of ADD can leave what no DEL
#: finds (`invoke.ADD_FINISH_S`). Shorter than there: they have run since before this start.
FINISH_S: Final = 1.0
#: How long to wait for killed processes to be gone: one stuck in the kernel must not stop us.
END_TIMEOUT_S: Final = 5.0
#: How often to look for somebody new while killing; two or three times do.
ROUNDS: Final = 64


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
    left = _Left(owner, directories)
    try:
        await left.look()
        if not await _ended(left.held, FINISH_S):
            # They have gone on since, and go on while /proc is read, which takes milliseconds. Who
            # was sent SIGKILL forks no more, so once a look finds nobody new, nobody is missed.
            for _ in range(ROUNDS):
                for process in left.held:
                    process.send_signal(signal.SIGKILL)
                if not await left.look():
                    break
            if not await _ended(left.held, END_TIMEOUT_S):
                alive = [process.pid for process in left.held if process.alive()]
                _log.error("a killed plugin does not end", pids=str(alive))
        return len(left.held)
    finally:
        left.close()


class _Left:
    """Whoever was found so far, held."""

    def __init__(self, owner: Path, directories: Sequence[Path]) -> None:
        self._owner = owner
        self._directories = directories
        self._held: dict[tuple[int, int], Process] = {}
        #: Of the plugins: who leads one may be gone when another look finds who is in it.
        self._sessions: frozenset[int] = frozenset()

    @property
    def held(self) -> Collection[Process]:
        """Not in any order."""
        return self._held.values()

    async def look(self) -> bool:
        """Hold whoever is there; whether somebody was who had not been found before."""
        fresh = False
        found = await asyncio.to_thread(_find, self._owner, self._directories, self._sessions)
        for each in found:
            key = each.pid, each.start_ticks
            process = Process.open(*key, boot_id()) if key not in self._held else None
            if process is not None:
                fresh = True
                self._held[key] = process
                _log.warning("a plugin was left running", pid=each.pid, program=each.program)
        self._sessions |= {each.session for each in found}
        return fresh

    def close(self) -> None:
        """Let go of everybody."""
        for process in self._held.values():
            process.close()


async def _ended(processes: Collection[Process], seconds: float) -> bool:
    """Whether all of them have ended within the time."""
    try:
        async with asyncio.timeout(seconds):
            for process in processes:
                await process.wait()
    except TimeoutError:
        return False
    return True


def _find(owner: Path, directories: Sequence[Path], known: Collection[int]) -> list[_Marked]:
    """Plugins, and whoever else is in their sessions or in those that are known for one's."""
    mark = f"{OWNER_VARIABLE}={owner}".encode()
    marked = [
        found
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit()
        and (found := _inspect(int(entry.name), mark, directories)) is not None
    ]
    leaders = {found.session for found in marked if found.pid == found.session and found.program}
    sessions = leaders.union(known)
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
