"""CRI limits to cgroup limits, and the merging of an update into what holds.

Cgroup v1 numbers are passed on as they are: on v2 the OCI runtime turns shares into a weight by its
own formula (they changed it between releases), and the kubelet uses the same linear one for the pod
above, so a second conversion here would only disagree.

What was asked for and cannot be limited on this node is an error, with three exceptions that the
kubelet needs, because it sends these fields whatever the node has: hugepage limits of zero
without the hugetlb controller, a swap limit where the kernel does not account swap, and our own
pids default.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from sandbox import oci
from sandbox.host.errors import InvalidArgument, Unsupported
from sandbox.model import HugepageLimit, LinuxResources

if TYPE_CHECKING:
    from collections.abc import Collection

#: kernel/sched: cfs_period_us and the least quota (min_cfs_quota_period, max_cfs_quota_period).
CPU_PERIOD_USEC_RANGE: Final = (1_000, 1_000_000)
CPU_QUOTA_MIN_USEC: Final = 1_000
#: kernel/sched/sched.h MIN_SHARES, MAX_SHARES.
CPU_SHARES_RANGE: Final = (2, 262_144)
_INT64_MAX: Final = 2**63 - 1

_CPU_LIST: Final = re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*", re.ASCII)
_PAGE_SIZE: Final = re.compile(r"[1-9][0-9]{0,5}[KMG]B", re.ASCII)
_UNIFIED_KEY: Final = re.compile(r"[a-z]+\.[A-Za-z0-9_.-]{1,64}", re.ASCII)


def to_oci(
    resources: LinuxResources | None,
    *,
    cgroup_version: Literal[1, 2],
    controllers: Collection[str],
    swap_limit: bool,
    pids_limit: int | None = None,
) -> oci.Resources:
    """The limits without device rules; also what `update --resources` is given.

    Memory without a swap limit gets swap equal to it, so that the limit is one.

    Args:
        resources: the request; None is no limits.
        cgroup_version: 1 also for hybrid.
        controllers: those that can be used here.
        swap_limit: whether swap is accounted.
        pids_limit: the node's default, None for none.

    Raises:
        InvalidArgument: a number or a text that the kernel would refuse.
        Unsupported: a limit whose controller this node lacks, or `unified` on cgroup v1.
    """
    wanted = resources or LinuxResources()
    cpu = _cpu(wanted)
    if cpu is not None:
        if cpu.shares is not None or cpu.quota is not None or cpu.period is not None:
            _require("cpu", controllers)
        if cpu.cpus or cpu.mems:
            _require("cpuset", controllers)
    memory = _memory(wanted, swap_limit=swap_limit)
    if memory is not None and memory.limit is not None:
        _require("memory", controllers)
    hugepages = _hugepages(wanted.hugepage_limits)
    if "hugetlb" not in controllers:
        if any(item.limit for item in hugepages):
            _require("hugetlb", controllers)
        hugepages = ()
    if pids_limit is not None and pids_limit != -1 and not 0 < pids_limit <= _INT64_MAX:
        raise InvalidArgument(f"the pids limit is neither -1 nor above 0: {pids_limit}")
    limited = pids_limit is not None and "pids" in controllers
    return oci.Resources(
        cpu=cpu,
        memory=memory,
        hugepage_limits=hugepages,
        pids=oci.Pids(limit=pids_limit) if limited and pids_limit is not None else None,
        unified=_unified(wanted.unified, cgroup_version),
    )


def merge_resources(old: LinuxResources | None, update: LinuxResources) -> LinuxResources:
    """What holds after an update: each field that the update sets, else the old one.

    A new memory limit without a swap limit resets swap to its default (equal to the limit), because
    the old sum of both may be below the new limit.
    """
    before = old or LinuxResources()
    swap = update.memory_swap_limit_bytes
    if not swap and not update.memory_limit_bytes:
        swap = before.memory_swap_limit_bytes
    pages = {item.page_size: item for item in (*before.hugepage_limits, *update.hugepage_limits)}
    return msgspec.structs.replace(
        before,
        cpu_period_usec=update.cpu_period_usec or before.cpu_period_usec,
        cpu_quota_usec=update.cpu_quota_usec or before.cpu_quota_usec,
        cpu_shares=update.cpu_shares or before.cpu_shares,
        memory_limit_bytes=update.memory_limit_bytes or before.memory_limit_bytes,
        memory_swap_limit_bytes=swap,
        oom_score_adj=update.oom_score_adj or before.oom_score_adj,
        cpuset_cpus=update.cpuset_cpus or before.cpuset_cpus,
        cpuset_mems=update.cpuset_mems or before.cpuset_mems,
        hugepage_limits=tuple(pages.values()),
        unified={**before.unified, **update.unified},
    )


def _require(controller: str, controllers: Collection[str]) -> None:
    if controller not in controllers:
        raise Unsupported(
            f"a limit needs the cgroup controller {controller}, which this node lacks",
            hint=f"mount or enable the {controller} controller, or drop the limit",
        )


def _cpu(wanted: LinuxResources) -> oci.Cpu | None:
    low, high = CPU_PERIOD_USEC_RANGE
    if wanted.cpu_period_usec and not low <= wanted.cpu_period_usec <= high:
        raise InvalidArgument(
            f"cpu period is not in the range {low} to {high} µs: {wanted.cpu_period_usec}"
        )
    quota = wanted.cpu_quota_usec
    if quota not in (0, -1) and not CPU_QUOTA_MIN_USEC <= quota <= _INT64_MAX // 1000:
        raise InvalidArgument(
            f"cpu quota is neither -1 nor at least {CPU_QUOTA_MIN_USEC} µs: {quota}"
        )
    if not 0 <= wanted.cpu_shares <= _INT64_MAX:
        raise InvalidArgument(f"cpu shares are negative or too large: {wanted.cpu_shares}")
    for what, text in (("cpuset cpus", wanted.cpuset_cpus), ("cpuset mems", wanted.cpuset_mems)):
        if text and not _CPU_LIST.fullmatch(text):
            raise InvalidArgument(f"{what} is not a list such as 0-3,5: {text[:64]!a}")
    least, most = CPU_SHARES_RANGE
    cpu = oci.Cpu(
        # The kernel clamps v1 shares silently; v2 formulas need them in range, so clamp for both.
        shares=min(max(wanted.cpu_shares, least), most) if wanted.cpu_shares else None,
        quota=quota or None,
        period=wanted.cpu_period_usec or None,
        cpus=wanted.cpuset_cpus,
        mems=wanted.cpuset_mems,
    )
    return None if cpu == oci.Cpu() else cpu


def _memory(wanted: LinuxResources, *, swap_limit: bool) -> oci.Memory | None:
    limit, swap = wanted.memory_limit_bytes, wanted.memory_swap_limit_bytes
    for what, number in (("memory limit", limit), ("memory and swap limit", swap)):
        if not -1 <= number <= _INT64_MAX:
            raise InvalidArgument(f"{what} is neither -1 nor a number of bytes: {number}")
    if limit > 0 and 0 < swap < limit:
        raise InvalidArgument(
            f"the limit of memory and swap together, {swap}, is below the memory limit, {limit}"
        )
    if swap > 0 and limit <= 0:
        raise InvalidArgument("a limit of memory and swap together needs a memory limit")
    if not limit and not swap:
        return None
    return oci.Memory(limit=limit or None, swap=(swap or limit) if swap_limit else None)


def _hugepages(limits: Collection[HugepageLimit]) -> tuple[oci.HugepageLimit, ...]:
    sizes: dict[str, oci.HugepageLimit] = {}
    for item in limits:
        if not _PAGE_SIZE.fullmatch(item.page_size):
            raise InvalidArgument(f"hugepage size is not such as 2MB: {item.page_size[:32]!a}")
        if not 0 <= item.limit_bytes <= _INT64_MAX:
            raise InvalidArgument(
                f"hugepage limit for {item.page_size} is negative or too large: {item.limit_bytes}"
            )
        sizes[item.page_size] = oci.HugepageLimit(page_size=item.page_size, limit=item.limit_bytes)
    return tuple(sizes.values())


def _unified(unified: dict[str, str], cgroup_version: Literal[1, 2]) -> dict[str, str]:
    if unified and cgroup_version == 1:
        raise Unsupported(
            f"the limit {next(iter(unified))[:64]!a} needs cgroup v2, this node has v1"
        )
    for key, value in unified.items():
        # A key becomes a file name in the container's cgroup, a value its content.
        if not _UNIFIED_KEY.fullmatch(key) or ".." in key or key.startswith("cgroup."):
            raise InvalidArgument(f"not the name of a cgroup v2 limit: {key[:64]!a}")
        if not value.isascii() or not value.replace("\n", " ").isprintable() or len(value) > 4096:
            raise InvalidArgument(f"the value of {key} is not printable or too long")
    return dict(unified)
