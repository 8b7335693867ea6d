"""Every image that can be run on this node: our own, and those of additional stores beside them.

An image is one value, whoever asks by whatever name, so an image that is here and there has the
names of both. A name has one image: our own catalog's word comes before the stores', and of these
the first one's, because what was pulled here is newer than what was baked. A name that our catalog
gives to an image that cannot be shown now (its store is away) means nobody else's either: an old
image must not come back under it unasked.

Without additional stores all of this is the inventory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from imageservice.catalog import find_id
from imageservice.images import image_of, read_whole
from sandbox.host.errors import FailedPrecondition, PodwrightError
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from imageservice.additional.stores import AdditionalStores
    from imageservice.catalog import Catalog, ImageRecord
    from imageservice.content import ContentStore
    from imageservice.images import Image
    from imageservice.inventory import Inventory
    from imageservice.snapshots.snapshotter import Snapshotter

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _View:
    """What was there, and what it makes together."""

    records: list[ImageRecord]
    own: list[Image]
    images: dict[str, Image]
    names: dict[str, str]


class Holdings:
    """See the module's text. Make one, then `load`. For one event loop."""

    def __init__(
        self,
        catalog: Catalog,
        inventory: Inventory,
        content: ContentStore,
        snapshots: Snapshotter,
        stores: AdditionalStores,
    ) -> None:
        self._catalog = catalog
        self._inventory = inventory
        self._content = content
        self._snapshots = snapshots
        self._stores = stores
        #: Of all stores, by id.
        self._lent: dict[str, Image] = {}
        self._records: dict[str, ImageRecord] = {}
        self._view: _View | None = None

    async def load(self) -> None:
        """Read the images of the stores; one that is not whole is left out and said to be."""
        taken: set[str] = set()
        for store in self._stores:
            broken: list[str] = []
            for record in store.contents.images if store.contents is not None else ():
                try:
                    config = await read_whole(record, self._content, self._snapshots)
                except PodwrightError as error:
                    _log.warning(
                        "image of an additional store is not whole",
                        store=str(store.root),
                        image=record.id,
                        error=error,
                    )
                    broken.append((*record.tags, *record.digests, record.id)[0])
                    continue
                store.images += 1
                named = replace(
                    record,
                    tags=tuple(name for name in record.tags if name not in taken),
                    digests=tuple(name for name in record.digests if name not in taken),
                )
                taken.update(record.tags, record.digests)
                self._add(named, image_of(named, config, ()), str(store.root))
            if broken:
                store.problems.append(f"images that are not whole: {', '.join(broken)}")

    def _add(self, record: ImageRecord, image: Image, store: str) -> None:
        known = self._lent.get(record.id)
        if known is None:
            self._records[record.id] = record
            self._lent[record.id] = replace(image, pinned=True, own=False, stores=(store,))
            return
        tags = (*known.repo_tags, *image.repo_tags)
        digests = (*known.repo_digests, *image.repo_digests)
        known = replace(known, stores=(*known.stores, store))
        self._lent[record.id] = _with_names(known, tags, digests)

    def list(self) -> list[Image]:
        """All images: our own, oldest first, then those that only additional stores have."""
        return list(self._now().images.values()) if self._lent else self._inventory.list()

    def find(self, text: str) -> Image | None:
        """The image by tag, digest, id, unique beginning of an id, or short name."""
        if not self._lent:
            return self._inventory.find(text)
        view = self._now()
        image_id = find_id(text, view.images.keys(), view.names)
        return None if image_id is None else view.images[image_id]

    def record(self, image_id: str) -> ImageRecord | None:
        """What is recorded of the image of exactly this id, under the names it has here."""
        own = self._catalog.get(image_id)
        if not self._lent:
            return own
        image = self._now().images.get(image_id)
        if image is None:
            return own
        return replace(
            own or self._records[image_id], tags=image.repo_tags, digests=image.repo_digests
        )

    def find_record(self, text: str) -> ImageRecord | None:
        """The same for any text that means the image."""
        if not self._lent:
            return self._catalog.find(text)
        image = self.find(text)
        return self._catalog.find(text) if image is None else self.record(image.id)

    def own_id(self, text: str) -> str:
        """The id of the image if it is in our own catalog, `text` where nothing is known of it.

        Raises:
            FailedPrecondition: only additional stores have it, so nothing about it can be changed.
        """
        image = self.find(text)
        if image is None:
            return text
        if self._catalog.get(image.id) is not None:
            return image.id
        raise FailedPrecondition(
            "image is in a read-only additional store, nothing about it can be changed here",
            image=text[:300],
            store=", ".join(image.stores),
            hint="take the store out of image.additional_stores, or make one without the image",
        )

    def _now(self) -> _View:
        """What all of it makes together; made anew when our own images have changed."""
        view = self._view
        records, own = self._catalog.images(), self._inventory.list()
        # Values that did not change are the same objects, so this costs next to nothing.
        if view is not None and records == view.records and own == view.own:
            return view
        images: dict[str, Image] = {}
        for image in own:
            lent = self._lent.get(image.id)
            images[image.id] = image if lent is None else self._joined(image, lent)
        for image_id, lent in self._lent.items():
            if image_id not in images:
                images[image_id] = _with_names(
                    lent, self._free(lent.repo_tags), self._free(lent.repo_digests)
                )
        names = {
            name: image.id
            for image in images.values()
            for name in (*image.repo_tags, *image.repo_digests)
        }
        self._view = _View(records, own, images, names)
        return self._view

    def _joined(self, own: Image, lent: Image) -> Image:
        tags = {*own.repo_tags, *self._free(lent.repo_tags)}
        digests = {*own.repo_digests, *self._free(lent.repo_digests)}
        return _with_names(replace(own, stores=lent.stores), tuple(tags), tuple(digests))

    def _free(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if not self._catalog.is_named(name))


def _with_names(image: Image, tags: tuple[str, ...], digests: tuple[str, ...]) -> Image:
    """The same object where it has these names already."""
    tags, digests = tuple(sorted(set(tags))), tuple(sorted(set(digests)))
    if (tags, digests) == (image.repo_tags, image.repo_digests):
        return image
    return replace(image, repo_tags=tags, repo_digests=digests)
