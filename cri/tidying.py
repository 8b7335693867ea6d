"""Memory given back and garbage collected where nobody waits for it: when no call is under way.

Two things grow with work and not with what is there. What a burst of pulls and pods has freed stays
with the C library, in pieces between what lives: 2 MiB after some pods, 6 after large pulls, of a
daemon that has 54. And a full collection looks at everything that was made since the start, while
every answer waits: with 264 pods for 14 ms, with 500 for 25.

So, a moment after work, and once more when connections and workers that idled have ended: collect,
put what is left aside for good (gc.freeze, as the start does it), give free memory back. What was
put aside is freed like anything else when nobody refers to it; only where it has become garbage in
a circle it stays, until everything is looked at again, once in `WHOLE_S`. Collections that the
interpreter does by itself go on as always; they have less to look at.

A daemon that does nothing is not woken for it.
"""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Final

from sandbox.host.heap import give_back
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.host.clock import Clock

#: From the first work to the first tidying, and between two looks for a quiet moment (seconds).
SOON_S: Final = 2.0
#: From the first tidying to the second: by then idle connections have been closed and the workers
#: of a pull have ended, both after half a minute or less (seconds).
LATER_S: Final = 60.0
#: Between two collections of everything, with what was put aside (seconds). It takes 15 to 60 ms.
WHOLE_S: Final = 3600.0

_log = get_logger("tidying")


class Activity:
    """Calls that change something: how many are under way, and whether there were any lately."""

    def __init__(self) -> None:
        self.under_way = 0
        #: Told how many are under way whenever that has changed.
        self.on_count: Callable[[int], None] = lambda _: None
        self._worked = asyncio.Event()

    def begin(self) -> None:
        """A call begins; `end` follows."""
        self.under_way += 1
        self.on_count(self.under_way)

    def end(self) -> None:
        """A call has ended."""
        self.under_way -= 1
        self.on_count(self.under_way)
        self.passed()

    def passed(self) -> None:
        """A call has ended that was not counted while it was under way."""
        self._worked.set()

    async def work(self) -> None:
        """Wait until a call has ended since the last time this was waited for."""
        await self._worked.wait()
        self._worked.clear()


def begin_tidying(
    group: asyncio.TaskGroup, activity: Activity, clock: Clock, *, enabled: bool
) -> None:
    """Tidy what the start has left, and from now on after work if `enabled`.

    What the start has made stays for good. A full collection over it stops every answer for 15 to
    60 ms on the reference machine, and for less than 1 ms without.
    """
    _put_aside()
    if enabled:
        give_back()
        group.create_task(tidying(activity, clock), name="tidying")


async def tidying(activity: Activity, clock: Clock) -> None:
    """Tidy after work, until cancelled; see the module text."""
    whole_ns = clock.monotonic_ns()
    while True:
        await activity.work()
        for pause_s in (SOON_S, LATER_S):
            await clock.sleep(pause_s)
            while activity.under_way:
                await clock.sleep(SOON_S)
            began_ns = clock.monotonic_ns()
            if whole := began_ns - whole_ns >= WHOLE_S * 1e9:
                gc.unfreeze()
                whole_ns = began_ns
            _put_aside()
            collected_ns = clock.monotonic_ns()
            await asyncio.to_thread(give_back)
            _log.debug(
                "tidied",
                whole=whole,
                collecting_ms=round((collected_ns - began_ns) / 1e6, 1),
                giving_back_ms=round((clock.monotonic_ns() - collected_ns) / 1e6, 1),
            )


def _put_aside() -> None:
    """Collect garbage, and keep what is left out of every later collection."""
    gc.collect()
    gc.freeze()
