"""One container's creation by conmon: started early, held at its start pipe, then let go.

    Podwright ── spawn ──► conmon (1), which waits at the start pipe
        │                      ·
        │ rootfs, document     ·
        ├──── start pipe ─────►│ fork
        │                      ├──► conmon (2): own session, subreaper, oom_score_adj -1000
        ▲                   leaves at once             │ fork, exec
        │                                              ▼
        └──── sync pipe: {"data": PID} ◄──────── OCI runtime create ──► container's first process

The sync pipe ends without a line when conmon gives up silently; its own complaints (before it has
forked) come on standard error, the runtime's in the message and in `runtime.log` in the bundle.

conmon reads its arguments and then the start pipe before it forks or makes anything (src/conmon.c;
the pipe is there so that it can be put into a cgroup first). So its start, 2 to 3 ms with all its
libraries, goes on beside the mount of the root and the making of the OCI document.
Measured on the reference machine: CreateContainer 2.2 ms shorter, of 24 to 26.

conmon takes the end of that pipe for a start. When the daemon is killed meanwhile, it therefore
runs the runtime: without a document that fails at once and conmon is gone, with one the container
is made, and what the next daemon finds is the same as if it had been killed a little later.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sandbox.errors import MonitorFailed, RuntimeBusy, RuntimeMissing, RuntimeTimeout
from sandbox.host.errors import NotFound, PodwrightError, ResourceExhausted, map_os_errors
from sandbox.host.journal import get_logger
from sandbox.host.pidfd import boot_id, start_ticks
from sandbox.model import ProcessRef
from sandbox.monitor import logfile
from sandbox.monitor.request import Created, conmon_argv, parse_report
from sandbox.monitor.survivors import end_monitor, find_monitor
from sandbox.runtime.command import failure, runtime_message, says_exhausted
from sandbox.runtime.pipes import drain, make_pipe, read_line
from sandbox.runtime.written import read_log

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox.cgroups import Cgroups
    from sandbox.host.clock import Clock
    from sandbox.host.files import Fd
    from sandbox.host.processes import ProcessRunner, Spawned
    from sandbox.monitor.request import MonitorRequest
    from sandbox.runtime.driver import RuntimeObserver
    from sandbox.settings import SandboxSettings

_log = get_logger("conmon")

#: conmon passes on up to 8 KiB of the runtime's standard error, escaped to at most six times that.
_REPORT_LIMIT_BYTES: Final = 64 * 1024
_COMPLAINT_LIMIT_BYTES: Final = 8 * 1024

#: How long conmon's own complaint may take once its first process has failed.
_COMPLAINT_S: Final = 1.0

#: How long conmon's first process may take to leave once it was let go; it needs a millisecond.
_LEAVES_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A conmon at its start pipe, and our ends of its three pipes."""

    spawned: Spawned
    start: Fd
    sync: Fd
    complaints: Fd


