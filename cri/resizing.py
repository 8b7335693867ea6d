"""Other limits for what runs: containers by their runtime, pods by their control group.

A change is work of its own that outlives the call that asked for it, as every mutation; of one
object they come one after the other, each beginning from what the one before has recorded.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import msgspec

from cri.inflight import Inflight
from sandbox.errors import ContainerNotRunning, PodNotReady
from sandbox.host.errors import PodwrightError
from sandbox.host.journal import get_logger
from sandbox.spec.resources import merge_resources
from sandbox.states import ContainerState, PodState

if TYPE_CHECKING:
    from sandbox.compose import Composer
    from sandbox.containers import ContainerEngine
    from sandbox.model import Container, LinuxResources, PodSandbox
    from sandbox.pods import PodEngine
    from sandbox.store import StateStore

_log = get_logger("resize")


class _Turns:
    """Work on one object after the other, detached from its callers."""

    def __init__(self, group: asyncio.TaskGroup, name: str) -> None:
        self._work: Inflight[None] = Inflight(group, name)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, object_id: str) -> asyncio.Lock:
        """To be held while the object is changed."""
        turn = self._turns.get(object_id)
        if turn is None:
            turn = self._turns[object_id] = asyncio.Lock()
        return turn

    @property
    def work(self) -> Inflight[None]:
        """Where it runs."""
        return self._work


class ContainerResizing:
    """UpdateContainerResources."""

    def __init__(
        self,
        *,
        engine: ContainerEngine,
        composer: Composer,
        store: StateStore,
        group: asyncio.TaskGroup,
    ) -> None:
        self._engine = engine
        self._composer = composer
        self._store = store
        self._turns = _Turns(group, "UpdateContainerResources")

    async def resize(self, container_id: str, asked: LinuxResources) -> None:
        """Change limits of a created or running container; fields that are not set stay.

        Raises:
            FailedPrecondition: the container has exited, or uses more memory than the new limit.
            InvalidArgument, Unsupported, RuntimeFailed: nothing has changed.
        """
        container = self._resizable(container_id)
        await self._turns.work.join(object(), lambda: self._resize(container.id, asked))

    def _resizable(self, container_id: str) -> Container:
        container = self._store.find_container(container_id)
        if container.state not in (ContainerState.CREATED, ContainerState.RUNNING):
            raise ContainerNotRunning(
                f"container is in state {container.state.name}, its limits cannot be changed",
                container=container.id,
            )
        return container

    async def _resize(self, container_id: str, asked: LinuxResources) -> None:
        async with self._turns.of(container_id):
            container = self._resizable(container_id)
            change = self._composer.resize(container, asked)
            await self._engine.update_resources(container, change)
            try:
                await asyncio.to_thread(self._composer.note_resize, container, change)
            except PodwrightError as error:
                # Commands started later get the old OOM score; the limits hold all the same.
                _log.warning(
                    "stored document not updated", container=container.id, error=str(error)
                )


class PodResizing:
    """UpdatePodSandboxResources."""

    def __init__(self, *, engine: PodEngine, store: StateStore, group: asyncio.TaskGroup) -> None:
        self._engine = engine
        self._store = store
        self._turns = _Turns(group, "UpdatePodSandboxResources")

    async def resize(
        self, pod_id: str, overhead: LinuxResources | None, resources: LinuxResources | None
    ) -> None:
        """Record what the pod's containers have together, and apply it where its group is ours.

        A kubelet's pod group is the kubelet's: it sets those limits itself and tells us afterwards.

        Raises:
            FailedPrecondition: the pod is not ready, or uses more memory than the new limit.
            InvalidArgument: a value the kernel does not take; nothing has changed.
        """
        pod = self._resizable(pod_id)
        await self._turns.work.join(object(), lambda: self._resize(pod.id, overhead, resources))

    def _resizable(self, pod_id: str) -> PodSandbox:
        pod = self._store.find_pod(pod_id)
        if pod.state is not PodState.READY:
            raise PodNotReady("pod sandbox is not ready, its limits cannot be changed", pod=pod.id)
        return pod

    async def _resize(
        self, pod_id: str, overhead: LinuxResources | None, resources: LinuxResources | None
    ) -> None:
        async with self._turns.of(pod_id):
            config = self._resizable(pod_id).config
            if overhead is not None:
                overhead = merge_resources(config.overhead, overhead)
            if resources is not None:
                resources = merge_resources(config.resources, resources)
            config = msgspec.structs.replace(
                config,
                overhead=overhead or config.overhead,
                resources=resources or config.resources,
            )
            await self._engine.resize(pod_id, config)
