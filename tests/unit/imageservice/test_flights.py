"""Shared work: one task for all who wait, ended with the last of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from imageservice.flights import Flights
from sandbox.host.errors import Cancelled, NotFound, Unavailable

Emit = Callable[[str], None]


class Work:
    """Counts how often it was begun, and goes on when told."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun = 0
        self.cancelled = 0
        self.go = asyncio.Event()
        self.error = error

    async def __call__(self, emit: Emit) -> int:
        self.begun += 1
        emit("begun")
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return self.begun


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_joined_work_is_done_once() -> None:
    work = Work()
    async with asyncio.TaskGroup() as group:
        flights: Flights[int, str] = Flights(group, "work")
        waiting = [group.create_task(flights.join("k", work)) for _ in range(3)]
        await settle()
        assert len(flights) == 1
        work.go.set()
        assert [await task for task in waiting] == [1, 1, 1]
        assert len(flights) == 0


async def test_a_caller_that_leaves_changes_nothing_for_the_others() -> None:
    work = Work()
    async with asyncio.TaskGroup() as group:
        flights: Flights[int, str] = Flights(group, "work")
        first = group.create_task(flights.join("k", work))
        second = group.create_task(flights.join("k", work))
        await settle()
        first.cancel()
        await settle()
        assert first.cancelled()
        assert work.cancelled == 0
        work.go.set()
        assert await second == 1


async def test_the_last_caller_ends_the_work_and_the_next_begins_anew() -> None:
    work = Work()
    async with asyncio.TaskGroup() as group:
        flights: Flights[int, str] = Flights(group, "work")
        callers = [group.create_task(flights.join("k", work)) for _ in range(2)]
        await settle()
        for caller in callers:
            caller.cancel()
        again = group.create_task(flights.join("k", work))
        await settle()
        assert (work.begun, work.cancelled) == (2, 1)
        work.go.set()
        assert await again == 2


async def test_a_failure_reaches_everybody_and_is_forgotten() -> None:
    work = Work(NotFound("no"))
    async with asyncio.TaskGroup() as group:
        flights: Flights[int, str] = Flights(group, "work")
        callers = [group.create_task(_caught(flights.join("k", work))) for _ in range(2)]
        await settle()
        work.go.set()
        assert [await caller for caller in callers] == [work.error] * 2
        assert len(flights) == 0


async def _caught(call: asyncio.Future[int] | object) -> Exception | None:
    try:
        await call  # type: ignore[misc]
    except Exception as error:
        return error
    return None


async def test_failed_work_of_another_is_tried_once_as_our_own() -> None:
    theirs, ours = Work(NotFound("their credential")), Work()
    async with asyncio.TaskGroup() as group:
        flights: Flights[int, str] = Flights(group, "work")
        first = group.create_task(_caught(flights.join("k", theirs, retry_joined=True)))
        await settle()
        second = group.create_task(flights.join("k", ours, retry_joined=True))
        await settle()
        theirs.go.set()
        ours.go.set()
        assert await first is theirs.error
        assert await second == 1
        assert (theirs.begun, ours.begun) == (1, 1)


async def test_progress_reaches_all_who_listen() -> None:
    heard: list[tuple[str, str]] = []
    go = asyncio.Event()

    async def work(emit: Emit) -> None:
        await go.wait()
        emit("half")

    async with asyncio.TaskGroup() as group:
        flights: Flights[None, str] = Flights(group, "work")
        for name in ("a", "b"):
            group.create_task(
                flights.join("k", work, lambda event, name=name: heard.append((name, event)))
            )
        await settle()
        go.set()
    assert heard == [("a", "half"), ("b", "half")]


async def test_the_end_of_the_daemon_is_told_and_nothing_new_begins() -> None:
    outcome: list[type[BaseException]] = []
    work = Work()
    flights: Flights[int, str] | None = None

    async def wait_outside() -> None:
        assert flights is not None
        try:
            await flights.join("k", work)
        except Cancelled as error:
            outcome.append(type(error))

    async with asyncio.TaskGroup() as outer:

        async def inner() -> None:
            nonlocal flights
            async with asyncio.TaskGroup() as group:
                flights = Flights(group, "work")
                outer.create_task(wait_outside())
                await settle()
                raise KeyError

        with pytest.raises(ExceptionGroup):
            await inner()
    assert outcome == [Cancelled]
    assert flights is not None
    with pytest.raises(Unavailable):
        await flights.join("k", work)


async def test_who_asks_after_the_last_has_left_waits_for_the_order_to_be_restored() -> None:
    """What was called off puts its rests in order first, so that they can be gone on with."""
    course: list[str] = []
    tidied = asyncio.Event()

    async def work(emit: Callable[[object], None]) -> str:
        number = len(course)
        course.append("begun")
        if number:
            return "done"
        try:
            await asyncio.Event().wait()
        finally:
            course.append("called off")
            await tidied.wait()
            course.append("tidied")
        return "never"

    async with asyncio.TaskGroup() as group:
        flights: Flights[str, object] = Flights(group, "work")
        first = asyncio.ensure_future(flights.join("key", work))
        while not course:  # noqa: ASYNC110 - a list sets no event
            await asyncio.sleep(0)
        first.cancel()
        second = asyncio.ensure_future(flights.join("key", work))
        while course[-1] != "called off":  # noqa: ASYNC110 - the same
            await asyncio.sleep(0)
        assert not second.done()
        tidied.set()
        assert await second == "done"
    assert course == ["begun", "called off", "tidied", "begun"]
