"""Clocks that tests move.

`FakeClock`: sleeping takes no time, is written down, and advances the clock; for code that waits by
itself, such as retries. `HeldClock`: stands still until `advance_s`, and sleepers with it; for code
where something else happens while somebody waits, such as a grace period.
"""

from __future__ import annotations

import asyncio

NS_PER_S = 1_000_000_000
#: Turns of the event loop given to tasks that were woken, so that they reach their next wait.
_TURNS = 50


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
        self._monotonic_ns += round(seconds * NS_PER_S)
        self._wall_ns += round(seconds * NS_PER_S)

    def jump_wall_s(self, seconds: float) -> None:
        """Somebody sets the machine's clock; durations do not notice."""
        self._wall_ns += round(seconds * NS_PER_S)

    def sleep_blocking(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.advance(seconds)

    async def sleep(self, seconds: float) -> None:
        self.sleep_blocking(seconds)
        await asyncio.sleep(0)


class HeldClock(FakeClock):
    """A `FakeClock` whose `sleep` waits for `advance_s`."""

    def __init__(self, *, monotonic_s: float = 1000.0, wall_s: float = 1_700_000_000.0) -> None:
        super().__init__(monotonic_s=monotonic_s, wall_s=wall_s)
        self._sleepers: dict[asyncio.Future[None], int] = {}

    @property
    def sleeping(self) -> int:
        """How many tasks wait in `sleep`."""
        return len(self._sleepers)

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers[future] = self.monotonic_ns() + round(seconds * NS_PER_S)
        try:
            await future
        finally:
            self._sleepers.pop(future, None)

    async def advance_s(self, seconds: float) -> None:
        """Let time pass; sleepers wake in the order of their deadlines, and may sleep again."""
        await settle()
        until_ns = self.monotonic_ns() + round(seconds * NS_PER_S)
        while due := [item for item in self._sleepers.items() if item[1] <= until_ns]:
            future, deadline_ns = min(due, key=lambda item: item[1])
            del self._sleepers[future]
            self.advance(max(0, deadline_ns - self.monotonic_ns()) / NS_PER_S)
            if not future.done():
                future.set_result(None)
            await settle()
        self.advance((until_ns - self.monotonic_ns()) / NS_PER_S)
        await settle()


async def settle() -> None:
    """Give every task that can run the time to reach its next wait."""
    for _ in range(_TURNS):
        await asyncio.sleep(0)
