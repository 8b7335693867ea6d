"""How containers end and what they leave: exits recorded, leftovers taken away.

Exit truth arrives through `sandbox.monitor.exits` exactly once per container, whoever noticed
first. `exited` records it before anything is cleaned up, because callers wait for the record, not
for the cleaning. What follows (rest of the cgroup killed, runtime state deleted, root file system
unmounted) is done after the answer, as idempotent steps that removal repeats.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec

from sandbox.host import mounts
from sandbox.host.errors import PodwrightError
from sandbox.host.journal import get_logger
from sandbox.host.pidfd import Process
from sandbox.states import ContainerState, Event, next_state
from sandbox.steps import run_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from sandbox.cgroups import Cgroups
    from sandbox.host.clock import Clock
    from sandbox.host.syscalls import Syscalls
    from sandbox.layer_limits import LayerLimits
    from sandbox.leavings import Leavings
    from sandbox.model import Container
    from sandbox.monitor.exits import Exited, ExitWatch
    from sandbox.paths import Paths
    from sandbox.roots import Roots
    from sandbox.runtime.driver import OciRuntime
    from sandbox.steps import Step
    from sandbox.store import StateStore

#: Exit code of a container whose start failed, and of one whose end nobody saw (as in the field).
START_ERROR_EXIT_CODE: Final = 128
UNKNOWN_EXIT_CODE: Final = 255

_log = get_logger("containers")


class Endings:
    """Records how containers ended and takes apart what is left of them."""

    def __init__(
        self,
        *,
        paths: Paths,
        store: StateStore,
        roots: Roots,
        runtimes: Mapping[str, OciRuntime],
        exits: ExitWatch,
        cgroups: Cgroups,
        leavings: Leavings,
        limits: LayerLimits,
        syscalls: Syscalls,
        clock: Clock,
        group: asyncio.TaskGroup,
    ) -> None:
        self._paths = paths
        self._store = store
        self._roots = roots
        roots.on_lost(self._root_lost)
        self._runtimes = runtimes
        self._exits = exits
        self._cgroups = cgroups
        self._leavings = leavings
        self._limits = limits
        self._syscalls = syscalls
        self._clock = clock
        self._group = group
        self._cleanups: dict[str, asyncio.Task[None]] = {}
        #: Containers that the runtime is starting, and the end of that.
        self._starting: dict[str, asyncio.Event] = {}
        self._cleaned: set[str] = set()
        #: Why containers were ended that are not to be blamed for it themselves, by id.
        self._causes: dict[str, str] = {}
        self._listeners: list[Callable[[Container], None]] = []
        self._on_cleaned: Callable[[Container, PodwrightError | None], None] = lambda *_: None

    def on_cleaned(self, call: Callable[[Container, PodwrightError | None], None]) -> None:
        """Have `call` told how each cleaning after an exit went."""
        self._on_cleaned = call

    def on_exited(self, call: Callable[[Container], None]) -> None:
        """Have `call` told of every container whose end was recorded."""
        self._listeners.append(call)

    # Exits.

    async def note_lost(self, container: Container, reason: str) -> None:
        """Record the end of a container that nobody saw end."""
        await self.record_exit(container, UNKNOWN_EXIT_CODE, 0, oom=False, message=reason)

    async def exited(self, exit_: Exited) -> None:
        """Record the end of a container; called once per container by the exit watch."""
        container = self._store.containers.get(exit_.container_id)
        if container is None or container.state in (
            ContainerState.EXITED,
            ContainerState.CREATING,
            ContainerState.REMOVING,
        ):
            return
        await self.record_exit(
            container, exit_.exit_code, exit_.finished_at_ns, oom=exit_.oom, message=exit_.message
        )

    async def record_exit(
        self, container: Container, exit_code: int, finished_at_ns: int, *, oom: bool, message: str
    ) -> None:
        """Record the end with its reason, tell those who wait, begin the cleaning."""
        current = self._store.containers.get(container.id, container)
        if exit_code == 0:
            reason = "Completed"
        elif oom and not current.kill_sent:
            reason = "OOMKilled"
        elif exit_code == UNKNOWN_EXIT_CODE and message:
            reason = "Unknown"
        else:
            reason = "Error"
        # It may have ended, and we too, before its start was on record: it ran from the intent on.
        started_at_ns = current.started_at_ns or current.start_begun_ns
        done = msgspec.structs.replace(
            current,
            state=next_state(current.state, Event.PROCESS_EXITED, container=container.id),
            exit_code=exit_code,
            started_at_ns=started_at_ns,
            finished_at_ns=max(finished_at_ns or self._clock.wall_ns(), started_at_ns),
            reason=reason,
            message=message or self._causes.pop(container.id, ""),
        )
        await self._store.note(done)
        for listener in self._listeners:
            listener(done)
        self.begin_cleanup(done)

    @contextmanager
    def starting(self, container_id: str) -> Iterator[None]:
        """Around the runtime's `start`: a program that ends within it is cleaned up after it.

        The runtime's own state must not vanish while it works on it: runc, for one, would call the
        start of a program that has already done its work a failure.
        """
        over = self._starting[container_id] = asyncio.Event()
        try:
            yield
        finally:
            self._starting.pop(container_id, None)
            over.set()

    async def start_failed(self, container: Container, error: PodwrightError) -> None:
        """Record that the runtime could not start the program: EXITED with StartError."""
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
            for listener in self._listeners:
                listener(failed)
            self.begin_cleanup(failed)

    def begin_cleanup(self, container: Container) -> None:
        """Take away what a dead container holds, in the background."""
        if container.id not in self._cleanups:
            task = self._group.create_task(
                self._cleanup_quietly(container), name=f"clean up {container.id[:12]}"
            )
            self._cleanups[container.id] = task
            task.add_done_callback(lambda _done: self._cleanups.pop(container.id, None))

    async def _cleanup_quietly(self, container: Container) -> None:
        starting = self._starting.get(container.id)
        if starting is not None:
            await starting.wait()
        try:
            await self._clean_up(container)
        except PodwrightError as error:
            self._on_cleaned(container, error)  # each failed step is in the log
        else:
            self._on_cleaned(container, None)

    async def clean_up_again(self, container_id: str) -> None:
        """Clean up after an exit once more, if the container is still there.

        Raises:
            PodwrightError: a step failed again.
        """
        container = self._store.containers.get(container_id)
        if container is None or container.state is not ContainerState.EXITED:
            return
        running = self._cleanups.get(container_id)
        if running is not None:
            await asyncio.wait({running})
        await self._clean_up(container)

    def unwatch(self, container_id: str) -> None:
        """Forget that its end was watched or told, so that it is looked for anew."""
        self._exits.forget(container_id)

    def cleaning(self) -> Collection[str]:
        """Ids of containers that are being cleaned up at the moment."""
        return self._cleanups.keys()

    def end_monitor(self, container: Container) -> None:
        """Kill the monitor of a container that has exited; it has nothing left to do."""
        ref = container.monitor
        process = Process.open(ref.pid, ref.start_ticks, ref.boot_id) if ref is not None else None
        if process is not None:
            with process:
                process.send_signal(signal.SIGKILL)

    # Signals.

    def lives(self, container: Container) -> bool:
        """Whether the container's first process lives."""
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

    def send(self, container_id: str, number: int) -> bool:
        """Signal the first process by pidfd; False when it is gone."""
        container = self._store.containers.get(container_id)
        process = self._open(container) if container is not None else None
        if process is None:
            return False
        try:
            return process.send_signal(number)
        finally:
            process.close()

    async def kill_everything(self, container: Container) -> None:
        """SIGKILL what is left in the container's cgroup, in a shared pid namespace too."""
        self.send(container.id, signal.SIGKILL)
        await self._cgroups.kill(container.cgroup_path)

    async def _root_lost(self, container_id: str, reason: str) -> None:
        """End a container that has lost its root file system: nothing in it can work."""
        container = self._store.containers.get(container_id)
        if container is None or container.state not in (
            ContainerState.CREATED,
            ContainerState.RUNNING,
        ):
            return
        _log.error("root file system lost", container=container.id, reason=reason)
        self._causes[container.id] = reason
        await self.kill_everything(container)

    # Teardown.

    async def note_trouble(self, container: Container, error: PodwrightError) -> None:
        """Keep a container whose undo failed listed, so that the client finds and removes it."""
        current = self._store.containers.get(container.id, container)
        await self._store.note(
            msgspec.structs.replace(
                current,
                state=ContainerState.EXITED,
                failed=True,
                exit_code=START_ERROR_EXIT_CODE,
                finished_at_ns=self._clock.wall_ns(),
                reason="ContainerCreateFailed",
                message=str(error),
            )
        )

    async def dismantle(self, container: Container) -> None:
        """Everything of the container but its record; also undoes a creation stopped anywhere."""
        self._exits.forget(container.id)
        running = self._cleanups.get(container.id)
        if running is not None:
            await asyncio.wait({running})
        steps: list[Step] = []
        if container.init is None:  # half-made: what was making it may still be at it
            steps.append(("helpers", lambda: self._leavings.kill_helpers(container.id)))
        if container.id not in self._cleaned:
            steps.append(("leftovers", lambda: self._clean_up(container)))
        steps.append(("directories", lambda: self._remove_directories(container.id)))
        await run_steps("container", container.id, steps)
        self._cleaned.discard(container.id)

    async def _clean_up(self, container: Container) -> None:
        """After the exit: what the dead container still holds.

        Done once; that it was is remembered in memory only, a restart simply does it again.
        """
        await run_steps(
            "container",
            container.id,
            [
                ("processes", lambda: self.kill_everything(container)),
                ("runtime state", lambda: self._delete_runtime_state(container)),
                ("cgroup", lambda: self._cgroups.remove(container.cgroup_path)),
                ("root file system", lambda: self._roots.unmount(container)),
            ],
        )
        self._cleaned.add(container.id)

    async def _remove_directories(self, container_id: str) -> None:
        """The run directory, the writable layer and the exit file, in one thread call."""

        def work() -> None:
            for directory in (
                self._paths.container(container_id),
                self._paths.layer(container_id),
            ):
                mounts.clear_away(directory, syscalls=self._syscalls)
            self._limits.release(container_id)
            self._paths.exit_file(container_id).unlink(missing_ok=True)

        await asyncio.to_thread(work)

    async def _delete_runtime_state(self, container: Container) -> None:
        runtime = self._runtimes.get(container.runtime)
        if runtime is not None:
            await runtime.delete(container.id, force=True, init=container.init)
