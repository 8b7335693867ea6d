"""UpdateContainerResources: other limits for a container that has processes.

    memory in use looked at ─► files read ─► runtime's update ─► hugepages ─► OOM scores
                                  └────────────── written back on any failure ─────┘

The runtime's update comes first, because it keeps the limits in its own state too (and for one that
runs virtual machines is the only way). What runtimes leave out is done here: runc has no hugepages
in its update, neither has the OOM score. Writing back goes through the files: a set of "what was
before" in the runtime's words cannot say "not set".
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from sandbox import limits
from sandbox.cgroups import limited_path
from sandbox.host.journal import get_logger
from sandbox.host.threads import to_its_end

if TYPE_CHECKING:
    from sandbox.host.cgroupfs import CgroupLayout
    from sandbox.model import Container, LinuxResources
    from sandbox.runtime.driver import OciRuntime

_log = get_logger("resize")


class Resize(msgspec.Struct, frozen=True):
    """What is to change.

    Attributes:
        asked: the request: its hugepage limits are set, its memory limit is checked.
        merged: what holds afterwards; recorded by the caller.
        document: `merged` as OCI resources, for the runtime.
        oom_score_adj: for every process, already clamped; None leaves it.
    """

    asked: LinuxResources
    merged: LinuxResources
    document: bytes
    oom_score_adj: int | None


async def apply(
    container: Container, change: Resize, *, runtime: OciRuntime, layout: CgroupLayout
) -> None:
    """Apply all of `change` or nothing.

    Raises:
        FailedPrecondition: the memory limit is below what is in use; nothing was touched.
        Unsupported: huge pages of a size that this node has not; nothing was touched.
        RuntimeFailed, RuntimeBusy: the runtime or the kernel refused; nothing has changed.
        InvalidArgument, Denied: as the kernel says; nothing has changed.
    """
    path = await asyncio.to_thread(limited_path, layout, container.cgroup_path)
    asked = change.asked
    before, pages = await asyncio.to_thread(_look, layout, path, container, asked)
    try:
        await runtime.update(container.id, change.document)
        await to_its_end(partial(_finish, layout, path, pages, change.oom_score_adj))
    except BaseException:
        await to_its_end(partial(limits.restore_limits, layout, path, before))
        raise


def _look(
    layout: CgroupLayout, path: str, container: Container, asked: LinuxResources
) -> tuple[list[limits.Limit], list[limits.Limit]]:
    """What holds now, and the files of the huge pages asked for."""
    limits.check_memory(layout, path, asked.memory_limit_bytes)
    before = limits.read_limits(layout, path, (container.resources, asked))
    return before, limits.hugepage_limits(layout, path, asked.hugepage_limits)


def _finish(
    layout: CgroupLayout, path: str, pages: list[limits.Limit], oom_score_adj: int | None
) -> None:
    limits.write_limits(layout, path, pages)
    if oom_score_adj is not None:
        limits.set_oom_scores(layout, path, oom_score_adj)
