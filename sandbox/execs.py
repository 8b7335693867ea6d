"""ExecSync: run a command in a container, wait for it, return what it wrote.

The runtime is run directly, with pipes, no conmon in between: nobody attaches, and one process
less is one less to lose. `exec` of crun and runc waits for the command and ends with its status
(128 plus the signal's number where one ended it), so a normal end needs nothing else. The rest of
this module is about the ends that are not normal:

- Too much output: what is beyond the limit is read and dropped; a writer is never blocked. All
  commands have a limit together as well, or a hundred of them would be a hundred limits of memory.
- Out of time, or the client has gone: the command and everything it started is killed: all of its
  session, and all descendants (`sandbox.runtime.proctree`). Killing the runtime alone would leave
  them. A call that is cancelled once more meanwhile does not stop that. Only the end of the daemon
  does: then the command's directory stays, by which the next one finds it (`sweep_execs`).
- A background process keeps the pipes: the answer waits for a moment (`exec_drain_s`), then goes
  out; the process is left alone.
- The container ends: its processes die with it, the command too.

What the runtime itself complains about (no such program, container paused) is told apart from an
exit code by its log, since it may end with any code.
"""

from __future__ import annotations

import asyncio
import functools
import signal
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sandbox.errors import ContainerNotRunning, ExecTimeout, RuntimeMissing
from sandbox.host import files
from sandbox.host.errors import NotFound, PodwrightError
from sandbox.host.journal import get_logger
from sandbox.host.pidfd import Process, boot_id, start_ticks
from sandbox.host.threads import to_its_end
from sandbox.running import (
    EXEC_PREFIX,
    REAP_S,
    Running,
    give_score,
    new_directory,
    prepare,
    started,
)
from sandbox.runtime import proctree
from sandbox.runtime.pipes import Budget, Captured, Pool, drain, make_pipe
from sandbox.runtime.written import read_pid_file

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox.cgroups import Cgroups
    from sandbox.host.clock import Clock
    from sandbox.host.files import Fd
    from sandbox.host.processes import ProcessRunner
    from sandbox.model import ProcessRef
    from sandbox.runtime.driver import OciRuntime, RuntimeObserver
    from sandbox.settings import SandboxSettings

_log = get_logger("execs")

