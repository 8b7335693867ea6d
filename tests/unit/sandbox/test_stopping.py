"""One stop per container: the shortest grace wins, a KILL is repeated until it has worked."""

from __future__ import annotations

import asyncio
import signal

import pytest

from sandbox.stopping import GRACE_LIMIT_S, Stop
from tests.fakes.clock import HeldClock


class Target:
    """A container's process: notes signals, and ends by those that it does not ignore."""

    def __init__(self, ends_on: set[int], kills_needed: int = 1) -> None:
        self.signals: list[int] = []
        self.noted = 0
        self._ends_on = ends_on
        self._kills_left = kills_needed
        self.clock = HeldClock()
        self.stop = Stop(
            "c1",
            clock=self.clock,
            send=self.send,
            kill_all=self.kill_all,
            note_kill=self.note_kill,
        )

    def send(self, number: int) -> bool:
        self.signals.append(number)
        if number == signal.SIGKILL:
            self._kills_left -= 1
        if number in self._ends_on and (number != signal.SIGKILL or self._kills_left <= 0):
            self.stop.exit_recorded()
        return True

    async def kill_all(self) -> None:
        return

    async def note_kill(self) -> None:
        self.noted += 1


async def test_a_process_that_obeys_is_not_killed():
    target = Target({signal.SIGTERM})
    target.stop.ask(10)
    await target.stop.run(signal.SIGTERM)
    assert target.signals == [signal.SIGTERM]
    assert target.noted == 0


async def test_grace_zero_kills_at_once_without_the_stop_signal():
    target = Target({signal.SIGKILL})
    target.stop.ask(0)
    await target.stop.run(signal.SIGTERM)
    assert target.signals == [signal.SIGKILL]
    assert target.noted == 1


async def test_the_kill_comes_when_the_grace_is_over_and_not_before():
    target = Target({signal.SIGKILL})
    target.stop.ask(10)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(target.stop.run(signal.SIGTERM))
        await target.clock.advance_s(9.9)
        assert target.signals == [signal.SIGTERM]
        await target.clock.advance_s(0.2)
        await running
    assert target.signals == [signal.SIGTERM, signal.SIGKILL]


async def test_a_shorter_grace_brings_the_kill_forward_and_a_longer_one_does_not_delay_it():
    target = Target({signal.SIGKILL})
    target.stop.ask(3600)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(target.stop.run(signal.SIGTERM))
        await target.clock.advance_s(1)
        target.stop.ask(5)
        target.stop.ask(7200)
        await target.clock.advance_s(4.9)
        assert target.signals == [signal.SIGTERM]
        await target.clock.advance_s(0.2)
        await running
    assert target.signals == [signal.SIGTERM, signal.SIGKILL]


async def test_a_kill_that_does_not_work_is_repeated_with_growing_pauses():
    target = Target({signal.SIGKILL}, kills_needed=6)
    target.stop.ask(0)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(target.stop.run(signal.SIGTERM))
        for _ in range(10):
            await target.clock.advance_s(30)
        await running
    assert target.signals == [signal.SIGKILL] * 6
    naps = target.clock.slept_s[:5]
    assert naps == sorted(naps)
    assert naps[0] < naps[-1]
    assert target.noted == 1


@pytest.mark.parametrize("grace_s", [-1, -(2**63)])
async def test_a_negative_grace_is_none(grace_s):
    target = Target({signal.SIGKILL})
    target.stop.ask(grace_s)
    await target.stop.run(signal.SIGTERM)
    assert target.signals == [signal.SIGKILL]


async def test_an_endless_grace_is_bounded_and_does_not_overflow():
    target = Target({signal.SIGTERM})
    target.stop.ask(2**63)
    assert target.stop._deadline_ns is not None
    assert target.stop._deadline_ns <= target.clock.monotonic_ns() + GRACE_LIMIT_S * 1e9
    await target.stop.run(signal.SIGTERM)
