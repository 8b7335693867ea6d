"""Finding and ending a bundle's conmon when nobody holds a pidfd of it any more."""

from __future__ import annotations

import os
from pathlib import Path

from sandbox.host.errors import PodwrightError
from sandbox.host.pidfd import boot_id, start_ticks
from sandbox.model import ProcessRef
from sandbox.runtime import proctree
from sandbox.runtime.written import read_pid_file


def find_monitor(bundle: Path) -> ProcessRef | None:
    """The living conmon of a bundle, by its pid file and its command line. Blocking.

    The pid file has no start time, so a process of that number counts only if its command line
    names this very bundle.
    """
    try:
        pid = read_pid_file(bundle / "conmon.pid")
    except PodwrightError:
        return None
    ticks = start_ticks(pid)
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    if ticks is None or os.fsencode(f"--bundle={bundle}") not in words:
        return None
    return ProcessRef(pid=pid, start_ticks=ticks, boot_id=boot_id())


def end_monitor(bundle: Path) -> None:
    """Kill a bundle's conmon with everything in its session (the runtime, hooks). Blocking.

    A hook may outlive conmon and the runtime. The number of a session is not given away while a
    process is in it; so if a stranger has conmon's number now, nobody of the session is left.
    """
    try:
        session = read_pid_file(bundle / "conmon.pid")
    except PodwrightError:
        return
    monitor = find_monitor(bundle)
    if monitor is None and start_ticks(session) is not None:
        return
    proctree.kill_all(lambda: [info for info in proctree.snapshot() if info.session == session])
