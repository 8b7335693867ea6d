"""An image service on a directory of its own, as a daemon would have it, and how to end it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from imageservice.registry.client import RegistryClient
from imageservice.service import Image, ImageService
from imageservice.settings import ImageSettings, RetryPolicy
from sandbox.host.clock import SystemClock
from sandbox.host.libc import LibcSyscalls
from sandbox.host.mounts import mount_all, unmount
from sandbox.host.processes import HostProcessRunner
from tests.kit.faults import PATIENCE_S


class _Killed(Exception):
    """Ends a node's task group the way a SIGKILL ends a daemon: nothing is told anything."""


@asynccontextmanager
async def image_node(
    root: Path, *, killed: bool = False, **changes: object
) -> AsyncIterator[ImageService]:
    """A running service; with `killed` it is not closed, only its database is let go."""
    values: dict[str, object] = {
        "root": root / "images",
        "registry_config_dirs": (),
        "retry": RetryPolicy(attempts=2, first_delay_s=0.01, jitter=0.0),
        "unpack_workers": 2,
        **changes,
    }
    settings = ImageSettings(**values)  # type: ignore[arg-type]
    containers = root / "containers"
    containers.mkdir(exist_ok=True)
    service = ImageService(
        settings,
        RegistryClient(settings),
        HostProcessRunner(),
        syscalls=LibcSyscalls(),
        clock=SystemClock(),
        containers_dir=containers,
    )
    try:
        async with asyncio.TaskGroup() as group:
            await service.open(group)
            try:
                yield service
            finally:
                if killed:
                    await service._pool.close()
                    await service._source.close()
                    await service._database.close()
                    service._snapshots._sync._let_go()  # the kernel does
                else:
                    await service.close()
            raise _Killed
    except* _Killed:
        pass


@asynccontextmanager
async def rootfs(
    service: ImageService, image: Image, root: Path, key: str = "c1"
) -> AsyncIterator[Path]:
    """The image mounted for a container of that key, until the block ends; then released."""
    directory = root / "containers" / key
    mounts = await service.prepare_rootfs(
        key, image.id, upper_dir=directory / "upper", work_dir=directory / "work"
    )
    target = root / f"mnt-{key}"
    target.mkdir(exist_ok=True)
    calls = LibcSyscalls()
    mount_all([replace(mount, target=target) for mount in mounts], syscalls=calls)
    try:
        yield target
    finally:
        unmount(target, syscalls=calls)
        await service.release_rootfs(key)


def layer_directories(root: Path) -> list[str]:
    """What is in `layers`, the empty one left out."""
    return sorted(p.name for p in (root / "images/layers").iterdir() if p.name != "empty")


def leftovers(root: Path) -> list[str]:
    """Stagings and downloads."""
    return [str(p) for name in ("staging", "ingest") for p in (root / "images" / name).iterdir()]


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something another task or process does."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"never happened: {what}"
        await asyncio.sleep(0.01)