#: Pauses between looks for the pid file of a command that goes on for longer (seconds).
_PID_PAUSE_FIRST_S: Final = 0.05
_PID_PAUSE_LAST_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """A command to run in a container.

    Attributes:
        container_id: ours.
        runtime: the one that holds the container.
        directory: the container's run directory; a sub-directory lives in it meanwhile.
        cgroup_path: OCI cgroupsPath of the container.
        init: its first process: when that ends, the command must too.
        process_json: OCI `process` document, terminal false.
        timeout_s: 0 or less waits for ever.
    """

    container_id: str
    runtime: OciRuntime
    directory: Path
    cgroup_path: str
    init: ProcessRef
    process_json: bytes
    timeout_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What came of it.

    Attributes:
        stdout: what it wrote, up to the limit.
        stderr: likewise; both together stay below the limit.
        exit_code: 0 to 255.
        truncated: there was more.
    """

    stdout: bytes
    stderr: bytes
    exit_code: int
    truncated: bool = False


class Execs:
    """Runs commands in containers."""

    def __init__(
        self,
        settings: SandboxSettings,
        *,
        runner: ProcessRunner,
        cgroups: Cgroups,
        clock: Clock,
        observer: RuntimeObserver | None = None,
    ) -> None:
        self._settings = settings
        self._runner = runner
        self._cgroups = cgroups
        self._clock = clock
        self._observer = observer
        self._pool = Pool(settings.exec_outputs_bytes)

    async def exec_sync(self, request: ExecRequest) -> ExecResult:
        """Run the command to its end.

        Raises:
            ExecTimeout: `timeout_s` is over; everything of the command was killed.
            ContainerNotRunning: the container has no living process.
            CommandNotFound, RuntimeBusy, RuntimeFailed: the runtime could not run it.
            RuntimeMissing: the runtime's program is not there.
        """
        began_ns = self._clock.monotonic_ns()
        init = Process.open(request.init.pid, request.init.start_ticks, request.init.boot_id)
        if init is None:
            raise ContainerNotRunning("container is not running", container=request.container_id)
        directory = new_directory(request.directory)
        ok = left = False
        try:
            with init:
                await prepare(directory, request.process_json)
                result = await self._run(request, directory, init)
            ok = True
        except _Left:
            left = True
            raise
        finally:
            if self._observer is not None:
                seconds = (self._clock.monotonic_ns() - began_ns) / 1e9
                self._observer.runtime_operation("exec", request.runtime.handler.name, seconds, ok)
            if not left:
                await to_its_end(functools.partial(files.remove_tree, directory))
        return result

    async def _run(self, request: ExecRequest, directory: Path, init: Process) -> ExecResult:
        argv = request.runtime.exec_argv(
            request.container_id,
            process_file=directory / "process.json",
            pid_file=directory / "pid",
            log_file=directory / "log",
        )
        with ExitStack() as ours:
            budget = ours.enter_context(Budget(self._settings.exec_output_bytes, self._pool))
            stdout, stderr = Captured(budget), Captured(budget)
            with ExitStack() as theirs:
                out, out_writer = make_pipe()
                ours.callback(out.close)
                theirs.callback(out_writer.close)
                err, err_writer = make_pipe()
                ours.callback(err.close)
                theirs.callback(err_writer.close)
                try:
                    spawned, called_off = await started(
                        self._runner.spawn(
                            argv,
                            cwd=directory,
                            stdout_fd=out_writer.fileno(),
                            stderr_fd=err_writer.fileno(),
                        )
                    )
                except NotFound as error:
                    raise RuntimeMissing(
                        "the container's runtime is not installed",
                        path=str(request.runtime.handler.path),
                    ) from error
            give_score(spawned, request.process_json)
            running = Running(
                container_id=request.container_id,
                runtime_name=request.runtime.handler.name,
                cgroup_path=request.cgroup_path,
                directory=directory,
                argv=argv,
                spawned=spawned,
                cgroups=self._cgroups,
                clock=self._clock,
                timeouts=self._settings.timeouts,
            )
            try:
                if called_off is not None:
                    raise called_off
                status = await self._attend(request, running, init, (out, stdout), (err, stderr))
            except _Withheld:
                spawned.kill_group(signal.SIGKILL)
                await spawned.wait()
                raise ExecTimeout(
                    "command has ended, but a background process of its keeps its output open and "
                    f"{request.runtime.handler.name} withholds the exit code until that ends",
                    container=request.container_id,
                    hint="redirect the output of what the command leaves running, or use crun",
                ) from None
            except BaseException:
                await _end(running)
                raise
        failure = await running.failure(status, init)
        if failure is not None:
            raise failure
        return ExecResult(bytes(stdout.data), bytes(stderr.data), status, budget.exceeded)

    async def _attend(
        self,
        request: ExecRequest,
        running: Running,
        init: Process,
        *streams: tuple[Fd, Captured],
    ) -> int:
        """Read both streams and wait for the end; the runtime's exit status.

        Raises:
            ExecTimeout: it is not the end yet.
            _Withheld: it is the end of the command but not of the runtime.
        """
        async with asyncio.TaskGroup() as group:
            readers = [group.create_task(self._read(pipe, sink)) for pipe, sink in streams]
            guard = group.create_task(running.guard(init))
            ended = group.create_task(running.spawned.wait())
            withheld = group.create_task(self._until_withheld(running.pid_file))
            await asyncio.wait(
                {ended, withheld},
                timeout=request.timeout_s if request.timeout_s > 0 else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            status = ended.result() if ended.done() else None
            late = withheld.done()
            if status is not None:
                await asyncio.wait(readers, timeout=self._settings.timeouts.exec_drain_s)
            for task in (*readers, guard, ended, withheld):
                task.cancel()
        if status is not None:
            return status
        if late:
            raise _Withheld
        raise ExecTimeout(
            f"command did not end within {request.timeout_s:g} s and was killed",
            container=request.container_id,
        )

    async def _until_withheld(self, pid_file: Path) -> None:
        """Wait for the end of the command itself, and then for a runtime that should end too.

        crun hands our pipes to the command and ends with it. runc copies through pipes of its own
        and waits until the last holder has closed them, however long that takes.
        """
        pause_s = _PID_PAUSE_FIRST_S
        while True:
            await self._clock.sleep(pause_s)
            pause_s = min(pause_s * 2, _PID_PAUSE_LAST_S)
            with suppress(PodwrightError):
                pid = await asyncio.to_thread(read_pid_file, pid_file)
                break
        ticks = start_ticks(pid)
        process = Process.open(pid, ticks, boot_id()) if ticks is not None else None
        if process is not None:
            with process:
                await process.wait()
        await self._clock.sleep(self._settings.timeouts.exec_drain_s)

    async def _read(self, pipe: Fd, sink: Captured) -> None:
        try:
            await drain(pipe, sink.take)
        except PodwrightError as error:
            # The command goes on and its exit code counts; what it writes from now on is lost.
            _log.warning("output of a command cannot be read", error=str(error))


async def _end(running: Running) -> None:
    """Kill the command, in a task of its own: who cancels twice must not leave half of it.

    Raises:
        CancelledError: the caller was cancelled meanwhile; the command has ended.
        _Left: so was that task, as all are when the daemon ends.
    """
    cancelled: asyncio.CancelledError | None = None
    async with asyncio.TaskGroup() as group:
        ending = group.create_task(running.end())
        while not ending.done():
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError as error:
                cancelled = error
    if ending.cancelled():
        raise _Left
    if cancelled is not None:
        raise cancelled


class _Left(asyncio.CancelledError):
    """The command may live on; by its directory the next daemon finds it."""


class _Withheld(Exception):
    """The command has ended and the runtime has not."""


async def sweep_execs(directory: Path, cgroup_path: str, cgroups: Cgroups, clock: Clock) -> int:
    """End what a daemon that was killed left running in a container, and remove its files.

    Args:
        directory: the container's run directory.
        cgroup_path: OCI cgroupsPath of the container.
        cgroups: to tell processes of the container from others.
        clock: for the moment that the runtimes have to end by themselves.

    Returns:
        How many commands were found.
    """
    found = await asyncio.to_thread(lambda: sorted(directory.glob(f"{EXEC_PREFIX}*")))
    for exec_directory in found:
        await _kill_members(exec_directory, cgroup_path, cgroups)
        runtimes, _ = await _of_exec(exec_directory, cgroup_path, cgroups)
        if runtimes:
            await clock.sleep(REAP_S)
            # One that stays may have come to its command only now; stopped, it starts nobody more.
            proctree.kill(runtimes, signal.SIGSTOP)
            await _kill_members(exec_directory, cgroup_path, cgroups)
            proctree.kill(runtimes)
        await asyncio.to_thread(files.remove_tree, exec_directory)
    return len(found)


async def _kill_members(directory: Path, cgroup_path: str, cgroups: Cgroups) -> None:
    """Kill all of a command but its runtimes; stopped first, as in `Running.end`."""
    stopped: set[tuple[int, int]] = set()
    members: list[proctree.ProcessInfo] = []
    for _ in range(proctree.ROUNDS):
        _, members = await _of_exec(directory, cgroup_path, cgroups)
        fresh = [one for one in members if (one.pid, one.start_ticks) not in stopped]
        if not fresh:
            break
        proctree.kill(fresh, signal.SIGSTOP)
        stopped |= {(one.pid, one.start_ticks) for one in fresh}
    proctree.kill(members)


async def _of_exec(
    directory: Path, cgroup_path: str, cgroups: Cgroups
) -> tuple[list[proctree.ProcessInfo], list[proctree.ProcessInfo]]:
    """The runtimes that run a command, and everybody else of it."""
    inside = await cgroups.processes(cgroup_path)
    everyone = await asyncio.to_thread(proctree.snapshot)
    word = f"--process={directory / 'process.json'}"
    runtimes = await asyncio.to_thread(proctree.with_word, everyone, word)
    members = proctree.family(everyone, {info.pid for info in runtimes})
    with suppress(PodwrightError):
        session = await asyncio.to_thread(read_pid_file, directory / "pid")
        candidates = [info for info in everyone if info.pid in inside]
        members += proctree.family(candidates, {session})
    return runtimes, [info for info in members if info not in runtimes]
