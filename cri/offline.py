"""A store of images without a daemon: `podwright load`, `pull` and `verify` with `--root`.

Such a store may become an additional one of other nodes, so it never leans on additional stores
itself, and it is closed in order even when the work fails.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from cri.server import planned_failure
from imageservice.additional.auditing import verify_closed
from imageservice.additional.reading import read_store
from imageservice.credentials import from_auth_config
from imageservice.registry.client import RegistryClient
from imageservice.service import ImageService
from imageservice.snapshots.lender import CATALOG_NAME
from sandbox.host.clock import SystemClock
from sandbox.host.errors import Busy, FailedPrecondition, NotFound
from sandbox.host.libc import LibcSyscalls
from sandbox.host.processes import HostProcessRunner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from cri.config import Config
    from imageservice.findings import Checked, Finding
    from imageservice.progress import Progress
    from imageservice.service import Image

T = TypeVar("T")


async def load_offline(
    config: Config, root: Path, chunks: Iterator[bytes], name: str, pinned: bool
) -> list[str]:
    """Load an archive into the store at `root`; a line for each image.

    Raises:
        Busy: a daemon uses the store.
        PodwrightError: see `Loader.load`.
    """

    async def load(service: ImageService) -> list[Image]:
        return await service.loader.load(_async(chunks), name=name, pinned=pinned)

    images = await _in_store(config, root, load)
    return [" ".join((image.id, *image.repo_tags)) for image in images]


async def pull_offline(
    config: Config,
    root: Path,
    image: str,
    username: str,
    password: str,
    on_progress: Callable[[Progress], None],
) -> str:
    """Pull an image into the store at `root`; its id.

    Raises:
        Busy: a daemon uses the store.
        PodwrightError: see `ImageService.pull`.
    """
    shown = from_auth_config(username=username, password=password) if username else None

    async def pull(service: ImageService) -> str:
        return (await service.pull(image, shown, on_progress=on_progress)).id

    return await _in_store(config, root, pull)


async def verify_offline(
    config: Config, root: Path, *, repair: bool, on_progress: Callable[[Checked], None]
) -> list[Finding]:
    """What is wrong with the store at `root`.

    One that was closed in order is only read. Another is first put in order and closed, as the next
    start of its daemon would do it.

    Raises:
        NotFound: there is no store.
        Busy: a daemon uses the store.
        FailedPrecondition: it was not closed in order, and its disk is read-only.
        PodwrightError: see `StoreVerifier.verify`.
    """
    if not await asyncio.to_thread((root / CATALOG_NAME).exists):
        raise NotFound("there is no image store", path=str(root))
    if not repair:
        try:
            contents = await asyncio.to_thread(read_store, root)
        except FailedPrecondition:
            if os.statvfs(root).f_flag & os.ST_RDONLY:
                raise
            # Opening it says why, or puts it in order.
        else:
            return await verify_closed(contents, on_progress)
    return await _in_store(
        config,
        root,
        lambda service: service.verifier.verify(repair=repair, on_progress=on_progress),
    )


async def _in_store(config: Config, root: Path, work: Callable[[ImageService], Awaitable[T]]) -> T:
    try:
        return await _open_and(config, root, work)
    except BaseExceptionGroup as group:
        # What fails in a task group comes out of it as a group.
        failure = planned_failure(group)
        if failure is None:
            raise
        if isinstance(failure, Busy):
            raise Busy(
                "a daemon uses this store",
                hint="leave --root out and have the daemon do it, or stop the daemon",
                path=str(root),
            ) from failure
        raise failure from group


async def _open_and(config: Config, root: Path, work: Callable[[ImageService], Awaitable[T]]) -> T:
    settings = replace(config.images(), root=root, additional_stores=())
    clock = SystemClock()
    service = ImageService(
        settings,
        RegistryClient(settings, clock=clock),
        HostProcessRunner(),
        syscalls=LibcSyscalls(),
        clock=clock,
        containers_dir=settings.root,
    )
    results: list[T] = []
    try:
        async with asyncio.TaskGroup() as group:
            await service.open(group)
            try:
                results.append(await work(service))
            finally:
                await service.close()
            raise _Ended
    except* _Ended:
        pass
    return results[0]


class _Ended(Exception):
    """Ends the task group, and with it what the service may still be doing in it."""


async def _async(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    while True:
        chunk = await asyncio.to_thread(next, chunks, None)
        if chunk is None:
            return
        yield chunk
