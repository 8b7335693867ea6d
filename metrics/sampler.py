"""Samples of control groups and pod networks: one thread, files kept open, rates from two samples.

    sampler = Sampler(layout, SamplerSettings(), clock=clock)
    group.create_task(sampler.run(targets))          # in the background, at an interval
    samples = await sampler.sample(targets())        # on demand, when older than the least age
    samples[container.id].stats.memory.working_set_bytes

Everything that reads happens in the sampler's one thread, so the event loop never waits for the
kernel, callers that come together share what is read, and nothing here needs a lock. What is handed
out are frozen values.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from metrics.cgroup_detail import hugepage_sizes
from metrics.cgroup_files import DescriptorBudget
from metrics.cgroup_stats import NO_STATS
from metrics.followed import Followed, Sample
from metrics.pressure import Look, PressureReader, machine_files
from sandbox.host.errors import Unavailable
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from metrics.cgroup_grammar import FilesReader
    from metrics.followed import Target
    from metrics.settings import SamplerSettings
    from sandbox.host.cgroupfs import CgroupLayout
    from sandbox.host.clock import Clock

#: How often targets that are gone are let go of when there is no sampling in the background (s).
_PRUNE_PAUSE_S: Final = 60.0
#: A sample older than this part of the interval is due: rounds are never exactly an interval apart.
_DUE_PART: Final = 0.95
_HUGEPAGES: Final = Path("/sys/kernel/mm/hugepages")

P = ParamSpec("P")
T = TypeVar("T")

_log = get_logger("sampler")


class Sampler:
    """See the module text."""

    def __init__(
        self,
        layout: CgroupLayout,
        settings: SamplerSettings,
        *,
        clock: Clock,
        descriptor_limit: int | None = None,
        machine: FilesReader = machine_files,
    ) -> None:
        """Nothing is opened before the first sample. `machine` gives pressure of the machine."""
        self._layout = layout
        self._settings = settings
        self._clock = clock
        self._budget = DescriptorBudget(descriptor_limit)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampler")
        self._followed: dict[str, Followed] = {}
        self._page_sizes = _page_sizes()
        self._machine = PressureReader(machine)
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

    def _followed_of(self, target: Target) -> Followed:
        followed = self._followed.get(target.id)
        if followed is None or followed.target.cgroup != target.cgroup:
            if followed is not None:
                followed.close()
            followed = Followed(self._layout, self._budget, self._page_sizes, target)
            self._followed[target.id] = followed
        return followed

    def _sample(self, targets: list[Target], detail: bool, least_age_ns: int) -> dict[str, Sample]:
        found = {}
        look = Look(self._clock.monotonic_ns())
        self._machine.look(look)
        siblings = Counter(target.pod for target in targets)
        for target in targets:
            followed = self._followed_of(target)
            newest_ns = self._clock.monotonic_ns() - least_age_ns
            if not followed.serves(target, newest_ns, detail=detail):
                above = self._above(target, look, several=siblings[target.pod] > 1)
                followed.take(target, self._clock, look, above, detail=detail)
            if followed.sample is not None:
                found[target.id] = followed.sample
        return found

    def _above(self, target: Target, look: Look, *, several: bool) -> PressureReader:
        """Pressure above the target's group: its pod's, where that is known or serves several."""
        pod = self._followed.get(target.pod)
        if pod is not None and pod.holds(target):
            pressure = pod.pressure
            if several:
                pressure.look(look, self._machine)
            if pressure.is_of(look):
                return pressure
        return self._machine

    def _keep(self, ids: set[str]) -> None:
        for gone in self._followed.keys() - ids:
            self._drop(gone)

    def _drop(self, target_id: str) -> None:
        followed = self._followed.pop(target_id, None)
        if followed is not None:
            followed.close()


def _page_sizes() -> tuple[str, ...]:
    try:
        return hugepage_sizes(entry.name for entry in _HUGEPAGES.iterdir())
    except OSError:
        return ()
