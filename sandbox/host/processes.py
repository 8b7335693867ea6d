"""Running helper programs: `ProcessRunner`, its values, and the one real implementation.

Why not asyncio's own subprocesses: their default watcher costs a thread for each child,
`communicate` waits for as long as any grandchild holds the pipe, and a cancelled wait leaves the
child running. Here a child is started by posix_spawn in a thread (`spawning`), its end is told by
its pidfd to the event loop, and whatever ends the wait (time, cancellation, too much output) kills
the child's whole process group. The child is reaped only after the last signal to its group, so a
group number cannot have passed to a stranger.

Standard input is a memory file, not a pipe: any size is there before the program starts, and a
program that does not read it costs nothing.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal as signals
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from sandbox.host.children import Child, Collector, start_child
from sandbox.host.clock import Clock, SystemClock
from sandbox.host.errors import (
    DeadlineExceeded,
    PodwrightError,
    ResourceExhausted,
    from_os_error,
)
from sandbox.host.journal import get_logger
from sandbox.host.threads import in_one_piece

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sandbox.host.rlimits import OpenFiles

_log = get_logger(__name__)

#: What every program gets; the daemon's own environment never passes through.
MINIMAL_ENV: Final[Mapping[str, str]] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}
DEFAULT_OUTPUT_LIMIT_BYTES: Final = 1024 * 1024
#: Wait for a killed program to end. Longer means it is stuck in the kernel; it is then reaped
#: whenever it ends, without anybody waiting.
KILL_WAIT_S: Final = 5.0
#: Wait, after the program's end, for a grandchild that still holds the pipe.
DRAIN_S: Final = 1.0
_TAIL_BYTES: Final = 2048


@dataclass(frozen=True, slots=True)
class Finished:
    """A program that has ended.

    Attributes:
        exit_status: the exit code, or minus the number of the signal that ended it.
        took_ns: from the start to the end of its output.
        stdout_truncated: more than the limit was written (either stream) and dropped.
        pipe_held: something it started still held the pipes when the drain time was over.
    """

    argv: tuple[str, ...]
    exit_status: int
    stdout: bytes
    stderr: bytes
    took_ns: int
    stdout_truncated: bool = False
    pipe_held: bool = False

    @property
    def replay(self) -> str:
        """The command line, to be pasted into a shell."""
        return shlex.join(self.argv)

    @property
    def message(self) -> str:
        """The end of what it said, standard error first, for an error's text."""
        tail = (self.stderr.strip() or self.stdout.strip())[-_TAIL_BYTES:]
        return " ".join(tail.decode(errors="replace").split())


class Spawned(Protocol):
    """A program that was started and is left running."""

    @property
    def pid(self) -> int:
        """Its process number."""
        ...

    @property
    def pidfd(self) -> int:
        """Its pidfd, owned by this object; -1 once it was reaped."""
        ...

    async def wait(self) -> int:
        """Its exit status (negative: signal); any number of tasks may wait."""
        ...

    def kill_group(self, signal: int = signals.SIGKILL) -> bool:
        """Signal its process group; False when it has ended already."""
        ...


class ProcessRunner(Protocol):
    """Runs programs. Arguments are never read by a shell."""

    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout_s: float | None = None,
        output_limit_bytes: int = DEFAULT_OUTPUT_LIMIT_BYTES,
        truncate: bool = False,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
        drain_s: float = DRAIN_S,
        finish_s: float = 0.0,
        check: type[PodwrightError] | None = None,
    ) -> Finished:
        """Run to the end, in a session of its own.

        `env` is laid over MINIMAL_ENV. `output_limit_bytes` counts for each stream; beyond it the
        program is killed, or with `truncate` the rest is read and dropped. With `check` an exit
        status other than 0 raises that class, with the end of standard error. A caller that is
        cancelled leaves the program `finish_s` to end by itself before it is killed.

        Raises:
            NotFound: no such program, or no such directory.
            InvalidArgument: NUL in an argument, or more arguments than the kernel takes.
            DeadlineExceeded: `timeout_s` is over; its process group was killed.
            ResourceExhausted: too much output, or no descriptors, processes or memory left.
            Denied: the program may not be executed.
        """
        ...

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
        stdin_fd: int | None = None,
        stdout_fd: int | None = None,
        stderr_fd: int | None = None,
        new_session: bool = True,
    ) -> Spawned:
        """Start and leave running; streams that are None are /dev/null.

        Raises:
            PodwrightError: as `run`, except for what concerns time and output.
        """
        ...


