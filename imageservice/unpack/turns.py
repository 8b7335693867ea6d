"""Who of the layers in flight may use a processor, and who may have a worker at all.

Two things are scarce. *Turns*: as many workers run at once as there are processors for it.
*Places*: a worker process costs memory. A layer whose bytes trickle in must hold neither against
one whose bytes are all there, so

- a worker that has used up what has arrived gives its turn back while it waits for more;
- a layer gets a worker only when a turn is free at that moment: where the processors are the
  bottleneck there are no more workers than turns;
- layers that are still being fetched have at most as many workers as there are turns, and all
  together twice as many. A worker in a place beyond those has all of its bytes, so it moves, ends
  and makes room: nobody waits for a stranger's slow download;
- whoever has all bytes comes first, then who came first.

There is no order in which two could wait for each other: who waits for bytes holds no turn, and who
holds a turn waits for nothing but the processor and the disk.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imageservice.unpack.feed import Feed


@dataclass(slots=True, eq=False)
class _Waiter:
    feed: Feed
    serial: int
    admitted: asyncio.Future[None] = field(default_factory=asyncio.Future)


class Turns:
    """Places and turns of a pool of workers. For one event loop."""

    def __init__(self, limit: int) -> None:
        """At most `limit` run at once."""
        self._limit = limit
        self._aboard: set[Feed] = set()
        self._running: set[Feed] = set()
        self._waiting: list[_Waiter] = []
        self._serials = itertools.count()

    async def take(self, feed: Feed) -> None:
        """A turn, and a place with the first one; waits until both are free."""
        waiter = _Waiter(feed, next(self._serials))
        self._waiting.append(waiter)
        feed.when_whole(self._admit)
        self._admit()
        try:
            await waiter.admitted
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            else:
                self.pause(feed)
            raise

    def pause(self, feed: Feed) -> None:
        """Give the turn back and keep the place."""
        self._running.discard(feed)
        self._admit()

    def leave(self, feed: Feed) -> None:
        """Give back whatever is held."""
        feed.when_whole(None)
        self._aboard.discard(feed)
        self.pause(feed)

    def _admit(self) -> None:
        for waiter in sorted(self._waiting, key=lambda one: (not one.feed.is_whole, one.serial)):
            if not waiter.admitted.done() and self._may_run(waiter.feed):
                self._waiting.remove(waiter)
                self._aboard.add(waiter.feed)
                self._running.add(waiter.feed)
                waiter.admitted.set_result(None)

    def _may_run(self, feed: Feed) -> bool:
        if len(self._running) >= self._limit:
            return False
        if feed in self._aboard:
            return True
        following = sum(not one.is_whole for one in self._aboard)
        return len(self._aboard) < 2 * self._limit and (feed.is_whole or following < self._limit)
