"""Stopping a container: one shared stop per container, whose deadline callers may only shorten.

The first caller's signal is sent once; every caller waits for the same end. A later caller with a
smaller grace brings the KILL forward, a cancelled caller changes nothing, and the KILL is repeated
with growing pauses until the process is gone, because a process in uninterruptible sleep or a
frozen cgroup takes it late. No lock is held meanwhile: logs can be reopened and commands run
during the grace period.
"""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Final

from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sandbox.host.clock import Clock

#: Pauses between KILLs (seconds): doubled from the first to the last.
KILL_PAUSE_FIRST_S: Final = 0.05
KILL_PAUSE_LAST_S: Final = 30.0
#: A grace period longer than this counts as this (seconds): the kubelet's own bound is far below.
GRACE_LIMIT_S: Final = 86_400 * 365

_log = get_logger("stopping")


class Stop:
    """One stop in progress."""

    def __init__(
        self,
        container_id: str,
        *,
        clock: Clock,
        send: Callable[[int], bool],
        kill_all: Callable[[], Awaitable[None]],
        note_kill: Callable[[], Awaitable[None]],
    ) -> None:
        """Prepare a stop.

        Args:
            container_id: for the log.
            clock: monotonic time.
            send: sends a signal number to the container's first process; False when it is gone.
            kill_all: SIGKILLs every process of the container.
            note_kill: records that a KILL of ours is about to be sent.
        """
        self._id = container_id
        self._clock = clock
        self._send = send
        self._kill_all = kill_all
        self._exited = asyncio.Event()
        self._note_kill = note_kill
        self._deadline_ns: int | None = None
        #: Set when `run` has ended; what callers wait for.
        self.finished = asyncio.Event()
        self._wake = asyncio.Event()

    def ask(self, grace_s: float) -> None:
        """Set the deadline, or bring it forward; a later one than the present is ignored."""
        grace_ns = int(min(max(grace_s, 0.0), GRACE_LIMIT_S) * 1e9)
        deadline_ns = self._clock.monotonic_ns() + grace_ns
        if self._deadline_ns is None or deadline_ns < self._deadline_ns:
            self._deadline_ns = deadline_ns
            self._wake.set()

    def exit_recorded(self) -> None:
        """Wake the stop: the exit it waits for is known."""
        self._exited.set()
        self._wake.set()

    async def run(self, stop_signal: int) -> None:
        """Signal, wait out the grace, kill; returns when the exit is recorded."""
        if self._remaining_s() > 0 and not self._exited.is_set():
            self._send(stop_signal)
            await self._wait_out_grace()
        pause_s = KILL_PAUSE_FIRST_S
        rounds = 0
        while not self._exited.is_set():
            if rounds == 0:
                await self._note_kill()
            self._send(signal.SIGKILL)
            await self._kill_all()
            await _wait_for(self._exited, pause_s, self._clock)
            rounds += 1
            if pause_s >= 1.0 and not self._exited.is_set():
                _log.warning(
                    "container does not end after SIGKILL", container=self._id, tries=rounds
                )
            pause_s = min(pause_s * 2, KILL_PAUSE_LAST_S)

    async def _wait_out_grace(self) -> None:
        while not self._exited.is_set():
            remaining_s = self._remaining_s()
            if remaining_s <= 0:
                return
            self._wake.clear()
            if self._exited.is_set():
                return
            await _wait_for(self._wake, remaining_s, self._clock)

    def _remaining_s(self) -> float:
        if self._deadline_ns is None:
            return 0.0
        return (self._deadline_ns - self._clock.monotonic_ns()) / 1e9


async def _wait_for(event: asyncio.Event, seconds: float, clock: Clock) -> None:
    """Wait until the event is set or the clock has moved on by `seconds`."""
    async with asyncio.TaskGroup() as waits:
        tasks = {waits.create_task(event.wait()), waits.create_task(_nap(clock, seconds))}
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()


async def _nap(clock: Clock, seconds: float) -> bool:
    await clock.sleep(seconds)
    return False
