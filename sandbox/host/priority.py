"""The daemon's own threads before what it starts, on busy processors: setpriority(2), sched(7).

Eight clients that create pods keep two cores busy with network plugins, crun and conmon. A thread
of the daemon that has work for 0.3 ms then waits up to 20 ms for a processor, and if it has the
interpreter's lock, so does every answer of the daemon. Its share is small, so it can come first
without anybody noticing.

Nobody else does. The thread that starts programs (`spawning`) has the kernel give its children what
this process was given (SCHED_RESET_ON_FORK), so that no helper and no container ever has more. A
daemon that was started with a niceness of its own keeps that: its operator has decided. Without
CAP_SYS_NICE nothing is changed, and `daemon.come_first = false` asks for nothing.

Measured on the reference machine, 8 clients filling a node with 100 pods, four variants in turn:
99 of 100 answers to Version came within 33, 34 and 36 ms without it and 16 and 21 ms with it, 90 of
100 within 12 and 7, and pods started as fast. A daemon beside it that has nothing to do, which is
the least that can be had as an ordinary process, answered within 6 to 20 ms meanwhile.
"""

from __future__ import annotations

import os
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
    # Only a session of our own: a terminal's has others in it. Programs get sessions of their own.
    if os.getsid(0) == os.getpid():
        with suppress(OSError):  # a kernel without it
            _AUTOGROUP.write_text(str(NICENESS))
    return True


def come_as_others() -> None:
    """Take back for the calling thread what `come_first` has given it; for work that may wait."""
    if os.getpriority(os.PRIO_PROCESS, 0) == NICENESS:
        os.setpriority(os.PRIO_PROCESS, 0, 0)


def keep_from_children() -> None:
    """From now on the processes that the calling thread begins come as others do."""
    if os.getpriority(os.PRIO_PROCESS, 0) == NICENESS:
        # Its niceness stays: sched_setscheduler(2) changes none of an ordinary thread.
        policy = os.SCHED_OTHER | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(0))
