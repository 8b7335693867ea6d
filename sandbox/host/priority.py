"""The daemon's own threads before what it starts, while much goes on: sched_setattr(2), sched(7).

Eight clients that create pods keep two cores busy with network plugins, crun and conmon. A thread
of the daemon that has work for 0.3 ms then waits up to 20 ms for a processor, and if it has the
interpreter's lock, so does every answer of the daemon. Its share is small, so it can come first
without anybody noticing. From Linux 6.12 on its turns are short as well: a thread that asks for
little at a time gets it sooner (kernel documentation, scheduler/sched-eevdf.rst).

Only while several calls are under way. One call alone waits for the programs that it runs, which
the daemon's threads would interrupt: measured all the time, StopContainer took 5.8 ms instead of
4.8, and CreateContainer 15.7 instead of 15.3.

Nobody else comes first. Every thread that does so has the kernel give its children what others have
(SCHED_RESET_ON_FORK), so no helper and no container ever has more. A daemon that was started with a
niceness of its own keeps that: its operator has decided. Without CAP_SYS_NICE nothing is changed,
and `daemon.come_first = false` asks for nothing.

Measured on the reference machine, 8 clients filling a node with 100 pods, in turn: 99 of 100
answers to Version came within 24 and 35 ms without and 14 and 18 with it, 90 of 100 within 14 and
8. When the machine was busier, three times each: 25 to 36 ms (median 33) without, 16 to 24 (21)
with the niceness alone, 10 to 18 (14) with short turns besides. Pods started as fast. A daemon
beside it that has nothing to do, which is the least that can be had as an ordinary process,
answered within 6 to 22 ms meanwhile.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

from sandbox.host.journal import get_logger

#: Ten times the weight of an ordinary thread (sched(7), "The nice value": 1.25 for each step). What
#: the kernel does in threads of its own for disks has twice that.
NICENESS: Final = -10
#: A turn (ns); 0 is the kernel's own, 0.7 to 2.8 ms by the number of processors. The least is 0.1.
TURN_NS: Final = 300_000
#: Calls under way from which on the daemon comes first, and how long it still does (seconds).
MANY: Final = 4
LINGER_S: Final = 1.0
#: Where the kernel groups processes by session (sched(7), "The autogroup feature"), a niceness
#: counts within the group only, and the group has one of its own.
_AUTOGROUP: Final = Path("/proc/self/autogroup")
_THREADS: Final = Path("/proc/self/task")
#: sched_setattr(2), for which older C libraries have no function: the kernel's syscall tables.
_SYS_SCHED_SETATTR: Final = {
    "x86_64": 314,
    "aarch64": 274,
    "riscv64": 274,
    "ppc64le": 355,
    "s390x": 345,
}
#: struct sched_attr (linux/sched/types.h): size, policy, flags, niceness, priority, runtime, two of
#: another policy.
_SCHED_ATTR: Final = struct.Struct("=IIQiIQQQ")
_RESET_ON_FORK: Final = 0x01

_log = get_logger(__name__)
_libc = ctypes.CDLL(None, use_errno=True)


class Precedence:
    """Has this process come first while many calls are under way; for the event loop's thread."""

    def __init__(self) -> None:
        self._may = os.getpriority(os.PRIO_PROCESS, 0) == 0
        self._first = False
        self._ending: asyncio.TimerHandle | None = None

    def count(self, under_way: int) -> None:
        """So many calls are under way now. Some 0.1 ms where that changes anything."""
        if under_way >= MANY:
            if self._ending is not None:
                self._ending.cancel()
                self._ending = None
            if self._may and not self._first:
                with suppress(OSError):  # no descriptor left: some threads may come first now
                    self._may = come_first()
                self._first = self._may
        elif self._first and self._ending is None:
            self._ending = asyncio.get_running_loop().call_later(LINGER_S, self._end)

    def _end(self) -> None:
        try:
            come_as_others()
        except OSError:  # no descriptor left
            self._ending = asyncio.get_running_loop().call_later(LINGER_S, self._end)
            return
        self._ending = None
        self._first = False


def come_first() -> bool:
    """Raise all threads of this process; False: it may not, and all are as they were.

    Those that begin later come as others do, until this is asked for again.

    Raises:
        OSError: the threads could not be listed; some may come first, some not.
    """
    if not _set(0, NICENESS, TURN_NS, _RESET_ON_FORK):
        _log.info("the daemon's threads cannot come before others")
        return False
    for name in os.listdir(_THREADS):  # noqa: PTH208 - names only
        _set(int(name), NICENESS, TURN_NS, _RESET_ON_FORK)
    _set_group(NICENESS)
    return True


def come_as_others() -> None:
    """Take back what `come_first` has given.

    Raises:
        OSError: the threads could not be listed.
    """
    for name in os.listdir(_THREADS):  # noqa: PTH208 - names only
        _set(int(name), 0, 0, 0)
    _set_group(0)


def _set(thread: int, niceness: int, turn_ns: int, flags: int) -> bool:
    """Whether it could be set; a thread may just have ended. Kernels before 6.12 ignore turns."""
    number = _SYS_SCHED_SETATTR.get(platform.machine())
    if number is None:
        return False
    wanted = _SCHED_ATTR.pack(_SCHED_ATTR.size, os.SCHED_OTHER, flags, niceness, 0, turn_ns, 0, 0)
    return bool(_libc.syscall(number, thread, wanted, 0) == 0)


def _set_group(niceness: int) -> None:
    # Only a session of our own: a terminal's has others in it. Programs get sessions of their own.
    if os.getsid(0) == os.getpid():
        with suppress(OSError):  # a kernel without it
            _AUTOGROUP.write_text(str(niceness))
