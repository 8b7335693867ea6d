"""Processes that cannot be mistaken for others: identity, signals and the end, all by pidfd.

A process number on disk may belong to somebody else by the time it is read. A process is therefore
(pid, start time in clock ticks, boot id), compared before *and* after the pidfd is opened: the
number cannot have changed hands in between without the start time showing it. Signals go through
the pidfd only.
"""

from __future__ import annotations

import asyncio
import os
import select
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, Self

from sandbox.host.errors import NotFound, ResourceExhausted, from_os_error, map_os_errors
from sandbox.host.libc import LibcSyscalls

if TYPE_CHECKING:
    from types import TracebackType

    from sandbox.host.clock import Clock
    from sandbox.host.syscalls import Syscalls

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
#: Field 22 of /proc/PID/stat (proc(5)), counted from after the name's closing bracket.
_START_TICKS_INDEX: Final = 19
_STATE_INDEX: Final = 0
#: Pauses between tries to hold a process when no descriptor is left (seconds).
_HOLD_FIRST_S: Final = 0.05
_HOLD_LAST_S: Final = 5.0
#: PID_MAX_LIMIT on 64-bit kernels (linux/threads.h).
PID_LIMIT: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Identity:
    """The fields of `sandbox.model.ProcessRef`, which lives above this package."""

    pid: int
    start_ticks: int
    boot_id: str


class Identified(Protocol):
    """Whatever says which process is meant, such as `sandbox.model.ProcessRef`."""

    @property
    def pid(self) -> int:
        """Its number."""
        ...

    @property
    def start_ticks(self) -> int:
        """When it started, in clock ticks after boot."""
        ...

    @property
    def boot_id(self) -> str:
        """In which boot."""
        ...


def boot_id() -> str:
    """The kernel's random id of this boot; read each time, it is cheap and tests move it.

    Raises:
        NotFound: /proc is not mounted.
    """
    with map_os_errors("cannot read boot id"):
        return _BOOT_ID.read_text().strip()


def start_ticks(pid: int) -> int | None:
    """When `pid` started, in clock ticks after boot; None when there is no such process."""
    if not 0 < pid <= PID_LIMIT:
        return None
    fields = _stat_fields(pid)
    return None if fields is None else int(fields[_START_TICKS_INDEX])


def is_zombie(pid: int) -> bool:
    """Whether `pid` has ended and only waits to be reaped."""
    fields = _stat_fields(pid) if 0 < pid <= PID_LIMIT else None
    return fields is not None and fields[_STATE_INDEX] in ("Z", "X")


def _stat_fields(pid: int) -> list[str] | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    except OSError as error:
        raise from_os_error(error, "cannot look at a process", pid=pid) from error
    # The name may hold blanks and brackets: only what follows the last bracket is fields.
    return stat[stat.rindex(b")") + 2 :].decode("ascii", "replace").split()


def identify(pid: int) -> Identity:
    """The identity of a process that lives now.

    Raises:
        NotFound: no such process.
    """
    ticks = start_ticks(pid)
    if ticks is None:
        raise NotFound("process does not exist", pid=pid)
    return Identity(pid=pid, start_ticks=ticks, boot_id=boot_id())


class Process:
    """A held process; `close` it, or use it in a `with` block."""

    def __init__(self, pid: int, fd: int, syscalls: Syscalls) -> None:
        self.pid = pid
        self._fd = fd
        self._syscalls = syscalls
        self._waiters: list[asyncio.Future[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def open(
        cls, pid: int, start_ticks: int, boot_id: str, *, syscalls: Syscalls | None = None
    ) -> Self | None:
        """Hold the process of that identity; None when it is gone or never was.

        Numbers that can only be mistakes (0, negative, 1, our own, too large) are None as well:
        nothing read from a file may make us signal init or ourselves.

        Raises:
            ResourceExhausted: no descriptor is left.
        """
        if not 1 < pid <= PID_LIMIT or pid == os.getpid():
            return None
        if _identity_differs(pid, start_ticks, boot_id):
            return None
        calls = syscalls or LibcSyscalls()
        try:
            fd = calls.pidfd_open(pid)
        except NotFound:
            return None
        try:
            differs = _identity_differs(pid, start_ticks, boot_id)
        except BaseException:
            os.close(fd)
            raise
        if differs:
            os.close(fd)
            return None
        return cls(pid, fd, calls)

    def fileno(self) -> int:
        """The pidfd; readable once the process has ended."""
        return self._fd

    def send_signal(self, signal: int) -> bool:
        """Send it; False when the process was already gone.

        Raises:
            Denied, InvalidArgument: as the kernel says.
        """
        try:
            self._syscalls.pidfd_send_signal(self._fd, signal)
        except NotFound:
            return False
        return True

    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        if self._fd < 0:
            return False
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return not poll.poll(0)

    async def wait(self) -> None:
        """Return when the process has ended; many tasks may wait, each may be cancelled."""
        if not self.alive():
            return
        loop = asyncio.get_running_loop()
        if not self._waiters:
            self._loop = loop
            loop.add_reader(self._fd, self._ended)
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
                self._unwatch_when_idle()

    def _ended(self) -> None:
        waiters, self._waiters = self._waiters, []
        self._unwatch_when_idle()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _unwatch_when_idle(self) -> None:
        if not self._waiters and self._loop is not None:
            loop, self._loop = self._loop, None
            if not loop.is_closed():
                loop.remove_reader(self._fd)

    def close(self) -> None:
        """Let go; whoever still waits is woken with `asyncio.CancelledError`. Idempotent."""
        waiters, self._waiters = self._waiters, []
        self._unwatch_when_idle()
        for waiter in waiters:
            waiter.cancel()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


async def hold(ref: Identified, clock: Clock) -> Process | None:
    """`Process.open`, tried until it can be told whether the process lives.

    Without a descriptor left it may live, and what is called dead is cleared away.
    """
    pause_s = _HOLD_FIRST_S
    while True:
        try:
            return Process.open(ref.pid, ref.start_ticks, ref.boot_id)
        except ResourceExhausted:
            await clock.sleep(pause_s)
            pause_s = min(pause_s * 2, _HOLD_LAST_S)


def _identity_differs(pid: int, ticks: int, boot: str) -> bool:
    """Whether it is another process by now.

    Raises:
        ResourceExhausted: that cannot be told, for want of a descriptor or memory; it may live.
    """
    try:
        return boot != boot_id() or start_ticks(pid) != ticks
    except NotFound:
        return True
