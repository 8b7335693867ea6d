"""A clock that stands still until it is told to move."""

from __future__ import annotations

import asyncio

#: Turns of the event loop given to tasks that were woken, so that they reach their next wait.
_TURNS = 50


class FakeClock:
    """See `sandbox.host.clock.Clock`.

    `sleep` waits for `advance_s`; with `auto_advance` it returns at once and the time has passed.
    Every wait asked for is noted in `slept_s`.
    """

    def __init__(
        self, *, wall_ns: int = 1_700_000_000_000_000_000, auto_advance: bool = False
    ) -> None:
        self.slept_s: list[float] = []
        self._auto_advance = auto_advance
        self._monotonic_ns = 1_000_000_000
        self._wall_offset_ns = wall_ns - self._monotonic_ns
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._count = 0

    def monotonic_ns(self) -> int:
        return self._monotonic_ns

    def wall_ns(self) -> int:
        return self._monotonic_ns + self._wall_offset_ns

    def jump_wall_s(self, seconds: float) -> None:
        """Somebody sets the machine's clock; durations do not notice."""
        self._wall_offset_ns += _ns(seconds)

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        if self._auto_advance:
            self._monotonic_ns += _ns(seconds)
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        entry = (self._monotonic_ns + _ns(seconds), self._count, future)
        self._sleepers.append(entry)
        try:
            await future
        finally:
            if entry in self._sleepers:
                self._sleepers.remove(entry)

    def sleep_blocking(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self._monotonic_ns += _ns(seconds)

    @property
    def sleeping(self) -> int:
        """How many tasks wait in `sleep`."""
        return len(self._sleepers)

    async def advance_s(self, seconds: float) -> None:
        """Let time pass; sleepers wake in the order of their deadlines, and may sleep again."""
        await settle()
        until_ns = self._monotonic_ns + _ns(seconds)
        while due := [each for each in self._sleepers if each[0] <= until_ns]:
            entry = min(due, key=lambda each: each[:2])
            self._sleepers.remove(entry)
            self._monotonic_ns = max(self._monotonic_ns, entry[0])
            if not entry[2].done():
                entry[2].set_result(None)
            await settle()
        self._monotonic_ns = until_ns
        await settle()


async def settle() -> None:
    """Give every task that can run the time to reach its next wait."""
    for _ in range(_TURNS):
        await asyncio.sleep(0)


def _ns(seconds: float) -> int:
    return round(seconds * 1_000_000_000)
