"""What is sampled, and one target with its open files and what was seen of it last.

The rate (usage_nano_cores) is over at least `RATE_WINDOW_NS`: shorter spans say more about the
clock than about the load. It is None until there are two samples so far apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from metrics.cgroup_detail import CgroupDetail, DetailReader, HugetlbUsage
from metrics.cgroup_files import CgroupFiles, DescriptorBudget
from metrics.cgroup_stats import NO_STATS, CgroupStats, UsageReader
from metrics.network_stats import NetworkPlace, NetworkReader, NetworkUsage
from metrics.process_stats import ProcessStats, read_processes

if TYPE_CHECKING:
    from metrics.pressure import Look, PressureReader
    from sandbox.host.cgroupfs import CgroupLayout
    from sandbox.host.clock import Clock

#: Least time between the two samples of a rate.
RATE_WINDOW_NS: Final = 1_000_000_000


class Target(msgspec.Struct, frozen=True, gc=False):
    """What is sampled.

    Attributes:
        id: of the pod or container.
        cgroup: its path below every hierarchy's root; empty for none, only the network counts.
        first_pid: its first process, for limits that a process has; 0 for none.
        network: whose network is counted with it, or None.
        members: whether its processes are counted (a pod's are the sum of its containers', and
            a container's by itself are nobody's question but a scrape's).
        pod: id of the target whose group may be above this one; empty for none.
    """

    id: str
    cgroup: str
    first_pid: int = 0
    network: NetworkPlace | None = None
    members: bool = True
    pod: str = ""


class Detail(msgspec.Struct, frozen=True, gc=False):
    """What only a scrape of all metrics asks for."""

    cgroup: CgroupDetail
    processes: ProcessStats


class Sample(msgspec.Struct, frozen=True, gc=False):
    """One look at one target. `usage_nano_cores` is None until there is a second one."""

    taken_at_ns: int
    stats: CgroupStats
    usage_nano_cores: int | None
    processes: int | None
    network: NetworkUsage | None
    detail: Detail | None = None


class Followed:
    """A target, its open files and what was seen of it last; for the sampler's thread."""

    __slots__ = (
        "_base",
        "_budget",
        "_counted_ns",
        "_detail",
        "_files",
        "_network",
        "_page_sizes",
        "_peaks",
        "_processes",
        "_rate",
        "_taken_ns",
        "_usage",
        "_version",
        "sample",
        "target",
    )

    def __init__(
        self,
        layout: CgroupLayout,
        budget: DescriptorBudget,
        page_sizes: tuple[str, ...],
        target: Target,
    ) -> None:
        self.target = target
        self.sample: Sample | None = None
        self._budget = budget
        self._files = CgroupFiles(layout, target.cgroup, budget)
        self._usage = UsageReader(layout.version, self._files.read)
        self._version = layout.version
        self._page_sizes = page_sizes
        #: Most are never scraped.
        self._detail: DetailReader | None = None
        self._network: NetworkReader | None = None
        self._taken_ns: int | None = None
        #: Where the next rate begins: (monotonic, usage).
        self._base: tuple[int, int] | None = None
        self._rate: int | None = None
        #: Processes, and the usage when they were counted.
        self._processes = 0
        self._counted_ns: int | None = None
        self._peaks: dict[str, int] = {}

    def serves(self, target: Target, newest_ns: int, *, detail: bool) -> bool:
        """Whether the last look was at the same thing, not before `newest_ns`, and enough.

        A look that found nothing is no answer to the next caller: with systemd the group of a
        container may appear, and get its controllers, a moment after the container.
        """
        if self._taken_ns is None or self._taken_ns < newest_ns or self.sample is None:
            return False
        was = self.target
        if was is not target and (was.cgroup, was.network, was.first_pid) != (
            target.cgroup,
            target.network,
            target.first_pid,
        ):
            return False
        if target.members and self.sample.processes is None:
            return False
        return not detail or self.sample.detail is not None

    @property
    def pressure(self) -> PressureReader:
        """What the group has waited for."""
        return self._usage.pressure

    def holds(self, target: Target) -> bool:
        """Whether the group of `target` is below this one."""
        own = self.target.cgroup
        return bool(own) and target.cgroup.startswith(f"{own}/")

    def take(
        self, target: Target, clock: Clock, look: Look, above: PressureReader, *, detail: bool
    ) -> None:
        """Look now; `above` is the pressure of a group above, or of the machine."""
        files = self._files
        self.target = target
        self._taken_ns = clock.monotonic_ns()
        wall_ns = clock.wall_ns()
        stats = NO_STATS
        if target.cgroup:
            stats = self._usage.read(tasks=target.members, look=look, above=above)
        if target.cgroup and stats.cpu_usage_ns is None and stats.memory is None:
            self.sample = None
            self._base = self._rate = None
            return
        if stats.cpu_usage_ns is not None:
            self._measure(self._taken_ns, stats.cpu_usage_ns)
        pids: list[int] = []
        if target.members:
            if detail:
                pids = files.processes(tasks=stats.tasks)
                self._processes = len(pids)
            elif stats.cpu_usage_ns is None or stats.cpu_usage_ns != self._counted_ns:
                alone = stats.tasks == 1
                self._processes = 1 if alone else len(files.processes(tasks=stats.tasks))
            # Who forks or ends runs: in a group that has not, they are as many as they were.
            self._counted_ns = stats.cpu_usage_ns
        more = None
        if detail:
            if self._detail is None:
                self._detail = DetailReader(self._version, files.read, self._page_sizes)
            found = self._detail.read(self._usage.shared)
            if any(pages.max_usage_bytes is None for pages in found.hugetlb):
                pages = tuple(map(self._peak, found.hugetlb))
                found = msgspec.structs.replace(found, hugetlb=pages)
            more = Detail(found, read_processes(pids, target.first_pid))
        self.sample = Sample(
            taken_at_ns=wall_ns,
            stats=stats,
            usage_nano_cores=self._rate,
            processes=self._processes if target.members else None,
            network=self.read_network(target.network) if target.network or self._network else None,
            detail=more,
        )

    def read_network(self, place: NetworkPlace | None) -> NetworkUsage | None:
        """The network's interfaces as of now; None where there is none."""
        if self._network is None or self._network.place != place:
            self._close_network()
            self._network = None if place is None else NetworkReader(place, self._budget)
        return None if self._network is None else self._network.read()

    def _measure(self, now_ns: int, usage_ns: int) -> None:
        base = self._base
        if base is None or usage_ns < base[1]:  # the group was made anew
            self._base, self._rate = (now_ns, usage_ns), None
        elif now_ns - base[0] >= RATE_WINDOW_NS:
            self._rate = (usage_ns - base[1]) * 1_000_000_000 // (now_ns - base[0])
            self._base = (now_ns, usage_ns)

    def _peak(self, pages: HugetlbUsage) -> HugetlbUsage:
        """Where the kernel keeps no highest usage (version 2), the highest that was sampled."""
        if pages.max_usage_bytes is not None:
            return pages
        highest = max(self._peaks.get(pages.page_size, 0), pages.usage_bytes)
        self._peaks[pages.page_size] = highest
        return msgspec.structs.replace(pages, max_usage_bytes=highest)

    def close(self) -> None:
        """Let go of the files."""
        self._files.close()
        self._close_network()

    def _close_network(self) -> None:
        if self._network is not None:
            self._network.close()
