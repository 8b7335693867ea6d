"""The only reader of time: durations from the monotonic clock, stamps from the wall clock.

Why a protocol: tests advance time instead of sleeping, and a jump of the wall clock must never
change a grace period, a token's life or a retry delay.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def monotonic_ns(self) -> int:
        """Nanoseconds of CLOCK_MONOTONIC, for durations only."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch, for what is shown to people and stored as a stamp."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait without blocking the event loop."""
        ...

    def sleep_blocking(self, seconds: float) -> None:
        """Block the calling thread; never on the event loop."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic_ns(self) -> int:
        """See `Clock`."""
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        """See `Clock`."""
        return time.time_ns()

    async def sleep(self, seconds: float) -> None:
        """See `Clock`."""
        await asyncio.sleep(seconds)

    def sleep_blocking(self, seconds: float) -> None:
        """See `Clock`."""
        time.sleep(seconds)
