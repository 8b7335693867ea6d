"""Turns: one pod after the other's own, different pods at once, collection alone."""

from __future__ import annotations

import asyncio

import pytest

from cni.turns import Turns
from sandbox.host.errors import Busy


class Worker:
    """Enters a turn, says so, and stays until it is let go."""

    def __init__(self, turn) -> None:
        self.entered = asyncio.Event()
        self.leave = asyncio.Event()
        self._turn = turn

    async def run(self) -> None:
        async with self._turn:
            self.entered.set()
            await self.leave.wait()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_the_same_key_waits_and_another_does_not():
    turns = Turns()
    first, second, other = Worker(turns.of("a")), Worker(turns.of("a")), Worker(turns.of("b"))
    async with asyncio.TaskGroup() as group:
        for worker in (first, second, other):
            group.create_task(worker.run())
            await settle()
        assert first.entered.is_set()
        assert other.entered.is_set()
        assert not second.entered.is_set()
        first.leave.set()
        await settle()
        assert second.entered.is_set()
        second.leave.set()
        other.leave.set()
    assert turns._queues == {}


async def test_collection_waits_for_an_idle_moment_and_then_is_alone():
    turns = Turns()
    first, collection, late = Worker(turns.of("a")), Worker(turns.alone(wait_s=60)), None
    async with asyncio.TaskGroup() as group:
        group.create_task(first.run())
        await settle()
        group.create_task(collection.run())
        await settle()
        assert not collection.entered.is_set()

        overtaking = Worker(turns.of("b"))
        group.create_task(overtaking.run())
        await settle()
        assert overtaking.entered.is_set()

        first.leave.set()
        overtaking.leave.set()
        await settle()
        assert collection.entered.is_set()

        late = Worker(turns.of("c"))
        second_collection = Worker(turns.alone(wait_s=60))
        group.create_task(late.run())
        group.create_task(second_collection.run())
        await settle()
        assert not late.entered.is_set()
        assert not second_collection.entered.is_set()

        collection.leave.set()
        await settle()
        assert late.entered.is_set() or second_collection.entered.is_set()
        late.leave.set()
        second_collection.leave.set()


async def test_collection_gives_up_where_there_is_no_idle_moment():
    turns = Turns()
    async with turns.of("a"):
        with pytest.raises(Busy):
            async with turns.alone(wait_s=0):
                pass
    async with turns.alone(wait_s=0):
        pass


async def test_who_is_cancelled_while_waiting_leaves_nothing():
    turns = Turns()
    async with turns.of("a"):
        waiting = Worker(turns.of("a"))
        async with asyncio.TaskGroup() as group:
            task = group.create_task(waiting.run())
            await settle()
            task.cancel()
    assert turns._queues == {}
    async with turns.alone(wait_s=0):
        pass


async def test_a_failure_inside_a_turn_ends_it():
    turns = Turns()
    with pytest.raises(ZeroDivisionError):
        async with turns.of("a"):
            raise ZeroDivisionError
    async with turns.of("a"), turns.of("b"):
        pass
