"""The daemon's own threads before what it starts, on busy processors: setpriority(2), sched(7).

Eight clients that create pods keep two cores busy with network plugins, crun and conmon. A thread
of the daemon that has work for 0.3 ms then waits up to 20 ms for a processor, and if it has the
interpreter's lock, so does every answer of the daemon. Its share is small, so it can come first
without anybody noticing.

Nobody else does. The thread that starts programs (`spawning`) has the kernel give its children what
this process was given (SCHED_RESET_ON_FORK), so that no helper and no container ever has more. A
daemon that was started with a niceness of its own keeps that: its operator has decided. Without
CAP_SYS_NICE nothing is changed, and `daemon.come_first = false` asks for nothing.

From Linux 6.12 on its turns are short as well: a thread that asks for little at a time gets it
sooner (kernel documentation, scheduler/sched-eevdf.rst), and more than that it never needs.

Measured on the reference machine, 8 clients filling a node with 100 pods, variants in turn, three
times each: 99 of 100 answers to Version came within 25 to 36 ms (median 33) without any of it, 16
to 24 (21) with the niceness, and 10 to 18 (14) with short turns besides; 90 of 100 within 12, 7 and
5. Pods started as fast. A daemon beside it that has nothing to do, which is the least that can be
had as an ordinary process, answered within 6 to 22 ms meanwhile.
"""

from __future__ import annotations

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
#: Where the kernel groups processes by session (sched(7), "The autogroup feature"), a niceness
#: counts within the group only, and the group has one of its own.
_AUTOGROUP: Final = Path("/proc/self/autogroup")

#: A turn (ns). The kernel's own are 0.7 to 2.8 ms, by the number of processors, and the least that
#: it gives is 0.1 ms.
_TURN_NS: Final = 300_000
#: sched_setattr(2), for which older C libraries have no function: linux/syscall tables.
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

_log = get_logger(__name__)


def come_first() -> bool:
    """Raise this thread, and with it those that it begins from now on; False: it stays as it is."""
    if os.getpriority(os.PRIO_PROCESS, 0) != 0:
        return False
    try:
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    except OSError as error:
        _log.info("the daemon's threads do not come before others", error=str(error))
        return False
    _take_short_turns()
    # Only a session of our own: a terminal's has others in it. Programs get sessions of their own.
    if os.getsid(0) == os.getpid():
        with suppress(OSError):  # a kernel without it
            _AUTOGROUP.write_text(str(NICENESS))
    return True


def _take_short_turns() -> None:
    """Ask for short turns; kernels before 6.12 take the request and do nothing about it."""
    number = _SYS_SCHED_SETATTR.get(platform.machine())
    if number is not None:
        wanted = _SCHED_ATTR.pack(_SCHED_ATTR.size, os.SCHED_OTHER, 0, NICENESS, 0, _TURN_NS, 0, 0)
        ctypes.CDLL(None, use_errno=True).syscall(number, 0, wanted, 0)


def come_as_others() -> None:
    """Take back for the calling thread what `come_first` has given it; for work that may wait."""
    if os.getpriority(os.PRIO_PROCESS, 0) == NICENESS:
        os.setpriority(os.PRIO_PROCESS, 0, 0)


def keep_from_children() -> None:
    """From now on the processes that the calling thread begins come as others do."""
    if os.getpriority(os.PRIO_PROCESS, 0) != NICENESS:
        return
    try:
        # Its niceness stays: sched_setscheduler(2) changes none of an ordinary thread.
        policy = os.SCHED_OTHER | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(0))
    except OSError:  # a C library without it: the thread itself must do without
        come_as_others()
