"""Turns and places of unpack workers: who waits for whom, and that nobody waits for ever."""

from __future__ import annotations

import asyncio
import random

import pytest

from imageservice.unpack.feed import Feed
from imageservice.unpack.turns import Turns


def whole() -> Feed:
    return Feed(100, 100)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Line:
    """Layers that ask for a turn, each in a task."""

    def __init__(self, limit: int) -> None:
        self.turns = Turns(limit)
        self.tasks: dict[Feed, asyncio.Task[None]] = {}

    async def ask(self, *feeds: Feed) -> None:
        for feed in feeds:
            self.tasks[feed] = asyncio.ensure_future(self.turns.take(feed))
        await settle()

    def has(self, feed: Feed) -> bool:
        return self.tasks[feed].done()


async def test_as_many_turns_as_allowed_in_order() -> None:
    line, feeds = Line(2), [whole() for _ in range(4)]
    await line.ask(*feeds)
    assert [line.has(feed) for feed in feeds] == [True, True, False, False]
    line.turns.leave(feeds[1])
    await settle()
    assert [line.has(feed) for feed in feeds] == [True, True, True, False]
    line.turns.leave(feeds[0])
    await settle()
    assert line.has(feeds[3])


async def test_who_has_all_bytes_comes_first() -> None:
    line, first, slow, ready = Line(1), whole(), Feed(100, 10), whole()
    await line.ask(first, slow, ready)
    line.turns.leave(first)
    await settle()
    assert (line.has(slow), line.has(ready)) == (False, True)
    line.turns.leave(ready)
    await settle()
    assert line.has(slow)


async def test_slow_downloads_leave_turns_and_places_to_others() -> None:
    line, slow, more = Line(2), [Feed(100, 10) for _ in range(2)], Feed(100, 10)
    await line.ask(*slow)
    for feed in slow:
        line.turns.pause(feed)
    await line.ask(more)
    assert not line.has(more)  # there are turns, but no third place for one that is still fetched
    ready = [whole() for _ in range(3)]
    await line.ask(*ready)
    assert [line.has(feed) for feed in ready] == [True, True, False]


async def test_a_download_that_ends_while_it_waits_counts_as_whole() -> None:
    line, slow, late = Line(1), Feed(100, 10), Feed(100, 10)
    await line.ask(slow)
    line.turns.pause(slow)
    await line.ask(late)
    assert not line.has(late)
    late.grow(100)
    await settle()
    assert line.has(late)


async def test_going_on_needs_a_turn_and_no_second_place() -> None:
    line, slow, other = Line(1), Feed(100, 10), whole()
    await line.ask(slow)
    line.turns.pause(slow)
    await line.ask(other)
    await line.ask(slow)
    assert not line.has(slow)
    line.turns.leave(other)
    await settle()
    assert line.has(slow)


@pytest.mark.parametrize("moment", ["waiting", "admitted"])
async def test_who_is_called_off_leaves_the_turn_to_the_next(moment: str) -> None:
    line, first, second, third = Line(1), whole(), whole(), whole()
    await line.ask(first, second, third)
    if moment == "admitted":
        line.turns.leave(first)  # second is admitted and has not noticed yet
    line.tasks[second].cancel()
    await settle()
    line.turns.leave(second)
    if moment == "waiting":
        line.turns.leave(first)
    await settle()
    assert line.has(third)


async def test_any_mixture_comes_to_its_end() -> None:
    chance = random.Random(7)
    for _ in range(30):
        turns = Turns(chance.randint(1, 3))
        running = 0

        async def layer(turns: Turns = turns) -> None:
            nonlocal running
            feed = Feed(5)
            while not feed.is_whole:
                await asyncio.sleep(0)
                feed.grow(feed.available_bytes + chance.randint(0, 5))
                await turns.take(feed)
                running += 1
                assert running <= turns._limit
                await asyncio.sleep(0)
                running -= 1
                turns.pause(feed)
            turns.leave(feed)

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(layer())
        assert not turns._aboard
        assert not turns._running


async def test_a_feed_wakes_who_has_enough() -> None:
    feed = Feed(100)
    few, many, end = (
        asyncio.ensure_future(feed.wait_beyond(*wanted)) for wanted in ((0, 10), (0, 60), (90, 50))
    )
    feed.grow(10)
    await settle()
    assert (few.done(), many.done(), end.done()) == (True, False, False)
    feed.grow(5)
    feed.grow(60)
    await settle()
    assert (many.done(), end.done()) == (True, False)
    feed.grow(100)
    await settle()
    assert end.done()
    await Feed(0).wait_beyond(0, 10)
