"""What a creation that was killed half-way may have left behind, found by the id alone.

A conmon or an OCI runtime that was started just before the daemon died goes on without it: it may
finish the creation minutes later. Recovery therefore looks for such helpers by the id in their
command line (the id is 64 random hex digits: nobody else has it), ends them through pidfds, and
only then takes the object apart.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandbox.host.pidfd import Process, boot_id, start_ticks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Rounds of looking and killing: a helper may have started a child between two looks.
KILL_ROUNDS: Final = 10
ROUND_PAUSE_S: Final = 0.05


class Leavings:
    """Finds and ends helper programs by the id of the object they work for."""

    def __init__(self, *, proc: Path = Path("/proc")) -> None:
        self._proc = proc

    async def kill_helpers(self, object_id: str) -> int:
        """SIGKILL every process that has `object_id` in its command line; the number killed."""
        killed = 0
        for _ in range(KILL_ROUNDS):
            found = await asyncio.to_thread(self._kill_once, object_id)
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

    def _kill_once(self, object_id: str) -> int:
        count = 0
        for pid in list(self.find_helpers(lambda argv: any(object_id in word for word in argv))):
            ticks = start_ticks(pid)
            process = Process.open(pid, ticks, boot_id()) if ticks is not None else None
            if process is None:
                continue
            try:
                # An exact helper or nothing: a person's `grep ID` or `crictl inspect ID` is spared.
                name = _program(self._proc, pid)
                if name in HELPER_PROGRAMS and process.send_signal(signal.SIGKILL):
                    count += 1
            finally:
                process.close()
        return count


#: Programs that the daemon starts with an object's id among their arguments.
HELPER_PROGRAMS: Final = frozenset(
    {
        "conmon",
        "crun",
        "runc",
        "runc:[0:PARENT]",
        "runc:[1:CHILD]",
        "runc:[2:INIT]",
        "runsc",
        "kata-runtime",
    }
)


def _program(proc: Path, pid: int) -> str:
    try:
        return (proc / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
