"""Additional stores held against their digests; what is wrong is told and left as it is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from imageservice.additional.stores import AdditionalStore
from imageservice.blobs import KeptBlob, read_blobs
from imageservice.content import ContentStore
from imageservice.digest import Digest
from imageservice.findings import Checked, Finding
from imageservice.snapshots.ledger import LayerRow
from imageservice.snapshots.places import layer_problem
from sandbox.host.errors import PodwrightError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from imageservice.additional.reading import StoredImages
    from imageservice.catalog import ImageRecord


#: What is looked at as a whole.
Item = LayerRow | KeptBlob


async def look_at(
    items: Sequence[Item],
    problem: Callable[[LayerRow], Awaitable[str]],
    on_progress: Callable[[Checked], None],
) -> dict[Item, str]:
    """What is wrong with those layers and blobs with which something is.

    Args:
        items: what to look at.
        problem: looks at a layer.
        on_progress: hears how far it is.
    """
    total, done = sum(map(_bytes_of, items)), 0
    found: dict[Item, str] = {}
    for number, item in enumerate(items):
        on_progress(Checked(number, len(items), done, total))
        if isinstance(item, KeptBlob):
            said = await asyncio.to_thread(item.problem)
        else:
            said = await problem(item)
        if said:
            found[item] = said
        done += _bytes_of(item)
    on_progress(Checked(len(items), len(items), total, total))
    return found


def _bytes_of(item: Item) -> int:
    return item.size_bytes if isinstance(item, KeptBlob) else item.facts.size_bytes


async def lent_items(stores: Iterable[AdditionalStore]) -> list[Item]:
    """Everything of the stores to be looked at; raises PodwrightError."""
    found: list[Item] = []
    for store in stores:
        if store.contents is not None:
            found += [*store.layers, *await asyncio.to_thread(read_blobs, store.root / "blobs")]
    return found


async def verify_closed(
    contents: StoredImages, on_progress: Callable[[Checked], None]
) -> list[Finding]:
    """What is wrong with a store that nothing uses; it is only read."""

    async def problem(row: LayerRow) -> str:
        assert row.lender is not None
        directory = row.lender.layers_dir / row.directory
        return await asyncio.to_thread(layer_problem, directory, row)

    stores = [AdditionalStore(contents.root, contents, contents.layers)]
    broken = await look_at(await lent_items(stores), problem, on_progress)
    return await store_findings(stores, broken)


async def store_findings(
    stores: Iterable[AdditionalStore], broken: Mapping[Item, str]
) -> list[Finding]:
    """What is wrong with the stores: `broken` layers and blobs, documents, and records."""
    found: list[Finding] = []
    for store in stores:
        path = str(store.root)
        found += [Finding("store", path, problem) for problem in store.problems]
        if store.contents is None:
            continue
        images = store.contents.images
        found += [
            Finding("layer", row.diff_id, f"{broken[row]}, in {path}", _having(images, row.diff_id))
            for row in store.layers
            if row in broken
        ]
        found += [
            Finding(
                "layer",
                row.diff_id,
                f"its files are missing, in {path}",
                _having(images, row.diff_id),
            )
            for row in store.contents.lost
        ]
        known = {row.diff_id for row in (*store.contents.layers, *store.contents.lost)}
        unknown = dict.fromkeys(d for image in images for d in image.chain if d not in known)
        found += [
            Finding("record", d, f"a layer that images need is not in {path}", _having(images, d))
            for d in unknown
        ]
        found += [
            Finding("blob", blob.digest, f"{problem}, in {path}", _having(images, blob.diff_id))
            for blob, problem in broken.items()
            if isinstance(blob, KeptBlob) and blob.path.is_relative_to(store.root)
        ]
        found += await _documents(store.root, images)
    return found


async def _documents(root: Path, images: Iterable[ImageRecord]) -> list[Finding]:
    content = ContentStore(root)
    found: list[Finding] = []
    for image in images:
        for digest in dict.fromkeys((image.id, image.manifest)):
            try:
                await content.get(Digest.parse(digest))
            except PodwrightError as error:
                problem = f"{error.message}, in {root}"
                found.append(Finding("document", digest, problem, (_name(image),)))
    return found


def _having(images: Iterable[ImageRecord], diff_id: str) -> tuple[str, ...]:
    return tuple(_name(image) for image in images if diff_id in image.chain)


def _name(image: ImageRecord) -> str:
    return (*image.tags, *image.digests, image.id)[0]
