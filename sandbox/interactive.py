"""Commands in containers with somebody at the other end: streams instead of a result.

As in ExecSync the runtime is run directly and ends with the command's status. Without a terminal
its three standard streams are pipes of ours. With a terminal there are two ways, because runtimes
differ (`sandbox.host.terminals`): crun sends us the terminal's master side and steps aside; runc
and unknown ones relay between their own terminal and one that we give them.

What becomes of a command whose client vanishes (`close` while it runs):

- Without a terminal it is killed, with all that it has started: its output goes nowhere, nobody can
  learn its exit code, and nobody could end it later.
- With a terminal the terminal is hung up, as when a line drops: the kernel sends SIGHUP. What
  ignores that on purpose (nohup) stays in the container as any background process does.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sandbox.errors import ContainerNotRunning, RuntimeFailed, RuntimeMissing
from sandbox.host import files, terminals
from sandbox.host.asyncfd import FdReader, FdWriter, RelayedReader
from sandbox.host.errors import NotFound, map_os_errors
from sandbox.host.files import Fd
from sandbox.host.pidfd import Process
from sandbox.host.threads import in_one_piece, to_its_end
from sandbox.running import Running, give_score, new_directory, prepare, started
from sandbox.runtime.pipes import STREAM_MODE

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox.cgroups import Cgroups
    from sandbox.host.clock import Clock
    from sandbox.host.processes import ProcessRunner
    from sandbox.model import ProcessRef
    from sandbox.runtime.driver import OciRuntime
    from sandbox.settings import SandboxSettings

#: How long a command may take to end after its terminal was hung up.
HANG_UP_S: Final = 1.0
#: The terminal may arrive just after the runtime's end, when the command was quick.
_LATE_TERMINAL_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class InteractiveRequest:
    """A command to run in a container.

    Attributes:
        container_id: ours.
        runtime: the one that holds the container.
        directory: the container's run directory; a sub-directory lives in it meanwhile.
        cgroup_path: OCI cgroupsPath of the container.
        init: its first process: when that ends, the command must too.
        process_json: OCI `process` document; its `terminal` must be the same as here.
        terminal: run it on a terminal.
        stdin: somebody will write to it; else it is /dev/null, on a terminal just silent.
        stdout: somebody will read it; else it is /dev/null.
        stderr: likewise; nothing of its own on a terminal.
    """

    container_id: str
    runtime: OciRuntime
    directory: Path
    cgroup_path: str
    init: ProcessRef
    process_json: bytes
    terminal: bool = False
    stdin: bool = False
    stdout: bool = False
    stderr: bool = False


class Input:
    """A command's standard input."""

    def __init__(self, fd: Fd, *, terminal: bool = False, relayed: bool = False) -> None:
        """Take the descriptor, which somebody else owns.

        Args:
            fd: a pipe's writing end, or a terminal's master side.
            terminal: which of them.
            relayed: the command's own terminal is another one, which cannot be looked at.
        """
        self._fd = fd
        self._terminal = terminal
        self._relayed = relayed
        self._writer = FdWriter(fd)
        self._finished = False

    async def write(self, data: bytes) -> bool:
        """Hand it over; False once nobody will read any more."""
        if self._finished or not await self._writer.write(data):
            self._finished = True
            return False
        return True

    def finish(self) -> None:
        """No more input. Idempotent."""
        if self._finished:
            return
        self._finished = True
        if not self._terminal:
            self._fd.close()
            return
        try:
            ending = terminals.END_OF_INPUT if self._relayed else terminals.end_of_input(self._fd)
            os.write(self._fd.fileno(), ending)
        except (OSError, ValueError):
            return  # it has ended, or is so far behind that nobody can tell it anything


