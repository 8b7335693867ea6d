"""When the daemon tidies, and that what it puts aside can still be freed."""

import asyncio
import contextlib
import gc
import weakref

import pytest

from cri import tidying as module
from cri.tidying import LATER_S, SOON_S, WHOLE_S, Activity, begin_tidying
from tests.fakes.clock import HeldClock


class Thing:
    """Something that can be part of a circle."""

    def __init__(self):
        self.other = None


class Tidied:
    """Counts what was given back."""

    def __init__(self, monkeypatch):
        self.times = 0
        monkeypatch.setattr(module, "give_back", self.give_back)

    def give_back(self):
        self.times += 1
        return True


@pytest.fixture(autouse=True)
def nothing_stays_frozen():
    yield
    gc.unfreeze()


@pytest.fixture
def clock():
    return HeldClock()


@pytest.fixture
def tidied(monkeypatch):
    return Tidied(monkeypatch)


@contextlib.asynccontextmanager
async def tidying(activity, clock, *, enabled=True):
    async with asyncio.TaskGroup() as group:
        before = asyncio.all_tasks()
        begin_tidying(group, activity, clock, enabled=enabled)
        await clock.advance_s(0)
        yield
        for task in asyncio.all_tasks() - before:
            task.cancel()


async def until(condition):
    while not condition():  # noqa: ASYNC110 - a thread sets no Event
        await asyncio.sleep(0.001)


async def test_a_daemon_that_does_nothing_is_not_woken(clock, tidied):
    async with tidying(Activity(), clock):
        for _ in range(5):
            await clock.advance_s(2 * LATER_S)
        assert tidied.times == 1, "what the start has left"


async def test_after_work_twice_and_then_never(clock, tidied):
    activity = Activity()
    async with tidying(activity, clock):
        activity.begin()
        activity.end()
        await clock.advance_s(0)
        assert tidied.times == 1
        await clock.advance_s(SOON_S)
        await until(lambda: tidied.times == 2)
        await clock.advance_s(0)
        await clock.advance_s(LATER_S)
        await until(lambda: tidied.times == 3)
        for _ in range(5):
            await clock.advance_s(LATER_S)
        assert tidied.times == 3


async def test_it_waits_until_no_call_is_under_way(clock, tidied):
    activity = Activity()
    async with tidying(activity, clock):
        activity.passed()
        activity.begin()
        for _ in range(5):
            await clock.advance_s(SOON_S)
        assert tidied.times == 1
        activity.end()
        await clock.advance_s(SOON_S)
        await until(lambda: tidied.times == 2)


async def test_nothing_is_given_back_where_it_is_switched_off(clock, tidied):
    activity = Activity()
    async with tidying(activity, clock, enabled=False):
        activity.passed()
        for _ in range(5):
            await clock.advance_s(LATER_S)
    assert tidied.times == 0
    assert gc.get_freeze_count() > 0


async def test_what_was_put_aside_is_freed_when_nobody_has_it(clock, tidied):
    thing = Thing()
    async with tidying(Activity(), clock):
        seen = weakref.ref(thing)
        del thing
        assert seen() is None


async def test_a_circle_that_was_put_aside_is_freed_within_the_hour(clock, tidied):
    activity = Activity()
    one, two = Thing(), Thing()
    async with tidying(activity, clock):
        one.other, two.other = two, one
        seen = weakref.ref(one)
        del one, two
        gc.collect()
        assert seen() is not None, "it is not looked at"
        await clock.advance_s(WHOLE_S)
        activity.passed()
        await clock.advance_s(0)
        await clock.advance_s(SOON_S)
        await until(lambda: tidied.times == 2)
        assert seen() is None
