"""Samples of control groups and pod networks: one thread, files kept open, rates from two samples.

    sampler = Sampler(layout, SamplerSettings(), clock=clock)
    group.create_task(sampler.run(targets))          # in the background, at an interval
    samples = await sampler.sample(targets())        # on demand, when older than the least age
    samples[container.id].stats.memory.working_set_bytes

Everything that reads happens in the sampler's one thread, so the event loop never waits for the
kernel, callers that come together share what is read, and nothing here needs a lock. What is handed
out are frozen values.

The rate (usage_nano_cores) is over at least `RATE_WINDOW_NS`: shorter spans say more about the
clock than about the load. It is None until there are two samples so far apart.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

import msgspec

from metrics.cgroup_detail import CgroupDetail, DetailReader, HugetlbUsage, hugepage_sizes
from metrics.cgroup_files import CgroupFiles, DescriptorBudget
from metrics.cgroup_stats import NO_STATS, CgroupStats, UsageReader
from metrics.network_stats import NetworkPlace, NetworkReader, NetworkUsage
from metrics.process_stats import ProcessStats, read_processes
from sandbox.host.errors import Unavailable
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from metrics.settings import SamplerSettings
    from sandbox.host.cgroupfs import CgroupLayout
    from sandbox.host.clock import Clock

#: Least time between the two samples of a rate.
RATE_WINDOW_NS: Final = 1_000_000_000
#: How often targets that are gone are let go of when there is no sampling in the background (s).
_PRUNE_PAUSE_S: Final = 60.0
#: A sample older than this part of the interval is due: rounds are never exactly an interval apart.
_DUE_PART: Final = 0.95
_HUGEPAGES: Final = Path("/sys/kernel/mm/hugepages")

P = ParamSpec("P")
T = TypeVar("T")

_log = get_logger("sampler")


class Target(msgspec.Struct, frozen=True, gc=False):
    """What is sampled.

    Attributes:
        id: of the pod or container.
        cgroup: its path below every hierarchy's root; empty for none, only the network counts.
        first_pid: its first process, for limits that a process has; 0 for none.
        network: whose network is counted with it, or None.
        members: whether its processes are counted (a pod's are the sum of its containers', and
            a container's by itself are nobody's question but a scrape's).
    """

    id: str
    cgroup: str
    first_pid: int = 0
    network: NetworkPlace | None = None
    members: bool = True


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


class Sampler:
    """See the module text."""

    def __init__(
        self,
        layout: CgroupLayout,
        settings: SamplerSettings,
        *,
        clock: Clock,
        descriptor_limit: int | None = None,
    ) -> None:
        """Nothing is opened before the first sample."""
        self._layout = layout
        self._settings = settings
        self._clock = clock
        self._budget = DescriptorBudget(descriptor_limit)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampler")
        self._followed: dict[str, _Followed] = {}
        self._page_sizes = _page_sizes()
        self._closed = False

    async def sample(
        self, targets: Collection[Target], *, detail: bool = False
    ) -> dict[str, Sample]:
        """Samples by id, none older than the least age; a target whose group is gone has none."""
        found = self._fresh(targets, detail=detail)
        if found is not None:
            return found
        least_age_ns = int(self._settings.min_age_s * 1e9)
        return await self._asked(self._sample, list(targets), detail, least_age_ns)

    async def networks(self, targets: Collection[Target]) -> dict[str, Sample]:
        """Samples that have only the networks of the targets, whatever their groups do."""
        found = self._fresh(targets, detail=False)
        if found is not None:
            return found
        return await self._asked(self._look_at_networks, list(targets))

    async def run(self, targets: Callable[[], Collection[Target]]) -> None:
        """Sample at the interval, so that rates exist when they are asked for; let go of others.

        What a client has asked for within it is young enough: on a node that a kubelet polls every
        ten seconds each group is looked at once in that time and not twice.
        """
        loop = asyncio.get_running_loop()
        interval_s = self._settings.interval_s
        while not self._is_closed():
            now = list(targets())
            try:
                if interval_s > 0:
                    await loop.run_in_executor(
                        self._thread, self._sample, now, False, int(interval_s * _DUE_PART * 1e9)
                    )
                await loop.run_in_executor(self._thread, self._keep, {t.id for t in now})
            except Exception as error:
                # Numbers are no reason to end the daemon; the next round tries again.
                if not self._is_closed():
                    _log.error("sampling failed", exc_info=True, error=error)
            await self._clock.sleep(interval_s or _PRUNE_PAUSE_S)

    def forget(self, target_id: str) -> None:
        """Let go of a target that has ended; returns at once. Unknown is fine."""
        if not self._closed and target_id in self._followed:
            self._thread.submit(self._drop, target_id)

    def close(self) -> None:
        """End the thread after what it is doing and close all files. Idempotent."""
        self._closed = True
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._keep(set())

    async def _asked(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise Unavailable("usage is not measured any more, the daemon is stopping")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, partial(work, *args, **kwargs))

    def _is_closed(self) -> bool:
        return self._closed

    def _fresh(self, targets: Collection[Target], *, detail: bool) -> dict[str, Sample] | None:
        """All samples when each is new enough: then no thread is needed."""
        newest_ns = self._clock.monotonic_ns() - int(self._settings.min_age_s * 1e9)
        found = {}
        for target in targets:
            followed = self._followed.get(target.id)
            if followed is None or not followed.serves(target, newest_ns, detail=detail):
                return None
            if followed.sample is not None:
                found[target.id] = followed.sample
        return found

    # In the thread.

    def _look_at_networks(self, targets: list[Target]) -> dict[str, Sample]:
        wall_ns = self._clock.wall_ns
        return {
            target.id: Sample(
                taken_at_ns=wall_ns(),
                stats=NO_STATS,
                usage_nano_cores=None,
                processes=None,
                network=self._followed_of(target).read_network(target.network),
            )
            for target in targets
        }

    def _followed_of(self, target: Target) -> _Followed:
        followed = self._followed.get(target.id)
        if followed is None or followed.target.cgroup != target.cgroup:
            if followed is not None:
                followed.close()
            followed = _Followed(self._layout, self._budget, self._page_sizes, target)
            self._followed[target.id] = followed
        return followed

    def _sample(self, targets: list[Target], detail: bool, least_age_ns: int) -> dict[str, Sample]:
        found = {}
        for target in targets:
            followed = self._followed_of(target)
            newest_ns = self._clock.monotonic_ns() - least_age_ns
            if not followed.serves(target, newest_ns, detail=detail):
                followed.take(target, self._clock, detail=detail)
            if followed.sample is not None:
                found[target.id] = followed.sample
        return found

    def _keep(self, ids: set[str]) -> None:
        for gone in self._followed.keys() - ids:
            self._drop(gone)

    def _drop(self, target_id: str) -> None:
        followed = self._followed.pop(target_id, None)
        if followed is not None:
            followed.close()


class _Followed:
    """A target, its open files and what was seen of it last; for the sampler's thread."""

    __slots__ = (
        "_base",
        "_budget",
        "_detail",
        "_files",
        "_network",
        "_page_sizes",
        "_peaks",
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
        self._peaks: dict[str, int] = {}

    def serves(self, target: Target, newest_ns: int, *, detail: bool) -> bool:
        """Whether the last look was at the same thing, not before `newest_ns`, and enough.

        A look that found nothing is no answer to the next caller: with systemd the group of a
        container may appear, and get its controllers, a moment after the container.
        """
        if self._taken_ns is None or self._taken_ns < newest_ns or self.sample is None:
            return False
        was = self.target
        if (was.cgroup, was.network, was.first_pid) != (
            target.cgroup,
            target.network,
            target.first_pid,
        ):
            return False
        if target.members and self.sample.processes is None:
            return False
        return not detail or self.sample.detail is not None

    def take(self, target: Target, clock: Clock, *, detail: bool) -> None:
        """Look now."""
        files = self._files
        self.target = target
        self._taken_ns = clock.monotonic_ns()
        wall_ns = clock.wall_ns()
        stats = self._usage.read(tasks=target.members) if target.cgroup else NO_STATS
        if target.cgroup and stats.cpu_usage_ns is None and stats.memory is None:
            self.sample = None
            self._base = self._rate = None
            return
        if stats.cpu_usage_ns is not None:
            self._measure(self._taken_ns, stats.cpu_usage_ns)
        pids: list[int] | None = None
        if target.members and (detail or stats.tasks != 1):
            pids = files.processes(tasks=stats.tasks)
        more = None
        if detail:
            if self._detail is None:
                self._detail = DetailReader(self._version, files.read, self._page_sizes)
            found = self._detail.read(self._usage.shared)
            if any(pages.max_usage_bytes is None for pages in found.hugetlb):
                pages = tuple(map(self._peak, found.hugetlb))
                found = msgspec.structs.replace(found, hugetlb=pages)
            more = Detail(found, read_processes(pids or (), target.first_pid))
        self.sample = Sample(
            taken_at_ns=wall_ns,
            stats=stats,
            usage_nano_cores=self._rate,
            processes=None if not target.members else 1 if pids is None else len(pids),
            network=self.read_network(target.network),
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


def _page_sizes() -> tuple[str, ...]:
    try:
        return hugepage_sizes(entry.name for entry in _HUGEPAGES.iterdir())
    except OSError:
        return ()
