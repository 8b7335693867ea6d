"""`Image`, the value that everyone outside this package sees of an image."""

from __future__ import annotations

import fnmatch
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageservice.digest import Digest
from imageservice.errors import ReferenceInvalid
from imageservice.manifest import parse_config
from imageservice.reference import parse_reference
from sandbox.host.errors import Corrupt

if TYPE_CHECKING:
    from collections.abc import Iterable

    from imageservice.catalog import ImageRecord
    from imageservice.content import ContentStore
    from imageservice.manifest import ImageConfig
    from imageservice.snapshots.snapshotter import Snapshotter


@dataclass(frozen=True, slots=True)
class Image:
    """An image of this node.

    Attributes:
        id: `sha256:<config digest>`, the same in every API.
        repo_tags, repo_digests: its names, sorted; tags may be empty.
        size_bytes: compressed layers and config, as containerd reports it.
        user: the config's User, `uid[:gid]` or names.
        config: the whole config.
        pinned: the kubelet's garbage collection must leave it alone.
        chain: diffIDs, lowest layer first.
        own: it is in this node's own store, perhaps on layers of additional ones.
        stores: additional stores that have it.
    """

    id: str
    repo_tags: tuple[str, ...]
    repo_digests: tuple[str, ...]
    size_bytes: int
    user: str
    config: ImageConfig
    pinned: bool
    chain: tuple[str, ...]
    own: bool = True
    stores: tuple[str, ...] = ()


def image_of(record: ImageRecord, config: ImageConfig, pinned: Iterable[str]) -> Image:
    """The value for a record; `pinned` are the operator's references, ids and patterns."""
    return Image(
        id=record.id,
        repo_tags=record.tags,
        repo_digests=record.digests,
        size_bytes=record.size_bytes,
        user=config.config.user,
        config=config,
        pinned=record.pinned or _is_pinned(record, pinned),
        chain=record.chain,
    )


def renew_names(
    images: dict[str, Image], records: Iterable[ImageRecord], pinned: Iterable[str]
) -> None:
    """Bring the names in the values up to date: a tag that moves leaves another image."""
    for record in records:
        image = images.get(record.id)
        if image is None:
            continue
        if (image.repo_tags, image.repo_digests) != (record.tags, record.digests):
            images[record.id] = image_of(record, image.config, pinned)


def _is_pinned(record: ImageRecord, pinned: Iterable[str]) -> bool:
    names = (record.id, *record.tags, *record.digests)
    for wanted in pinned:
        pattern = wanted
        if "*" not in wanted and wanted != record.id:
            with suppress(ReferenceInvalid):
                pattern = str(parse_reference(wanted))
        if any(fnmatch.fnmatchcase(name, pattern) for name in names):
            return True
    return False


async def read_whole(
    record: ImageRecord, content: ContentStore, snapshots: Snapshotter
) -> ImageConfig:
    """The config of an image that is wholly on this node.

    Raises:
        Corrupt: a layer is missing, or the config is not what was written.
        NotFound: the config is missing.
    """
    for diff_id in record.chain:
        if not snapshots.has(diff_id):
            raise Corrupt("image layer is missing", layer=diff_id)
    return parse_config(await content.get(Digest.parse(record.id)))
