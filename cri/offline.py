"""A store of images without a daemon: `podwright load --root`."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from cri.server import planned_failure
from imageservice.registry.client import RegistryClient
from imageservice.service import ImageService
from sandbox.host.clock import SystemClock
from sandbox.host.errors import Busy
from sandbox.host.libc import LibcSyscalls
from sandbox.host.processes import HostProcessRunner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from cri.config import Config
    from imageservice.service import Image


async def load_offline(
    config: Config, root: Path, chunks: Iterator[bytes], name: str, pinned: bool
) -> list[str]:
    """Load an archive into the store at `root`; a line for each image.

    Raises:
        Busy: a daemon uses the store.
        PodwrightError: see `Loader.load`.
    """
    try:
        return await _load(config, root, chunks, name, pinned)
    except BaseExceptionGroup as group:
        # What fails in a task group comes out of it as a group.
        failure = planned_failure(group)
        if failure is None:
            raise
        if isinstance(failure, Busy):
            raise Busy(
                "a daemon uses this store",
                hint="leave --root out and have the daemon load it, or stop the daemon",
                path=str(root),
            ) from failure
        raise failure from group


async def _load(
    config: Config, root: Path, chunks: Iterator[bytes], name: str, pinned: bool
) -> list[str]:
    settings = replace(config.images(), root=root)
    clock = SystemClock()
    service = ImageService(
        settings,
        RegistryClient(settings, clock=clock),
        HostProcessRunner(),
        syscalls=LibcSyscalls(),
        clock=clock,
        containers_dir=settings.root,
    )
    loaded: list[Image] = []
    try:
        async with asyncio.TaskGroup() as group:
            await service.open(group)
            try:
                loaded = await service.loader.load(_async(chunks), name=name, pinned=pinned)
            finally:
                await service.close()
            raise _Ended
    except* _Ended:
        pass
    return [" ".join((image.id, *image.repo_tags)) for image in loaded]


class _Ended(Exception):
    """Ends the task group, and with it what the service may still be doing in it."""


async def _async(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    while True:
        chunk = await asyncio.to_thread(next, chunks, None)
        if chunk is None:
            return
        yield chunk
