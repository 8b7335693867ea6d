"""How each container ended, told exactly once, from three sources.

They are the pidfd of its first process, its exit file, and the runtime's state. None is enough
alone, and each has been lost in somebody's production: conmon can be killed or find its directory
full (no exit file), a daemon that was down saw no pidfd fire, a runtime calls a zombie running.

- *Whether* it ended is the kernel's word: the pidfd of the recorded process (pid, start time, boot
  id). A process that cannot be opened under that identity has ended. Only where no process was
  recorded is the runtime's state asked for one.
- *How* it ended is the exit file's: a decimal number that conmon writes, under a temporary name
  first, once it has drained the output. It is waited for, for a bounded time, and not at all once
  conmon is dead. An exit file beside a living process is not believed.
- A file that is absent, unreadable or no number becomes exit code 255 with the reason in `message`.

The same code serves a container that ends now and one that ended while the daemon was down.

A second kind of end is told as well: conmon's, while its container lives. Nothing reads the
container's output any more and nobody will know its exit code.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sandbox.host.dirwatch import DirWatch
from sandbox.host.errors import Internal, NotFound, PodwrightError
from sandbox.host.journal import get_logger
from sandbox.host.pidfd import boot_id, hold, start_ticks
from sandbox.model import ProcessRef
from sandbox.monitor.exitfile import ExitFile, read_exit
from sandbox.monitor.kills import KILLED, MemoryKills

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from sandbox.host.clock import Clock
    from sandbox.host.pidfd import Process
    from sandbox.monitor.kills import KillCounts
    from sandbox.runtime.driver import OciRuntime

    OnExit = Callable[["Exited"], Awaitable[None]]
    OnMonitorLost = Callable[[str], Awaitable[None]]

_log = get_logger("exits")

#: Exit code of a container whose end nobody recorded; containerd's value for it.
UNKNOWN_EXIT_CODE: Final = 255
#: The loop's rounds until a call of ours that has just made a container has answered its client.
_ROUNDS: Final = 3
#: Pauses between looks at an exit file that is not there yet (seconds), doubled from first to last;
#: a notice from the directory ends a pause at once.
_LOOK_FIRST_S: Final = 0.005
_LOOK_LAST_S: Final = 0.25
#: Pauses between tries to deliver an exit that the receiver failed to record, and to open a pidfd
#: while descriptors are exhausted.
_RETRY_FIRST_S: Final = 0.5
_RETRY_LAST_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class WatchTarget:
    """A container to watch.

    Attributes:
        container_id: passed on in `Exited`.
        init: its first process; None asks `runtime` for one.
        monitor: its conmon; None when that was not alive.
        exit_file: where conmon writes the exit code; None for a process without conmon.
        cgroup_path: OCI cgroupsPath, for the kernel's count of memory kills; empty to leave out.
        started_at_ns: the end is never told to be before this.
        bundle: where conmon keeps its own `oom` and `exit` files; None looks for neither.
        runtime: asked for the process when `init` is not known.
    """

    container_id: str
    init: ProcessRef | None
    monitor: ProcessRef | None = None
    exit_file: Path | None = None
    cgroup_path: str = ""
    started_at_ns: int = 0
    bundle: Path | None = None
    runtime: OciRuntime | None = None


@dataclass(frozen=True, slots=True)
class Exited:
    """How a container ended.

    Attributes:
        container_id: whose end it is.
        exit_code: 0 to 255; 128 plus the number of the signal that ended it.
        finished_at_ns: when, nanoseconds since the epoch.
        oom: the kernel killed one of its processes for memory.
        message: why the exit code is not known, else empty.
    """

    container_id: str
    exit_code: int
    finished_at_ns: int
    oom: bool = False
    message: str = ""


class ExitWatch:
    """Watches containers until they end; one for each daemon."""

    def __init__(
        self,
        on_exit: OnExit,
        *,
        group: asyncio.TaskGroup,
        clock: Clock,
        counts: KillCounts,
        exit_dir: Path,
        exit_file_s: float = 5.0,
        on_monitor_lost: OnMonitorLost | None = None,
    ) -> None:
        """Make a watch whose tasks live in `group`; they end with it.

        Args:
            on_exit: told of every end, once; when it raises it is told again, later, because an
            exit
                that was not recorded leaves a container running for ever.
            group: where the tasks live.
            clock: time.
            counts: of memory kills, by cgroup.
            exit_dir: the directory of the exit files.
            exit_file_s: how long an exit file may come after the process's end (seconds).
            on_monitor_lost: told once when conmon died before its container.
        """
        self._on_exit = on_exit
        self._on_monitor_lost = on_monitor_lost
        self._group = group
        self._clock = clock
        self._kills = MemoryKills(counts)
        self._exit_dir = exit_dir
        self._exit_file_s = exit_file_s
        self._watches: dict[str, _Watch] = {}
        self._directory: asyncio.Task[None] | None = None

    def watch(self, target: WatchTarget) -> None:
        """Watch a container; one that is being watched, or whose end was told, is left as it is."""
        if target.container_id in self._watches:
            return
        if self._directory is None:
            self._directory = self._group.create_task(self._follow_directory(), name="exit files")
        watch = _Watch(target)
        self._watches[target.container_id] = watch
        watch.task = self._group.create_task(
            self._run(watch), name=f"exit {target.container_id[:12]}"
        )

    def watched(self, container_id: str) -> bool:
        """Whether its end is still to be told."""
        watch = self._watches.get(container_id)
        return watch is not None and not watch.exited.done()

    def forget(self, container_id: str) -> None:
        """Stop watching, and forget that its end was told. Unknown is fine.

        Not from within `on_exit` of the same container.
        """
        watch = self._watches.pop(container_id, None)
        if watch is not None:
            if watch.task is not None:
                watch.task.cancel()
            watch.exited.cancel()

    async def wait(self, container_id: str) -> Exited:
        """How it ended, as soon as that has been recorded by `on_exit`.

        Raises:
            NotFound: it is not being watched.
        """
        watch = self._watches.get(container_id)
        if watch is None:
            raise NotFound("container is not being watched", container=container_id)
        return await asyncio.shield(watch.exited)

    def close(self) -> None:
        """Stop watching everything; containers go on, and are watched again at the next start."""
        for container_id in list(self._watches):
            self.forget(container_id)
        if self._directory is not None:
            self._directory.cancel()

    # One container.

    async def _run(self, watch: _Watch) -> None:
        # Looking at processes takes a while (0.3 ms); whoever made or started the container, and
        # goes on in the loop's next rounds, answers first.
        for _ in range(_ROUNDS):
            await asyncio.sleep(0)
        try:
            exited = await self._until_exited(watch)
        except Exception as error:
            # Must not end the daemon, and must not leave the container running for ever either.
            _log.error(
                "watching a container failed", exc_info=True, container=watch.target.container_id
            )
            exited = self._unknown(watch.target, f"{type(error).__name__}: {error}")
        await self._deliver(watch, exited)

    async def _until_exited(self, watch: _Watch) -> Exited:
        target = watch.target
        monitor = await self._open(target.monitor)
        told = 0
        try:
            await self._kills.begin(target.container_id, target.cgroup_path)
            process = await self._open(await self._first_process(target))
            if process is not None:
                with process:
                    await self._until_dead(target, process, monitor)
            # Memory kills first: the cgroup goes as soon as anybody cleans up.
            kills = await self._kills.own(target.cgroup_path)
            exited = await self._how(watch, monitor)
            if kills is None and exited.exit_code == KILLED:
                kills = await self._kills.unseen(target.container_id, target.cgroup_path)
            oom = bool(kills)
            if not oom and target.bundle is not None:
                oom = await asyncio.to_thread((target.bundle / "oom").exists)
            told = kills or int(oom)
        finally:
            self._kills.end(target.container_id, told)
            if monitor is not None:
                monitor.close()
        return Exited(
            exited.container_id, exited.exit_code, exited.finished_at_ns, oom, exited.message
        )

    async def _first_process(self, target: WatchTarget) -> ProcessRef | None:
        if target.init is not None or target.runtime is None:
            return target.init
        state = await target.runtime.state(target.container_id)
        ticks = start_ticks(state.pid) if state is not None and state.pid else None
        if state is None or ticks is None:
            return None
        return ProcessRef(pid=state.pid, start_ticks=ticks, boot_id=boot_id())

    async def _open(self, ref: ProcessRef | None) -> Process | None:
        return None if ref is None else await hold(ref, self._clock)

    async def _until_dead(
        self, target: WatchTarget, process: Process, monitor: Process | None
    ) -> None:
        if monitor is None and target.monitor is not None and process.alive():
            # conmon died while nobody watched.
            self._group.create_task(self._tell_monitor_lost(target.container_id))
        if monitor is None:
            await process.wait()
            return
        async with asyncio.TaskGroup() as both:
            watching = both.create_task(self._until_alone(target, process, monitor))
            await process.wait()
            watching.cancel()

    async def _until_alone(self, target: WatchTarget, process: Process, monitor: Process) -> None:
        await monitor.wait()
        # conmon reaps its container before it leaves, so this order tells the two ends apart.
        if process.alive():
            # Not ours to cancel when the container ends meanwhile, perhaps because of it.
            self._group.create_task(self._tell_monitor_lost(target.container_id))

    async def _tell_monitor_lost(self, container_id: str) -> None:
        _log.warning("monitor died before its container", container=container_id)
        if self._on_monitor_lost is None:
            return
        try:
            await self._on_monitor_lost(container_id)
        except PodwrightError as error:
            _log.error(
                "loss of a monitor was not handled", container=container_id, error=str(error)
            )

    # How it ended.

    async def _how(self, watch: _Watch, monitor: Process | None) -> Exited:
        target = watch.target
        now_ns = self._clock.wall_ns()
        if target.exit_file is None:
            return self._unknown(target, "it had no monitor", now_ns)
        deadline_ns = self._clock.monotonic_ns() + int(self._exit_file_s * 1e9)
        pause_s = _LOOK_FIRST_S
        candidates = [target.exit_file]
        if target.bundle is not None:
            # conmon's second copy: the directory of the first may be full.
            candidates.append(target.bundle / "exit")
        while True:
            watch.notice.clear()
            # Before the look: what a dead conmon has written will not change any more.
            last = target.monitor is not None and (monitor is None or not monitor.alive())
            found = await asyncio.to_thread(read_exit, candidates)
            if isinstance(found, ExitFile):
                finished_at_ns = max(found.modified_ns, target.started_at_ns)
                return Exited(target.container_id, found.code, finished_at_ns)
            if found:
                return self._unknown(target, found, now_ns)
            if last:
                return self._unknown(target, "its monitor died without leaving one", now_ns)
            if self._clock.monotonic_ns() >= deadline_ns:
                return self._unknown(target, "its monitor left none in time", now_ns)
            await self._pause(watch.notice, pause_s)
            pause_s = min(pause_s * 2, _LOOK_LAST_S)

    async def _pause(self, notice: asyncio.Event, seconds: float) -> None:
        async with asyncio.TaskGroup() as both:
            noticed = both.create_task(notice.wait())
            slept = both.create_task(self._clock.sleep(seconds))
            await asyncio.wait({noticed, slept}, return_when=asyncio.FIRST_COMPLETED)
            noticed.cancel()
            slept.cancel()

    def _unknown(self, target: WatchTarget, reason: str, at_ns: int | None = None) -> Exited:
        when_ns = self._clock.wall_ns() if at_ns is None else at_ns
        return Exited(
            target.container_id,
            UNKNOWN_EXIT_CODE,
            max(when_ns, target.started_at_ns),
            message=f"exit code is not known: {reason}",
        )

    # Telling.

    async def _deliver(self, watch: _Watch, exited: Exited) -> None:
        pause_s = _RETRY_FIRST_S
        while True:
            try:
                await self._on_exit(exited)
            except Exception as error:
                failure = (
                    error
                    if isinstance(error, PodwrightError)
                    else Internal(f"{type(error).__name__}: {error}")
                )
                _log.error(
                    "exit was not recorded",
                    container=exited.container_id,
                    error=str(failure),
                    retry_s=pause_s,
                )
                await self._clock.sleep(pause_s)
                pause_s = min(pause_s * 2, _RETRY_LAST_S)
            else:
                if not watch.exited.done():
                    watch.exited.set_result(exited)
                return

    async def _follow_directory(self) -> None:
        """Pass notices of new exit files on; without them the looks above are a little later."""
        while True:
            try:
                directory = DirWatch.open(self._exit_dir, clock=self._clock)
            except PodwrightError as error:
                _log.warning("exit files are not followed", error=str(error))
            else:
                try:
                    async for _mask, name in directory:
                        watch = self._watches.get(name)
                        if watch is not None:
                            watch.notice.set()
                finally:
                    directory.close()
            await self._clock.sleep(_RETRY_LAST_S)


class _Watch:
    """State of one watched container."""

    def __init__(self, target: WatchTarget) -> None:
        self.target = target
        self.notice = asyncio.Event()
        self.exited: asyncio.Future[Exited] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None
