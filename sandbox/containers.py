"""Container engine: create, start, stop, take apart, and know how each container ended.

A container is: a writable layer, a mounted root file system, an OCI bundle, a conmon that holds its
stdio, log and exit code, and an init process made by the OCI runtime. The engine is given the mounts
of the root file system and the finished OCI spec; images, users and networks are not its business.

Exit truth arrives through `sandbox.monitor.exits` exactly once per container, whoever noticed first.
`_exited` records it before anything is cleaned up, because callers wait for the record, not for the
cleaning. What follows (rest of the cgroup killed, runtime state deleted, root file system unmounted)
is done after the answer, again as idempotent steps that removal repeats.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from sandbox.errors import ContainerNotRunning
from sandbox.host import files, mounts
from sandbox.host.errors import FailedPrecondition, Internal, PodwrightError
from sandbox.host.journal import get_logger
from sandbox.host.pidfd import Process
from sandbox.host.trees import remove_tree
from sandbox.model import Container, ContainerState, Event, next_state
from sandbox.monitor.exits import WatchTarget
from sandbox.monitor.request import MonitorRequest
from sandbox.steps import run_steps
from sandbox.stopping import Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from sandbox.cgroups import Cgroups
    from sandbox.host.clock import Clock
    from sandbox.host.mounts import Mount
    from sandbox.host.syscalls import Syscalls
    from sandbox.leavings import Leavings
    from sandbox.model import ContainerConfig, LinuxResources, PodSandbox
    from sandbox.monitor.conmon import Conmon
    from sandbox.monitor.exits import Exited, ExitWatch
    from sandbox.paths import Paths
    from sandbox.runtime.driver import OciRuntime
    from sandbox.store import StateStore

#: Exit code of a container whose start failed, and of one whose end nobody saw (as the field has it).
START_ERROR_EXIT_CODE: Final = 128
UNKNOWN_EXIT_CODE: Final = 255

_log = get_logger("containers")


@dataclass(frozen=True, slots=True)
class ImageUse:
    """What a container keeps of its image: identity only."""

    image_id: str
    image_ref: str
    image_name: str


class ContainerEngine:
    """Makes, runs and takes apart containers."""

    def __init__(
        self,
        *,
        paths: Paths,
        store: StateStore,
        runtimes: Mapping[str, OciRuntime],
        conmon: Conmon,
        exits: ExitWatch,
        cgroups: Cgroups,
        leavings: Leavings,
        syscalls: Syscalls,
        clock: Clock,
        group: asyncio.TaskGroup,
    ) -> None:
        self._paths = paths
        self._store = store
        self._runtimes = runtimes
        self._conmon = conmon
        self._exits = exits
        self._cgroups = cgroups
        self._leavings = leavings
        self._syscalls = syscalls
        self._clock = clock
        self._group = group
        self._stops: dict[str, Stop] = {}
        self._cleanups: dict[str, asyncio.Task[None]] = {}
        self._on_change: Callable[[Container], None] = lambda _container: None

    def on_exited(self, call: Callable[[Container], None]) -> None:
        """Have `call` told of every container whose exit was recorded."""
        self._on_change = call

    def runtime_of(self, container: Container) -> OciRuntime:
        """The runtime that holds the container; FailedPrecondition when it is configured no more."""
        try:
            return self._runtimes[container.runtime]
        except KeyError:
            raise FailedPrecondition(
                f"runtime {container.runtime!r} of the container is no longer configured",
                container=container.id,
                hint=f"add [runtimes.{container.runtime}] to the configuration again",
            ) from None

    # Creation, in the order in which the lifecycle calls it.

    async def reserve(
        self,
        pod: PodSandbox,
        config: ContainerConfig,
        image: ImageUse,
        *,
        log_path: str,
        stop_signal: int,
    ) -> Container:
        """Record the intent: a new container in state CREATING that holds its name.

        Raises:
            AlreadyExists: another container of the pod holds the name.
        """
        container_id = secrets.token_hex(32)
        container = Container(
            id=container_id,
            pod_id=pod.id,
            config=config,
            state=ContainerState.CREATING,
            created_at_ns=self._clock.wall_ns(),
            image_id=image.image_id,
            image_ref=image.image_ref,
            image_name=image.image_name,
            runtime=pod.runtime,
            log_path=log_path,
            cgroup_path=self._cgroups.container_cgroup(
                pod.config.cgroup_parent, pod.id, container_id
            ),
            resources=config.resources,
            stop_signal=stop_signal,
            tty=config.tty,
        )
        await self._store.add_container(container)
        return container

    async def mount_rootfs(self, container: Container, parts: Sequence[Mount]) -> Path:
        """Make the container's directories and mount its root file system.

        Args:
            container: the reserved container.
            parts: mounts as the snapshotter gave them; targets are relative to the rootfs.

        Returns:
            The mount point.
        """
        rootfs = self._paths.rootfs(container.id)

        def work() -> None:
            files.make_private_dir(self._paths.container(container.id), mode=0o700)
            files.make_private_dir(rootfs, mode=0o755)
            mounts.mount_all(parts, syscalls=self._syscalls)

        await asyncio.to_thread(work)
        return rootfs

    async def create(self, container: Container, spec: bytes) -> Container:
        """Write the bundle and have conmon and the runtime make the init process.

        Raises:
            RuntimeFailed: the runtime refused, in its own words.
        """
        bundle = self._paths.container(container.id)
        await asyncio.to_thread(
            files.write_atomic, bundle / "config.json", spec, mode=0o600, durable=False
        )
        config = container.config
        made = await self._conmon.create(MonitorRequest(
            container_id=container.id,
            runtime=self.runtime_of(container),
            bundle=bundle,
            exit_dir=self._paths.exits,
            cgroup_path=container.cgroup_path,
            log_path=container.log_path,
            terminal=config.tty,
            stdin=config.stdin,
            stdin_once=config.stdin_once,
        ))
        created = msgspec.structs.replace(
            container,
            state=next_state(container.state, Event.CREATE_COMPLETED, container=container.id),
            init=made.init,
            monitor=made.monitor,
        )
        await self._store.save(created)
        self.watch(created)
        return created

    # Life.

    def watch(self, container: Container) -> None:
        """Learn of the end of the init process; also of one that ended while nobody looked."""
        assert container.init is not None
        self._exits.watch(
            WatchTarget(
                container_id=container.id,
                init=container.init,
                monitor=container.monitor,
                exit_file=self._paths.exit_file(container.id),
                cgroup_path=container.cgroup_path,
                started_at_ns=container.started_at_ns,
            )
        )

    async def start(self, container_id: str) -> Container:
        """Run the user's program.

        Raises:
            FailedPrecondition: the container is not in state CREATED.
            RuntimeFailed: the program cannot be run; the container is then EXITED with StartError.
        """
        container = self._store.find_container(container_id)
        next_state(container.state, Event.STARTED, container=container.id)
        runtime = self.runtime_of(container)
        # Intent first: should we die right after the runtime's start, recovery reads its state and
        # has the time at which it was asked to.
        container = msgspec.structs.replace(container, start_begun_ns=self._clock.wall_ns())
        await self._store.save(container)
        try:
            await runtime.start(container.id)
        except PodwrightError as error:
            await self._start_failed(container, error)
            raise
        current = self._store.containers.get(container.id)
        if current is None or current.state is not ContainerState.CREATED:
            # It ended within the start and its exit is recorded already; keep when it ran.
            if current is not None and current.started_at_ns == 0:
                current = msgspec.structs.replace(current, started_at_ns=container.start_begun_ns)
                await self._store.note(current)
            return current or container
        running = msgspec.structs.replace(
            current,
            state=next_state(current.state, Event.STARTED, container=container.id),
            started_at_ns=self._clock.wall_ns(),
        )
        await self._store.note(running)
        return running

    async def stop(self, container_id: str, grace_s: float) -> None:
        """End the container: its stop signal, the grace, then SIGKILL until it is gone.

        A cancelled caller leaves the stop going; a second call may only shorten the grace.
        """
        container = self._store.find_container(container_id)
        if container.state is ContainerState.UNKNOWN and not self._process_lives(container):
            await self._record_exit(container, UNKNOWN_EXIT_CODE, 0, oom=False,
                                    message="the daemon lost track of the container")
        if container.state not in (
            ContainerState.CREATED, ContainerState.RUNNING, ContainerState.UNKNOWN
        ):
            return
        stop = self._stops.get(container.id)
        if stop is not None:
            stop.ask(grace_s)
            await stop.finished.wait()
            return
        stop = Stop(
            container.id,
            clock=self._clock,
            send=lambda number: self._send(container.id, number),
            kill_all=lambda: self._kill_everything(container),
            note_kill=lambda: self._note_kill(container.id),
        )
        # A created container has no program yet that could understand a signal.
        stop.ask(0 if container.state is ContainerState.CREATED else grace_s)
        self._stops[container.id] = stop
        self._group.create_task(
            self._run_stop(container, stop), name=f"stop {container.id[:12]}"
        )
        await stop.finished.wait()

    async def update_resources(
        self, container: Container, merged: LinuxResources, document: bytes
    ) -> Container:
        """Have the runtime apply `document` (OCI resources) and record `merged`."""
        runtime = self.runtime_of(container)
        await runtime.update(container.id, document)
        current = self._store.containers.get(container.id, container)
        updated = msgspec.structs.replace(current, resources=merged)
        await self._store.note(updated)
        return updated

    async def reopen_log(self, container: Container) -> None:
        """Have conmon open the log path anew; on failure no new file is left.

        Raises:
            FailedPrecondition: the container is not running.
        """
        if container.state is not ContainerState.RUNNING:
            raise ContainerNotRunning(
                f"container is in state {container.state.name}, its log cannot be reopened",
                container=container.id,
            )
        await self._conmon.reopen_log(self._paths.container(container.id))

    # Teardown.

    async def begin_removal(self, container: Container) -> Container:
        """Record that the container is going: a restart then finishes its removal."""
        removing = msgspec.structs.replace(
            container,
            state=next_state(container.state, Event.REMOVE_BEGUN, container=container.id),
        )
        await self._store.save(removing)
        return removing

    async def note_trouble(self, container: Container, error: PodwrightError) -> None:
        """Keep a container whose undo failed listed, so that the client finds and removes it."""
        current = self._store.containers.get(container.id, container)
        await self._store.note(msgspec.structs.replace(
            current,
            state=ContainerState.EXITED,
            failed=True,
            exit_code=START_ERROR_EXIT_CODE,
            finished_at_ns=self._clock.wall_ns(),
            reason="ContainerCreateFailed",
            message=str(error),
        ))

    async def dismantle(self, container: Container) -> None:
        """Everything of the container but its record; also undoes a creation stopped anywhere."""
        half_made = container.init is None
        self._exits.forget(container.id)
        running = self._cleanups.get(container.id)
        if running is not None:
            await asyncio.wait({running})
        await run_steps("container", container.id, [
            *([("helpers", lambda: self._leavings.kill_helpers(container.id))]
              if half_made else []),
            ("processes", lambda: self._kill_everything(container)),
            ("leftovers", lambda: self._clean_up(container)),
            ("run directory", lambda: self._remove(self._paths.container(container.id))),
            ("writable layer", lambda: self._remove(self._paths.layer(container.id))),
            ("exit file", lambda: asyncio.to_thread(
                self._paths.exit_file(container.id).unlink, missing_ok=True)),
        ])

    async def _clean_up(self, container: Container) -> None:
        """After the exit: what the dead container still holds."""
        await run_steps("container", container.id, [
            ("processes", lambda: self._kill_everything(container)),
            ("runtime state", lambda: self._delete_runtime_state(container)),
            ("cgroup", lambda: self._cgroups.remove(container.cgroup_path)),
            ("root file system", lambda: asyncio.to_thread(
                mounts.unmount_tree, self._paths.container(container.id),
                syscalls=self._syscalls)),
        ])

    async def _remove(self, directory: Path) -> None:
        def work() -> None:
            mounts.unmount_tree(directory, syscalls=self._syscalls)
            remove_tree(directory)

        await asyncio.to_thread(work)

    async def _delete_runtime_state(self, container: Container) -> None:
        runtime = self._runtimes.get(container.runtime)
        if runtime is not None:
            await runtime.delete(container.id, force=True)

    # Exits.

    async def note_lost(self, container: Container, reason: str) -> None:
        """Record the end of a container that nobody saw end."""
        await self._record_exit(container, UNKNOWN_EXIT_CODE, 0, oom=False, message=reason)

    async def exited(self, exit_: Exited) -> None:
        """Record the end of a container; called once per container by the exit watch."""
        container = self._store.containers.get(exit_.container_id)
        if container is None or container.state in (
            ContainerState.EXITED, ContainerState.CREATING, ContainerState.REMOVING
        ):
            return
        await self._record_exit(
            container, exit_.exit_code, exit_.finished_at_ns, oom=exit_.oom, message=exit_.message
        )

    async def _record_exit(
        self, container: Container, exit_code: int, finished_at_ns: int, *, oom: bool, message: str
    ) -> None:
        current = self._store.containers.get(container.id, container)
        if exit_code == 0:
            reason = "Completed"
        elif oom and not current.kill_sent:
            reason = "OOMKilled"
        elif exit_code == UNKNOWN_EXIT_CODE and message:
            reason = "Unknown"
        else:
            reason = "Error"
        done = msgspec.structs.replace(
            current,
            state=next_state(current.state, Event.PROCESS_EXITED, container=container.id),
            exit_code=exit_code,
            finished_at_ns=max(finished_at_ns or self._clock.wall_ns(), current.started_at_ns),
            reason=reason,
            message=message,
        )
        await self._store.note(done)
        stop = self._stops.get(container.id)
        if stop is not None:
            stop.exit_recorded()
        self._on_change(done)
        self._begin_cleanup(done)

    async def _start_failed(self, container: Container, error: PodwrightError) -> None:
        current = self._store.containers.get(container.id, container)
        if current.state is ContainerState.CREATED:
            now_ns = self._clock.wall_ns()
            failed = msgspec.structs.replace(
                current,
                state=next_state(current.state, Event.START_FAILED, container=container.id),
                exit_code=START_ERROR_EXIT_CODE,
                finished_at_ns=now_ns,
                reason="StartError",
                message=str(error),
            )
            await self._store.note(failed)
            self._on_change(failed)
            self._begin_cleanup(failed)

    def _begin_cleanup(self, container: Container) -> None:
        if container.id not in self._cleanups:
            task = self._group.create_task(
                self._cleanup_quietly(container), name=f"clean up {container.id[:12]}"
            )
            self._cleanups[container.id] = task
            task.add_done_callback(lambda _done: self._cleanups.pop(container.id, None))

    async def _cleanup_quietly(self, container: Container) -> None:
        try:
            await self._clean_up(container)
        except PodwrightError:
            return  # each failed step is in the log; removal repeats all of them

    # Signals.

    def _process_lives(self, container: Container) -> bool:
        process = self._open(container)
        if process is None:
            return False
        process.close()
        return True

    def _open(self, container: Container) -> Process | None:
        ref = container.init
        if ref is None:
            return None
        return Process.open(ref.pid, ref.start_ticks, ref.boot_id)

    def _send(self, container_id: str, number: int) -> bool:
        container = self._store.containers.get(container_id)
        process = self._open(container) if container is not None else None
        if process is None:
            return False
        try:
            return process.send_signal(number)
        finally:
            process.close()

    async def _note_kill(self, container_id: str) -> None:
        container = self._store.containers.get(container_id)
        if container is not None and container.state is ContainerState.RUNNING:
            await self._store.note(msgspec.structs.replace(container, kill_sent=True))

    async def _kill_everything(self, container: Container) -> None:
        """SIGKILL what is left in the container's cgroup, also what joined a shared pid namespace."""
        self._send(container.id, signal.SIGKILL)
        await self._cgroups.kill(container.cgroup_path)

    async def _run_stop(self, container: Container, stop: Stop) -> None:
        try:
            await stop.run(container.stop_signal)
        except Exception as error:
            # A task that raises would end the daemon; the caller is told by the state.
            _log.error("stop failed", container=container.id,
                       error=str(Internal(f"{type(error).__name__}: {error}")))
        finally:
            self._stops.pop(container.id, None)
            stop.finished.set()