class HostProcessRunner:
    """The machine's programs. See `ProcessRunner`."""

    def __init__(self, *, clock: Clock | None = None, open_files: OpenFiles | None = None) -> None:
        """`open_files` is every program's limit, where this process has another one."""
        self._clock = clock or SystemClock()
        self._open_files = open_files

    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout_s: float | None = None,
        output_limit_bytes: int = DEFAULT_OUTPUT_LIMIT_BYTES,
        truncate: bool = False,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
        drain_s: float = DRAIN_S,
        finish_s: float = 0.0,
        check: type[PodwrightError] | None = None,
    ) -> Finished:
        """See `ProcessRunner`."""
        began_ns = self._clock.monotonic_ns()
        changed = asyncio.Event()
        with ExitStack() as stack:
            child, out, err = await self._start(
                argv, env, stdin, cwd, pass_fds, output_limit_bytes, changed, stack
            )
            try:
                if child.called_off is not None:
                    raise child.called_off
                async with asyncio.timeout(timeout_s):
                    await self._until_ended(child, out, err, changed, truncate=truncate)
                held = not await self._drained(out, err, changed, drain_s, truncate=truncate)
            except BaseException as error:
                grace_s = finish_s if isinstance(error, asyncio.CancelledError) else 0.0
                await in_one_piece(_ended(child, grace_s))
                if isinstance(error, TimeoutError):
                    raise DeadlineExceeded(
                        f"{Path(argv[0]).name} did not end within {timeout_s} s and was killed",
                        replay=shlex.join(argv),
                    ) from error
                if isinstance(error, _TooMuchOutput):
                    raise ResourceExhausted(
                        f"{Path(argv[0]).name} wrote more than {output_limit_bytes} bytes",
                        replay=shlex.join(argv),
                    ) from error
                raise
            status = child.exit_status
            assert status is not None, "the child has ended"
            finished = Finished(
                argv=tuple(argv),
                exit_status=status,
                stdout=bytes(out.content),
                stderr=bytes(err.content),
                took_ns=self._clock.monotonic_ns() - began_ns,
                stdout_truncated=out.overflowed or err.overflowed,
                pipe_held=held,
            )
        took_ms = finished.took_ns // 1_000_000
        _log.debug("program ended", argv=finished.replay, exit_status=status, took_ms=took_ms)
        if check is not None and finished.exit_status != 0:
            how = f"exit status {status}" if status > 0 else f"signal {-status}"
            raise check(
                f"{Path(argv[0]).name} failed with {how}: {finished.message or 'no message'}",
                replay=finished.replay,
            )
        return finished

    async def _start(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None,
        stdin: bytes,
        cwd: Path | None,
        pass_fds: Sequence[int],
        limit_bytes: int,
        changed: asyncio.Event,
        stack: ExitStack,
    ) -> tuple[Child, Collector, Collector]:
        with ExitStack() as ours, ExitStack() as theirs:
            try:
                source = _open_input(stdin)
                theirs.callback(os.close, source)
                out_read, out_write = os.pipe2(os.O_CLOEXEC)
                ours.callback(os.close, out_read)
                theirs.callback(os.close, out_write)
                err_read, err_write = os.pipe2(os.O_CLOEXEC)
                ours.callback(os.close, err_read)
                theirs.callback(os.close, err_write)
            except OSError as error:
                raise from_os_error(error, f"cannot start {argv[0] if argv else ''}") from error
            child = await self._start_child(
                argv, env, cwd, pass_fds, (source, out_write, err_write), new_session=True
            )
            ours.pop_all()
            stack.callback(child.release)
            child.on_end(changed.set)
            out = Collector(out_read, limit_bytes, changed)
            stack.callback(out.close)
            err = Collector(err_read, limit_bytes, changed)
            stack.callback(err.close)
            return child, out, err

    async def _until_ended(
        self,
        child: Child,
        out: Collector,
        err: Collector,
        changed: asyncio.Event,
        *,
        truncate: bool,
    ) -> None:
        while child.exit_status is None:
            _check_output(out, err, truncate)
            await changed.wait()
            changed.clear()

    async def _drained(
        self,
        out: Collector,
        err: Collector,
        changed: asyncio.Event,
        drain_s: float,
        *,
        truncate: bool,
    ) -> bool:
        """Whether both pipes came to their end within `drain_s`."""
        try:
            async with asyncio.timeout(drain_s):
                while not (out.ended and err.ended):
                    _check_output(out, err, truncate)
                    await changed.wait()
                    changed.clear()
        except TimeoutError:
            return False
        _check_output(out, err, truncate)
        return True

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
        stdin_fd: int | None = None,
        stdout_fd: int | None = None,
        stderr_fd: int | None = None,
        new_session: bool = True,
    ) -> Spawned:
        """See `ProcessRunner`."""
        streams = (stdin_fd, stdout_fd, stderr_fd)
        child = await self._start_child(argv, env, cwd, pass_fds, streams, new_session=new_session)
        if child.called_off is not None:
            child.release()
            await in_one_piece(_ended(child, 0.0))
            raise child.called_off
        child.release()
        return child

    async def _start_child(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None,
        cwd: Path | None,
        pass_fds: Sequence[int],
        streams: tuple[int | None, int | None, int | None],
        *,
        new_session: bool,
    ) -> Child:
        child = await start_child(
            argv,
            {**MINIMAL_ENV, **(env or {})},
            cwd or Path("/"),
            pass_fds,
            streams,
            new_session=new_session,
        )
        if self._open_files is not None:
            self._open_files.give(child.pid)
        return child


class _TooMuchOutput(Exception):
    """Ends the wait; becomes ResourceExhausted after the kill."""


async def _ended(child: Child, grace_s: float) -> None:
    if grace_s > 0:
        await child.ended_within(grace_s)
    child.kill_group(signals.SIGKILL)
    await child.ended_within(KILL_WAIT_S)


def _check_output(out: Collector, err: Collector, truncate: bool) -> None:
    if not truncate and (out.overflowed or err.overflowed):
        raise _TooMuchOutput


def _open_input(content: bytes) -> int:
    if not content:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd
