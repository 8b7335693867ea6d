"""What counts as a host's time and what does not."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from imageservice.registry.transport import Waiting
    from sandbox.host.clock import Clock


class Patience:
    """The time that a host has for the least progress; a block that raises TimeoutError at its end.

    It stands still while something else is waited for: a free place among the connections, a token,
    the disk. For the task that enters it.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._timeout = asyncio.timeout(limit_s)

    async def __aenter__(self) -> Patience:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._timeout.__aexit__(kind, error, trace)

    def renew(self) -> None:
        """There was progress: all of it again, from now."""
        self._timeout.reschedule(asyncio.get_running_loop().time() + self._limit_s)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A block whose time is not the host's."""
        loop, deadline_s = asyncio.get_running_loop(), self._timeout.when()
        if deadline_s is None:  # it stands still already
            yield
            return
        left_s = max(0.0, deadline_s - loop.time())
        self._timeout.reschedule(None)
        yield  # after a failure there is nothing more to wait for
        self._timeout.reschedule(loop.time() + left_s)

    def with_(self, outer: Waiting) -> Waiting:
        """For a `Request`: what it waits for counts neither here nor for `outer`."""

        @contextmanager
        def both() -> Iterator[None]:
            with outer(), self.paused():
                yield

        return both


class Queued:
    """How long the requests of one question have waited for something else than their host."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._total_ns = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For a `Request`."""
        began_ns = self._clock.monotonic_ns()
        try:
            yield
        finally:
            self._total_ns += self._clock.monotonic_ns() - began_ns

    def take_ns(self) -> int:
        """All of it since the last time; of requests at once each counts."""
        total_ns, self._total_ns = self._total_ns, 0
        return total_ns
