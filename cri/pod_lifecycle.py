"""Pod life cycle: composes the pod engine with the network; the order of steps, what runs at once.

    run:    reserve name ─► pin namespaces ─┬─► CNI ADD ──────────────┐
                                            ├─► files, /dev/shm        ├─► READY recorded ─► id
                                            └─► pause process ─────────┘
    stop:   NOTREADY recorded ─► CNI DEL ─► network unpinned ─► answer (`cri.pod_stopping`)
    remove: stop ─► containers removed ─► directory ─► record deleted last

| what fails                    | then                                                            |
|-------------------------------|-----------------------------------------------------------------|
| any step of run               | all of it is undone, the record goes, the error names the step   |
| ... and the undo fails too    | the pod stays listed NOTREADY with the reason; stop and remove   |
|                               | repeat it, and `cri.retries` does                                |
| a step of stop or remove      | the others are done, the error is returned and recorded, the     |
|                               | pod stays listed NOTREADY and `cri.retries` repeats              |
| CNI DEL at stop               | the rest is still done, the error is returned, the next stop     |
|                               | repeats DEL with the configuration and result that were saved    |
| the daemon dies at any point  | `sandbox.recovery` runs the same lists at the next start         |
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from cri.attachment import bandwidth
from cri.host_ports import HostPorts
from cri.inflight import Inflight
from cri.pod_stopping import PodStopping
from cri.pod_wiring import PodWiring
from cri.resizing import PodResizing
from sandbox.host.errors import (
    AlreadyExists,
    Cancelled,
    Internal,
    NotFound,
    PodwrightError,
)
from sandbox.host.journal import get_logger
from sandbox.host.threads import in_one_piece
from sandbox.model import NamespaceMode, PodSandbox, pod_name_key
from sandbox.spec.sysctls import pod_sysctls
from sandbox.states import PodState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from cni.network import PodNetwork
    from cri.container_lifecycle import ContainerLifecycle
    from cri.events import Events
    from cri.retries import Retries
    from sandbox.model import LinuxResources, PodConfig
    from sandbox.pods import PodEngine
    from sandbox.store import StateStore

_log = get_logger("pods")


class PodLifecycle:
    """What the CRI pod calls do; every method may be called again at any time."""

    def __init__(
        self,
        *,
        engine: PodEngine,
        network: PodNetwork,
        store: StateStore,
        containers: ContainerLifecycle,
        events: Events,
        retries: Retries,
        group: asyncio.TaskGroup,
    ) -> None:
        self._retries = retries
        self._engine = engine
        self._network = PodWiring(network, engine, store)
        self._store = store
        self._containers = containers
        self._events = events
        engine.on_stopped(events.pod_stopped)
        self._stopping = PodStopping(
            engine=engine, network=self._network, store=store, containers=containers, events=events
        )
        self._ports = HostPorts(store)
        self._resizing = PodResizing(engine=engine, store=store, group=group)
        self._creating: Inflight[str] = Inflight(group, "RunPodSandbox")
        self._ending: Inflight[None] = Inflight(group, "pod teardown")
        #: Pods that were stopped whole in this life of the daemon. Their removal does not stop them
        #: first; what it takes apart itself is all that a stop does, but for containers' ends,
        #: which are theirs, and for the network, which is gone.
        self._stopped: set[str] = set()

    # Reading.

    def status(self, pod_id: str) -> PodSandbox:
        """The pod with this id or unique prefix; raises NotFound."""
        return self._store.find_pod(pod_id)

    def list(self) -> Collection[PodSandbox]:
        """All pods that clients may see."""
        return [p for p in self._store.pods.values() if p.state is not PodState.CREATING]

    def verbose(self, pod: PodSandbox) -> Mapping[str, object]:
        """What `crictl inspectp` shows beyond the status."""
        return {
            "sandboxID": pod.id,
            "pid": pod.pause.pid if pod.pause is not None and pod.state is PodState.READY else 0,
            "runtimeHandler": pod.handler,
            "runtimeType": pod.runtime,
            "config": msgspec.to_builtins(pod.config),
            "overhead": msgspec.to_builtins(pod.config.overhead),
            "resources": msgspec.to_builtins(pod.config.resources),
            "runtimeSpec": self._engine.stored_spec(pod),
            "cniResult": msgspec.json.decode(pod.cni_result) if pod.cni_result else None,
            "trouble": pod.trouble,
        }

    # Creation.

    async def run(self, config: PodConfig, handler: str) -> str:
        """Make a pod; the same request again gives the same id, also while the first is running.

        Raises:
            InvalidArgument: unknown handler, refused sysctl.
            AlreadyExists: a stopped pod still holds the name.
            FailedPrecondition: another pod has one of its host ports.
            Unavailable: no network configuration yet.
            PluginFailed, RuntimeFailed: in their own words.
        """
        key = pod_name_key(config.metadata)
        await self._supersede_older(config)
        return await self._creating.join(key, lambda: self._run(config, handler))

    async def _supersede_older(self, config: PodConfig) -> None:
        """A newer attempt of a pod calls off a creation of an older one that is still running."""
        wanted = config.metadata
        for attempt in range(max(0, wanted.attempt - 8), wanted.attempt):
            older = pod_name_key(msgspec.structs.replace(wanted, attempt=attempt))
            if older in self._creating:
                await self._creating.supersede(older)

    async def _run(self, config: PodConfig, handler: str) -> str:
        existing = self._store.pod_named(pod_name_key(config.metadata))
        if existing is not None:
            if existing.state is PodState.READY:
                return existing.id
            # CREATING here is the trace of a former life: nothing of that name is in flight now.
            if not existing.failed and existing.state is not PodState.CREATING:
                raise AlreadyExists(
                    f"pod {pod_name_key(config.metadata)} exists and is stopped",
                    pod=existing.id,
                    hint="remove it, or use the next attempt number",
                )
            # A creation that failed and whose undo failed too: finish the undo, then begin anew.
            await self._take_apart(existing)
        sysctls = pod_sysctls(config)
        bandwidth(config.annotations)  # refused before anything is made
        with self._ports.claimed(config):
            pod = await self._engine.reserve(config, handler)
            try:
                return await self._build(pod, sysctls)
            except BaseException as error:
                await in_one_piece(self._undo(pod, error))
                raise

    async def _build(self, pod: PodSandbox, sysctls: dict[str, str]) -> str:
        own_network = pod.config.security.namespaces.network is not NamespaceMode.NODE
        if own_network:
            pod = await self._network.owe(pod)
        pins = await self._engine.pin_namespaces(pod, sysctls)
        try:
            async with asyncio.TaskGroup() as steps:
                adding = steps.create_task(self._network.attach(pod)) if own_network else None
                steps.create_task(self._engine.make_files(pod))
                pausing = steps.create_task(self._engine.start_pause(pod, pins))
        except BaseExceptionGroup as group:
            raise first_failure(group) from group
        ips: tuple[str, ...] = ()
        result = ""
        if adding is not None:
            attached = adding.result()
            ips, result = attached.ips, attached.result_json
        ready = await self._engine.mark_ready(pod, pausing.result(), ips=ips, cni_result=result)
        self._events.pod_started(ready)
        return pod.id

    async def _undo(self, pod: PodSandbox, error: BaseException) -> None:
        current = self._store.pods.get(pod.id, pod)
        try:
            await self._take_apart(current)
        except PodwrightError as trouble:
            _log.error("creation failed and could not be undone", pod=pod.id, error=str(trouble))
            error.add_note(f"undoing the creation failed too: {trouble}")
            await self.note_trouble(current, trouble)

    async def note_trouble(self, pod: PodSandbox, trouble: PodwrightError) -> None:
        """Keep a pod listed whose undo or removal failed, and have it tried again."""
        await self._engine.note_trouble(pod, trouble)
        self._retries.failed("pod", pod.id, "undo", trouble, lambda: self._finish_failed(pod.id))

    async def _finish_failed(self, pod_id: str) -> None:
        """Take apart a pod that nobody has the id of; a client's call may have done it."""
        pod = self._store.pods.get(pod_id)
        if pod is not None and pod.failed:
            await self.finish(pod)

    async def _take_apart(self, pod: PodSandbox) -> None:
        self._stopped.discard(pod.id)
        trouble: PodwrightError | None = None
        try:
            pod = await self._network.detach(pod)
        except PodwrightError as error:
            trouble = error
        await self._engine.dismantle(pod)
        if trouble is not None:
            raise trouble
        await self._store.delete_pod(pod.id)

    # Teardown.

    async def stop(self, pod_id: str) -> None:
        """Stop a pod; unknown is success.

        Raises:
            PluginFailed: the network could not be detached; call again.
        """
        try:
            pod = self._store.find_pod(pod_id)
        except NotFound:
            return
        await self._ending.join(("stop", pod.id), self._stopper(pod.id))

    async def _stop(self, pod_id: str) -> None:
        if await self._stopping.stop(pod_id):
            self._stopped.add(pod_id)

    async def remove(self, pod_id: str) -> None:
        """Remove a pod and its containers by force; unknown is success."""
        try:
            pod = self._store.find_pod(pod_id)
        except NotFound:
            return
        await self._remover(pod.id)

    async def _remover(self, pod_id: str) -> None:
        again = lambda: self._remover(pod_id)  # noqa: E731
        await self._ending.join(
            ("remove", pod_id),
            lambda: self._tracked("remove", pod_id, lambda: self._remove(pod_id), again),
        )

    async def _remove(self, pod_id: str) -> None:
        if pod_id not in self._stopped or ("stop", pod_id) in self._ending:
            await self._ending.join(("stop", pod_id), self._stopper(pod_id))
        await self._containers.remove_all_of(pod_id)
        pod = self._store.pods.get(pod_id)
        if pod is None:
            return
        pod = msgspec.structs.replace(pod, state=PodState.REMOVING)
        # Not synced: what a power failure takes back is a stopped pod, to be removed once more.
        await self._store.save(pod, synced=False)
        await self._engine.dismantle(pod)
        await self._store.delete_pod(pod_id)
        self._stopped.discard(pod_id)
        self._events.pod_deleted(pod)

    async def update_resources(
        self, pod_id: str, overhead: LinuxResources | None, resources: LinuxResources | None
    ) -> None:
        """Record and apply other limits; see `cri.resizing`."""
        await self._resizing.resize(pod_id, overhead, resources)

    async def finish(self, pod: PodSandbox) -> None:
        """Finish what a former life of the daemon left half-done, a creation or a removal."""
        await self._containers.remove_all_of(pod.id)
        await self._ending.join(("remove", pod.id), lambda: self._take_apart(pod))
        self._retries.settled("pod", pod.id)
        self._events.pod_deleted(pod)

    def owe_stop(self, pod_id: str, stage: str) -> None:
        """Have a pod stopped without waiting for a client to ask: after a reboot, or again.

        A pod that merely lost its pause process is not among them: it keeps its address until its
        client stops it, because its containers may still run.
        """
        self._retries.owe("pod", pod_id, "stop", stage, lambda: self._stop_again(pod_id))

    async def _stop_again(self, pod_id: str) -> None:
        if pod_id in self._store.pods:
            await self._ending.join(("stop", pod_id), self._stopper(pod_id))

    async def note_dead(self, pod: PodSandbox) -> None:
        """Record that a pod's pause process is gone though nobody has told us."""
        if await self._engine.note_stopped(pod.id):
            self._events.pod_stopped(pod)

    def busy(self) -> set[str]:
        """Ids of pods that a call works on at this moment."""
        named = (self._store.pod_named(str(key)) for key in self._creating)
        ending = {str(key[1]) for key in self._ending if isinstance(key, tuple)}
        return {pod.id for pod in named if pod is not None} | ending

    def _stopper(self, pod_id: str) -> Callable[[], Awaitable[None]]:
        again = lambda: self._stop_again(pod_id)  # noqa: E731
        return lambda: self._tracked("stop", pod_id, lambda: self._stop(pod_id), again)

    async def _tracked(
        self,
        wish: str,
        pod_id: str,
        work: Callable[[], Awaitable[None]],
        again: Callable[[], Awaitable[None]],
    ) -> None:
        """`work`, and a failure of it recorded and owed until it has succeeded once."""
        try:
            await work()
        except Exception as error:
            if pod_id in self._store.pods:
                await self._engine.note_stuck(pod_id, str(error))
                self._retries.failed("pod", pod_id, wish, error, again)
            raise
        await self._engine.note_stuck(pod_id, "")
        self._retries.settled("pod", pod_id, "" if wish == "remove" else wish)

    async def close(self, grace_s: float) -> None:
        """Let what is in flight end within the grace, then call it off and wait for its undo."""
        for work in (self._creating, self._ending):
            await work.close(grace_s)


def first_failure(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first real failure of a group; cancellation only when nothing else is in it."""
    leaves: list[BaseException] = []

    def walk(error: BaseException) -> None:
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                walk(inner)
        else:
            leaves.append(error)

    walk(group)
    for error in leaves:
        if isinstance(error, PodwrightError) and not isinstance(error, Cancelled):
            return error
    unknown = leaves[0]
    if isinstance(unknown, asyncio.CancelledError):
        return unknown
    return Internal(f"{type(unknown).__name__}: {unknown}")
