"""SIGHUP: read the configuration again, take what may change while running, name what may not.

A configuration with a mistake is refused as a whole and the old one stays, because half of a new
one is nobody's. A setting that cannot change under a running daemon keeps its old value, and the
log and `podwright status` name it: a restart takes it, and pods do not notice a restart. What may
change is in `cri.reloadable`, runtime handlers are `cri.handler_reload`'s. Files that
the settings only point to (registries' hosts.toml, network configurations, certificates of
registries, CDI devices) need no signal: they are read when they are needed, or watched.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cri import settings_table as table
from cri.config import toml_text
from cri.handler_reload import HandlerChange
from sandbox.host.errors import PodwrightError
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cri.config import Config
    from cri.handler_reload import HandlerBook
    from sandbox.host.clock import Clock

    Apply = Callable[[Config], object]

_log = get_logger("reload")


class Reloader:
    """See the module text; for the event loop's thread."""

    def __init__(
        self,
        config: Config,
        load: Callable[[], Config],
        apply: Mapping[str, Apply],
        *,
        clock: Clock,
        tell: Callable[[str], object],
        handlers: HandlerBook | None = None,
    ) -> None:
        """Nothing is read before `reload`.

        Args:
            config: what is in force.
            load: reads the files again, with the flags that the daemon was started with.
            apply: by key of a setting, takes its new value.
            clock: stamps the last reload.
            tell: the service manager (sd_notify(3)).
            handlers: takes runtime handlers over; without it they wait for a restart.
        """
        self._config = config
        self._values = dict(config.values)
        self._load = load
        self._apply = apply
        self._clock = clock
        self._tell = tell
        self._handlers = handlers
        self._at_ns = 0
        self._outcome = ""
        self._problems: list[str] = []
        self._taken: list[str] = []
        self._waiting: list[str] = []

    @property
    def values(self) -> Mapping[str, object]:
        """Every setting as it is in force now."""
        return self._values

    async def reload(self) -> None:
        """Read and take; a failure is logged and reported, never raised."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={self._clock.monotonic_ns() // 1000}")
        try:
            await self._reload()
        except PodwrightError as error:
            self._outcome = "refused"
            self._problems = [str(problem) for problem in getattr(error, "problems", (error,))]
            for problem in self._problems:
                _log.error("configuration refused, the old one stays", problem=problem)
        finally:
            self._at_ns = self._clock.wall_ns()
            self._tell("READY=1")

    async def _reload(self) -> None:
        new = await asyncio.to_thread(self._load)
        # All that can fail comes first: a configuration is taken as a whole or not at all.
        handlers = await self._change_of_handlers(new)
        changed = [key for key in new.values if new.values[key] != self._values.get(key)]
        taken, waiting = [*handlers.taken], []
        for key in handlers.taken:
            _log.info("runtime handler changed", handler=key.partition(".")[2])
        handlers.commit()
        for key in changed:
            if key in self._apply:
                self._apply[key](new)
                self._values[key] = new.values[key]
                taken.append(key)
                _log.info("setting changed", setting=key, value=toml_text(new.values[key]))
            else:
                waiting.append(key)
        waiting += handlers.waiting
        for key in waiting:
            _log.warning("setting needs a restart, which pods do not notice", setting=key)
        self._problems, self._taken, self._waiting = [], taken, waiting
        self._outcome = "restart needed" if waiting else "ok"
        _log.info("configuration read again", changed=len(taken), restart=len(waiting))

    async def _change_of_handlers(self, new: Config) -> HandlerChange:
        if self._handlers is not None:
            return await self._handlers.prepare(new.handlers)
        old = {handler.name: handler for handler in self._config.handlers}
        now = {handler.name: handler for handler in new.handlers}
        differ = (n for n in sorted(old.keys() | now.keys()) if old.get(n) != now.get(n))
        return HandlerChange(waiting=[f"runtimes.{name}" for name in differ])

    def report(self) -> dict[str, object]:
        """The last reload as JSON values."""
        return {
            "outcome": self._outcome,
            "secondsAgo": (
                round((self._clock.wall_ns() - self._at_ns) / 1e9) if self._at_ns else None
            ),
            "changed": self._taken,
            "needsRestart": self._waiting,
            "problems": self._problems,
        }


def reloadable() -> frozenset[str]:
    """Keys of the settings that say of themselves that they can be reloaded."""
    return frozenset(setting.key for setting in table.TABLE if setting.reloadable)
