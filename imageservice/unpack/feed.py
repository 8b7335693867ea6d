"""How much of a blob is on disk already: what a download tells the worker that follows it.

The download writes a file and the worker reads the same file behind it, out of the page cache.
Against a pipe or a socket between the two: bytes are copied no more often, the file has to be
written anyway (a broken download goes on from it), a worker that is slow or has not begun holds no
memory and does not slow the network, and one that died can be given the blob from its beginning.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Feed:
    """The growth of one blob's file; for one event loop.

    Attributes:
        total_bytes: the length of the blob.
        available_bytes: from its beginning, what may be read.
    """

    def __init__(self, total_bytes: int, available_bytes: int = 0) -> None:
        self.total_bytes = total_bytes
        self.available_bytes = available_bytes
        self._grown = asyncio.Event()
        self._on_whole: Callable[[], None] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether every byte may be read."""
        return self.available_bytes >= self.total_bytes

    def grow(self, available_bytes: int) -> None:
        """So many bytes are there now; fewer than before changes nothing."""
        if available_bytes <= self.available_bytes:
            return
        self.available_bytes = available_bytes
        self._grown.set()
        if self.is_whole and self._on_whole is not None:
            self._on_whole()

    def when_whole(self, call: Callable[[], None] | None) -> None:
        """Have `call` made once the last byte has come; None takes that back."""
        self._on_whole = call

    async def wait_beyond(self, known_bytes: int, least_bytes: int) -> None:
        """Return once `least_bytes` more than `known_bytes` are there, or the last byte."""
        wanted_bytes = min(known_bytes + least_bytes, self.total_bytes)
        while self.available_bytes < wanted_bytes:
            self._grown.clear()
            await self._grown.wait()
