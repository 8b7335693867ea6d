"""What the kernel enforces on a process: control files of its group and all above it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

_ROOT: Final = Path("/sys/fs/cgroup")


def groups_of(pid: int, controller: str) -> Iterator[Path]:
    """The process's group in the hierarchy that has the controller, then each above, no root."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for root in (_ROOT / controllers, _ROOT / controller, _ROOT):
            group = root / path.lstrip("/")
            if (group / "cgroup.procs").exists() and group != root:
                if not controllers and not (group / "cgroup.controllers").exists():
                    continue
                while group != root:
                    yield group
                    group = group.parent
                return


def in_force(pid: int, controller: str, *names: str) -> str:
    """The value nearest to the process that says something; "max" when none does.

    A runtime may put the process one below the group with the limit (crun does with systemd).

    Args:
        pid: of a process in the container.
        controller: as version 1 calls it.
        names: of the file, in version 1 and in version 2.
    """
    value = "max"
    for group in groups_of(pid, controller):
        for name in names:
            file = group / name
            if file.exists():
                value = file.read_text().strip()
                if value and not value.startswith("max"):
                    return value
    return value


def group_of_pod(pid: int, controller: str, pod: str) -> Path:
    """The group above the process that the daemon made for the pod of that id."""
    return next(group for group in groups_of(pid, controller) if f"pod{pod}" in group.name)


def version_2() -> bool:
    """Whether the controllers are in the one tree of version 2."""
    return (_ROOT / "cgroup.controllers").exists()