class InteractiveExec:
    """A command that runs, with its streams; `close` it in any case."""

    def __init__(
        self,
        running: Running,
        init: Process,
        owned: ExitStack,
        group: asyncio.TaskGroup,
        *,
        terminal: Fd | None,
        relayed: bool,
    ) -> None:
        """Made by `InteractiveExecs`.

        Args:
            running: what was started.
            init: the container's first process, ours from now on.
            owned: everything that `close` has to close.
            group: for what must go on when a caller of `close` is cancelled.
            terminal: the master side, or None.
            relayed: the runtime stands between it and the command.
        """
        self.stdin: Input | None = None
        self.stdout: FdReader | None = None
        self.stderr: FdReader | None = None
        self._running = running
        self._init = init
        self._owned = owned
        self._group = group
        self._terminal = terminal
        self._relayed = relayed
        self._guard = group.create_task(running.guard(init))
        self._closing: asyncio.Task[None] | None = None

    def resize(self, columns: int, rows: int) -> None:
        """Set the terminal's size; nothing where there is none. Never raises."""
        if self._terminal is None:
            return
        terminals.set_size(self._terminal, columns, rows)
        if self._relayed:
            # The terminal is nobody's controlling one, so the kernel tells nobody.
            self._running.spawned.kill_group(signal.SIGWINCH)

    async def wait(self) -> int:
        """The exit code, once the command has ended; outputs end soon after.

        Raises:
            CommandNotFound, RuntimeBusy, RuntimeFailed: the runtime could not run it.
            ContainerNotRunning: the container ended first.
        """
        status = await self._running.spawned.wait()
        for output in (self.stdout, self.stderr):
            if output is not None:
                output.expire_after(self._running.timeouts.exec_drain_s)
        failure = await self._running.failure(status, self._init)
        if failure is not None:
            raise failure
        return status

    async def close(self) -> None:
        """End the command if it still runs, as the module text says; free everything."""
        if self._closing is None:
            self._closing = self._group.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            self._guard.cancel()
            if self._running.spawned.pidfd >= 0:
                await self._end()
        finally:
            self._owned.close()
            self._init.close()
            await self._running.clear()

    async def _end(self) -> None:
        if self._terminal is None:
            await self._running.end()
            return
        self._terminal.close()
        # A relaying runtime holds the command's terminal itself: only its end hangs up.
        await self._running.end_runtime(0 if self._relayed else HANG_UP_S)


