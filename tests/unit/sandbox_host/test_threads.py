"""Threads that are waited for, however often their owner is called off."""

from __future__ import annotations

import asyncio
import threading

import pytest

from sandbox.host.threads import to_its_end


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

    task = asyncio.ensure_future(to_its_end(work))
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
