"""Every minute: hold what is recorded against what the kernel has, and repair what differs.

What is a difference and what is done about it is decided in `sandbox.drift`; here it is looked for,
carried out, counted and logged. A look costs a few milliseconds of processor time for a pod (see
the tests' numbers in the README) and starts no program. What a repair could not do is kept in
`cri.retries` where it is an object's teardown, and found again at the next look otherwise.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from sandbox.drift import Look, Repair, expected_pins, find
from sandbox.host.errors import DeadlineExceeded, Internal, PodwrightError, ResourceExhausted
from sandbox.host.journal import get_logger
from sandbox.host.pidfd import Process
from sandbox.states import ContainerState, PodState

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from cni.network import PodNetwork
    from cri.container_lifecycle import ContainerLifecycle
    from cri.pod_lifecycle import PodLifecycle
    from cri.retries import Retries
    from imageservice.service import ImageService
    from sandbox.containers import ContainerEngine
    from sandbox.drift import Drift
    from sandbox.endings import Endings
    from sandbox.host.clock import Clock
    from sandbox.model import ProcessRef
    from sandbox.store import StateStore
    from sandbox.sweep import Sweeper

#: For one repair (seconds); what takes longer goes on being a difference.
REPAIR_LIMIT_S: Final = 60.0

#: A removed object's cgroup is looked for this often: a runtime that was slow to die may make it
#: again shortly after the removal, not hours later.
DEPARTED_LOOKS: Final = 3

_log = get_logger("sweeper")


class RepairObserver(Protocol):
    """Hears of repairs."""

    def repaired(self, kind: str) -> None:
        """One was carried out."""
        ...


@dataclass(slots=True)
class Reconciler:
    """See the module text."""

    store: StateStore
    pods: PodLifecycle
    containers: ContainerLifecycle
    container_engine: ContainerEngine
    endings: Endings
    images: ImageService
    network: PodNetwork
    sweeper: Sweeper
    retries: Retries
    observer: RepairObserver
    clock: Clock
    _suspects: set[Drift] = field(default_factory=set)
    #: Of this round's look: it is read once, however many pods have lost theirs.
    _pins: Mapping[str, Collection[str]] = field(default_factory=dict)
    _looked: Counter[str] = field(default_factory=Counter)
    _repairs: Counter[str] = field(default_factory=Counter)
    _failures: int = 0
    _looks: int = 0
    _last_ns: int = 0
    _took_ns: int = 0

    async def round(self) -> list[Drift]:
        """Look, and repair what was found at the last look too; what was repaired."""
        began_ns = self.clock.monotonic_ns()
        look = await self._look()
        found = find(self.store.pods, self.store.containers, look)
        certain = found & self._suspects
        self._suspects = found
        done = [drift for drift in sorted(certain, key=str) if await self._repaired(drift)]
        self._looks += 1
        self._last_ns = self.clock.wall_ns()
        self._took_ns = self.clock.monotonic_ns() - began_ns
        return done

    def report(self) -> dict[str, object]:
        """What is retried and what was repaired, as JSON values."""
        return {
            "retrying": self.retries.report(),
            "repairs": dict(self._repairs),
            "failedRepairs": self._failures,
            "looks": self._looks,
            "suspects": len(self._suspects),
            "lastLookSecondsAgo": (
                round((self.clock.wall_ns() - self._last_ns) / 1e9) if self._last_ns else None
            ),
            "lookTookMilliseconds": round(self._took_ns / 1e6, 1),
        }

    async def _look(self) -> Look:
        traces = await self.sweeper.look()
        self._pins = traces.pins
        living, monitored = await asyncio.to_thread(self._processes)
        return Look(
            living=living,
            monitored=monitored,
            holding=traces.holding,
            pins=traces.pins,
            traces=traces.ids,
            leased=await self.images.leases(),
            addressed=await self.network.held(),
            cgroups=await asyncio.to_thread(self._departed),
            # Last: what has become busy since is left alone as well.
            busy=self.pods.busy() | self.containers.busy() | self.retries.ids(),
        )

    def _processes(self) -> tuple[set[str], set[str]]:
        """Ids whose first process lives, and ids whose monitor does though it should not."""
        living = {
            pod.id
            for pod in list(self.store.pods.values())
            if pod.state is PodState.READY and lives(pod.pause)
        }
        monitored = set()
        for container in list(self.store.containers.values()):
            if container.state is ContainerState.EXITED:
                if lives(container.monitor):
                    monitored.add(container.id)
            elif lives(container.init):
                living.add(container.id)
        return living, monitored

    def _departed(self) -> set[str]:
        """Ids removed a short while ago whose cgroup exists; looked for a few times, then not."""
        found = set()
        for object_id, cgroup in list(self.store.departed.items()):
            if self.sweeper.has_cgroup(cgroup):
                found.add(object_id)
                continue
            self._looked[object_id] += 1
            if self._looked[object_id] >= DEPARTED_LOOKS:
                self.store.departed.pop(object_id, None)
                del self._looked[object_id]
        return found

    async def _repaired(self, drift: Drift) -> bool:
        _log.warning("repairing", kind=drift.repair.value, id=drift.id, reason=drift.reason)
        error: PodwrightError
        try:
            async with asyncio.timeout(REPAIR_LIMIT_S):
                await self._repair(drift)
        except TimeoutError:
            error = DeadlineExceeded(f"repair took longer than {REPAIR_LIMIT_S:.0f} s")
        except PodwrightError as failure:
            error = failure
        except Exception as failure:
            error = Internal(f"{type(failure).__name__}: {failure}")
        else:
            self._repairs[drift.repair.value] += 1
            self.observer.repaired(drift.repair.value)
            return True
        self._failures += 1
        _log.error("not repaired", kind=drift.repair.value, id=drift.id, error=str(error))
        return False

    async def _repair(self, drift: Drift) -> None:
        pod = self.store.pods.get(drift.id)
        container = self.store.containers.get(drift.id)
        match drift.repair:
            case Repair.POD_DEAD if pod is not None:
                await self.pods.note_dead(pod)
            case Repair.PIN_LOST if pod is not None and pod.state is PodState.READY:
                missing = expected_pins(pod).difference(self._pins.get(pod.id, ()))
                await self.sweeper.pin_again(pod, missing)
            case Repair.POD_UNFINISHED if pod is not None:
                await self.pods.finish(pod)
            case Repair.CONTAINER_DEAD if container is not None:
                self.endings.unwatch(container.id)
                self.container_engine.watch(container)
            case Repair.CONTAINER_HOLDS if container is not None:
                await self.endings.clean_up_again(container.id)
            case Repair.MONITOR_STAYS if container is not None:
                self.endings.end_monitor(container)
            case Repair.CONTAINER_UNFINISHED if container is not None:
                await self.containers.finish(container)
            case Repair.TRACE:
                await self.sweeper.sweep(drift.id)
            case Repair.CGROUP:
                await self.sweeper.sweep_cgroup(self.store.departed[drift.id])
            case Repair.LEASE:
                await self.images.release_rootfs(drift.id)
            case Repair.ADDRESS:
                await self.network.detach_lost(drift.id)


def lives(ref: ProcessRef | None) -> bool:
    """Whether the recorded process lives; blocking, some tens of microseconds."""
    if ref is None:
        return False
    try:
        process = Process.open(ref.pid, ref.start_ticks, ref.boot_id)
    except ResourceExhausted:
        return True  # it may live, so it must not be called dead
    if process is None:
        return False
    with process:
        return process.alive()
