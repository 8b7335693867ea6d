"""Who belongs to whom, read from /proc: sessions and descendants, for killing what a command left.

A command run in a container is the leader of a session (both runtimes call setsid(2) for it). What
it starts stays in that session or is its descendant, whichever way it goes; only a process that has
left both (a daemon made on purpose by double fork and setsid) is out of reach, and is the
container's own business like any other background process.

Parsing and choosing are pure; only `snapshot` looks at the machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """Some fields of /proc/PID/stat (proc(5)): 1, 4, 6, 22, and whether field 3 says dead."""

    pid: int
    parent: int
    session: int
    start_ticks: int
    dead: bool


def parse_stat(text: bytes) -> ProcessInfo | None:
    """One /proc/PID/stat; None for text that is none."""
    head, bracket, tail = text.rpartition(b")")
    fields = tail.split()
    if not bracket or len(fields) < 20:
        return None
    try:
        return ProcessInfo(
            pid=int(head.split(b" ", 1)[0]),
            parent=int(fields[1]),
            session=int(fields[3]),
            start_ticks=int(fields[19]),
            dead=fields[0] in {b"Z", b"X"},
        )
    except ValueError:
        return None


def snapshot(pids: Iterable[int] | None = None, *, proc: Path = Path("/proc")) -> list[ProcessInfo]:
    """What /proc says about `pids`, or about every process; blocking. Those gone are left out."""
    names = [entry.name for entry in proc.iterdir()] if pids is None else map(str, pids)
    found = []
    for name in names:
        if not (name.isascii() and name.isdigit()):
            continue
        try:
            text = (proc / name / "stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        info = parse_stat(text)
        if info is not None:
            found.append(info)
    return found


def family(processes: Collection[ProcessInfo], sessions: Collection[int]) -> list[ProcessInfo]:
    """Live processes of these sessions, their descendants, and whoever shares a session with one.

    Args:
        processes: a snapshot of all candidates.
        sessions: session ids to begin with (the pid of a command that leads its session).
    """
    wanted_sessions = set(sessions)
    members: dict[int, ProcessInfo] = {}
    grew = True
    while grew:
        grew = False
        for process in processes:
            if process.pid in members:
                continue
            if (
                process.session in wanted_sessions
                or process.pid in wanted_sessions
                or process.parent in members
            ):
                members[process.pid] = process
                # A child that leads a session of its own brings that session along.
                if process.session == process.pid:
                    wanted_sessions.add(process.session)
                grew = True
    return [process for process in members.values() if not process.dead]
