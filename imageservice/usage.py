"""How much disk images and containers take: real numbers, at a price that is paid rarely.

Committed layers never change, so each is measured once (by the snapshotter). What else is in the
image directory is small; what containers wrote can only be found by looking. Both are looked at in
a thread, at most every `MAX_AGE_NS`, because the kubelet asks every ten seconds and a walk over a
million inodes takes longer than that is worth.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sandbox.host.files import filesystem_usage

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from imageservice.snapshots.snapshotter import Snapshotter
    from sandbox.host.clock import Clock

MAX_AGE_NS: Final = 10_000_000_000


@dataclass(frozen=True, slots=True)
class FsUsage:
    """What one directory takes.

    Attributes:
        mountpoint: the directory (not the mount point above it): the kubelet asks the file system
            that holds this path for its size.
        used_bytes, inodes_used: of the directory.
        timestamp_ns: when it was measured, wall clock.
    """

    mountpoint: Path
    used_bytes: int
    inodes_used: int
    timestamp_ns: int


@dataclass(frozen=True, slots=True)
class FsInfo:
    """Both kinds of file systems of the CRI's ImageFsInfo."""

    image_filesystems: tuple[FsUsage, ...]
    container_filesystems: tuple[FsUsage, ...]


class UsageMeter:
    """Measures the two directories; for one event loop."""

    def __init__(
        self,
        images_dir: Path,
        containers_dir: Path,
        snapshots: Snapshotter,
        counted_by_snapshots: Collection[Path],
        *,
        clock: Clock,
    ) -> None:
        """`counted_by_snapshots` are directories below `images_dir` that `usage()` covers."""
        self._images_dir = images_dir
        self._containers_dir = containers_dir
        self._snapshots = snapshots
        self._counted = frozenset(counted_by_snapshots)
        self._clock = clock
        self._lock = asyncio.Lock()
        self._last: FsInfo | None = None
        self._measured_ns = 0

    def changed(self) -> None:
        """Images came or went: the next answer is measured anew."""
        self._last = None

    async def read(self) -> FsInfo:
        """The usage, at most `MAX_AGE_NS` old; callers that come meanwhile share one measuring.

        Raises:
            PodwrightError: a directory cannot be read.
        """
        async with self._lock:
            now_ns = self._clock.monotonic_ns()
            if self._last is None or now_ns - self._measured_ns > MAX_AGE_NS:
                fresh = await self._measure()
                self._last, self._measured_ns = fresh, now_ns
            return self._last

    async def _measure(self) -> FsInfo:
        layers = await self._snapshots.usage()
        rest = await asyncio.to_thread(self._rest)
        containers = await asyncio.to_thread(filesystem_usage, self._containers_dir)
        now_ns = self._clock.wall_ns()
        images = FsUsage(
            self._images_dir, layers.used_bytes + rest[0], layers.inodes + rest[1], now_ns
        )
        own = FsUsage(self._containers_dir, containers.used_bytes, containers.inodes, now_ns)
        return FsInfo((images,), (own,))

    def _rest(self) -> tuple[int, int]:
        used_bytes = inodes = 0
        for path in self._images_dir.iterdir():
            if path not in self._counted:
                usage = filesystem_usage(path)
                used_bytes, inodes = used_bytes + usage.used_bytes, inodes + usage.inodes
        return used_bytes, inodes
