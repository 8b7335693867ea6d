"""Names and ids of images, and that memory and rows say the same after a restart."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from imageservice.catalog import APPLICATION_ID, MIGRATIONS, Catalog, ImageRecord
from imageservice.collect import referenced_documents, unreferenced_layers
from imageservice.digest import Digest
from imageservice.images import image_of
from imageservice.manifest import ImageConfig
from sandbox.host.database import Database

HUB = "docker.io/library/busybox"


def record(letter: str, *, chain: tuple[str, ...] = ("sha256:" + "0" * 64,)) -> ImageRecord:
    return ImageRecord(
        id=f"sha256:{letter * 64}",
        manifest="sha256:" + (letter + "0") * 32,
        chain=chain,
        size_bytes=10,
        created_ns=ord(letter),
    )


A, B = record("a"), record("b")


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = await Database.open(
        tmp_path / "catalog.db", migrations=MIGRATIONS, application_id=APPLICATION_ID
    )
    yield made
    await made.close()


@pytest.fixture
async def catalog(database: Database) -> Catalog:
    made = Catalog(database)
    await made.load()
    return made


def pulled(letter: str) -> str:
    return f"{HUB}@sha256:{letter * 64}"


async def test_an_image_is_found_by_all_its_names(catalog: Catalog) -> None:
    await catalog.record(A, [f"{HUB}:1.36", pulled("d")])
    found = catalog.find(f"{HUB}:1.36")
    assert found is not None
    assert (found.tags, found.digests) == ((f"{HUB}:1.36",), (pulled("d"),))
    for text in (
        "busybox:1.36",
        "docker.io/busybox:1.36",
        "busybox@sha256:" + "d" * 64,
        "busybox:other@sha256:" + "d" * 64,
        A.id,
        "a" * 64,
        "a" * 12,
        "sha256:" + "a" * 12,
    ):
        assert catalog.find(text) is found, text
    for text in ("busybox", "busybox:1", "aaa", "A" * 12, "b" * 12, "", "sha256:", "::", "é"):
        assert catalog.find(text) is None, text


async def test_the_beginning_of_an_id_must_be_unique(catalog: Catalog) -> None:
    twin = replace(A, id="sha256:" + "a" * 63 + "b")
    await catalog.record(A, [pulled("1")])
    await catalog.record(twin, [pulled("2")])
    assert catalog.find("a" * 12) is None
    assert catalog.find("a" * 64) is not None


async def test_a_name_wins_over_the_beginning_of_an_id(catalog: Catalog) -> None:
    await catalog.record(A, [pulled("1")])
    await catalog.record(B, ["docker.io/library/aaaa:latest"])
    found = catalog.find("aaaa")
    assert found is not None
    assert found.id == B.id


async def test_a_tag_moves_and_the_image_it_leaves_keeps_its_digest(catalog: Catalog) -> None:
    await catalog.record(A, [f"{HUB}:1", pulled("1")])
    await catalog.record(B, [f"{HUB}:1", pulled("2")])
    left, now = catalog.get(A.id), catalog.get(B.id)
    assert left is not None
    assert now is not None
    assert (left.tags, left.digests) == ((), (pulled("1"),))
    assert (now.tags, now.digests) == ((f"{HUB}:1",), (pulled("2"),))


async def test_pulling_again_keeps_the_age_and_adds_names(catalog: Catalog) -> None:
    await catalog.record(A, [f"{HUB}:1"])
    await catalog.record(replace(A, created_ns=99), [f"{HUB}:2"])
    found = catalog.get(A.id)
    assert found is not None
    assert (found.created_ns, found.tags) == (A.created_ns, (f"{HUB}:1", f"{HUB}:2"))


async def test_hidden_and_erased(catalog: Catalog, database: Database) -> None:
    await catalog.record(A, [f"{HUB}:1", pulled("1")])
    await catalog.record(B, [f"{HUB}:2"])
    catalog.hide(A.id)
    assert catalog.find(f"{HUB}:1") is None
    assert catalog.images() == [catalog.get(B.id)]
    await catalog.erase([A.id, "sha256:unknown"])
    again = Catalog(database)
    await again.load()
    assert again.images() == catalog.images()


async def test_what_was_recorded_is_there_after_a_restart(
    catalog: Catalog, database: Database
) -> None:
    chain = tuple(f"sha256:{n:064x}" for n in range(12))
    await catalog.record(record("c", chain=chain), [f"{HUB}:3", pulled("3")])
    await catalog.record(A, [f"{HUB}:1"])
    again = Catalog(database)
    await again.load()
    assert again.images() == catalog.images()
    found = again.find("busybox:3")
    assert found is not None
    assert found.chain == chain


def test_unreferenced_layers() -> None:
    images = [record("a", chain=("1", "2"))]
    assert unreferenced_layers("123456", images, [("3",)], {"4"}) == {"5", "6"}


def test_referenced_documents() -> None:
    assert referenced_documents([A]) == {Digest.parse(A.id), Digest.parse(A.manifest)}


@pytest.mark.parametrize(
    ("pinned", "expected"),
    [
        ((), False),
        (("busybox:1",), True),
        (("busybox",), False),
        (("docker.io/library/busybox:*",), True),
        ((A.id,), True),
        (("registry.k8s.io/*", "busybox:1"), True),
        (("not a reference",), False),
    ],
)
def test_pinned(pinned: tuple[str, ...], expected: bool) -> None:
    config = ImageConfig(architecture="amd64", os="linux")
    image = image_of(replace(A, tags=(f"{HUB}:1",)), config, pinned)
    assert image.pinned is expected


async def test_a_pin_is_kept_over_a_restart_and_over_a_pull(database: Database):
    catalog = Catalog(database)
    await catalog.load()
    await catalog.record(replace(A, pinned=True), [f"{HUB}:1"])
    await catalog.record(A, [f"{HUB}:2"])
    again = Catalog(database)
    await again.load()
    found = again.get(A.id)
    assert found is not None
    assert found.pinned
    assert image_of(found, ImageConfig(architecture="a", os="linux"), ()).pinned


async def test_a_pin_is_cleared_by_hand_only(database: Database):
    catalog = Catalog(database)
    await catalog.load()
    await catalog.record(replace(A, pinned=True), [f"{HUB}:1"])
    changed = await catalog.pin(A.id, pinned=False)
    assert changed is not None
    assert not changed.pinned
    assert changed.tags == (f"{HUB}:1",)
    again = Catalog(database)
    await again.load()
    assert again.get(A.id) == changed
    assert await catalog.pin(B.id, pinned=True) is None
