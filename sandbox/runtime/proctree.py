"""Who belongs to whom, read from /proc: sessions and descendants, for killing what a command left.

A command run in a container is in a session of its own (both runtimes call setsid(2) for it). What
it starts stays in that session or is its descendant, whichever way it goes; only a process that has
left both (a daemon made on purpose by double fork and setsid) is out of reach, and is the
container's own business like any other background process.

Parsing and choosing (`parse_stat`, `family`) are pure; the rest looks at the machine.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandbox.host.pidfd import Process, boot_id

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

#: How often to look for somebody new while killing all of a family; two or three times do.
ROUNDS: Final = 64


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


def family(processes: Collection[ProcessInfo], roots: Collection[int]) -> list[ProcessInfo]:
    """Live processes that belong to the roots: their sessions, their descendants, and so on.

    A session of a descendant was made by a descendant (nobody can enter an existing one), so all
    of it belongs, also those whose parent has died and who were given to another.

    Args:
        processes: a snapshot of all candidates.
        roots: process or session ids to begin with. Nobody who is not to be found may be in the
            session of one, so a root must have been started in a session of its own.
    """
    sessions = set(roots)
    members: dict[int, ProcessInfo] = {}
    grew = True
    while grew:
        grew = False
        for process in processes:
            if process.pid in members:
                continue
            if process.pid in sessions or process.session in sessions or process.parent in members:
                members[process.pid] = process
                sessions.add(process.session)
                grew = True
    return [process for process in members.values() if not process.dead]


def with_word(
    processes: Iterable[ProcessInfo], word: str, *, proc: Path = Path("/proc")
) -> list[ProcessInfo]:
    """Those that have exactly `word` among their arguments; blocking."""
    wanted = os.fsencode(word)
    found = []
    for process in processes:
        try:
            words = (proc / str(process.pid) / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted in words:
            found.append(process)
    return found


def kill_all(find: Callable[[], Iterable[ProcessInfo]]) -> None:
    """SIGKILL whom `find` finds, again and again until it finds nobody new. Blocking.

    Reading /proc takes milliseconds, in which somebody who was read already may fork. A process to
    which SIGKILL was sent forks no more (fork(2) is restarted for a pending signal, and dies), so
    once a round meets only those of earlier rounds, nobody is missed. Those who fork faster than
    they can be looked for end the search after `ROUNDS`; only a control group can hold them.
    """
    killed: set[ProcessInfo] = set()
    for _ in range(ROUNDS):
        found = {replace(info, parent=0, dead=False): info for info in find() if not info.dead}
        if found.keys() <= killed:
            return
        kill(info for key, info in found.items() if key not in killed)
        killed |= found.keys()


def kill(processes: Iterable[ProcessInfo], number: int = signal.SIGKILL) -> None:
    """Signal each, by pidfd, if it is still the one that was seen."""
    boot = boot_id()
    for info in processes:
        process = Process.open(info.pid, info.start_ticks, boot)
        if process is not None:
            with process:
                process.send_signal(number)
