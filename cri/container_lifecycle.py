"""Container life cycle: composes the container engine with the images; the order of steps.

    create: image found ─► name reserved ┬► lease, root file system ─► OCI document ┬► runtime
                                         └► conmon started, which waits ────────────┘
            ─► CREATED recorded ─► id
    remove: stopped at once ─► engine's leftovers ─► lease released ─► record deleted last

Whatever fails in create is undone by the steps of remove; if that fails too, the container stays
listed as EXITED so that the client removes it. What is done with images is in
`cri.container_images`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec

from cri.container_images import stop_signal
from cri.inflight import Inflight
from cri.resizing import ContainerResizing
from sandbox.errors import ContainerNotRunning, PodNotReady
from sandbox.execs import ExecRequest
from sandbox.host.errors import AlreadyExists, Internal, NotFound, PodwrightError
from sandbox.host.journal import get_logger
from sandbox.host.threads import in_one_piece
from sandbox.mapping import id_map
from sandbox.model import Container, container_name_key
from sandbox.states import ContainerState, PodState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from cri.container_images import ContainerImages
    from cri.events import Events
    from cri.retries import Retries
    from sandbox.compose import Composer
    from sandbox.containers import ContainerEngine
    from sandbox.endings import Endings
    from sandbox.execs import ExecResult, Execs
    from sandbox.model import (
        ContainerConfig,
        ImageDefaults,
        LinuxResources,
        PodConfig,
        PodSandbox,
    )
    from sandbox.paths import Paths
    from sandbox.store import StateStore

#: How many containers of a pod are killed or removed at once.
TEARDOWN_WIDTH: Final = 16

_log = get_logger("containers")


class ContainerLifecycle:
    """What the CRI container calls do; every method may be called again at any time."""

    def __init__(
        self,
        *,
        engine: ContainerEngine,
        endings: Endings,
        composer: Composer,
        execs: Execs,
        images: ContainerImages,
        store: StateStore,
        paths: Paths,
        events: Events,
        retries: Retries,
        group: asyncio.TaskGroup,
    ) -> None:
        self._retries = retries
        self._engine = engine
        self._endings = endings
        self._composer = composer
        self._execs = execs
        self._images = images
        self._store = store
        self._paths = paths
        self._events = events
        endings.on_exited(events.container_stopped)
        endings.on_cleaned(self._note_cleaned)
        self._resizing = ContainerResizing(
            engine=engine, composer=composer, store=store, group=group
        )
        self._creating: Inflight[str] = Inflight(group, "CreateContainer")
        self._starting: Inflight[None] = Inflight(group, "StartContainer")
        self._removing: Inflight[None] = Inflight(group, "RemoveContainer")

    # Reading.

    def status(self, container_id: str) -> Container:
        """The container with this id or unique prefix; raises NotFound."""
        return self._store.find_container(container_id)

    def list(self) -> Collection[Container]:
        """All containers that clients may see."""
        return [
            c for c in self._store.containers.values() if c.state is not ContainerState.CREATING
        ]

    def of_pod(self, pod_id: str) -> Sequence[Container]:
        """Those of one pod, oldest first."""
        found = self._store.containers_of(pod_id)
        return [c for c in found if c.state is not ContainerState.CREATING]

    # Creation.

    async def create(self, pod_id: str, config: ContainerConfig, pod_config: PodConfig) -> str:
        """Make a container; the same request again gives the same id, also while the first runs.

        `pod_config` is what the client repeats of the pod; the pod's own record is what counts.

        Raises:
            NotFound: no such pod, or the image is not on the node.
            FailedPrecondition: the pod is not ready.
            InvalidArgument: something in the request.
            RuntimeFailed: in the runtime's own words.
        """
        pod = self._store.find_pod(pod_id)
        key = container_name_key(pod.id, config.name, config.attempt)
        return await self._creating.join(key, lambda: self._create(pod.id, key, config))

    async def _create(self, pod_id: str, key: str, config: ContainerConfig) -> str:
        pod = self._store.find_pod(pod_id)
        existing = self._store.container_named(key)
        if existing is not None:
            if existing.state in (ContainerState.CREATED, ContainerState.RUNNING):
                return existing.id
            # CREATING here is the trace of a former life: nothing of that name is in flight now.
            if not existing.failed and existing.state is not ContainerState.CREATING:
                raise AlreadyExists(
                    f"container {config.name} (attempt {config.attempt}) exists and has exited",
                    container=existing.id,
                    hint="remove it, or use the next attempt number",
                )
            await self._take_apart(existing)
        if pod.state is not PodState.READY:
            raise PodNotReady(
                "pod sandbox is not ready, no container can be made in it", pod=pod.id
            )
        image = self._images.find(config)
        await self._images.admit(config, image, pod.config.metadata.namespace)
        defaults = self._images.defaults(image.image_id)
        container = await self._engine.reserve(
            pod,
            config,
            image,
            log_path=self._log_path(pod, config),
            stop_signal=stop_signal(config, defaults),
        )
        try:
            return await self._build(pod, container, defaults)
        except BaseException as error:
            await in_one_piece(self._undo(container, error))
            raise

    async def _build(self, pod: PodSandbox, container: Container, defaults: ImageDefaults) -> str:
        await self._engine.limit_layer(pod, container)
        ids = id_map(pod, self._paths)
        label = self._composer.mount_label(pod, container)
        async with self._engine.begin(container) as begun:
            mounted = await self._images.mount(container, label=label, ids=ids)
            user = await self._composer.container(
                pod, container, defaults, mounted.rootfs, volumes=mounted.volumes
            )
            container = msgspec.structs.replace(container, user=user)
            created = await self._engine.create(container, begun, mapped=bool(ids))
        # A pod stopped meanwhile has had its processes killed; this one must not outlive it.
        current = self._store.pods.get(pod.id)
        if current is None or current.state is not PodState.READY:
            raise PodNotReady("pod sandbox was stopped meanwhile", pod=pod.id)
        self._events.container_created(created)
        return created.id

    def _log_path(self, pod: PodSandbox, config: ContainerConfig) -> str:
        if not pod.config.log_directory or not config.log_path:
            return ""
        return f"{pod.config.log_directory.rstrip('/')}/{config.log_path}"

    async def _undo(self, container: Container, error: BaseException) -> None:
        current = self._store.containers.get(container.id, container)
        try:
            await self._take_apart(current)
        except PodwrightError as trouble:
            _log.error(
                "creation failed and could not be undone",
                container=container.id,
                error=str(trouble),
            )
            error.add_note(f"undoing the creation failed too: {trouble}")
            await self._endings.note_trouble(current, trouble)
            self.note_trouble(current, trouble)

    # Life.

    async def start(self, container_id: str) -> None:
        """Run the container's program.

        Raises:
            FailedPrecondition: it is not in state CREATED, or its pod is not ready.
            RuntimeFailed: the program cannot be run.
        """
        container = self._store.find_container(container_id)
        pod = self._store.pods.get(container.pod_id)
        if pod is None or pod.state is not PodState.READY:
            raise PodNotReady(
                "pod sandbox of the container is not ready",
                container=container.id,
                pod=container.pod_id,
            )
        await self._starting.join(container.id, lambda: self._start(container.id))

    async def _start(self, container_id: str) -> None:
        self._events.container_started(await self._engine.start(container_id))

    async def stop(self, container_id: str, timeout_s: int) -> None:
        """Stop a container; unknown or already stopped is success."""
        try:
            container = self._store.find_container(container_id)
        except NotFound:
            return
        await self._engine.stop(container.id, timeout_s)

    async def remove(self, container_id: str) -> None:
        """Remove a container, by force when it runs; unknown is success."""
        try:
            container = self._store.find_container(container_id)
        except NotFound:
            return
        await self._removing.join(container.id, lambda: self._remove(container.id))

    async def _remove(self, container_id: str) -> None:
        if container_id not in self._store.containers:
            return
        await self._engine.stop(container_id, 0)
        container = self._store.containers.get(container_id)
        if container is None:
            return
        container = await self._engine.begin_removal(container)
        await self._take_apart(container)

    async def _take_apart(self, container: Container) -> None:
        try:
            await self._endings.dismantle(container)
            await self._images.release(container.id)
            await self._store.delete_container(container.id)
        except PodwrightError as error:
            self.note_trouble(container, error)
            raise
        finally:
            # A stop that found it just made, and about to be undone, waits for no exit any more.
            self._engine.end_stop(container)
        self._retries.settled("container", container.id)
        self._events.container_deleted(container)

    def note_trouble(self, container: Container, error: PodwrightError) -> None:
        """Have a container taken apart again that cannot be now."""
        again = lambda: self._finish_again(container.id)  # noqa: E731
        self._retries.failed("container", container.id, "remove", error, again)

    async def _finish_again(self, container_id: str) -> None:
        container = self._store.containers.get(container_id)
        if container is not None and (
            container.failed or container.state is ContainerState.REMOVING
        ):
            await self.finish(container)

    def _note_cleaned(self, container: Container, error: PodwrightError | None) -> None:
        if error is None:
            self._retries.settled("container", container.id, "clean up")
        else:
            again = lambda: self._endings.clean_up_again(container.id)  # noqa: E731
            self._retries.failed("container", container.id, "clean up", error, again)

    def busy(self) -> set[str]:
        """Ids of containers that a call, or the cleaning after an exit, works on."""
        named = (self._store.container_named(str(key)) for key in self._creating)
        working = (*self._starting, *self._removing, *self._endings.cleaning())
        return {c.id for c in named if c is not None} | {str(key) for key in working}

    async def finish(self, container: Container) -> None:
        """Finish what a former life of the daemon left half-done."""
        await self._removing.join(container.id, lambda: self._take_apart(container))

    async def kill_all_of(self, pod_id: str) -> None:
        """Kill every container of a pod; raises the first failure after all were tried."""
        await self._each_of(pod_id, self._kill_any)

    async def remove_all_of(self, pod_id: str) -> None:
        """Remove every container of a pod; raises the first failure after all were tried."""
        await self._each_of(
            pod_id, lambda c: self._removing.join(c.id, lambda: self._remove_any(c.id))
        )

    async def _kill_any(self, container: Container) -> None:
        if container.state is ContainerState.CREATING:
            await self._call_off(container)
        else:
            await self._engine.stop(container.id, 0)

    async def _remove_any(self, container_id: str) -> None:
        container = self._store.containers.get(container_id)
        if container is not None and container.state is ContainerState.CREATING:
            await self._call_off(container)
            container = self._store.containers.get(container_id)
            if container is not None:
                await self._take_apart(container)
        elif container is not None:
            await self._remove(container_id)

    async def _call_off(self, container: Container) -> None:
        """End a creation that is in flight; its own undo has run when this returns."""
        config = container.config
        key = container_name_key(container.pod_id, config.name, config.attempt)
        await self._creating.supersede(key)

    async def close(self, grace_s: float) -> None:
        """Let what is in flight end within the grace, then call it off and wait for its undo."""
        for work in (self._creating, self._starting, self._removing):
            await work.close(grace_s)

    # Commands, limits, logs.

    async def exec_sync(self, container_id: str, cmd: Sequence[str], timeout_s: int) -> ExecResult:
        """Run a command in a running container and collect its output.

        Raises:
            ContainerNotRunning: as it says.
            ExecTimeout: the time ran out; every process of the command has been killed.
        """
        container = self._store.find_container(container_id)
        if container.state is not ContainerState.RUNNING or container.init is None:
            raise ContainerNotRunning(
                f"container is in state {container.state.name}, no command can be run in it",
                container=container.id,
            )
        bundle = self._paths.container(container.id)
        return await self._execs.exec_sync(
            ExecRequest(
                container_id=container.id,
                runtime=self._engine.runtime_of(container),
                directory=bundle,
                cgroup_path=container.cgroup_path,
                init=container.init,
                process_json=self._composer.exec_process(bundle, cmd),
                timeout_s=float(timeout_s),
            )
        )

    async def update_resources(
        self, container_id: str, resources: LinuxResources, annotations: Mapping[str, str]
    ) -> None:
        """Change limits; see `cri.resizing`."""
        await self._resizing.resize(container_id, resources)

    async def reopen_log(self, container_id: str) -> None:
        """Have the log path opened anew after a rotation."""
        await self._engine.reopen_log(self._store.find_container(container_id))

    def verbose(self, container: Container) -> Mapping[str, object]:
        """What `crictl inspect` shows beyond the status."""
        return {
            "sandboxID": container.pod_id,
            "pid": container.init.pid if container.init is not None else 0,
            "runtimeType": container.runtime,
            "storageDriver": container.storage_driver,
            "config": msgspec.to_builtins(container.config),
            "runtimeSpec": self._composer.stored_spec(self._paths.container(container.id)),
        }

    # Inside.

    async def _each_of(self, pod_id: str, work: Callable[[Container], Awaitable[None]]) -> None:
        width = asyncio.Semaphore(TEARDOWN_WIDTH)

        async def one(container: Container) -> None:
            async with width:
                await work(container)

        outcomes = await asyncio.gather(
            *(one(container) for container in self._store.containers_of(pod_id)),
            return_exceptions=True,
        )
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        for failure in failures:
            if isinstance(failure, PodwrightError):
                raise failure
            raise Internal(f"{type(failure).__name__}: {failure}") from failure
