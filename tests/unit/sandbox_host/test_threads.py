"""Threads and tasks that are waited for, however often their owner is called off."""

from __future__ import annotations

import asyncio
import threading

import pytest

from sandbox.host.threads import apart, beside, in_one_piece, to_its_end


async def test_what_the_call_returns_or_raises_comes_out():
    assert await to_its_end(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        await to_its_end(lambda: 1 // 0)


@pytest.mark.parametrize("fails", [False, True])
async def test_who_is_called_off_ends_after_the_thread(fails):
    begun, go_on, ended = asyncio.Event(), threading.Event(), []
    loop = asyncio.get_running_loop()

    def work():
        loop.call_soon_threadsafe(begun.set)
        go_on.wait()
        ended.append(True)
        if fails:
            raise ZeroDivisionError
        return "made"

    taken_back = []
    task = asyncio.ensure_future(to_its_end(work, unless=taken_back.append))
    await begun.wait()
    for _ in range(3):
        task.cancel()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended
    assert taken_back == ([] if fails else ["made"])


async def test_what_somebody_gets_is_not_taken_back():
    taken_back = []
    assert await to_its_end(lambda: 3, unless=taken_back.append) == 3
    assert taken_back == []


@pytest.mark.parametrize("is_left", [True, False], ids=["being left", "within"])
async def test_who_goes_on_after_a_group_that_failed_has_time_limits(is_left):
    async def fail():
        raise ZeroDivisionError

    async def group():
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())
            if not is_left:
                await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup):
        await apart(group())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await asyncio.Event().wait()


async def test_what_is_apart_is_called_off_with_its_owner():
    begun, steps = asyncio.Event(), []

    async def work():
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            steps.append("undone")

    task = asyncio.ensure_future(apart(work()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["undone"]


async def test_a_piece_of_work_ends_and_knows_of_no_cancellation():
    begun, go_on = asyncio.Event(), asyncio.Event()
    steps = []

    async def work():
        begun.set()
        await go_on.wait()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        steps.append("done")

    async def undoing():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await in_one_piece(work())
            raise

    task = asyncio.ensure_future(undoing())
    await asyncio.sleep(0)
    for _ in range(3):
        task.cancel()
        await begun.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["done"]


async def test_both_go_on_at_once_and_the_block_ends_after_both():
    order, go_on = [], asyncio.Event()

    async def work():
        order.append("work begins")
        await go_on.wait()
        order.append("work ends")

    async with beside(work()):
        await asyncio.sleep(0)
        order.append("block")
        go_on.set()
    assert order == ["work begins", "block", "work ends"]


async def test_a_block_that_fails_or_is_called_off_ends_after_the_work():
    for called_off in (False, True):
        go_on, ended = asyncio.Event(), []

        async def work(go_on=go_on, ended=ended):
            await go_on.wait()
            ended.append(True)
            raise ValueError("is not what counts")

        async def block(work=work, called_off=called_off):
            async with beside(work()):
                if not called_off:
                    raise ZeroDivisionError
                await asyncio.Event().wait()

        task = asyncio.ensure_future(block())
        for _ in range(20):
            await asyncio.sleep(0)
        for _ in range(3):
            if called_off:
                task.cancel()
            for _ in range(20):
                await asyncio.sleep(0)
            assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError if called_off else ZeroDivisionError):
            await task
        assert ended


async def test_a_failure_of_the_work_beside_comes_out():
    async def work():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with beside(work()):
            await asyncio.sleep(0)