class Creation:
    """Made by `Conmon.begin`; for one event loop."""

    def __init__(
        self,
        request: MonitorRequest,
        settings: SandboxSettings,
        *,
        runner: ProcessRunner,
        cgroups: Cgroups,
        clock: Clock,
        observer: RuntimeObserver | None,
    ) -> None:
        self._request = request
        self._settings = settings
        self._runner = runner
        self._cgroups = cgroups
        self._clock = clock
        self._observer = observer
        self._log: logfile.PreparedLog | None = None
        self._ends = ExitStack()
        self._preparing: asyncio.Task[_Waiting] | None = None
        self._spawned: Spawned | None = None
        self._let_go = False
        #: Whether it has succeeded.
        self.is_done = False

    def begin(self) -> None:
        """Start conmon beside the caller's work; how that went is told by `finish`.

        The task needs no group: `finish` or `call_off` ends after it.
        """
        if self._preparing is None:
            loop = asyncio.get_running_loop()
            # At once, and not when the task has its first turn: conmon's start is the longest way,
            # and what the caller does now would get the processor first (0.2 ms).
            files = loop.run_in_executor(None, self._make_files)
            self._preparing = loop.create_task(self._prepare(files))

    async def finish(self) -> Created:
        """Let conmon go on; returns when the container's first process waits to be started.

        The bundle must be complete.

        Raises:
            LogPathRefused: the log path is not a place for a log.
            RuntimeBusy: the id is taken.
            RuntimeMissing: conmon or the runtime is not installed.
            RuntimeTimeout: it took longer than `timeouts.create_s`.
            MonitorFailed: conmon gave up.
            RuntimeFailed and others of `OciRuntime`: the runtime's own words.
        """
        began_ns = self._clock.monotonic_ns()
        ok = False
        try:
            waiting = await self._prepared()
            # From here on there may be something of the runtime's to clear away.
            self._let_go = True
            pid, monitor = await self._go(waiting)
            ok = True
        finally:
            if self._let_go:
                self._observe(began_ns, ok=ok)
        self.is_done = True
        self._ends.close()
        return Created(
            init=ProcessRef(pid=pid, start_ticks=start_ticks(pid) or 0, boot_id=boot_id()),
            monitor=monitor,
            log_path=str(self._log.path) if self._log is not None else "",
        )

    async def call_off(self) -> None:
        """Undo whatever there is, unless the creation has succeeded; never raises for it.

        Everything that was started is killed, the runtime's books and the cgroup are cleared, and a
        log file made for it is removed.
        """
        if self._preparing is None or self.is_done:
            return
        # Never cancelled: what a thread goes on making could not be found again.
        await asyncio.wait({self._preparing})
        if not self._preparing.cancelled():
            self._preparing.exception()  # looked at; what the caller met counts
        if self._spawned is not None:
            if self._let_go:
                await self._leave(self._spawned)
            # Before our end of the start pipe is closed: conmon would take that for a start. Only
            # bites while the first process has not left.
            self._spawned.kill_group(signal.SIGKILL)
        self._ends.close()
        if self._let_go:
            await self._clear()
        if self._log is not None:
            await asyncio.to_thread(self._log.discard)

    # Until it waits.

    async def _prepared(self) -> _Waiting:
        self.begin()
        assert self._preparing is not None
        # Not awaited itself: a cancellation of ours would reach into it.
        await asyncio.wait({self._preparing})
        return self._preparing.result()

    async def _prepare(self, files: asyncio.Future[None]) -> _Waiting:
        request = self._request
        await files
        argv = conmon_argv(
            self._settings.conmon_path,
            request,
            log=self._log.path if self._log is not None else None,
            systemd_cgroup=self._cgroups.systemd,
        )
        waiting = await self._start(argv)
        if self._settings.monitor_cgroup:
            await self._cgroups.enter(self._settings.monitor_cgroup, waiting.spawned.pid)
        return waiting

    def _make_files(self) -> None:
        request = self._request
        if request.runtime.has(request.container_id):
            # Before anything that would have to be cleared away: that one is somebody's.
            raise RuntimeBusy(
                "the runtime has a container of this id already", container=request.container_id
            )
        if request.log_path:
            self._log = logfile.prepare_log(request.log_path)
        _prepare_bundle(request.bundle, self._log)

    async def _start(self, argv: tuple[str, ...]) -> _Waiting:
        request, ours = self._request, self._ends
        with ExitStack() as theirs:
            sync, sync_writer = make_pipe()
            ours.callback(sync.close)
            theirs.callback(sync_writer.close)
            complaints, complaints_writer = make_pipe()
            ours.callback(complaints.close)
            theirs.callback(complaints_writer.close)
            start_reader, start = make_pipe()
            os.set_blocking(start_reader.fileno(), True)
            ours.callback(start.close)
            theirs.callback(start_reader.close)
            env = {
                "_OCI_SYNCPIPE": str(sync_writer.fileno()),
                "_OCI_STARTPIPE": str(start_reader.fileno()),
            }
            if request.terminal:
                # Its console socket is a file in there; /tmp is everybody's.
                env["TMPDIR"] = str(_console_directory(request))
            try:
                spawned = self._spawned = await self._runner.spawn(
                    argv,
                    env=env,
                    cwd=request.bundle,
                    pass_fds=(sync_writer.fileno(), start_reader.fileno()),
                    stderr_fd=complaints_writer.fileno(),
                )
            except NotFound as error:
                raise RuntimeMissing(
                    "conmon is not installed",
                    path=str(self._settings.conmon_path),
                    hint="install the conmon package or correct its path",
                ) from error
        return _Waiting(spawned, start, sync, complaints)

    # From then on.

    async def _go(self, waiting: _Waiting) -> tuple[int, ProcessRef | None]:
        request, limit_s = self._request, self._settings.timeouts.create_s
        try:
            async with asyncio.timeout(limit_s):
                return await self._handshake(waiting)
        except TimeoutError as error:
            raise RuntimeTimeout(
                f"{request.runtime.handler.name} create did not finish within {limit_s:g} s",
                container=request.container_id,
            ) from error

    async def _handshake(self, waiting: _Waiting) -> tuple[int, ProcessRef | None]:
        request = self._request
        with suppress(BrokenPipeError):
            os.write(waiting.start.fileno(), b"\0")
        status = await waiting.spawned.wait()
        if status != 0:
            complaint = await _read_complaint(waiting.complaints)
            kind = ResourceExhausted if says_exhausted(complaint) else MonitorFailed
            raise kind(
                f"conmon failed: {complaint or 'it gave no reason'}",
                container=request.container_id,
                exit_status=status,
            )
        # The first process has written the number of the second before it left.
        line, monitor = await asyncio.gather(
            read_line(waiting.sync, limit_bytes=_REPORT_LIMIT_BYTES),
            asyncio.to_thread(find_monitor, request.bundle),
        )
        if not line:
            raise await self._explain("")
        pid, words = parse_report(line)
        if pid < 0:
            raise await self._explain(words)
        return pid, monitor

    async def _explain(self, words: str) -> PodwrightError:
        """The error for a create that did not work: the runtime's log first, it is never cut."""
        request = self._request
        logged = await asyncio.to_thread(read_log, request.bundle / "runtime.log")
        message = logged or words
        if not message:
            return MonitorFailed(
                "conmon ended without a word and without a container",
                container=request.container_id,
            )
        return failure(
            "create",
            request.runtime.handler.name,
            request.container_id,
            exit_status=1,
            message=message,
        )

    @staticmethod
    async def _leave(first: Spawned) -> None:
        """Let the first process end by itself, which it does as soon as it has forked.

        Killed between its fork and the writing of `conmon.pid`, it would leave a second one whose
        number nobody knows.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_LEAVES_S):
                await first.wait()

    def _observe(self, began_ns: int, *, ok: bool) -> None:
        if self._observer is not None:
            seconds = (self._clock.monotonic_ns() - began_ns) / 1e9
            name = self._request.runtime.handler.name
            self._observer.runtime_operation("create", name, seconds, ok)

    async def _clear(self) -> None:
        """After a failure: end conmon, the runtime, hooks and the container; forget them.

        conmon first (its runtime child dies with it), then whatever else is in its session, such as
        hooks, then the cgroup. `delete` comes after the processes, so it signals nobody.
        """
        request = self._request
        with suppress(PodwrightError):
            await asyncio.to_thread(end_monitor, request.bundle)
            await self._cgroups.kill(request.cgroup_path)
        for step in (
            request.runtime.delete(request.container_id, force=True),
            self._cgroups.remove(request.cgroup_path),
        ):
            try:
                await step
            except PodwrightError as error:
                _log.warning(
                    "cannot clear away a failed container",
                    container=request.container_id,
                    error=str(error),
                )


def _prepare_bundle(bundle: Path, log: logfile.PreparedLog | None) -> None:
    """Remove what an earlier try left, and link to the log. Blocking."""
    with map_os_errors("cannot prepare a container's directory", path=str(bundle)):
        # Who makes the bundle meanwhile may have opened it to a pod's users: its mode stays.
        try:
            bundle.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            for name in ("pid", "conmon.pid", "runtime.log", "log", "oom", "exit"):
                (bundle / name).unlink(missing_ok=True)
        # Made here: the runtime would make it readable for all, its words may be anybody's.
        (bundle / "runtime.log").touch(mode=0o600)
        if log is not None:
            (bundle / "log").symlink_to(log.path)


def _console_directory(request: MonitorRequest) -> Path:
    """A private directory with a path short enough for a socket (sun_path: 107 bytes)."""
    directory = request.exit_dir.parent / "console"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


async def _read_complaint(pipe: Fd) -> str:
    said = bytearray()

    def take(data: bytes) -> bool:
        said.extend(data[: _COMPLAINT_LIMIT_BYTES - len(said)])
        return len(said) < _COMPLAINT_LIMIT_BYTES

    with suppress(TimeoutError):
        async with asyncio.timeout(_COMPLAINT_S):
            await drain(pipe, take)
    return runtime_message(bytes(said))