class InteractiveExecs:
    """Starts commands with streams."""

    def __init__(
        self,
        settings: SandboxSettings,
        *,
        runner: ProcessRunner,
        cgroups: Cgroups,
        clock: Clock,
        group: asyncio.TaskGroup,
    ) -> None:
        self._settings = settings
        self._runner = runner
        self._cgroups = cgroups
        self._clock = clock
        self._group = group

    async def start(self, request: InteractiveRequest) -> InteractiveExec:
        """Start a command.

        Whether its program exists is often only known to `InteractiveExec.wait`.

        Raises:
            ContainerNotRunning: the container has no living process.
            CommandNotFound, RuntimeBusy, RuntimeFailed: the runtime could not run it.
            RuntimeMissing: the runtime's program is not there.
            ResourceExhausted: no descriptor or no terminal is left.
        """
        init = Process.open(request.init.pid, request.init.start_ticks, request.init.boot_id)
        if init is None:
            raise ContainerNotRunning("container is not running", container=request.container_id)
        directory = new_directory(request.directory)
        with ExitStack() as undo:
            undo.callback(init.close)
            try:
                await prepare(directory, request.process_json)
                if not request.terminal:
                    command = await self._with_pipes(request, directory, init)
                elif request.runtime.takes_console_socket:
                    command = await self._with_console(request, directory, init)
                else:
                    command = await self._with_relay(request, directory, init)
            except BaseException:
                await to_its_end(functools.partial(files.remove_tree, directory))
                raise
            undo.pop_all()
        return command

    async def _with_pipes(
        self, request: InteractiveRequest, directory: Path, init: Process
    ) -> InteractiveExec:
        with ExitStack() as ours, ExitStack() as theirs:
            stdin_theirs, stdin = _pipe(request.stdin, theirs, ours)
            stdout, stdout_theirs = _pipe(request.stdout, ours, theirs)
            stderr, stderr_theirs = _pipe(request.stderr, ours, theirs)
            running = await self._spawn(
                request, directory, stdin_theirs, stdout_theirs, stderr_theirs
            )
            command = InteractiveExec(
                running, init, ours.pop_all(), self._group, terminal=None, relayed=False
            )
            command.stdin = Input(stdin) if stdin is not None else None
            command.stdout = FdReader(stdout) if stdout is not None else None
            command.stderr = FdReader(stderr) if stderr is not None else None
            return command

    async def _with_relay(
        self, request: InteractiveRequest, directory: Path, init: Process
    ) -> InteractiveExec:
        with ExitStack() as ours, ExitStack() as theirs:
            master, slave = terminals.open_raw_pair()
            ours.callback(master.close)
            theirs.callback(slave.close)
            running = await self._spawn(request, directory, slave, slave, slave)
            return self._on_terminal(request, running, init, ours.pop_all(), master, relayed=True)

    async def _with_console(
        self, request: InteractiveRequest, directory: Path, init: Process
    ) -> InteractiveExec:
        with ExitStack() as ours, ExitStack() as listening:
            console = terminals.ConsoleSocket(directory)
            listening.callback(console.close)
            running = await self._spawn(request, directory, console_socket=console.path)
            try:
                master = await self._handed_over(running, console, init)
            except BaseException:
                # Who cancels twice must not leave half of it.
                await in_one_piece(running.end())
                raise
            ours.callback(master.close)
            return self._on_terminal(request, running, init, ours.pop_all(), master, relayed=False)

    def _on_terminal(
        self,
        request: InteractiveRequest,
        running: Running,
        init: Process,
        owned: ExitStack,
        master: Fd,
        *,
        relayed: bool,
    ) -> InteractiveExec:
        command = InteractiveExec(
            running, init, owned, self._group, terminal=master, relayed=relayed
        )
        command.stdin = Input(master, terminal=True, relayed=relayed) if request.stdin else None
        # Read in any case: a terminal that nobody reads stops whoever writes to it.
        command.stdout = RelayedReader(master) if relayed else FdReader(master)
        return command

    async def _handed_over(
        self, running: Running, console: terminals.ConsoleSocket, init: Process
    ) -> Fd:
        async with asyncio.TaskGroup() as group:
            received = group.create_task(console.receive())
            ended = group.create_task(running.spawned.wait())
            limit_s = self._settings.timeouts.operation_s
            first = asyncio.FIRST_COMPLETED
            await asyncio.wait({received, ended}, timeout=limit_s, return_when=first)
            await asyncio.wait({received}, timeout=_LATE_TERMINAL_S)
            received.cancel()
            ended.cancel()
        if received.done() and not received.cancelled():
            return received.result()
        if ended.cancelled():
            raise running.too_late()
        status = ended.result()
        raise await running.failure(status, init) or RuntimeFailed(
            f"{running.runtime_name} exec ended without handing over a terminal",
            container=running.container_id,
            exit_status=status,
        )

    async def _spawn(
        self,
        request: InteractiveRequest,
        directory: Path,
        stdin: Fd | None = None,
        stdout: Fd | None = None,
        stderr: Fd | None = None,
        *,
        console_socket: str = "",
    ) -> Running:
        argv = request.runtime.exec_argv(
            request.container_id,
            process_file=directory / "process.json",
            pid_file=directory / "pid",
            log_file=directory / "log",
            console_socket=console_socket,
        )
        try:
            spawned, called_off = await started(
                self._runner.spawn(
                    argv,
                    cwd=directory,
                    stdin_fd=stdin.fileno() if stdin is not None else None,
                    stdout_fd=stdout.fileno() if stdout is not None else None,
                    stderr_fd=stderr.fileno() if stderr is not None else None,
                )
            )
        except NotFound as error:
            raise RuntimeMissing(
                "the container's runtime is not installed", path=str(request.runtime.handler.path)
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
        if called_off is not None:
            await in_one_piece(running.end())
            raise called_off
        return running


def _pipe(wanted: bool, readers: ExitStack, writers: ExitStack) -> tuple[Fd | None, Fd | None]:
    """(reading end, writing end), each owned by its stack; both None when it is not wanted."""
    if not wanted:
        return None, None
    with map_os_errors("cannot make a pipe"):
        reading_number, writing_number = os.pipe2(os.O_CLOEXEC)
        os.fchmod(writing_number, STREAM_MODE)
    reading, writing = Fd(reading_number), Fd(writing_number)
    readers.callback(reading.close)
    writers.callback(writing.close)
    return reading, writing
