"""crun, runc and runsc through their command line: `OciRuntime` for all of them.

Standard error carries the errors as JSON, except for `create` and `exec`: there the container
inherits the runtime's standard streams, so those two write a log file. A runtime that hangs is
killed with its process group; what it had already made of a container is cleared away by whoever
asked for it, because only he knows the cgroup.
"""

from __future__ import annotations

import asyncio
import shlex
import signal
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from sandbox.errors import RuntimeBusy, RuntimeFailed, RuntimeMissing, RuntimeTimeout
from sandbox.host.errors import DeadlineExceeded, NotFound, PodwrightError, from_os_error
from sandbox.host.journal import get_logger
from sandbox.host.pidfd import Process, boot_id, is_zombie, start_ticks
from sandbox.host.threads import in_one_piece, to_its_end
from sandbox.runtime import deletion, direct
from sandbox.runtime.books import Books
from sandbox.runtime.command import (
    LOG_LIMIT_BYTES,
    CommandLine,
    check_container_id,
    describe,
    failure,
    parse_state,
    runtime_message,
    says_gone,
)
from sandbox.runtime.driver import RuntimeState, RuntimeStatus
from sandbox.runtime.written import read_log, read_pid_file
from sandbox.settings import DEFAULT_TIMEOUTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandbox.host.clock import Clock
    from sandbox.host.processes import Finished, ProcessRunner
    from sandbox.model import ProcessRef
    from sandbox.runtime.driver import RuntimeInfo, RuntimeObserver
    from sandbox.runtime.sealed import SealedProgram
    from sandbox.settings import RuntimeHandler, SandboxTimeouts

_log = get_logger("runtime")


