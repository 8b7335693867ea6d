"""One syncfs for everybody who needs one: group commit for layers."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from sandbox.host.errors import map_os_errors

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox.host.syscalls import Syscalls


class SyncGate:
    """Runs syncfs(2) of one file system; callers that come while one runs share the next.

    Not the one that runs: it may have passed their files already.
    """

    def __init__(self, directory: Path, syscalls: Syscalls) -> None:
        self._directory = directory
        self._syscalls = syscalls
        self._running: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Everything written before this call is on disk when it returns.

        Raises:
            Corrupt: the disk reported an error (EIO); what was written is not to be trusted.
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

    def _syncfs(self) -> None:
        with map_os_errors("cannot sync file system", path=str(self._directory)):
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._syscalls.syncfs(fd)
        finally:
            os.close(fd)
