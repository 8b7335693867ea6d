"""Starting conmon, and through it a container; talking to it afterwards.

    Podwright ── spawn ──► conmon (1) ── fork ──► conmon (2): own session, subreaper, oom_score_adj
    -1000
        ▲                   leaves at once             │ fork, exec
        │                                              ▼
        └──── sync pipe: {"data": PID} ◄──────── OCI runtime create ──► container's first process

The sync pipe ends without a line when conmon gives up silently; its own complaints (before it has
forked) come on standard error, the runtime's in the message and in `runtime.log` in the bundle.

Files conmon makes in the bundle, which is its working directory as well: `pid` (container),
`conmon.pid`, `ctl`, `winsz`, `attach`, `oom` (touched when the kernel killed for memory), `exit`
(a second copy of the exit file). `log` is a link of ours to the real log path.

Why not `--sync` (a single fork): conmon would be a child of the daemon, and a zombie of a daemon
that was restarted in between has no better parent than init anyway. With the double fork it is
init's from the start, and the daemon's death changes nothing for it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from sandbox.errors import (
    MonitorFailed,
    MonitorGone,
    RuntimeBusy,
    RuntimeMissing,
    RuntimeTimeout,
)
from sandbox.host.errors import NotFound, PodwrightError, ResourceExhausted, from_os_error
from sandbox.host.journal import get_logger
from sandbox.host.pidfd import boot_id, start_ticks
from sandbox.host.threads import in_one_piece, to_its_end
from sandbox.model import ProcessRef
from sandbox.monitor import control, logfile
from sandbox.monitor.request import Created, conmon_argv, parse_report
from sandbox.monitor.survivors import end_monitor, find_monitor
from sandbox.runtime.command import failure, runtime_message, says_exhausted
from sandbox.runtime.pipes import drain, make_pipe, read_line
from sandbox.runtime.written import read_log

if TYPE_CHECKING:
    from collections.abc import Mapping
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


class Conmon:
    """Makes containers under conmon."""

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
        #: One at a time for each container; a lock lives while somebody holds or awaits it.
        self._reopening: WeakValueDictionary[Path, asyncio.Lock] = WeakValueDictionary()

    async def create(self, request: MonitorRequest) -> Created:
        """Create the container; returns when its first process waits to be started.

        On failure, time-out and cancellation everything that was started is killed, the runtime's
        books and the cgroup are cleared, and a log file made for it is removed.

        Raises:
            LogPathRefused: the log path is not a place for a log.
            RuntimeBusy: the id is taken.
            RuntimeMissing: conmon or the runtime is not installed.
            RuntimeTimeout: it took longer than `timeouts.create_s`.
            MonitorFailed: conmon gave up.
            RuntimeFailed and others of `OciRuntime`: the runtime's own words.
        """
        if await request.runtime.state(request.container_id) is not None:
            # Before anything that would have to be cleared away: that one is somebody's.
            raise RuntimeBusy(
                "the runtime has a container of this id already", container=request.container_id
            )
        began_ns = self._clock.monotonic_ns()
        log = None
        if request.log_path:
            preparing = partial(logfile.prepare_log, request.log_path)
            log = await to_its_end(preparing, unless=logfile.PreparedLog.discard)
        try:
            await to_its_end(partial(_prepare_bundle, request.bundle, log))
            pid = await self._run(request, log.path if log is not None else None)
            monitor = await asyncio.to_thread(find_monitor, request.bundle)
        except BaseException:
            self._observe(request, began_ns, ok=False)
            await in_one_piece(self._clear(request, log))
            raise
        self._observe(request, began_ns, ok=True)
        boot = boot_id()
        return Created(
            init=ProcessRef(pid=pid, start_ticks=start_ticks(pid) or 0, boot_id=boot),
            monitor=monitor,
            log_path=str(log.path) if log is not None else "",
        )

    async def _run(self, request: MonitorRequest, log: Path | None) -> int:
        argv = conmon_argv(
            self._settings.conmon_path,
            request,
            log=log,
            systemd_cgroup=self._cgroups.systemd,
        )
        with ExitStack() as ours, ExitStack() as theirs:
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
            spawned = await self._spawn(
                argv,
                request,
                env,
                pass_fds=(sync_writer.fileno(), start_reader.fileno()),
                stderr_fd=complaints_writer.fileno(),
            )
            theirs.close()
            try:
                async with asyncio.timeout(self._settings.timeouts.create_s):
                    return await self._handshake(request, spawned, start, sync, complaints)
            except TimeoutError as error:
                raise RuntimeTimeout(
                    f"{request.runtime.handler.name} create did not finish within "
                    f"{self._settings.timeouts.create_s:g} s",
                    container=request.container_id,
                ) from error
            finally:
                # Only bites while the first process has not left.
                spawned.kill_group(signal.SIGKILL)

    async def _spawn(
        self,
        argv: tuple[str, ...],
        request: MonitorRequest,
        env: Mapping[str, str],
        *,
        pass_fds: tuple[int, ...],
        stderr_fd: int,
    ) -> Spawned:
        try:
            return await self._runner.spawn(
                argv, env=env, cwd=request.bundle, pass_fds=pass_fds, stderr_fd=stderr_fd
            )
        except NotFound as error:
            raise RuntimeMissing(
                "conmon is not installed",
                path=str(self._settings.conmon_path),
                hint="install the conmon package or correct its path",
            ) from error

    async def _handshake(
        self, request: MonitorRequest, spawned: Spawned, start: Fd, sync: Fd, complaints: Fd
    ) -> int:
        if self._settings.monitor_cgroup:
            await self._cgroups.enter(self._settings.monitor_cgroup, spawned.pid)
        with suppress(BrokenPipeError):
            os.write(start.fileno(), b"\0")
        status = await spawned.wait()
        if status != 0:
            complaint = await _read_complaint(complaints)
            kind = ResourceExhausted if says_exhausted(complaint) else MonitorFailed
            raise kind(
                f"conmon failed: {complaint or 'it gave no reason'}",
                container=request.container_id,
                exit_status=status,
            )
        line = await read_line(sync, limit_bytes=_REPORT_LIMIT_BYTES)
        if not line:
            raise await self._explain(request, "")
        pid, words = parse_report(line)
        if pid < 0:
            raise await self._explain(request, words)
        return pid

    async def _explain(self, request: MonitorRequest, words: str) -> PodwrightError:
        """The error for a create that did not work: the runtime's log first, it is never cut."""
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

    def _observe(self, request: MonitorRequest, began_ns: int, *, ok: bool) -> None:
        if self._observer is not None:
            seconds = (self._clock.monotonic_ns() - began_ns) / 1e9
            self._observer.runtime_operation("create", request.runtime.handler.name, seconds, ok)

    async def _clear(self, request: MonitorRequest, log: logfile.PreparedLog | None) -> None:
        """After a failure: end conmon, the runtime, hooks and the container; forget them.

        conmon first (its runtime child dies with it), then whatever else is in its session, such as
        hooks, then the cgroup. `delete` comes after the processes, so it signals nobody.
        """
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
        if log is not None:
            await asyncio.to_thread(log.discard)

    # Afterwards.

    async def reopen_log(self, bundle: Path) -> None:
        """Have conmon close the log and open the path anew; returns when it has.

        A log that conmon is already writing under its path is left as it is: opening it anew would
        lose what is in it. Without a log path there is nothing to do.

        Raises:
            MonitorGone: conmon is dead, or did not react within `timeouts.reopen_s`.
            LogPathRefused: the log's directory is gone or was replaced; no file was made.
            PodwrightError: the new file cannot be made; no file was made.
        """
        lock = self._reopening.get(bundle) or asyncio.Lock()
        self._reopening[bundle] = lock
        async with lock:
            await self._reopen(bundle)

    async def _reopen(self, bundle: Path) -> None:
        log = await asyncio.to_thread(_linked_log, bundle)
        if log is None:
            return
        monitor = await asyncio.to_thread(find_monitor, bundle)
        if monitor is None:
            raise MonitorGone("the container's monitor is dead", bundle=bundle.name)
        if await asyncio.to_thread(logfile.is_written_by, monitor.pid, log):
            return
        discard = partial(logfile.temporary_of(log).unlink, missing_ok=True)
        inode = await to_its_end(partial(logfile.prepare_reopen, log), unless=lambda _: discard())
        try:
            control.send(bundle / "ctl", control.reopen_message())
            await self._until_renamed(log, inode)
        except BaseException:
            await to_its_end(discard)
            raise

    async def _until_renamed(self, log: Path, inode: int) -> None:
        deadline_ns = self._clock.monotonic_ns() + int(self._settings.timeouts.reopen_s * 1e9)
        pause_s = 0.001
        while True:
            found = logfile.inode_of(log)
            if found is not None and found[1] == inode:
                return
            if self._clock.monotonic_ns() >= deadline_ns:
                raise MonitorGone("the container's monitor did not open the new log", path=str(log))
            await self._clock.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.05)

    async def resize(self, bundle: Path, width: int, height: int) -> None:
        """Set the size of the container's terminal; one without columns or rows is ignored.

        Raises:
            MonitorGone: conmon is dead or does not react.
        """
        message = control.resize_message(width, height)
        if message is not None:
            control.send(bundle / "winsz", message)


def _prepare_bundle(bundle: Path, log: logfile.PreparedLog | None) -> None:
    """Remove what an earlier try left, and link to the log. Blocking."""
    for name in ("pid", "conmon.pid", "runtime.log", "log", "oom", "exit"):
        (bundle / name).unlink(missing_ok=True)
    # Made here: the runtime would make it readable for all, its words may be anybody's.
    (bundle / "runtime.log").touch(mode=0o600)
    if log is not None:
        (bundle / "log").symlink_to(log.path)


def _linked_log(bundle: Path) -> Path | None:
    try:
        return (bundle / "log").readlink()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise from_os_error(error, "cannot read the link to the container's log") from error


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
