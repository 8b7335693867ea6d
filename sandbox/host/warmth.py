"""Keep the kernel ready to move processes between cgroups while calls that will do so run.

Every move takes `cgroup_threadgroup_rwsem` for writing. After about 20 ms without a writer the
kernel has put it back into the state that is cheap for forks, and the next writer waits for an RCU
grace period (kernel/cgroup/cgroup.c, include/linux/percpu-rwsem.h). A runtime pays that inside
`create` and `exec`, twice if it is slow. Measured on the reference machine (Linux 6.18, 2 cores): a
move after 20 ms or more takes 6 to 12 ms, one within 15 ms of the last 0.02 ms.

So the daemon moves itself into the cgroup that it is in, which changes nothing, once when such a
call begins and again every few milliseconds until a moment after the last has ended. The first wait
then runs beside the work that comes before the runtime's move. An idle daemon does nothing.

A cgroup2 file system mounted with `favordynmods` (Linux 6.0) needs none of it and loses nothing.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.host.cgroupfs import CgroupLayout

_log = get_logger(__name__)

#: Between two moves (seconds); the kernel's readiness lasts for 15 to 20 ms.
_PERIOD_S: Final = 0.012
#: How long after the last call: Run, Create, Start and a first Exec follow one another closely.
_LINGER_PERIODS: Final = 10


class AttachWarmth:
    """Holds the kernel ready while anybody asks for it. Every method is quick; for any thread."""

    def __init__(self, layout: CgroupLayout, *, enabled: bool = True) -> None:
        """Nothing is done before `held`.

        Args:
            layout: the machine's hierarchies; any of them will do.
            enabled: otherwise nothing is ever done.
        """
        self._layout = layout
        self._enabled = enabled
        self._wanted = threading.Condition()
        self._holders = 0
        self._thread: threading.Thread | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Around a call in which processes will be moved."""
        with self._wanted:
            self._holders += 1
            if self._enabled and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="attach", daemon=True)
                self._thread.start()
            self._wanted.notify()
        try:
            yield
        finally:
            with self._wanted:
                self._holders -= 1

    def close(self) -> None:
        """End the thread; later calls do without."""
        with self._wanted:
            self._enabled = False
            self._wanted.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        left = 0
        while True:
            with self._wanted:
                if self._holders:
                    left = _LINGER_PERIODS
                elif left == 0:
                    self._wanted.wait_for(lambda: self._holders or not self._enabled)
                    left = _LINGER_PERIODS
                else:
                    left -= 1
                    self._wanted.wait_for(lambda: not self._enabled, _PERIOD_S)
                if not self._enabled:
                    return
            try:
                self.move()
            except (OSError, LookupError) as error:
                _log.info("cgroup moves are not kept ready", error=str(error))
                return
            with self._wanted:
                self._wanted.wait_for(lambda: not self._enabled, _PERIOD_S)

    def move(self) -> None:
        """Move this process into the cgroup that it is in. Blocking, up to some 10 ms.

        Raises:
            OSError: the file cannot be written.
            LookupError: the process is not where this layout says, as in a cgroup namespace whose
                hierarchies were mounted elsewhere.
        """
        procs = own_procs(self._layout)
        # "0" is the writer itself (cgroups(7)), so that no pid can mean another process.
        fd = os.open(procs, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.write(fd, b"0")
        finally:
            os.close(fd)


def own_procs(layout: CgroupLayout, membership: Path = Path("/proc/self/cgroup")) -> Path:
    """The `cgroup.procs` of the cgroup that this process is in, in one of the hierarchies.

    The cgroup2 tree where there is one, since nothing is accounted there beside version 1
    controllers; else the first hierarchy that is mounted.

    Args:
        layout: the hierarchies.
        membership: as proc_pid_cgroup(5) says.

    Raises:
        OSError: it cannot be read.
        LookupError: in none of them, or the cgroup lies outside what this process can see.
    """
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        root = layout.root
        if controllers:
            root = layout.controllers.get(controllers.partition(",")[0])
        elif root is None:
            continue
        if root is None or (controllers and layout.root is not None):
            continue
        if path.startswith("/.."):
            raise LookupError("the daemon's cgroup lies outside its cgroup namespace")
        return root / path[1:] / "cgroup.procs"
    raise LookupError("the daemon is in no cgroup of a mounted hierarchy")
