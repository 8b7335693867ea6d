"""Carry out what `sandbox.recovery` decides, once at start, before the socket answers.

One object that cannot be brought in order never keeps the daemon from starting: each has its own
time limit, a failure is logged with the object's id, and the object stays listed (NOTREADY, EXITED)
so that the client's next call goes on with it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from cri.sweeper import lives
from sandbox.host.errors import DeadlineExceeded, Internal, PodwrightError
from sandbox.host.journal import get_logger
from sandbox.host.pidfd import boot_id
from sandbox.recovery import Action, Observed, plan
from sandbox.runtime.driver import RuntimeStatus
from sandbox.states import ContainerState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from cri.container_lifecycle import ContainerLifecycle
    from cri.pod_lifecycle import PodLifecycle
    from imageservice.service import ImageService
    from sandbox.containers import ContainerEngine
    from sandbox.endings import Endings
    from sandbox.model import Container
    from sandbox.pods import PodEngine
    from sandbox.recovery import Decision
    from sandbox.roots import Roots
    from sandbox.store import StateStore
    from sandbox.sweep import Sweeper

#: For one object (seconds); containerd gives each container 10 s at start as well.
OBJECT_LIMIT_S: Final = 10.0
#: Objects brought in order at once.
WIDTH: Final = 16

_log = get_logger("recovery")


@dataclass(frozen=True, slots=True)
class Recovery:
    """The parts that recovery works with."""

    store: StateStore
    pods: PodLifecycle
    containers: ContainerLifecycle
    pod_engine: PodEngine
    container_engine: ContainerEngine
    endings: Endings
    roots: Roots
    images: ImageService
    sweeper: Sweeper

    async def run(self) -> list[Decision]:
        """Observe, decide, act; the decisions, for the log and for tests."""
        # What the last life had asked of a runtime must not happen after we have looked.
        await self.sweeper.end_calls(self.store.containers)
        seen = await self._observe()
        decisions = plan(self.store.pods.values(), self.store.containers.values(), seen)
        await self._all(d for d in decisions if d.kind == "container")
        await self._all(d for d in decisions if d.kind == "pod")
        await self._all(d for d in decisions if d.kind == "trace")
        await self.roots.adopt(self.store.containers.values())
        counts = Counter(f"{d.kind} {d.action.value}" for d in decisions)
        _log.info("state recovered", **{key.replace(" ", "_"): n for key, n in counts.items()})
        return decisions

    async def _observe(self) -> Observed:
        boot = boot_id()
        living = {pod.id for pod in self.store.pods.values() if lives(pod.pause)}
        living |= {c.id for c in self.store.containers.values() if lives(c.init)}
        look = await self.sweeper.look()
        created = [c for c in self.store.containers.values() if c.state is ContainerState.CREATED]
        running = {c.id for c in created if c.id in living and await self._runs(c)}
        return Observed(
            boot_id=boot,
            living=living,
            running=running,
            traces=look.ids | await self.images.leases(),
            held=look.holding,
        )

    async def _runs(self, container: Container) -> bool:
        """Whether the runtime has started it; one that cannot be asked counts as not having."""
        try:
            runtime = self.container_engine.runtime_of(container)
            state = await runtime.state(container.id)
            if state is None or state.status is not RuntimeStatus.RUNNING:
                return False
            if container.init is not None and await runtime.complete_start(container.init):
                _log.info("start completed that was cut off", container=container.id)
        except PodwrightError as error:
            _log.warning("runtime cannot be asked", container=container.id, error=str(error))
            return False
        return True

    async def _all(self, decisions: Iterable[Decision]) -> None:
        width = asyncio.Semaphore(WIDTH)

        async def one(decision: Decision) -> None:
            async with width:
                await self._one(decision)

        await asyncio.gather(*(one(decision) for decision in decisions))

    async def _one(self, decision: Decision) -> None:
        if decision.action not in (Action.KEEP, Action.WATCH):
            _log.info(
                "recovering",
                kind=decision.kind,
                id=decision.id,
                action=decision.action.value,
                reason=decision.reason,
            )
        act = {"container": self._container, "pod": self._pod, "trace": self._trace}
        await self._bounded(decision, act[decision.kind])

    async def _bounded(
        self, decision: Decision, act: Callable[[Decision], Awaitable[None]]
    ) -> None:
        try:
            async with asyncio.timeout(OBJECT_LIMIT_S):
                await act(decision)
            return
        except TimeoutError:
            error: PodwrightError = DeadlineExceeded(
                f"recovery took longer than {OBJECT_LIMIT_S:.0f} s"
            )
        except PodwrightError as failure:
            error = failure
        except Exception as failure:
            error = Internal(f"{type(failure).__name__}: {failure}")
            error.__cause__ = failure
        _log.error(
            "not recovered, kept for the client's next call",
            kind=decision.kind,
            id=decision.id,
            action=decision.action.value,
            error=str(error),
        )
        if decision.kind == "pod" and decision.id in self.store.pods:
            if decision.action in (Action.UNDO, Action.FINISH):
                await self.pods.note_trouble(self.store.pods[decision.id], error)
            else:
                await self.pod_engine.note_stuck(decision.id, str(error))
        elif decision.kind == "container" and decision.action in (Action.UNDO, Action.FINISH):
            container = self.store.containers.get(decision.id)
            if container is not None:
                await self.endings.note_trouble(container, error)
                self.containers.note_trouble(container, error)

    async def _container(self, decision: Decision) -> None:
        container = self.store.containers[decision.id]
        match decision.action:
            case Action.UNDO | Action.FINISH:
                await self.containers.finish(container)
            case Action.WATCH:
                await self.container_engine.end_commands(container)
                self.container_engine.watch(container)
            case Action.ADOPT_RUNNING:
                running = msgspec.structs.replace(
                    container,
                    state=ContainerState.RUNNING,
                    started_at_ns=container.start_begun_ns or container.created_at_ns,
                )
                await self.store.note(running)
                self.container_engine.watch(running)
            case Action.CLEAN_UP:
                self.endings.begin_cleanup(container)
            case Action.MARK_LOST:
                await self.endings.note_lost(container, decision.reason)
            case _:
                return

    async def _pod(self, decision: Decision) -> None:
        pod = self.store.pods[decision.id]
        match decision.action:
            case Action.UNDO | Action.FINISH:
                await self.pods.finish(pod)
            case Action.WATCH:
                self.pod_engine.watch(pod)
            case Action.MARK_STOPPED:
                await self.pod_engine.note_stopped(pod.id)
                if pod.pause is None or pod.pause.boot_id != boot_id():
                    self.pods.owe_stop(pod.id, "network")
            case Action.STOP:
                self.pods.owe_stop(pod.id, "stop")
            case _:
                return

    async def _trace(self, decision: Decision) -> None:
        await self.sweeper.sweep(decision.id)
        await self.images.release_rootfs(decision.id)
