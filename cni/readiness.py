"""Which network configuration is in force, and whether pods can be attached to it.

The directory is followed by inotify, and looked at every few seconds as well: it may not exist,
be deleted and made again, lie on a file system without events, or inotify may be exhausted. Each
look ends in one value, `NetworkState`; asking for it costs nothing.

    no file ─────► not ready: which directory, which files were passed over and why
    file ────────► not ready: a plugin's program is missing, or does not speak the file's version
      │
      └─ CNI 1.1: STATUS of every plugin; a ready network stays ready for `status_grace_s`
"""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cni.config import Loaded, load_directory
from cni.errors import NetworkNotReady, PluginFailed, PluginMissing, presentable
from cni.invoke import Command
from sandbox.host.errors import PodwrightError
from sandbox.host.files import DirWatch
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cni.config import NetworkConfig
    from cni.settings import CniSettings
    from sandbox.host.clock import Clock

_log = get_logger(__name__)

#: The words other runtimes use and tools look for.
REASON: Final = "NetworkPluginNotReady"
MESSAGE_PREFIX: Final = "Network plugin returns error: "

#: Files named in a message; more are only counted.
_NAMED_PROBLEMS: Final = 3

#: After an event, before looking: an installer writes several files, or one in several steps.
SETTLE_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class NetworkState:
    """The NetworkReady condition; reason and message are empty when it holds."""

    ok: bool
    reason: str = ""
    message: str = ""


def not_ready(text: str) -> NetworkState:
    """The state for a network that is not ready because of `text`."""
    return NetworkState(ok=False, reason=REASON, message=MESSAGE_PREFIX + text)


def explain_absence(loaded: Loaded, directory: Path) -> str:
    """Why there is no network: the directory, and the files that were passed over."""
    text = f"no network configuration in {directory}"
    named = [f"{Path(p.path).name}: {p.reason}" for p in loaded.problems[:_NAMED_PROBLEMS]]
    more = len(loaded.problems) - len(named)
    if more > 0:
        named.append(f"and {more} more")
    return presentable(f"{text} ({'; '.join(named)})" if named else text)


def judge(
    previous: NetworkState,
    loaded: Loaded,
    failure: PluginFailed | None,
    *,
    directory: Path,
    failing_s: float,
    grace_s: float,
) -> NetworkState:
    """The state that follows from what was found.

    Args:
        previous: the state before.
        loaded: what the directory holds.
        failure: of the first plugin that is missing, of another version, or says it is not ready.
        directory: for the message.
        failing_s: for how long there has been a failure.
        grace_s: for how long a ready network may have plugins that say they are not.
    """
    if loaded.config is None:
        return not_ready(explain_absence(loaded, directory))
    if failure is None:
        return NetworkState(ok=True)
    # A missing program or a wrong version is a fact, and the next pod fails for it. A plugin's own
    # opinion flaps when its controller restarts, and a node that goes NotReady for that has its
    # pods moved away.
    opinion = failure.command == Command.STATUS and not isinstance(failure, PluginMissing)
    if previous.ok and opinion and failing_s < grace_s:
        return previous
    return not_ready(str(failure))


class Readiness:
    """Follows the directory and asks the plugins, in tasks of the group it is started in."""

    def __init__(
        self,
        settings: CniSettings,
        clock: Clock,
        probe: Callable[[NetworkConfig], Awaitable[None]],
    ) -> None:
        """Begin not ready.

        Args:
            settings: directories and intervals.
            clock: for intervals and the grace period.
            probe: asks a network's plugins; raises the PluginFailed of the first that is not ready.
        """
        self._settings = settings
        self._clock = clock
        self._probe = probe
        self._loaded = Loaded(None)
        self._state = not_ready("network configuration has not been read yet")
        self._failing_since_ns: int | None = None
        self._look = asyncio.Event()
        self._looking = asyncio.Lock()
        self._reading = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._group: asyncio.TaskGroup | None = None

    @property
    def state(self) -> NetworkState:
        """The last known state."""
        return self._state

    @property
    def loaded(self) -> Loaded:
        """The last known content of the directory."""
        return self._loaded

    def config(self) -> NetworkConfig:
        """The network in force.

        Raises:
            NetworkNotReady: there is none; the message says why.
        """
        if self._loaded.config is None:
            raise NetworkNotReady(explain_absence(self._loaded, self._settings.conf_dir))
        return self._loaded.config

    async def start(self, group: asyncio.TaskGroup) -> None:
        """Read the directory once, then follow it until `close`."""
        await self.reload()
        self._look.set()
        self._group = group
        self._tasks = [
            group.create_task(self._tick(), name="cni poll"),
            group.create_task(self._follow(), name="cni readiness"),
            group.create_task(self._watch(), name="cni watch"),
        ]

    def configure(self, settings: CniSettings) -> None:
        """Take other settings; a look at the directory follows."""
        self._settings = settings
        self._look.set()
        if self._group is not None and self._tasks:
            self._tasks.pop().cancel()  # it follows the former directory
            self._tasks.append(self._group.create_task(self._watch(), name="cni watch"))

    async def close(self) -> None:
        """Stop following; the last known state stays."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def reload(self) -> None:
        """Read the directory now, without asking the plugins."""
        settings = self._settings
        async with self._reading:
            loaded = await asyncio.to_thread(
                load_directory, settings.conf_dir, name=settings.default_network
            )
            before, self._loaded = self._loaded, loaded
        for problem in loaded.problems:
            if problem not in before.problems:
                _log.warning("configuration passed over", path=problem.path, reason=problem.reason)
        if loaded.config != before.config:
            source = loaded.config.source if loaded.config is not None else ""
            _log.info("network configuration changed", path=source)
        if loaded.config is None:
            self._state = not_ready(explain_absence(loaded, settings.conf_dir))

    async def refresh(self) -> NetworkState:
        """Read the directory and ask the plugins now; one at a time."""
        async with self._looking:
            await self.reload()
            loaded = self._loaded
            failure = await self._ask(loaded.config)
            now_ns = self._clock.monotonic_ns()
            if failure is None:
                self._failing_since_ns = None
            elif self._failing_since_ns is None:
                self._failing_since_ns = now_ns
            since_ns = now_ns if self._failing_since_ns is None else self._failing_since_ns
            before = self._state
            self._state = judge(
                before,
                loaded,
                failure,
                directory=self._settings.conf_dir,
                failing_s=(now_ns - since_ns) / 1e9,
                grace_s=self._settings.status_grace_s,
            )
            if self._state != before:
                _log.info("network readiness changed", ok=self._state.ok, why=self._state.message)
            return self._state

    async def _ask(self, config: NetworkConfig | None) -> PluginFailed | None:
        if config is None:
            return None
        try:
            await self._probe(config)
        except PluginFailed as failure:
            return failure
        return None

    async def _follow(self) -> None:
        while True:
            await self._look.wait()
            await self._clock.sleep(SETTLE_S)
            self._look.clear()
            await self.refresh()

    async def _tick(self) -> None:
        while True:
            settings = self._settings
            await self._clock.sleep(settings.poll_s if self._state.ok else settings.poll_unready_s)
            self._look.set()

    async def _watch(self) -> None:
        while True:
            try:
                watch = DirWatch.open(self._settings.conf_dir, clock=self._clock)
            except PodwrightError as error:
                # Not there yet: the tick sees it appear, then the watch is set anew.
                _log.debug("directory cannot be watched", error=str(error))
            else:
                with closing(watch):
                    self._look.set()
                    async for _ in watch:
                        self._look.set()
                self._look.set()  # it is gone itself
            await self._clock.sleep(self._settings.poll_unready_s)
