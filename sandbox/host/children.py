"""A child process and its pipes on the event loop: watched by pidfd, reaped once, never too early.

Between its end and its reaping a child is a zombie that keeps its number, and with it its process
group's number, from being given away. `release` says that nobody will signal the group any more;
from then on the child is reaped as soon as it has ended, whether or not anybody waits.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal as signals
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import InvalidArgument, from_os_error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_READ_BYTES: Final = 64 * 1024

#: The daemon's own 077 is for files of its own. An OCI runtime makes the directories that lead to a
#: mount inside a container's root, and a user of the container must be able to walk them.
CHILD_UMASK: Final = 0o022


class Child:
    """Made from a `Popen` that nobody else polls; see the module text."""

    def __init__(self, process: subprocess.Popen[bytes], *, group: bool) -> None:
        self.pid = process.pid
        self.exit_status: int | None = None
        self._process = process
        self._group = group
        self._released = False
        self._callbacks: list[Callable[[], None]] = []
        self._loop = asyncio.get_running_loop()
        try:
            self._fd = os.pidfd_open(process.pid)
        except OSError as error:
            process.kill()
            process.wait()
            raise from_os_error(error, "cannot watch program", pid=process.pid) from error
        self._loop.add_reader(self._fd, self._ended)

    @property
    def pidfd(self) -> int:
        """The pidfd, -1 once reaped."""
        return self._fd

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call it on the loop when the child has ended, or at once when it has already."""
        if self.exit_status is None:
            self._callbacks.append(callback)
        else:
            callback()

    async def wait(self) -> int:
        """The exit status, negative for a signal."""
        if self.exit_status is None:
            ended = asyncio.Event()
            self.on_end(ended.set)
            await ended.wait()
        assert self.exit_status is not None, "on_end calls after the status is set"
        return self.exit_status

    def kill_group(self, signal: int = signals.SIGKILL) -> bool:
        """Signal the process group (the process alone, when it has none of its own).

        False when the child was reaped: its number may be somebody else's.
        """
        if self._fd < 0:
            return False
        try:
            if self._group:
                os.killpg(self.pid, signal)
            else:
                signals.pidfd_send_signal(self._fd, signal)
        except ProcessLookupError:
            return False
        except PermissionError:
            # The group holds a process of another user namespace; the leader is ours to signal.
            with suppress(OSError):
                signals.pidfd_send_signal(self._fd, signal)
        return True

    def release(self) -> None:
        """Nobody will signal the group after this; reap now or at the end."""
        self._released = True
        if self.exit_status is not None:
            self._reap()

    def _ended(self) -> None:
        self._loop.remove_reader(self._fd)
        # WNOWAIT leaves the zombie: see the module text.
        result = self._waitid(os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if result is None:
            self.exit_status = 255  # somebody else reaped it; it has ended, how is not known
        elif result.si_code == os.CLD_EXITED:
            self.exit_status = result.si_status
        else:
            self.exit_status = -result.si_status
        self._process.returncode = self.exit_status
        if self._released:
            self._reap()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def _reap(self) -> None:
        if self._fd >= 0:
            self._waitid(os.WEXITED | os.WNOHANG)
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _waitid(self, options: int) -> os.waitid_result | None:
        try:
            return os.waitid(os.P_PIDFD, self._fd, options)
        except ChildProcessError:
            return None


class Collector:
    """Reads one pipe on the event loop into a bounded buffer; the rest is read and dropped."""

    def __init__(self, fd: int, limit_bytes: int, on_change: asyncio.Event) -> None:
        self._fd = fd
        self._limit = limit_bytes
        self._changed = on_change
        self._loop = asyncio.get_running_loop()
        self.content = bytearray()
        self.overflowed = False
        self.ended = False
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._readable)

    def _readable(self) -> None:
        try:
            chunk = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        room = self._limit - len(self.content)
        self.content += chunk[:room]
        if len(chunk) > room:
            self.overflowed = True
            self._changed.set()
        if not chunk:
            self.close()

    def close(self) -> None:
        """Stop reading; a writer gets SIGPIPE from now on. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._loop.remove_reader(fd)
            os.close(fd)
        self.ended = True
        self._changed.set()


def start_child(
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: Path,
    pass_fds: Sequence[int],
    streams: tuple[int | None, int | None, int | None],
    *,
    new_session: bool,
) -> Child:
    """Start a program; `env` is all of its environment, a stream that is None is /dev/null.

    Raises:
        NotFound, Denied, InvalidArgument, ResourceExhausted: as `ProcessRunner.run`.
    """
    if not argv or not argv[0]:
        raise InvalidArgument("no program to run")
    name = argv[0]
    texts = [*argv, *env, *env.values()]
    if any("\0" in text for text in texts) or any("=" in key for key in env):
        raise InvalidArgument(f"argument or variable of {name} is malformed")
    if any(fd < 3 for fd in pass_fds):
        raise InvalidArgument(f"descriptors passed to {name} must not be standard streams")
    stdin, stdout, stderr = (subprocess.DEVNULL if fd is None else fd for fd in streams)
    # A descriptor kept free for the pidfd: a child that runs unwatched would be worse than none.
    spare = -1
    try:
        spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        process = subprocess.Popen(  # noqa: S603 - arguments are a list, no shell reads them
            list(argv),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=dict(env),
            cwd=str(cwd),
            pass_fds=tuple(pass_fds),
            start_new_session=new_session,
            umask=CHILD_UMASK,
        )
    except OSError as error:
        missing = error.errno == errno.ENOENT and error.filename == name
        hint = "install it, or correct the configured path" if missing else ""
        raise from_os_error(error, f"cannot start {name}", hint=hint) from error
    except ValueError as error:  # a surrogate in an argument
        raise InvalidArgument(f"argument of {name} cannot be encoded") from error
    finally:
        if spare >= 0:
            os.close(spare)
    return Child(process, group=new_session)
