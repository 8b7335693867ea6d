"""Limits of what is running, changed as one: either all hold afterwards or none.

A resize sets several files, and the kernel may refuse any of them: what came before would stay and
nobody would know. So the files are read first; after a failure they are written back. Two of them
may depend on each other (version 1 wants the limit of memory and swap never below that of memory,
and a quota never above what its period allows), whichever way both move: what is refused is tried
again after the others, until a round changes nothing.

All functions block, briefly.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from sandbox.host.cgroup_text import flat_keyed
from sandbox.host.errors import (
    FailedPrecondition,
    NotFound,
    PodwrightError,
    Unsupported,
    from_os_error,
)
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sandbox.host.cgroupfs import CgroupLayout
    from sandbox.model import HugepageLimit, LinuxResources

_log = get_logger("limits")

_CPU_V1: Final = ("cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us")
_CPU_V2: Final = ("cpu.weight", "cpu.max")
_MEMORY_V1: Final = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
_MEMORY_V2: Final = ("memory.max", "memory.swap.max")
_CPUSET: Final = ("cpuset.cpus", "cpuset.mems")
_PROC: Final = Path("/proc")
#: Looks at a group whose processes fork while they get another score.
_FORK_ROUNDS: Final = 8


class Limit(NamedTuple):
    """One value in one file."""

    controller: str
    file: str
    value: str


def read_limits(
    layout: CgroupLayout, path: str, resources: Iterable[LinuxResources | None]
) -> list[Limit]:
    """What the group at `path` has now in every file that any of `resources` may change."""
    one = layout.version == 1
    names = [
        *(("cpu", name) for name in (_CPU_V1 if one else _CPU_V2)),
        *(("memory", name) for name in (_MEMORY_V1 if one else _MEMORY_V2)),
        *(("cpuset", name) for name in _CPUSET),
    ]
    for wanted in resources:
        if wanted is not None:
            names += [(limit.controller, limit.file) for limit in _special(layout, wanted)]
    found = []
    for controller, name in dict.fromkeys(names):
        value = layout.read(path, controller, name) if controller in layout.available else None
        if value is not None:
            found.append(Limit(controller, name, value))
    return found


def write_limits(layout: CgroupLayout, path: str, limits: Sequence[Limit]) -> None:
    """Set all of `limits`, in whatever order the kernel takes them; nothing is undone here.

    Raises:
        PodwrightError: the first refusal among those that no order could avoid.
    """
    waiting = list(limits)
    while waiting:
        refused: list[tuple[Limit, PodwrightError]] = []
        for limit in waiting:
            try:
                layout.write(path, limit.controller, limit.file, limit.value)
            except PodwrightError as error:
                refused.append((limit, error))
        if len(refused) == len(waiting):
            raise refused[0][1]
        waiting = [limit for limit, _ in refused]


def restore_limits(layout: CgroupLayout, path: str, before: Sequence[Limit]) -> bool:
    """Write back what differs from `before`; False, and a line in the log, when that failed too."""
    changed = [
        limit for limit in before if layout.read(path, limit.controller, limit.file) != limit.value
    ]
    try:
        # An empty cpuset list means "as above" on version 2 and cannot be written on version 1.
        write_limits(layout, path, [limit for limit in changed if limit.value])
    except NotFound:
        return True  # the group is gone, and its limits with it
    except PodwrightError as error:
        _log.error("limits could not be set back", cgroup=path, error=error)
        return False
    return True


def set_limits(layout: CgroupLayout, path: str, limits: Sequence[Limit]) -> None:
    """Set all of `limits` or none.

    Raises:
        PodwrightError: the kernel's refusal; what was changed has been set back.
    """
    known = [
        limit._replace(value=value)
        for limit in limits
        if (value := layout.read(path, limit.controller, limit.file)) is not None
    ]
    try:
        write_limits(layout, path, limits)
    except PodwrightError:
        restore_limits(layout, path, known)
        raise


def hugepage_limits(
    layout: CgroupLayout, path: str, limits: Iterable[HugepageLimit]
) -> list[Limit]:
    """The files of hugepage limits, reservations too where the kernel counts them.

    Raises:
        Unsupported: a limit other than 0 for pages of a size that this machine does not have.
    """
    found: list[Limit] = []
    for limit in limits:
        files = [
            Limit("hugetlb", file, str(limit.limit_bytes))
            for file in _hugepage_files(layout, limit.page_size)
            if layout.read(path, "hugetlb", file) is not None
        ]
        if not files and limit.limit_bytes:
            raise Unsupported(f"this node cannot limit huge pages of {limit.page_size}")
        found += files
    return found


def check_memory(layout: CgroupLayout, path: str, limit_bytes: int) -> None:
    """Refuse a memory limit that what is in use does not fit into.

    In use is what could not be dropped: usage without the inactive file pages, which the kernel
    drops first when the limit comes down.

    Raises:
        FailedPrecondition: as it says, with both numbers.
    """
    name, key = (
        ("memory.usage_in_bytes", "total_inactive_file")
        if layout.version == 1
        else ("memory.current", "inactive_file")
    )
    text = layout.read(path, "memory", name)
    if limit_bytes <= 0 or text is None or not text.isdecimal():
        return
    stat = flat_keyed(layout.read(path, "memory", "memory.stat") or "")
    used_bytes = int(text) - stat.get(key, 0)
    if used_bytes > limit_bytes:
        raise FailedPrecondition(
            f"the memory limit {limit_bytes} is below the {used_bytes} bytes in use",
            hint="use less memory first, or ask for more than that",
        )


def set_oom_scores(layout: CgroupLayout, path: str, score: int, *, proc: Path = _PROC) -> None:
    """Give every process of the group `oom_score_adj`, or none of them.

    A file under /proc stays that of its process once it is open; that the process is still in the
    group is looked at after opening, so a number that changed hands is nobody else's score. A
    process that forks meanwhile is found in the next round.

    Raises:
        Denied: as the kernel says.
    """
    with ExitStack() as stack:
        held: dict[int, tuple[int, bytes]] = {}
        try:
            for _ in range(_FORK_ROUNDS):
                fresh = layout.procs(path, recursive=True) - held.keys()
                if not fresh:
                    return
                opened = {pid: fd for pid in fresh if (fd := _open_score(proc, pid)) is not None}
                for fd in opened.values():
                    stack.callback(os.close, fd)
                members = layout.procs(path, recursive=True)
                for pid in opened.keys() & members:
                    before = os.pread(opened[pid], 32, 0)
                    held[pid] = (opened[pid], before)
                    _write_score(opened[pid], str(score).encode(), pid)
        except PodwrightError:
            for fd, before in held.values():
                with suppress(PodwrightError):
                    _write_score(fd, before, 0)
            raise


def _open_score(proc: Path, pid: int) -> int | None:
    try:
        return os.open(proc / str(pid) / "oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return None
    except OSError as error:
        raise from_os_error(error, "cannot open a process's oom_score_adj", pid=pid) from error


def _write_score(fd: int, value: bytes, pid: int) -> None:
    try:
        os.pwrite(fd, value, 0)
    except ProcessLookupError:
        return  # it has ended
    except OSError as error:
        raise from_os_error(error, "cannot set oom_score_adj of a process", pid=pid) from error


def _special(layout: CgroupLayout, wanted: LinuxResources) -> list[Limit]:
    """Files that are changed only when a request names them."""
    pages = [
        Limit("hugetlb", file, "")
        for limit in wanted.hugepage_limits
        for file in _hugepage_files(layout, limit.page_size)
    ]
    keys = wanted.unified if layout.version == 2 else {}
    return [*pages, *(Limit(key.partition(".")[0], key, "") for key in keys)]


def _hugepage_files(layout: CgroupLayout, page_size: str) -> tuple[str, ...]:
    last = "limit_in_bytes" if layout.version == 1 else "max"
    return (f"hugetlb.{page_size}.{last}", f"hugetlb.{page_size}.rsvd.{last}")