class CommandRuntime:
    """One configured handler; see `sandbox.runtime.driver.OciRuntime` for every method."""

    def __init__(
        self,
        handler: RuntimeHandler,
        *,
        runner: ProcessRunner,
        clock: Clock,
        systemd_cgroup: bool = False,
        timeouts: SandboxTimeouts = DEFAULT_TIMEOUTS,
        observer: RuntimeObserver | None = None,
        program: SealedProgram | None = None,
        direct_start: bool = False,
        direct_delete: bool = False,
    ) -> None:
        self._handler = handler
        self._line = CommandLine(handler, systemd_cgroup=systemd_cgroup, program=program)
        # Until the probe has told what the program is, everything goes the ordinary way.
        self._may_start_directly, self._starts_directly = direct_start, False
        # Whoever wants to see each start wants to see each end; systemd's scopes are the program's.
        self._may_delete_directly = direct_start and direct_delete and not systemd_cgroup
        self._delete_directly: Callable[[Path], bool] | None = None
        self._books = Books(handler)
        self._runner = runner
        self._clock = clock
        self._timeouts = timeouts
        self._observer = observer

    @property
    def handler(self) -> RuntimeHandler:
        """The settings this runtime was made from."""
        return self._handler

    @property
    def program(self) -> Path:
        """See the protocol."""
        return self._line.path

    @property
    def takes_console_socket(self) -> bool:
        """See the protocol. crun's own ability; runc refuses (exec.go, checkTerminal, v1.1.5)."""
        return is_crun(self._handler)

    def create_arguments(self, log_file: Path) -> tuple[str, ...]:
        """See the protocol."""
        return self._line.global_options(log_file)

    def exec_argv(
        self,
        cid: str,
        *,
        process_file: Path,
        pid_file: Path,
        log_file: Path,
        console_socket: str = "",
    ) -> tuple[str, ...]:
        """See the protocol."""
        return self._line.exec(
            cid,
            process_file=process_file,
            pid_file=pid_file,
            log_file=log_file,
            console_socket=console_socket,
        )

    # Life cycle.

    async def create(self, bundle: Path, cid: str, pid_file: Path) -> int:
        """See the protocol."""
        log_file = bundle / "runtime.log"
        argv = self._line.create(cid, bundle=bundle, pid_file=pid_file, log_file=log_file)
        if await asyncio.to_thread(self.has, cid):
            # Before anything that would have to be cleared away: that one is somebody's.
            raise RuntimeBusy("the runtime has a container of this id already", container=cid)
        for stale in (log_file, pid_file):
            stale.unlink(missing_ok=True)
        began_ns = self._clock.monotonic_ns()
        try:
            status = await self._run_detached(argv, bundle)
            if status != 0:
                message = await asyncio.to_thread(read_log, log_file)
                raise self._failure("create", cid, status, message, argv)
            pid = await asyncio.to_thread(read_pid_file, pid_file)
        except BaseException:
            self._observe("create", began_ns, ok=False)
            with suppress(PodwrightError):
                await in_one_piece(self.delete(cid, force=True))
            raise
        self._observe("create", began_ns, ok=True)
        return pid

    async def _run_detached(self, argv: tuple[str, ...], cwd: Path) -> int:
        """Run with all standard streams on /dev/null: a created container keeps them."""
        try:
            child = await self._runner.spawn(argv, cwd=cwd)
        except NotFound as error:
            raise self._missing() from error
        try:
            async with asyncio.timeout(self._timeouts.create_s):
                return await child.wait()
        except BaseException as error:
            child.kill_group(signal.SIGKILL)
            if isinstance(error, TimeoutError):
                raise self._timed_out("create", argv, self._timeouts.create_s) from error
            raise

    async def start(self, cid: str) -> None:
        """See the protocol."""
        quick = self.quick_start(cid)
        if quick is None or not await asyncio.to_thread(quick):
            await self._call("start", cid, self._line.start(cid))

    def quick_start(self, cid: str) -> Callable[[], bool] | None:
        """See the protocol."""
        check_container_id(cid)
        return partial(self._start_directly, cid) if self._starts_directly else None

    def _start_directly(self, cid: str) -> bool:
        began_ns = self._clock.monotonic_ns()
        started = direct.start(self._books.directory(cid))
        if started:
            self._observe("start", began_ns, ok=True)
        return started

    async def complete_start(self, init: ProcessRef) -> bool:
        """See the protocol."""
        if not is_crun(self._handler):
            return False
        try:
            return await asyncio.to_thread(direct.complete, init)
        except OSError as error:
            raise from_os_error(error, "cannot look at a container's first process") from error

    async def kill(self, cid: str, signal_number: int, *, all_processes: bool = False) -> None:
        """See the protocol."""
        argv = self._line.kill(cid, signal_number, all_processes=all_processes)
        finished = await self._try("kill", argv)
        if finished.exit_status != 0:
            message = runtime_message(finished.stderr)
            if not says_gone(message):
                raise self._failure("kill", cid, finished.exit_status, message, argv)

    async def update(self, cid: str, resources_json: bytes) -> None:
        """See the protocol."""
        await self._call("update", cid, self._line.update(cid), stdin=resources_json)

    async def pause(self, cid: str) -> None:
        """See the protocol."""
        await self._call("pause", cid, self._line.pause(cid))

    async def resume(self, cid: str) -> None:
        """See the protocol."""
        await self._call("resume", cid, self._line.resume(cid))

    async def state(self, cid: str) -> RuntimeState | None:
        """See the protocol."""
        argv = self._line.state(cid)
        if not await asyncio.to_thread(self.has, cid):
            return None
        finished = await self._try("state", argv)
        if finished.exit_status != 0:
            # A failing `state` never means "does not exist" while there is a directory.
            exists = await asyncio.to_thread(self.has, cid)
            return RuntimeState(RuntimeStatus.BROKEN) if exists else None
        state = parse_state(finished.stdout)
        if state.pid and (is_zombie(state.pid) or start_ticks(state.pid) is None):
            # Both runtimes call a zombie running; one whose parent is slow to reap is dead all
            # the same (this is why a pause process under a lazy init looks alive for a second).
            return RuntimeState(RuntimeStatus.STOPPED)
        return state

    async def delete(
        self, cid: str, *, force: bool = False, init: ProcessRef | None = None
    ) -> None:
        """See the protocol.

        `delete --force` signals the pid in its file without asking whose it is now (crun 1.8.1), so
        it comes last: after a plain `delete`, and after the process was ended by pidfd.
        """
        began_ns = self._clock.monotonic_ns()
        deleted = await to_its_end(partial(self._deleted_here, cid))
        if deleted:
            self._observe("delete", began_ns, ok=True)
        if deleted is not False:
            return
        first = await self._delete(cid, force=False)
        if first is None:
            if not is_crun(self._handler):
                # runc is content although it could not remove them (delete.go, destroy, v1.1.5).
                await asyncio.to_thread(self._books.forget, cid)
            return
        if not force:
            raise first
        state = await self.state(cid)
        if state is None:
            return
        if state.pid:
            await self._end(cid, state.pid, init)
        again = await self._delete(cid, force=state.status is not RuntimeStatus.BROKEN)
        if again is not None:
            _log.warning("runtime cannot delete a container", container=cid, error=str(again))
        # What is left can only be books about a dead process.
        await asyncio.to_thread(self._books.forget, cid)

    def _deleted_here(self, cid: str) -> bool | None:
        """Whether it could be deleted without the program; None: it was not there."""
        if not self.has(cid):
            return None
        delete = self._delete_directly
        return delete is not None and delete(self._books.directory(cid))

    async def _delete(self, cid: str, *, force: bool) -> PodwrightError | None:
        argv = self._line.delete(cid, force=force)
        finished = await self._try("delete", argv)
        message = runtime_message(finished.stderr)
        if finished.exit_status == 0:
            return None
        if says_gone(message) and not await asyncio.to_thread(self.has, cid):
            return None
        return self._failure("delete", cid, finished.exit_status, message, argv)

    async def _end(self, cid: str, pid: int, init: ProcessRef | None) -> None:
        """Kill the process that the runtime's `state` has just found alive, and see it die."""
        if init is not None and init.pid != pid:
            raise RuntimeBusy(
                "the runtime names another process than the one it created",
                container=cid,
                pid=pid,
                expected_pid=init.pid,
            )
        ticks = init.start_ticks if init is not None else start_ticks(pid)
        boot = init.boot_id if init is not None else boot_id()
        process = Process.open(pid, ticks, boot) if ticks is not None else None
        if process is None:
            return
        with process:
            process.send_signal(signal.SIGKILL)
            try:
                async with asyncio.timeout(self._timeouts.kill_s):
                    await process.wait()
            except TimeoutError as error:
                raise RuntimeBusy(
                    "the container's process does not end after SIGKILL",
                    container=cid,
                    pid=pid,
                    hint="it may be frozen or wait for a disk; it is deleted when it has ended",
                ) from error

    def has(self, cid: str) -> bool:
        """See the protocol."""
        return self._books.has(check_container_id(cid))

    async def containers(self) -> frozenset[str]:
        """See the protocol."""
        return await asyncio.to_thread(self._books.names)

    async def probe(self) -> RuntimeInfo:
        """See the protocol."""
        version = await self._try("version", self._line.version(), self._timeouts.probe_s)
        if version.exit_status != 0:
            raise RuntimeFailed(
                f"{self._handler.path} --version failed: {runtime_message(version.stderr)}",
                handler=self._handler.name,
                replay=version.replay,
            )
        features = await self._try("features", self._line.features(), self._timeouts.probe_s)
        info = describe(
            version.stdout.decode("utf-8", "replace"),
            features.stdout if features.exit_status == 0 else None,
            self._handler.name,
        )
        self._starts_directly = self._may_start_directly and direct.is_known(info)
        self._delete_directly = deletion.known(info) if self._may_delete_directly else None
        return info

    # Running the program.

    async def _call(
        self, operation: str, cid: str, argv: tuple[str, ...], *, stdin: bytes = b""
    ) -> None:
        finished = await self._try(operation, argv, stdin=stdin)
        if finished.exit_status != 0:
            message = runtime_message(finished.stderr)
            raise self._failure(operation, cid, finished.exit_status, message, argv)

    async def _try(
        self,
        operation: str,
        argv: tuple[str, ...],
        timeout_s: float | None = None,
        *,
        stdin: bytes = b"",
    ) -> Finished:
        limit_s = timeout_s or self._timeouts.operation_s
        began_ns = self._clock.monotonic_ns()
        ok = False
        try:
            finished = await self._runner.run(
                argv,
                stdin=stdin,
                timeout_s=limit_s,
                output_limit_bytes=4 * LOG_LIMIT_BYTES,
                truncate=True,
            )
            ok = finished.exit_status == 0
        except NotFound as error:
            raise self._missing() from error
        except DeadlineExceeded as error:
            raise self._timed_out(operation, argv, limit_s) from error
        finally:
            self._observe(operation, began_ns, ok=ok)
        return finished

    def _observe(self, operation: str, began_ns: int, *, ok: bool) -> None:
        if self._observer is not None:
            seconds = (self._clock.monotonic_ns() - began_ns) / 1e9
            self._observer.runtime_operation(operation, self._handler.name, seconds, ok)

    def _failure(
        self, operation: str, cid: str, status: int, message: str, argv: tuple[str, ...]
    ) -> PodwrightError:
        return failure(
            operation,
            self._handler.name,
            cid,
            exit_status=status,
            message=message,
            replay=shlex.join(argv),
        )

    def _missing(self) -> RuntimeMissing:
        return RuntimeMissing(
            f"the program of runtime handler {self._handler.name} is not installed",
            path=str(self._handler.path),
            hint=f"install {self._handler.path.name} or correct the handler's path",
        )

    def _timed_out(self, operation: str, argv: tuple[str, ...], limit_s: float) -> RuntimeTimeout:
        return RuntimeTimeout(
            f"{self._handler.name} {operation} did not finish within {limit_s:g} s",
            replay=shlex.join(argv),
        )


def is_crun(handler: RuntimeHandler) -> bool:
    """Whether the handler's program is crun; by its name, as it must be known before it is run."""
    return handler.path.name == "crun"
