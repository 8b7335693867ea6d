"""How fast containers log: counted for all, told of a few, warned of when it is too much.

A container that logs without bound fills the node's disk and keeps the kubelet rotating; nothing
else on the node would say whose doing it is. The counters have no labels. Names of pods come into
metrics for the fastest few only, and when the operator asks for that (`metrics.log_rate_pods`), so
a node with many short pods makes no series that nobody deletes.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from metrics.log_files import LogFiles
from sandbox.host.errors import PodwrightError
from sandbox.host.journal import get_logger
from sandbox.states import ContainerState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metrics.instruments import Instruments
    from metrics.settings import LogRateSettings
    from sandbox.host.clock import Clock
    from sandbox.store import StateStore

_log = get_logger("logs")


class LogRates:
    """Looks at the logs' sizes from time to time."""

    def __init__(
        self,
        settings: LogRateSettings,
        *,
        store: StateStore,
        instruments: Instruments,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._store = store
        self._instruments = instruments
        self._clock = clock
        self._files = LogFiles(clock=clock)
        #: Containers that were above the limit at the last look: they are named once.
        self._loud: set[str] = set()
        self._fastest: Mapping[tuple[str, str], float] = {}
        if settings.pods:
            instruments.watch_log_rates(lambda: self._fastest)

    async def run(self) -> None:
        """Look until cancelled; returns at once where looking is off."""
        while self._settings.interval_s > 0:
            try:
                await self.look()
            except (PodwrightError, OSError) as error:
                _log.warning("logs cannot be looked at", error=error)
            await self._clock.sleep(self._settings.interval_s)

    async def look(self) -> None:
        """One look."""
        paths = {
            container.id: Path(container.log_path)
            for container in self._store.containers.values()
            if container.log_path and container.state is ContainerState.RUNNING
        }
        found = await asyncio.to_thread(self._files.look, paths)
        self._instruments.logged(written_bytes=found.written_bytes, rotations=found.rotations)
        self._warn(found.rates)
        if self._settings.pods:
            self._fastest = self._pods(found.rates)

    def close(self) -> None:
        """Let the files go."""
        self._files.close()

    def _warn(self, rates: Mapping[str, float]) -> None:
        limit = self._settings.warning_bytes
        loud = {key for key, rate in rates.items() if limit and rate > limit}
        for key in loud - self._loud:
            container = self._store.containers.get(key)
            pod = self._store.pods.get(container.pod_id) if container is not None else None
            if container is not None and pod is not None:
                _log.warning(
                    "container logs too fast",
                    container=key,
                    name=container.config.name,
                    pod=pod.config.metadata.name,
                    namespace=pod.config.metadata.namespace,
                    bytes_per_s=round(rates[key]),
                    limit_bytes_per_s=limit,
                )
        self._loud = loud

    def _pods(self, rates: Mapping[str, float]) -> Mapping[tuple[str, str], float]:
        sums: dict[tuple[str, str], float] = defaultdict(float)
        for key, rate in rates.items():
            container = self._store.containers.get(key)
            pod = self._store.pods.get(container.pod_id) if container is not None else None
            if pod is not None and rate > 0:
                sums[pod.config.metadata.namespace, pod.config.metadata.name] += rate
        return dict(heapq.nlargest(self._settings.pods, sums.items(), key=lambda item: item[1]))
