"""What is recorded of images and what is answered agree, also when a caller goes away."""

from __future__ import annotations

from pathlib import Path

import pytest

from imageservice.catalog import APPLICATION_ID, MIGRATIONS, Catalog, ImageRecord
from imageservice.content import ContentStore
from imageservice.digest import Digest
from imageservice.inventory import Inventory
from imageservice.manifest import ImageConfig
from sandbox.host.database import Database
from sandbox.host.errors import Unavailable
from tests.fakes.snapshotter import MemorySnapshotter
from tests.kit.blocked import Blocked, call_off_within, slow_tuple

NAME = "docker.io/library/busybox:1.36"


async def test_an_image_that_cannot_be_recorded_leaves_no_documents(tmp_path: Path) -> None:
    """Nor does it take those that another image has, too."""
    database = await Database.open(
        tmp_path / "catalog.db", migrations=MIGRATIONS, application_id=APPLICATION_ID
    )
    catalog, content = Catalog(database), ContentStore(tmp_path)
    await content.open()
    inventory = Inventory(catalog, content, MemorySnapshotter(tmp_path / "images"), pinned=())
    shared, own = Digest.of(b"shared"), Digest.of(b"own")
    there = ImageRecord(
        id=str(shared), manifest="sha256:" + "b" * 64, chain=(), size_bytes=1, created_ns=1
    )
    config = ImageConfig(architecture="amd64", os="linux")
    await inventory.add(there, [NAME], [(shared, b"shared")], config)
    lacks = ImageRecord(
        id=str(own), manifest=str(shared), chain=("sha256:1",), size_bytes=1, created_ns=1
    )
    with pytest.raises(Unavailable):
        await inventory.add(lacks, [NAME], [(shared, b"shared"), (own, b"own")], config)
    assert await content.documents() == {shared}
    await database.close()


async def test_an_image_that_was_recorded_is_there_for_whoever_asks(tmp_path: Path) -> None:
    """A pull that is called off at its very end has not made an image that only a restart shows."""
    database = await Database.open(
        tmp_path / "catalog.db", migrations=MIGRATIONS, application_id=APPLICATION_ID
    )
    catalog, content = Catalog(database), ContentStore(tmp_path)
    await content.open()
    snapshots = MemorySnapshotter(tmp_path / "images")
    inventory = Inventory(catalog, content, snapshots, pinned=())
    blocked = Blocked()
    record = ImageRecord(
        id="sha256:" + "a" * 64,
        manifest="sha256:" + "b" * 64,
        chain=slow_tuple((), blocked),
        size_bytes=10,
        created_ns=1,
    )
    config = ImageConfig(architecture="amd64", os="linux")
    await call_off_within(inventory.add(record, [NAME], (), config), blocked)
    found = inventory.find(NAME)
    assert found is not None
    assert inventory.list() == [found]
    restarted = Catalog(database)
    await restarted.load()
    assert [image.id for image in restarted.images()] == [found.id]
    await database.close()
