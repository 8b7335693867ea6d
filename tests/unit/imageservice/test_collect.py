"""What may go and when, over the fake snapshotter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from imageservice.blobs import KeptBlobs
from imageservice.catalog import APPLICATION_ID, MIGRATIONS, Catalog, ImageRecord
from imageservice.collect import Sweeper
from imageservice.content import ContentStore
from imageservice.digest import Digest
from imageservice.snapshots.snapshotter import LayerFacts
from imageservice.usage import UsageMeter
from sandbox.host.clock import SystemClock
from sandbox.host.database import Database
from tests.fakes.clock import FakeClock
from tests.fakes.snapshotter import MemorySnapshotter

LAYERS = [f"sha256:{number:064x}" for number in range(4)]
IMAGE = ImageRecord(
    id="sha256:" + "a" * 64,
    manifest="sha256:" + "b" * 64,
    chain=(LAYERS[0],),
    size_bytes=1,
    created_ns=1,
)


@pytest.fixture
async def snapshots(tmp_path: Path) -> MemorySnapshotter:
    made = MemorySnapshotter(tmp_path / "layers")
    await made.open()
    for diff_id in LAYERS:
        await made.commit(await made.stage(diff_id), LayerFacts(1, 1000))
    return made


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[Catalog]:
    database = await Database.open(
        tmp_path / "catalog.db", migrations=MIGRATIONS, application_id=APPLICATION_ID
    )
    made = Catalog(database)
    await made.load()
    await made.record(IMAGE, ["docker.io/library/a:1"])
    yield made
    await database.close()


@pytest.fixture
async def content(tmp_path: Path) -> ContentStore:
    made = ContentStore(tmp_path)
    await made.open()
    return made


async def test_images_leases_and_pulls_keep_layers(
    snapshots: MemorySnapshotter, catalog: Catalog, content: ContentStore, tmp_path: Path
) -> None:
    await snapshots.prepare("c", (LAYERS[1],), upper_dir=tmp_path / "u", work_dir=tmp_path / "w")
    async with asyncio.TaskGroup() as group:
        sweeper = Sweeper(
            catalog,
            content,
            snapshots,
            KeptBlobs(tmp_path, enabled=False),
            held=lambda: {LAYERS[2]},
            group=group,
            clock=FakeClock(),
            keep_s=1,
        )
        assert await sweeper.layers()
        assert set(snapshots.layers()) == set(LAYERS[:3])
        assert not await sweeper.layers()


async def test_rests_of_a_failed_pull_go_when_nobody_comes_back(
    snapshots: MemorySnapshotter, catalog: Catalog, content: ContentStore, tmp_path: Path
) -> None:
    partial = await content.begin(Digest.of(b"blob"), 4)
    await partial.release()
    async with asyncio.TaskGroup() as group:
        sweeper = Sweeper(
            catalog,
            content,
            snapshots,
            KeptBlobs(tmp_path, enabled=False),
            held=frozenset,
            group=group,
            clock=SystemClock(),
            keep_s=-1,  # due at once
        )
        sweeper.later()
        sweeper.later()
        await snapshots.removed.wait()
    assert list(snapshots.layers()) == [LAYERS[0]]
    assert not partial.path.exists()


async def test_rests_outlive_the_end_of_others_but_not_the_need_for_room(
    snapshots: MemorySnapshotter, catalog: Catalog, content: ContentStore, tmp_path: Path
) -> None:
    async with asyncio.TaskGroup() as group:
        sweeper = Sweeper(
            catalog,
            content,
            snapshots,
            KeptBlobs(tmp_path, enabled=False),
            held=frozenset,
            group=group,
            clock=FakeClock(),
            keep_s=3600,
        )
        await sweeper.start()
        assert not await sweeper.layers()
        assert set(snapshots.layers()) == set(LAYERS)
        sweeper.named(LAYERS[1:2])  # an image has it, and has gone since
        assert await sweeper.layers()
        assert set(snapshots.layers()) == {LAYERS[0], *LAYERS[2:]}
        assert await sweeper.layers(rests_too=True)
        assert set(snapshots.layers()) == {LAYERS[0]}
        sweeper.close()


async def test_usage_is_measured_at_most_every_ten_seconds_or_on_a_change(
    snapshots: MemorySnapshotter, tmp_path: Path
) -> None:
    clock = FakeClock()
    images, containers = tmp_path / "images", tmp_path / "containers"
    images.mkdir()
    containers.mkdir()
    meter = UsageMeter(images, containers, snapshots, (), clock=clock)
    first = await meter.read()
    assert first.image_filesystems[0].used_bytes >= 4000
    (containers / "file").write_bytes(bytes(100_000))
    assert await meter.read() is first
    clock.advance(10.1)
    second = await meter.read()
    grown = second.container_filesystems[0].used_bytes - first.container_filesystems[0].used_bytes
    assert grown >= 100_000
    assert await meter.read() is second
    meter.changed()
    assert await meter.read() is not second
