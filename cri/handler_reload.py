"""Runtime handlers that come, change and go while the daemon runs.

| in the new configuration         | then                                                          |
|----------------------------------|---------------------------------------------------------------|
| a new handler                    | asked what it is, and there for the next pod                  |
| another program or other options | the next call takes them, also for containers that are there  |
| another root, with pods of it    | waits: the runtime would not find them                        |
| no such handler any more         | no new pod gets it; those there are run and removed with it   |
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sandbox.runtime.books import is_gvisor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cri.runtimes import Made, RuntimeMaker
    from sandbox.handlers import Handlers
    from sandbox.leavings import Leavings
    from sandbox.runtime.driver import RuntimeInfo
    from sandbox.settings import RuntimeHandler
    from sandbox.spec.inputs import HostFacts
    from sandbox.store import StateStore


@dataclass(slots=True)
class HandlerChange:
    """What would change; nothing has, until `commit`.

    Attributes:
        taken: keys such as `runtimes.NAME` that `commit` takes over.
        waiting: those that only a restart takes.
    """

    taken: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    _steps: list[Callable[[], None]] = field(default_factory=list)

    def then(self, key: str, step: Callable[[], None]) -> None:
        """Note a step of `commit`."""
        self.taken.append(key)
        self._steps.append(step)

    def commit(self) -> None:
        """Carry it out; raises nothing."""
        for step in self._steps:
            step()


class HandlerBook:
    """Takes handlers over into the book that the engines read; for the event loop's thread."""

    def __init__(
        self,
        handlers: Handlers,
        maker: RuntimeMaker,
        facts: Callable[[RuntimeInfo | None], HostFacts],
        *,
        store: StateStore,
        leavings: Leavings,
    ) -> None:
        """Nothing is known before `learn`.

        Args:
            handlers: the book.
            maker: makes runtimes.
            facts: the node, for documents of a runtime that has said this of itself.
            store: tells whose containers are there.
            leavings: must know the programs' names.
        """
        self._handlers = handlers
        self._maker = maker
        self._facts = facts
        self._store = store
        self._leavings = leavings
        self._known: dict[str, RuntimeHandler] = {}

    def learn(self, made: Made) -> None:
        """Take one over."""
        handler = made.handler
        self._known[handler.name] = handler
        self._leavings.know(handler.path.name)
        self._handlers.learn(
            handler,
            made.runtime,
            made.info,
            self._facts(made.info),
            missing=made.missing,
            shared=made.shared,
        )

    async def prepare(self, wanted: Iterable[RuntimeHandler]) -> HandlerChange:
        """Find out what a new configuration means.

        Raises:
            PodwrightError: a handler's root cannot be made; nothing has changed.
        """
        change = HandlerChange()
        names = set()
        for handler in wanted:
            name = handler.name
            names.add(name)
            retired = name in self._handlers.retired
            if self._known.get(name) == handler and not retired:
                continue
            if self._is_elsewhere(handler) and self._is_used(name):
                change.waiting.append(f"runtimes.{name}")
                continue
            made = await self._maker.make(handler)
            change.then(f"runtimes.{name}", lambda made=made: self.learn(made))  # type: ignore[misc]
        for name in sorted(self._known.keys() - names - self._handlers.retired):
            change.then(f"runtimes.{name}", lambda name=name: self._handlers.retire(name))  # type: ignore[misc]
        return change

    def _is_elsewhere(self, handler: RuntimeHandler) -> bool:
        """Whether its books are others than those of the handler that had the name."""
        before = self._known.get(handler.name)
        return before is not None and (before.root, is_gvisor(before)) != (
            handler.root,
            is_gvisor(handler),
        )

    def _is_used(self, name: str) -> bool:
        pods, containers = self._store.pods.values(), self._store.containers.values()
        return name in {pod.runtime for pod in pods} | {each.runtime for each in containers}
