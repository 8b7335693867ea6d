"""Work that is not left behind: its owner ends after it, however it is called off."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


async def to_its_end(call: Callable[[], T]) -> T:
    """`call` in a thread; who is cancelled meanwhile learns of it when the thread is done.

    `asyncio.to_thread` ends at once then and leaves the thread to itself. What it works on is then
    closed or removed by whoever cleans up, and the number of a closed descriptor may already be
    somebody else's file.
    """
    return await _until_done(asyncio.get_running_loop().run_in_executor(None, call))


async def in_one_piece(work: Coroutine[None, None, T]) -> T:
    """The same for a coroutine of ours that must not be torn in two, such as disk and memory.

    It needs no task group: it never outlives its caller.
    """
    return await _until_done(asyncio.get_running_loop().create_task(work))


async def _until_done(running: asyncio.Future[T]) -> T:
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            try:
                await asyncio.wait({running})
            except asyncio.CancelledError:
                continue  # once is enough
        if not running.cancelled():
            running.exception()  # looked at, so that nobody complains; the cancellation counts
        raise
