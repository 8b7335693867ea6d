"""A clock that tests move: sleeping takes no time, is written down, and advances it."""

from __future__ import annotations

import asyncio

NS_PER_S = 1_000_000_000


class FakeClock:
    """See `sandbox.host.clock.Clock`.

    Attributes:
        slept_s: every sleep, in order.
    """

    def __init__(self, *, monotonic_s: float = 1000.0, wall_s: float = 1_700_000_000.0) -> None:
        self._monotonic_ns = int(monotonic_s * NS_PER_S)
        self._wall_ns = int(wall_s * NS_PER_S)
        self.slept_s: list[float] = []

    def monotonic_ns(self) -> int:
        return self._monotonic_ns

    def wall_ns(self) -> int:
        return self._wall_ns

    def advance(self, seconds: float) -> None:
        """Let time pass for everyone."""
        self._monotonic_ns += int(seconds * NS_PER_S)
        self._wall_ns += int(seconds * NS_PER_S)

    def sleep_blocking(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.advance(seconds)

    async def sleep(self, seconds: float) -> None:
        self.sleep_blocking(seconds)
        await asyncio.sleep(0)
