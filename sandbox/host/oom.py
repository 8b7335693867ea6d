"""How likely the kernel's memory killer is to take this process: proc_pid_oom_score_adj(5)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

OWN: Final = Path("/proc/self/oom_score_adj")


def own_score(file: Path = OWN) -> int:
    """The adjustment of this process, -1000 (never) to 1000 (first)."""
    return int(file.read_text())


def protect_self(wanted: int, file: Path = OWN) -> int:
    """Lower this process's adjustment to `wanted`, if it is higher; what it is afterwards.

    Without CAP_SYS_RESOURCE the kernel lets nobody go below what the process was given; then it
    stays as it is, which `podwright check` reports.
    """
    now = own_score(file)
    if now > wanted:
        try:
            file.write_text(str(wanted))
        except PermissionError:
            return now
    return min(now, wanted)


def expose_self(file: Path = OWN) -> None:
    """Give up a protection that was inherited: back to what an ordinary process has."""
    if own_score(file) < 0:
        file.write_text("0")
