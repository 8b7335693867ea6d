"""How high the limits of getrlimit(2) can be set by this process for others."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Final

#: proc(5): no RLIMIT_NOFILE can be above it, whatever one may do.
NR_OPEN: Final = Path("/proc/sys/fs/nr_open")
_UNLIMITED: Final = 2**64 - 1


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
