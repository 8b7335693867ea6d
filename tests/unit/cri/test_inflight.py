"""Mutations outlive their callers, and one key has one piece of work."""

from __future__ import annotations

import asyncio

import pytest

from cri.inflight import Inflight
from sandbox.host.errors import Cancelled, NotFound


async def test_the_same_key_joins_the_work_in_flight_and_gets_its_result():
    begun = 0
    release = asyncio.Event()

    async def work() -> str:
        nonlocal begun
        begun += 1
        await release.wait()
        return "the id"

    async with asyncio.TaskGroup() as group:
        inflight: Inflight[str] = Inflight(group, "create")
        callers = [group.create_task(inflight.join("pod", work)) for _ in range(20)]
        await asyncio.sleep(0)
        release.set()
        assert [await caller for caller in callers] == ["the id"] * 20
    assert begun == 1
    assert len(inflight) == 0


async def test_a_caller_that_goes_away_leaves_the_work_running():
    release = asyncio.Event()
    done: list[str] = []

    async def work() -> None:
        await release.wait()
        done.append("done")

    async with asyncio.TaskGroup() as group:
        inflight: Inflight[None] = Inflight(group, "create")
        caller = asyncio.get_running_loop().create_task(inflight.join("pod", work))
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert "pod" in inflight
        release.set()
    assert done == ["done"]


async def test_a_failure_reaches_every_caller_and_not_the_task_group():
    async def work() -> None:
        await asyncio.sleep(0)
        raise NotFound("image is gone")

    async with asyncio.TaskGroup() as group:
        inflight: Inflight[None] = Inflight(group, "create")
        callers = [
            asyncio.get_running_loop().create_task(inflight.join("pod", work)) for _ in range(3)
        ]
        outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["image is gone"] * 3


async def test_superseded_work_has_undone_itself_before_supersede_returns():
    steps: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            steps.append("undone")

    async with asyncio.TaskGroup() as group:
        inflight: Inflight[None] = Inflight(group, "create")
        caller = asyncio.get_running_loop().create_task(inflight.join("pod/0", work))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await inflight.supersede("pod/0")
        assert steps == ["undone"]
        with pytest.raises(Cancelled, match="superseded"):
            await caller


async def test_closing_waits_for_work_and_calls_off_what_is_too_slow():
    steps: list[str] = []

    async def quick() -> None:
        await asyncio.sleep(0)
        steps.append("quick done")

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            steps.append("endless undone")

    async with asyncio.TaskGroup() as group:
        inflight: Inflight[None] = Inflight(group, "create")
        loop = asyncio.get_running_loop()
        callers = [
            loop.create_task(inflight.join(work.__name__, work)) for work in (quick, endless)
        ]
        await asyncio.sleep(0)
        await inflight.close(0.5)
        assert steps == ["quick done", "endless undone"]
        outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert outcomes[0] is None
    assert isinstance(outcomes[1], Cancelled)
