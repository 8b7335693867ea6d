"""Stopping a pod: what takes longest begins first, and everything else is done beside it.

    NOTREADY recorded ─┬─► CNI DEL ──────────────────────────────┬─► network unpinned ─► answer
                       └─► containers, pause killed ──► other pins ┘  ∥ detached recorded

The plugins' time is the call's time: of 28 ms on the reference machine theirs are 25, of which the
kernel waits for 18 in the deletion of one link. So nothing gets in the way of the first plugin's
start, and after the last one only what must: one mount undone, one write and one file beside it.
Where plugins cannot begin, because those that collect garbage are at work, processes end all the
same.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import PodwrightError

if TYPE_CHECKING:
    from cri.container_lifecycle import ContainerLifecycle
    from cri.events import Events
    from cri.pod_wiring import PodWiring
    from sandbox.model import PodSandbox
    from sandbox.pods import PodEngine
    from sandbox.store import StateStore


#: How long processes go on for the sake of the first plugin's start (seconds): many
#: times what that takes where nothing is in its way.
HEAD_START_S: Final = 0.25


class PodStopping:
    """Stops pods; may be repeated until it has succeeded."""

    def __init__(
        self,
        *,
        engine: PodEngine,
        network: PodWiring,
        store: StateStore,
        containers: ContainerLifecycle,
        events: Events,
        head_start_s: float = HEAD_START_S,
    ) -> None:
        """`head_start_s`: see `HEAD_START_S`."""
        self._engine = engine
        self._network = network
        self._store = store
        self._containers = containers
        self._events = events
        self._head_start_s = head_start_s

    async def stop(self, pod_id: str) -> bool:
        """End all processes of a pod and detach it; False when there is no such pod.

        Raises:
            PluginFailed: the network could not be detached.
            PodwrightError: a container, or a part of the pod, could not be ended; the rest is done.
        """
        pod = self._store.pods.get(pod_id)
        if pod is None:
            return False
        async with asyncio.TaskGroup() as notes:
            # Memory says so at once; the disk before the first plugin is run, so that no daemon
            # ever finds a pod that is ready and has no network.
            noted = notes.create_task(self._engine.note_stopped(pod_id))
            detached, ended = await self._detach_and_end(pod, noted)
        self._events.pod_stopped(pod)  # after its containers'
        current = self._store.pods.get(pod_id, pod)
        # The pin is kept while the network is still attached: DEL needs the namespace.
        if isinstance(detached, BaseException):
            raise ended if isinstance(ended, BaseException) else detached
        # The record beside it: DEL may be repeated without the namespace.
        letting_go = self._engine.let_go if ended is True else self._engine.stop
        outcomes = await asyncio.gather(
            letting_go(current), self._network.note_detached(pod), return_exceptions=True
        )
        for outcome in (ended, *outcomes):
            if isinstance(outcome, BaseException):
                raise outcome
        return True

    async def _detach_and_end(
        self, pod: PodSandbox, noted: asyncio.Task[bool]
    ) -> tuple[BaseException | None, BaseException | bool]:
        """What came of detaching the pod and, from the first plugin on, of ending its processes."""
        begun = asyncio.Event()

        async def first() -> None:
            await asyncio.wait({noted})
            noted.result()
            begun.set()

        async def detach() -> None:
            try:
                await self._network.plug_out(pod, first)
            finally:
                begun.set()

        async def end() -> bool:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._head_start_s):
                    await begun.wait()
            return await self._end_processes(pod)

        detached, ended = await asyncio.gather(detach(), end(), return_exceptions=True)
        return detached, ended

    async def _end_processes(self, pod: PodSandbox) -> bool:
        """Whether nothing of the pod runs any more; raises what kept a container from ending."""
        await self._containers.kill_all_of(pod.id)
        current = self._store.pods.get(pod.id, pod)
        try:
            await self._engine.end_processes(current)
            await self._engine.let_go_beside(current)
        except PodwrightError:
            return False  # logged; tried again with the rest, and reported if it still fails
        return True
