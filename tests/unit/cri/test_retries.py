"""What could not be taken apart is tried again with growing pauses until it is done."""

from __future__ import annotations

import asyncio

import pytest

from cri.retries import FIRST_PAUSE_S, LAST_PAUSE_S, Retries
from sandbox.host.errors import Busy
from tests.fakes.clock import FakeClock


def busy(stage: str = "cgroup") -> Busy:
    error = Busy("in use")
    error.stage = stage
    return error


class Work:
    """Fails a number of times, then succeeds."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0

    async def __call__(self) -> None:
        self.calls += 1
        if self.calls <= self.failures:
            raise busy(f"stage{self.calls}")


async def test_pauses_grow_and_the_first_failure_stays_the_beginning():
    clock = FakeClock()
    retries, work = Retries(clock), Work(8)
    retries.failed("pod", "p1", "stop", busy(), work)
    since = retries.report()[0]["since"]
    pause_s = FIRST_PAUSE_S
    for number in range(1, 9):
        clock.advance(pause_s - 0.1)
        await retries.run_due()
        assert work.calls == number - 1, "not before its time"
        clock.advance(0.1)
        await retries.run_due()
        assert work.calls == number
        (entry,) = retries.report()
        assert (entry["since"], entry["stage"], entry["tries"]) == (
            since,
            f"stage{number}",
            number + 1,
        )
        pause_s = min(2 * pause_s, LAST_PAUSE_S)
        assert entry["nextInSeconds"] == pause_s
    clock.advance(pause_s)
    await retries.run_due()
    assert not retries.report()
    assert not retries.ids()


async def test_what_is_owed_is_tried_at_once():
    retries, work = Retries(FakeClock()), Work(0)
    retries.owe("pod", "p1", "stop", "network", work)
    assert retries.counts() == {"pod": 1}
    await retries.run_due()
    assert work.calls == 1
    assert not retries.counts()


async def test_a_failure_that_the_work_notes_itself_counts_once():
    clock = FakeClock()
    retries = Retries(clock)

    async def again() -> None:
        retries.failed("pod", "p1", "stop", busy(), again)
        raise busy()

    retries.owe("pod", "p1", "stop", "network", again)
    await retries.run_due()
    assert retries.report()[0]["tries"] == 1


@pytest.mark.parametrize(("wish", "left"), [("stop", 1), ("remove", 0), ("", 0)])
async def test_a_smaller_wish_does_not_settle_a_greater_one(wish, left):
    retries = Retries(FakeClock())
    retries.failed("pod", "p1", "remove", busy(), Work(0))
    retries.settled("pod", "p1", wish)
    assert len(retries.report()) == left


async def test_an_unplanned_exception_is_a_failure_like_others():
    clock = FakeClock()
    retries = Retries(clock)

    async def broken() -> None:
        raise KeyError("surprise")

    retries.owe("container", "c1", "remove", "", broken)
    await retries.run_due()
    assert "surprise" in str(retries.report()[0]["error"])


async def test_one_that_hangs_holds_up_no_other():
    clock, hang = FakeClock(), asyncio.Event()
    retries, work = Retries(clock), Work(0)
    retries.owe("pod", "stuck", "stop", "network", hang.wait)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(retries.run_due())
        await asyncio.sleep(0)
        retries.owe("pod", "p1", "stop", "network", work)
        await retries.run_due()
        assert work.calls == 1
        assert not first.done()
        assert retries.ids() == {"stuck"}
        hang.set()
    assert not retries.ids()


async def test_one_that_takes_too_long_is_tried_again(monkeypatch):
    monkeypatch.setattr("cri.retries.TRY_LIMIT_S", 0.0)
    retries = Retries(FakeClock())
    retries.owe("pod", "stuck", "stop", "network", asyncio.Event().wait)
    await retries.run_due()
    (entry,) = retries.report()
    assert (entry["tries"], entry["stage"]) == (1, "stop")
    assert "going on" in str(entry["error"])
