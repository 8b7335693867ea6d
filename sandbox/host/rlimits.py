"""Limits of getrlimit(2): how high this process can set them for others, and its own open files."""

from __future__ import annotations

import resource
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: proc(5): no RLIMIT_NOFILE can be above it, whatever one may do.
NR_OPEN: Final = Path("/proc/sys/fs/nr_open")
_UNLIMITED: Final = 2**64 - 1
#: More are of no use to a daemon that needs some six for each container.
OPEN_FILES_WANTED: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """The soft and hard limit that this process was started with, for what it starts."""

    soft: int
    hard: int

    def give(self, pid: int) -> None:
        """Set it for a child that has just begun; one that has ended is fine.

        Not between fork(2) and execve(2): Python runs nothing of ours there without giving up
        vfork(2). So a child may read the daemon's own limit in its first moments, and what it
        starts within them keeps that; a container's is in its OCI document.
        """
        with suppress(OSError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (self.soft, self.hard))


def raise_open_files(wanted: int = OPEN_FILES_WANTED) -> OpenFiles | None:
    """Raise the soft limit of this process to its hard one; the old one, None where it stays.

    systemd starts services with 1024 and 524,288: the low one is for programs that still use
    select(2), which we do not and others may, so it is theirs (`OpenFiles.give`).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return None
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):
        return None
    return OpenFiles(soft, hard)


def rlimit_ceilings(*, may_raise: bool, nr_open: Path = NR_OPEN) -> dict[str, int]:
    """The highest hard limit that can be set, by name such as RLIMIT_NOFILE; absent for no bound.

    Args:
        may_raise: this process has CAP_SYS_RESOURCE, and so may go above its own hard limits.
        nr_open: the kernel's own bound on open files.
    """
    ceilings: dict[str, int] = {}
    if not may_raise:
        for name in dir(resource):
            if name.startswith("RLIMIT_"):
                _, hard = resource.getrlimit(getattr(resource, name))
                # RLIM_INFINITY is -1 in Python.
                ceilings[name] = _UNLIMITED if hard == resource.RLIM_INFINITY else hard
    try:
        most = int(nr_open.read_text())
    except (OSError, ValueError):
        return ceilings
    ceilings["RLIMIT_NOFILE"] = min(ceilings.get("RLIMIT_NOFILE", most), most)
    return ceilings
