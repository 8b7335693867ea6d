"""Shared work that lives exactly as long as somebody waits for it.

Two pods that need one image, two images that share a layer: the work under a key is done once, and
whoever asks meanwhile waits for the same task. A caller that is cancelled (the client's deadline)
only leaves; when the last one has left the task is cancelled, so a download that nobody wants ends
at once. This is the opposite of cri's mutations, which go on without their callers: a pull changes
nothing that would have to be undone, and what it has fetched so far is kept for the next one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

from sandbox.host.errors import Cancelled, PodwrightError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable

T = TypeVar("T")
E = TypeVar("E")


class Flight(Generic[T, E]):
    """Work in flight: its task, how many wait for it, and who hears of its progress."""

    def __init__(self) -> None:
        self.task: asyncio.Task[tuple[T] | Exception] | None = None
        self.waiters = 0
        self.listeners: list[Callable[[E], None]] = []

    def emit(self, event: E) -> None:
        """Tell everyone who waits."""
        for listener in tuple(self.listeners):
            listener(event)


class Flights(Generic[T, E]):
    """Work by key; all methods are for the event loop's thread."""

    def __init__(self, group: asyncio.TaskGroup, name: str) -> None:
        self._group = group
        self._name = name
        self._flights: dict[Hashable, Flight[T, E]] = {}
        #: Called off, and still putting in order what they have begun.
        self._ending: dict[Hashable, asyncio.Task[tuple[T] | Exception]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    async def join(
        self,
        key: Hashable,
        work: Callable[[Callable[[E], None]], Coroutine[None, None, T]],
        listener: Callable[[E], None] | None = None,
        *,
        retry_joined: bool = False,
    ) -> T:
        """The result of the work under `key`: what is in flight already, or `work` begun now.

        Args:
            key: what is worked on.
            work: is given the function that reports progress to all who wait.
            listener: hears of the progress from now on.
            retry_joined: when work that another caller began fails, do it once more as our own: it
                may have failed for a reason of that caller's, such as its credential.

        Raises:
            Cancelled: the work was called off by the end of the daemon.
            Unavailable: the daemon is ending and begins nothing new.
            Exception: what the work raises.
        """
        flight = self._flights.get(key)
        while flight is None and (ending := self._ending.get(key)) is not None:
            # What it has begun is put in order first: then its rests can be gone on with, and none
            # of them comes to light after our own work is done.
            await asyncio.wait({ending})
            flight = self._flights.get(key)
        own = flight is None
        if flight is None:
            flight = self._begin(key, work)
        try:
            return await self._wait(key, flight, listener)
        except PodwrightError:
            if own or not retry_joined:
                raise
        return await self.join(key, work, listener)

    async def settle(self) -> None:
        """Wait until what was called off has put everything in order."""
        while self._ending:
            await asyncio.wait(set(self._ending.values()))

    def _begin(
        self, key: Hashable, work: Callable[[Callable[[E], None]], Coroutine[None, None, T]]
    ) -> Flight[T, E]:
        flight = Flight[T, E]()
        outcome = _outcome(work, flight.emit)
        try:
            flight.task = self._group.create_task(outcome, name=f"{self._name} {key}")
        except RuntimeError as error:
            outcome.close()
            raise Unavailable(f"{self._name} cannot begin, the daemon is ending") from error
        self._flights[key] = flight
        flight.task.add_done_callback(lambda _task: self._drop(key, flight))
        return flight

    async def _wait(
        self, key: Hashable, flight: Flight[T, E], listener: Callable[[E], None] | None
    ) -> T:
        task = flight.task
        assert task is not None
        flight.waiters += 1
        if listener is not None:
            flight.listeners.append(listener)
        try:
            # Neither cancels the task with us nor raises for it.
            await asyncio.wait({task})
        finally:
            flight.waiters -= 1
            if listener is not None:
                flight.listeners.remove(listener)
            if flight.waiters == 0 and not task.done():
                # Out of the table first: who asks now begins anew and does not join an ending task.
                self._drop(key, flight)
                self._ending[key] = task
                task.add_done_callback(lambda _task: self._ended(key, task))
                task.cancel()
        if task.cancelled():
            raise Cancelled(f"{self._name} was called off", key=str(key)[:300])
        outcome = task.result()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome[0]

    def _ended(self, key: Hashable, task: asyncio.Task[tuple[T] | Exception]) -> None:
        if self._ending.get(key) is task:
            del self._ending[key]

    def _drop(self, key: Hashable, flight: Flight[T, E]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


async def _outcome(
    work: Callable[[Callable[[E], None]], Coroutine[None, None, T]], emit: Callable[[E], None]
) -> tuple[T] | Exception:
    """A failure as a value: what escapes a task would end the whole task group."""
    try:
        return (await work(emit),)
    except Exception as error:
        return error
