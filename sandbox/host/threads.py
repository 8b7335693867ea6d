"""Work in a thread that is not left behind: its owner ends after it, however it is called off."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def to_its_end(call: Callable[[], T]) -> T:
    """`call` in a thread; who is cancelled meanwhile learns of it when the thread is done.

    `asyncio.to_thread` ends at once then and leaves the thread to itself. What it works on is then
    closed or removed by whoever cleans up, and the number of a closed descriptor may already be
    somebody else's file.
    """
    running = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            try:
                await asyncio.wait({running})
            except asyncio.CancelledError:
                continue  # once is enough
        running.exception()  # looked at, so that nobody complains; the cancellation is the answer
        raise
