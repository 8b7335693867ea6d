"""What a creation that was killed half-way may have left behind, found by the id alone.

A conmon or an OCI runtime that was started just before the daemon died goes on without it: it may
finish the creation minutes later. Recovery therefore looks for such helpers by the id in their
command line (the id is 64 random hex digits: nobody else has it), ends them through pidfds, and
only then takes the object apart.

Of an object that stays, only the call in flight is ended: a `start` or `update` that finished after
recovery had looked would make what it then answers untrue.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandbox.host.pidfd import Process, boot_id, start_ticks

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

#: Rounds of looking and killing: a helper may have started a child between two looks.
KILL_ROUNDS: Final = 10
ROUND_PAUSE_S: Final = 0.05


class Leavings:
    """Finds and ends helper programs by the id of the object they work for."""

    def __init__(self, programs: Iterable[str] = (), *, proc: Path = Path("/proc")) -> None:
        """Look among the programs one usually has, and those named (file names) as well."""
        self._proc = proc
        # As the kernel has the name of a process: cut to 15 characters.
        self._programs = HELPER_PROGRAMS | {name[:15] for name in programs}

    def know(self, program: str) -> None:
        """Look for a program of this file name as well."""
        self._programs |= {program[:15]}

    async def kill_helpers(self, object_id: str) -> int:
        """SIGKILL every process that has `object_id` in its command line; the number killed."""
        return await self._kill(lambda argv: any(object_id in word for word in argv))

    async def end_calls(self, object_ids: Collection[str]) -> int:
        """SIGKILL the runtime's calls that change one of these objects; the number killed.

        Not its `create`, which is what crun's first process in a created container calls itself,
        nor its `exec`, whose command must end first (`execs.sweep_execs`).
        """
        wanted = frozenset(object_ids)
        return await self._kill(
            lambda argv: not LATE_CALLS.isdisjoint(argv) and not wanted.isdisjoint(argv)
        )

    def monitored(self, containers: Path) -> set[str]:
        """Names of the directories below `containers` that programs of ours work on; blocking."""
        place = f"{containers}/"
        found: set[str] = set()

        def fits(argv: list[str]) -> bool:
            found.update(
                word.removeprefix(place).partition("/")[0]
                for word in argv
                if word.startswith(place)
            )
            return False

        for _ in self.find_helpers(fits):
            pass
        return found

    def working_below(self, root: Path) -> set[int]:
        """Helper programs that have a path below `root` among their arguments; blocking."""
        place = f"{root}/"
        named = self.find_helpers(lambda argv: any(place in word for word in argv[1:]))
        return {pid for pid in named if _program(self._proc, pid) in self._programs}

    async def _kill(self, fits: Callable[[list[str]], bool]) -> int:
        killed = 0
        for _ in range(KILL_ROUNDS):
            found = await asyncio.to_thread(self._kill_once, fits)
            if not found:
                break
            killed += found
            await asyncio.sleep(ROUND_PAUSE_S)
        return killed

    def find_helpers(self, fits: Callable[[list[str]], bool]) -> Iterator[int]:
        """Process ids whose argument vector fits; blocking. Our own process never does."""
        own = os.getpid()
        for entry in self._proc.iterdir():
            if not entry.name.isascii() or not entry.name.isdigit() or int(entry.name) == own:
                continue
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue  # it ended while we looked
            if line and fits(line.decode("utf-8", "replace").split("\0")):
                yield int(entry.name)

    def _kill_once(self, fits: Callable[[list[str]], bool]) -> int:
        count = 0
        for pid in list(self.find_helpers(fits)):
            ticks = start_ticks(pid)
            process = Process.open(pid, ticks, boot_id()) if ticks is not None else None
            if process is None:
                continue
            try:
                # An exact helper or nothing: a person's `grep ID` or `crictl inspect ID` is spared.
                name = _program(self._proc, pid)
                if name in self._programs and process.send_signal(signal.SIGKILL):
                    count += 1
            finally:
                process.close()
        return count


#: Programs that the daemon starts with an object's id among their arguments.
HELPER_PROGRAMS: Final = frozenset(
    {
        "conmon",
        "crun",
        "fuse-overlayfs",
        "runc",
        "runc:[0:PARENT]",
        "runc:[1:CHILD]",
        "runc:[2:INIT]",
        "runsc",
        "kata-runtime",
    }
)
#: Calls of the runtime that change a container which recovery keeps.
LATE_CALLS: Final = frozenset({"start", "update", "pause", "resume"})


def _program(proc: Path, pid: int) -> str:
    try:
        return (proc / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
