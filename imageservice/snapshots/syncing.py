"""One syncfs for everybody who needs one: group commit for layers, and what an error of it means.

The kernel tells an error of writing back once to each open file that was open when it happened
(errseq_t, syncfs(2): since Linux 5.8). To a file that is opened later it tells only one that nobody
has seen, and of what was lost it says nothing. So one file stays open from before the first byte of
any layer, and an error fails every layer that was being written when it was told: the pages that
are gone may be any of theirs, and the next syncfs is content without them.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from typing import TYPE_CHECKING

from sandbox.host.errors import PodwrightError, map_os_errors

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox.host.syscalls import Syscalls


class SyncGate:
    """Runs syncfs(2) of one file system; callers that come while one runs share the next.

    Not the one that runs: it may have passed their files already.

    Attributes:
        failures: how often it has failed; who begins to write keeps the number for `run`.
    """

    def __init__(self, directory: Path, syscalls: Syscalls) -> None:
        self._directory = directory
        self._syscalls = syscalls
        self._fd = -1
        self._running: asyncio.Future[None] | None = None
        self._failure: PodwrightError | None = None
        self.failures = 0

    def open(self) -> None:
        """Hold the file system, before anything is written; blocking.

        Raises:
            PodwrightError: as the kernel says.
        """
        with map_os_errors("cannot sync file system", path=str(self._directory)):
            self._fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # Also when a later step of the start fails, and nobody closes what was never open.
        self._let_go = weakref.finalize(self, os.close, self._fd)

    async def run(self, since: int) -> None:
        """Everything written before this call is on disk when it returns.

        Args:
            since: `failures` from before the first of it was written.

        Raises:
            Corrupt: the disk has reported an error (EIO) since then; nothing of it can be trusted.
            ResourceExhausted: the data does not fit on the disk.
        """
        before = self._running
        if before is not None:
            await asyncio.wait({before})
        # The first of those who waited begins the next one, and the others find it running.
        if self._running is None or self._running is before or self._running.done():
            loop = asyncio.get_running_loop()
            self._running = loop.run_in_executor(None, self._syncfs)
        await asyncio.shield(self._running)
        failure = self._failure
        if self.failures != since and failure is not None:
            error = type(failure)(failure.message, hint=failure.hint)
            error.fields = failure.fields
            raise error from failure

    def _syncfs(self) -> None:
        try:
            self._syscalls.syncfs(self._fd)
        except PodwrightError as error:
            # Counted here and not on the loop: who begins after the call has ended is not meant.
            self._failure = error
            self.failures += 1

    async def close(self) -> None:
        """Sync once more and let the file system go; raises as `run`."""
        try:
            await self.run(self.failures)
        finally:
            self._fd = -1
            self._let_go()
