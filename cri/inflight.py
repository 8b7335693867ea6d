"""Mutations that outlive the call that asked for them, one at a time per object.

grpc.aio cancels a handler when the client's deadline passes. Were the work part of the handler, a
slow disk would leave half-made pods behind and every retry would hit "name is reserved", the
field's most reported failure. So the work is a task of the daemon, keyed by the object; a handler
only waits for it. The same request again joins the work in flight and gets its result; a call that
goes away changes nothing.

A newer request may supersede older work (a higher attempt of the same pod): `supersede` cancels
that work, whose own undo then runs to its end before the newer work begins.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from sandbox.host.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Iterator

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Outcome(Generic[T]):
    """A result or a failure as a value: what escapes a task would end the whole task group."""

    value: tuple[T] | None = None
    error: Exception | None = None

    def unwrap(self) -> T:
        if self.value is None:
            assert self.error is not None
            raise self.error
        return self.value[0]


class Inflight(Generic[T]):
    """Work in flight by key; all methods are for the event loop's thread only."""

    def __init__(self, group: asyncio.TaskGroup, name: str) -> None:
        self._group = group
        self._name = name
        self._tasks: dict[Hashable, asyncio.Task[_Outcome[T]]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._tasks

    def __iter__(self) -> Iterator[Hashable]:
        """Keys of what is in flight at this moment."""
        return iter(tuple(self._tasks))

    async def join(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """The result of the work under `key`: what is in flight already, or else `work` begun now.

        Cancelling the caller leaves the work running. Raises what the work raises; Cancelled when a
        newer request called the work off.
        """
        task = self._tasks.get(key)
        if task is None:
            task = self._group.create_task(self._run(work), name=f"{self._name} {key}")
            self._tasks[key] = task
            task.add_done_callback(lambda _done: self._tasks.pop(key, None))
        return await self._result(key, task)

    async def supersede(self, key: Hashable) -> None:
        """Call off the work under `key` and wait until it has undone what it did."""
        task = self._tasks.get(key)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def close(self, grace_s: float) -> None:
        """Wait for everything in flight, at most for the grace; then call off and wait on.

        An undo is never cut short: it ends, or the next start of the daemon repeats it.
        """
        tasks = set(self._tasks.values())
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=grace_s)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    async def _result(self, key: Hashable, task: asyncio.Task[_Outcome[T]]) -> T:
        # asyncio.wait, unlike awaiting the task, neither cancels it with us nor raises for it.
        await asyncio.wait({task})
        if task.cancelled():
            raise Cancelled(f"{self._name} was superseded by a newer request", key=str(key))
        return task.result().unwrap()

    async def _run(self, work: Callable[[], Awaitable[T]]) -> _Outcome[T]:
        try:
            return _Outcome(value=(await work(),))
        except Exception as error:
            return _Outcome(error=error)
