"""Who waits for whom: operations on one pod take turns, garbage collection wants to be alone.

The specification ("Lifecycle & Ordering") forbids parallel operations on one container and any ADD
or DEL during GC. Different pods never wait for each other. Collection yields: it begins in a
moment when nothing runs, because a pod that starts matters more than a leak that is found later.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sandbox.host.errors import Busy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class _Queue:
    """A lock and how many hold it or wait for it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


class Turns:
    """Turns by key, and one exclusive turn over all keys."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}
        self._running = 0
        self._alone = False
        self._moved = asyncio.Event()

    @asynccontextmanager
    async def of(self, key: str) -> AsyncIterator[None]:
        """The block runs alone among those of the same key, and never beside `alone`."""
        queue = self._queues.setdefault(key, _Queue())
        queue.users += 1
        try:
            async with queue.lock:
                while self._alone:
                    await self._movement()
                self._running += 1
                try:
                    yield
                finally:
                    self._running -= 1
                    self._moved.set()
        finally:
            queue.users -= 1
            if queue.users == 0:
                del self._queues[key]

    @asynccontextmanager
    async def alone(self, *, wait_s: float) -> AsyncIterator[None]:
        """The block runs while nothing else does.

        Raises:
            Busy: there was no idle moment within `wait_s`.
        """
        try:
            async with asyncio.timeout(wait_s):
                while self._alone or self._running:
                    await self._movement()
        except TimeoutError as error:
            raise Busy("pods are being attached and detached all the time") from error
        self._alone = True
        try:
            yield
        finally:
            self._alone = False
            self._moved.set()

    async def _movement(self) -> None:
        # Whoever waits clears the event first: a movement in between sets it again and the
        # condition is looked at once more than needed, never once less.
        self._moved.clear()
        await self._moved.wait()
