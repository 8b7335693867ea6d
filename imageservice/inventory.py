"""Which images this node has: the values that answers are made of, over the catalog's rows.

An `Image` value is built when an image changes, not when somebody asks: `list` and `find` are plain
lookups, and an image found by tag, digest or id is the same object. Names and documents change
together under one lock, which is held for milliseconds and never across the network.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from imageservice.catalog import ImageRecord
from imageservice.collect import referenced_documents
from imageservice.digest import Digest
from imageservice.errors import ImageNotFound
from imageservice.images import Image, image_of, read_whole, renew_names
from sandbox.host.errors import PodwrightError, ResourceExhausted, Unavailable
from sandbox.host.journal import get_logger
from sandbox.host.threads import in_one_piece

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from imageservice.catalog import Catalog
    from imageservice.content import ContentStore
    from imageservice.manifest import ImageConfig
    from imageservice.pull import Pulled
    from imageservice.snapshots.snapshotter import Snapshotter

_log = get_logger(__name__)


class Inventory:
    """The images of this node; make one, then `load`. For one event loop."""

    def __init__(
        self,
        catalog: Catalog,
        content: ContentStore,
        snapshots: Snapshotter,
        *,
        pinned: Iterable[str],
    ) -> None:
        """`pinned` are references, ids and patterns of images that garbage collection leaves."""
        self._catalog = catalog
        self._content = content
        self._snapshots = snapshots
        self._pinned = tuple(pinned)
        self._images: dict[str, Image] = {}
        self._naming = asyncio.Lock()

    async def load(self) -> None:
        """Read what is recorded; images that are not whole are forgotten.

        Not so an image that needs layers of an additional store which is away: it is only not
        shown. Whoever pulls it gets the layers in place of those; a later start may find the store.
        """
        broken: list[str] = []
        for record in self._catalog.images():
            try:
                config = await read_whole(record, self._content, self._snapshots)
            except PodwrightError as error:
                if record.borrows and not all(map(self._snapshots.has, record.chain)):
                    _log.warning(
                        "image needs layers of an additional store that is not here",
                        image=record.id,
                        error=error,
                    )
                    continue
                _log.warning("image is not whole and is forgotten", image=record.id, error=error)
                broken.append(record.id)
                self._catalog.hide(record.id)
                continue
            self._images[record.id] = image_of(record, config, self._pinned)
        if broken:
            await self._catalog.erase(broken)
        await self._content.keep_only(referenced_documents(self._catalog.images()))

    async def add(
        self,
        record: ImageRecord,
        names: Iterable[str],
        documents: Iterable[tuple[Digest, bytes]],
        config: ImageConfig,
    ) -> Image:
        """Make an image known whose layers are all committed; each name then means this image.

        Args:
            record: what is recorded of it.
            names: canonical tags and repo digests.
            documents: its manifest and config, to be kept.
            config: the config as a value.

        Raises:
            ResourceExhausted: disk full; nothing is known then.
            Unavailable: a layer was dropped meanwhile, because it was found damaged.
        """
        async with self._naming:
            return await in_one_piece(self._add(record, names, documents, config))

    async def _add(
        self,
        record: ImageRecord,
        names: Iterable[str],
        documents: Iterable[tuple[Digest, bytes]],
        config: ImageConfig,
    ) -> Image:
        """Documents, rows and memory, which who is called off in between must not find apart."""
        kept: list[Digest] = []
        try:
            for digest, document in documents:
                kept.append(digest)
                await self._content.put(digest, document)
            if not all(self._snapshots.has(diff_id) for diff_id in record.chain):
                raise Unavailable(
                    "a layer was found damaged, and dropped, while the image was fetched",
                    hint="pull it again",
                    image=record.id,
                )
            await self._catalog.record(record, names)
        except PodwrightError:
            with suppress(PodwrightError):
                await self._content.delete(set(kept) - referenced_documents(self._catalog.images()))
            raise
        self._images[record.id] = image_of(record, config, self._pinned)
        renew_names(self._images, self._catalog.images(), self._pinned)
        return self._images[record.id]

    async def add_pulled(
        self, pulled: Pulled, names: Iterable[str], *, created_ns: int, pinned: bool = False
    ) -> Image:
        """The same for what a pull has brought."""
        record = ImageRecord(
            id=str(pulled.config),
            manifest=str(pulled.manifest),
            chain=pulled.chain,
            size_bytes=pulled.size_bytes,
            created_ns=created_ns,
            pinned=pinned,
            borrows=not set(pulled.chain).issubset(self._snapshots.layers()),
        )
        return await self.add(record, names, pulled.documents, pulled.parsed_config)

    async def settled(self) -> list[ImageRecord]:
        """All images, when none is just being added."""
        async with self._naming:
            return self._catalog.images()

    async def loose_documents(self, *, remove: bool = False) -> list[Digest]:
        """Documents of no image; nothing is added meanwhile, so none is merely early.

        Raises:
            PodwrightError: the directory cannot be read, or one cannot be removed.
        """
        async with self._naming:
            kept = referenced_documents(self._catalog.images())
            loose = sorted(await self._content.documents() - kept)
            if remove:
                await self._content.delete(loose)
            return loose

    async def pin(self, image: str, *, pinned: bool) -> Image:
        """Keep garbage collection from the image, or no longer.

        Raises:
            ImageNotFound: no such image.
            ResourceExhausted: disk full; nothing has changed.
        """
        record = self._catalog.find(image)
        async with self._naming:
            value = await in_one_piece(self._mark(record, pinned=pinned))
        if value is None:
            raise ImageNotFound("image is not on this node", image=image)
        return value

    async def _mark(self, record: ImageRecord | None, *, pinned: bool) -> Image | None:
        changed = await self._catalog.pin(record.id, pinned=pinned) if record else None
        if changed is None or changed.id not in self._images:
            return None
        value = image_of(changed, self._images[changed.id].config, self._pinned)
        self._images[changed.id] = value
        return value

    def configure_pinned(self, pinned: Iterable[str]) -> None:
        """Take other references, ids and patterns of the operator from now on."""
        self._pinned = tuple(pinned)
        for record in self._catalog.images():
            image = self._images.get(record.id)
            if image is not None:
                self._images[record.id] = image_of(record, image.config, self._pinned)

    def list(self) -> list[Image]:
        """All images, oldest first."""
        return [self._images[r.id] for r in self._catalog.images() if r.id in self._images]

    def find(self, image: str) -> Image | None:
        """The image by tag, digest, id, unique beginning of an id, or short name."""
        record = self._catalog.find(image)
        return None if record is None else self._images.get(record.id)

    async def remove(
        self,
        image: str,
        *,
        free_space: Callable[[], Awaitable[None]],
        only: ImageRecord | None = None,
    ) -> bool:
        """Forget the image with all its names; an unknown one is fine. Not to be cancelled.

        Args:
            image: see `find`.
            free_space: removes what nobody refers to any more.
            only: leave it alone if its record is not this very one any more, for it has been
                pulled or loaded again since that was looked at.

        Returns:
            Whether it was forgotten.

        Raises:
            ResourceExhausted: a full disk could not record it even after space was freed.
        """
        record = self._catalog.find(image)
        if record is None:
            return False
        full: ResourceExhausted | None = None
        async with self._naming:
            if only is not None and self._catalog.get(only.id) is not only:
                return False
            self._catalog.hide(record.id)
            self._images.pop(record.id, None)
            try:
                await self._catalog.erase((record.id,))
            except ResourceExhausted as error:
                full = error  # free the space first
            kept = referenced_documents(self._catalog.images())
            gone = {Digest.parse(record.id), Digest.parse(record.manifest)} - kept
            await self._content.delete(gone)
        await free_space()
        if full is not None:
            await self._catalog.erase((record.id,))
        return True
