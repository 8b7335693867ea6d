"""Work that is not left behind: its owner ends after it, however it is called off."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

T = TypeVar("T")


async def to_its_end(call: Callable[[], T], *, unless: Callable[[T], object] | None = None) -> T:
    """`call` in a thread; who is cancelled meanwhile learns of it when the thread is done.

    `asyncio.to_thread` ends at once then and leaves the thread to itself, or has never begun. What
    it works on is then closed or removed by whoever cleans up while it still works on it, and the
    number of a closed descriptor may already be somebody else's file.

    Args:
        call: blocks, but not for ever: nothing ends the wait for it.
        unless: is called, in a thread too, with a result that nobody gets because the caller was
            cancelled: it takes that back.
    """
    loop = asyncio.get_running_loop()
    running = loop.run_in_executor(None, call)
    try:
        return await _until_done(running)
    except asyncio.CancelledError:
        if unless is not None and not running.cancelled() and running.exception() is None:
            await _until_done(loop.run_in_executor(None, partial(unless, running.result())))
        raise


async def in_one_piece(work: Coroutine[None, None, T]) -> T:
    """The same for a coroutine of ours that must not be torn in two, such as disk and memory.

    It is what undoes something, too: a task that is cancelled while it already undoes, for a
    failure or because it was cancelled before, would leave the rest. And in a task of its own that
    knows of no cancellation, time limits hold: `asyncio.timeout` of Python 3.11 ends in
    CancelledError instead of TimeoutError while one is not taken back.

    It needs no task group: it never outlives its caller.
    """
    return await _until_done(asyncio.get_running_loop().create_task(work))


async def apart(work: Coroutine[None, None, T]) -> T:
    """`work` in a task of its own that is cancelled with ours, for a task group that may fail.

    Where a task fails while its group is being left, the group of Python 3.11 wakes its owner by a
    cancellation that it does not take back. Whoever goes on after the failure would find no time
    limit to hold, and could not tell whether it was called off.
    """
    return await asyncio.get_running_loop().create_task(work)


@asynccontextmanager
async def beside(work: Coroutine[None, None, object]) -> AsyncIterator[None]:
    """`work` while the block is at its own; the block ends after both, whatever becomes of either.

    A failure of the block counts first. As the block, `work` is not called off but goes to its end.
    """
    running = asyncio.get_running_loop().create_task(work)
    try:
        yield
    except BaseException:
        with suppress(BaseException):
            await _until_done(running)
        raise
    await _until_done(running)


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
