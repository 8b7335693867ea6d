"""Usage of several control groups as that of one: for pods without a group of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metrics.cgroup_stats import CgroupStats, MemoryUsage

if TYPE_CHECKING:
    from collections.abc import Sequence


def add_up(parts: Sequence[CgroupStats]) -> CgroupStats:
    """The sum; there is no limit over all of them, and pressure cannot be added."""
    usages_ns = [part.cpu_usage_ns for part in parts if part.cpu_usage_ns is not None]
    memories = [part.memory for part in parts if part.memory is not None]
    return CgroupStats(
        cpu_usage_ns=sum(usages_ns) if usages_ns else None,
        memory=_memory(memories) if memories else None,
        tasks=sum(part.tasks or 0 for part in parts),
        pressure=None,
    )


def _memory(parts: Sequence[MemoryUsage]) -> MemoryUsage:
    return MemoryUsage(
        usage_bytes=sum(p.usage_bytes for p in parts),
        working_set_bytes=sum(p.working_set_bytes for p in parts),
        limit_bytes=None,
        rss_bytes=sum(p.rss_bytes for p in parts),
        cache_bytes=sum(p.cache_bytes for p in parts),
        mapped_file_bytes=sum(p.mapped_file_bytes for p in parts),
        page_faults=sum(p.page_faults for p in parts),
        major_page_faults=sum(p.major_page_faults for p in parts),
        swap_usage_bytes=sum(p.swap_usage_bytes for p in parts),
        swap_limit_bytes=None,
    )
