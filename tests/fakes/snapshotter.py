"""A `Snapshotter` without a kernel: the contract tests hold it to what the real one does."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from imageservice.snapshots.snapshotter import LayerFacts, MappedRoot, SnapshotUsage, Staging
from sandbox.host.errors import NotFound
from sandbox.host.mounts import Mount


class MemorySnapshotter:
    """Layers are directories below `root`; records live in memory and die with it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._layers: dict[str, tuple[Path, LayerFacts]] = {}
        self._leases: dict[str, tuple[str, ...]] = {}
        self._staged: set[Path] = set()
        self._numbers = itertools.count(1)
        #: Set when `remove` has ended, for tests that wait for somebody else's call.
        self.removed = asyncio.Event()

    async def open(self) -> None:
        self._root.mkdir(exist_ok=True)

    async def close(self) -> None:
        pass

    def has(self, diff_id: str) -> bool:
        return diff_id in self._layers

    def tar_of(self, diff_id: str) -> Path | None:
        return None  # kept as files, all of them

    def layers(self) -> Collection[str]:
        return self._layers.keys()

    def leases(self) -> Mapping[str, tuple[str, ...]]:
        return self._leases

    async def stage(self, diff_id: str) -> Staging:
        path = self._root / str(next(self._numbers))
        path.mkdir()
        self._staged.add(path)
        return Staging(diff_id, path)

    async def commit(self, staging: Staging, facts: LayerFacts) -> None:
        if staging.path not in self._staged:
            raise NotFound("layer staging is gone", layer=staging.diff_id)
        self._staged.discard(staging.path)
        if self.has(staging.diff_id):
            shutil.rmtree(staging.path)
        else:
            self._layers[staging.diff_id] = (staging.path, facts)

    async def discard(self, staging: Staging) -> None:
        if staging.path in self._staged:
            shutil.rmtree(staging.path)
            self._staged.discard(staging.path)

    async def prepare(
        self,
        key: str,
        chain: tuple[str, ...],
        *,
        upper_dir: Path,
        work_dir: Path,
        read_only: bool = False,
        mapped: MappedRoot | None = None,
    ) -> tuple[Mount, ...]:
        assert mapped is None, "needs a kernel"
        for diff_id in chain:
            if not self.has(diff_id):
                raise NotFound("image layer is not on this node", layer=diff_id)
        self._leases[key] = chain
        lower = ":".join(str(self._layers[diff_id][0]) for diff_id in reversed(chain))
        if read_only:
            return (Mount("overlay", "overlay", Path(), (f"lowerdir={lower}", "ro")),)
        for directory in (upper_dir, work_dir):
            os.makedirs(directory, exist_ok=True)  # noqa: PTH103 - a fake may block
        words = (f"lowerdir={lower}", f"upperdir={upper_dir}", f"workdir={work_dir}")
        return (Mount("overlay", "overlay", Path(), words),)

    async def release(self, key: str) -> None:
        self._leases.pop(key, None)

    async def remove(self, diff_ids: Collection[str]) -> None:
        leased = {diff_id for chain in self._leases.values() for diff_id in chain}
        for diff_id in set(diff_ids) - leased:
            found = self._layers.pop(diff_id, None)
            if found is not None:
                shutil.rmtree(found[0])
        self.removed.set()

    async def usage(self) -> SnapshotUsage:
        facts = [facts for _, facts in self._layers.values()]
        return SnapshotUsage(sum(f.size_bytes for f in facts), sum(f.entries for f in facts))
