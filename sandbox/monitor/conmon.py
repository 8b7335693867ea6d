"""conmon of a container: beginning with it, and talking to it afterwards.

`sandbox.monitor.creation` is about what happens in between.

Files conmon makes in the bundle, which is its working directory as well: `pid` (container),
`conmon.pid`, `ctl`, `winsz`, `attach`, `oom` (touched when the kernel killed for memory), `exit`
(a second copy of the exit file). `log` is a link of ours to the real log path.

Why not `--sync` (a single fork): conmon would be a child of the daemon, and a zombie of a daemon
that was restarted in between has no better parent than init anyway. With the double fork it is
init's from the start, and the daemon's death changes nothing for it.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from sandbox.errors import MonitorGone
from sandbox.host.errors import from_os_error
from sandbox.host.threads import in_one_piece, to_its_end
from sandbox.monitor import control, logfile
from sandbox.monitor.creation import Creation
from sandbox.monitor.survivors import find_monitor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sandbox.cgroups import Cgroups
    from sandbox.host.clock import Clock
    from sandbox.host.processes import ProcessRunner
    from sandbox.monitor.request import Created, MonitorRequest
    from sandbox.runtime.driver import RuntimeObserver
    from sandbox.settings import SandboxSettings


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
        early: bool = True,
    ) -> None:
        """Prepare; `early`: conmon is started when a creation begins, else when it goes on."""
        self._settings = settings
        self._runner = runner
        self._cgroups = cgroups
        self._clock = clock
        self._observer = observer
        self._early = early
        #: One at a time for each container; a lock lives while somebody holds or awaits it.
        self._reopening: WeakValueDictionary[Path, asyncio.Lock] = WeakValueDictionary()

    async def create(self, request: MonitorRequest) -> Created:
        """Create the container of a bundle that is there; raises as `Creation.finish`."""
        async with self.begin(request) as creation:
            return await creation.finish()

    @asynccontextmanager
    async def begin(self, request: MonitorRequest) -> AsyncIterator[Creation]:
        """Have conmon started while the caller makes the bundle, who then calls `finish`.

        Whatever ends the block before that has succeeded undoes what was begun: see
        `Creation.call_off`.
        """
        creation = Creation(
            request,
            self._settings,
            runner=self._runner,
            cgroups=self._cgroups,
            clock=self._clock,
            observer=self._observer,
        )
        if self._early:
            creation.begin()
        try:
            yield creation
        except BaseException:
            await in_one_piece(creation.call_off())
            raise
        if not creation.is_done:
            await in_one_piece(creation.call_off())

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


def _linked_log(bundle: Path) -> Path | None:
    try:
        return (bundle / "log").readlink()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise from_os_error(error, "cannot read the link to the container's log") from error
