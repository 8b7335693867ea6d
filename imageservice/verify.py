"""Whether a node's images are what they were: `podwright verify`.

Looked at: every image's documents by their digests; every layer's files; the records against the
disk, in both directions; the layers that containers hold. With `repair` what is bad is dropped, so
that nothing new begins to run on it, and then fetched again by the digests under which the images
are known; an image that no registry gives back is forgotten, and whoever needs it pulls it.
Directories and documents that belong to nothing are removed. Everything goes on meanwhile.

Additional stores are looked at as well, and never mended from here: nothing of ours is written
there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from imageservice.additional.auditing import Item, lent_items, look_at, store_findings
from imageservice.digest import Digest
from imageservice.findings import Checked, Finding
from imageservice.snapshots.snapshotter import Snapshotter
from sandbox.host.errors import PodwrightError
from sandbox.host.journal import get_logger
from sandbox.host.threads import in_one_piece

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from imageservice.additional.stores import AdditionalStores
    from imageservice.blobs import KeptBlobs
    from imageservice.catalog import Catalog, ImageRecord
    from imageservice.content import ContentStore
    from imageservice.inventory import Inventory
    from imageservice.snapshots.audit import LayerAudit

__all__ = ["Checked", "Finding", "Mender", "StoreVerifier"]

_log = get_logger(__name__)


class Audited(Snapshotter, Protocol):
    """A driver whose layers can be looked at."""

    @property
    def audit(self) -> LayerAudit:
        """Who looks."""
        ...


class Mender(Protocol):
    """What a repair needs of the service."""

    async def pull(self, image: str, credential: None, /) -> object:
        """Have the image here, with the node's own credentials."""
        ...

    async def forget(self, record: ImageRecord) -> bool:
        """Forget the image, unless it was pulled again since it had this record."""
        ...


class StoreVerifier:
    """Verifies one store. For one event loop."""

    def __init__(
        self,
        catalog: Catalog,
        content: ContentStore,
        inventory: Inventory,
        snapshots: Audited,
        blobs: KeptBlobs,
        stores: AdditionalStores,
        images: Mender,
    ) -> None:
        self._catalog = catalog
        self._content = content
        self._inventory = inventory
        self._snapshots = snapshots
        self._audit = snapshots.audit
        self._blobs = blobs
        self._stores = stores
        self._images = images

    async def verify(
        self, *, repair: bool, on_progress: Callable[[Checked], None]
    ) -> list[Finding]:
        """Everything that is wrong, worst first; empty when nothing is.

        Raises:
            ResourceExhausted: a full disk could not record a repair.
            PodwrightError: the store cannot be read.
        """
        own, kept = self._audit.rows(), await self._blobs.all()
        items: list[Item] = [*own, *kept, *await lent_items(self._stores)]
        broken = await look_at(items, self._audit.problem, on_progress)
        # Removed while it was looked at: then it was no problem.
        bad = [row for row in own if row in broken and self._audit.is_current(row)]
        layers = [
            Finding("layer", row.diff_id, broken[row], self._names_of(row.diff_id)) for row in bad
        ]
        # Nothing runs on a blob: images need no mending for it.
        rotten = [blob for blob in kept if blob in broken and blob.path.exists()]
        blobs = [
            Finding("blob", blob.digest, broken[blob], self._names_of(blob.diff_id))
            for blob in rotten
        ]
        lent = await store_findings(self._stores, broken)
        documents = await self._documents()
        records = self._records()
        strays = [
            Finding("stray", name, "a directory among the layers that no record names")
            for name in await self._audit.strays()
        ]
        loose = await self._inventory.loose_documents()
        strays += [Finding("stray", str(d), "a document of no image") for d in loose]
        if repair:
            concerned = {name for f in (*layers, *records, *documents) for name in f.images}
            try:
                await in_one_piece(self._audit.drop(bad))
                images = await self._doubtful(concerned)
                outcomes = {_name(image): await self._mend(image) for image in images}
            except BaseException:
                # Called off, as by a client while a registry is silent: nobody fetches an image
                # that looks as if it were here.
                await in_one_piece(self._forget_broken(concerned))
                raise
            layers, records, documents = (
                [_mended(finding, outcomes) for finding in found]
                for found in (layers, records, documents)
            )
            strays = [replace(f, outcome=await self._tidied(f)) for f in strays]
            for blob in rotten:
                await self._blobs.remove(blob)
            blobs = [replace(f, outcome="removed; the image runs without it") for f in blobs]
            lent = [replace(f, outcome="left as it is: nothing is written there") for f in lent]
        return [*layers, *records, *documents, *self._leases(), *blobs, *lent, *strays]

    async def _documents(self) -> list[Finding]:
        found: list[Finding] = []
        for record in self._catalog.images():
            for digest in dict.fromkeys((record.id, record.manifest)):
                try:
                    await self._content.get(Digest.parse(digest))
                except PodwrightError as error:
                    if self._catalog.get(record.id) is None:
                        continue
                    found.append(Finding("document", digest, error.message, (_name(record),)))
        return found

    def _records(self) -> list[Finding]:
        """Layers that images need and that are not recorded at all."""
        missing: dict[str, list[str]] = {}
        for record in self._catalog.images():
            for diff_id in record.chain:
                if not self._snapshots.has(diff_id):
                    missing.setdefault(diff_id, []).append(_name(record))
        return [
            Finding("record", diff_id, "a layer that images need is not on the node", tuple(names))
            for diff_id, names in missing.items()
        ]

    def _leases(self) -> list[Finding]:
        return [
            Finding("lease", key, "a container holds a layer that is not on the node")
            for key, chain in self._snapshots.leases().items()
            if not all(self._snapshots.has(diff_id) for diff_id in chain)
        ]

    def _names_of(self, diff_id: str) -> tuple[str, ...]:
        images = self._catalog.images()
        return tuple(_name(image) for image in images if diff_id in image.chain)

    async def _mend(self, image: ImageRecord) -> str:
        """What became of an image that something was wrong with."""
        failure = "no registry is known to have it"
        for name in image.digests:
            try:
                await self._images.pull(name, None)
            except PodwrightError as error:
                failure = str(error)
                continue
            if not self._lacks(image):
                _log.info("image was mended", image=image.id, source=name)
                return f"fetched again as {name}"
        if await self._forget_if_broken(image.id):
            _log.warning("image cannot be mended and is forgotten", image=image.id, error=failure)
            return f"{_name(image)} is forgotten, pull it again: {failure}"
        if self._catalog.get(image.id) is None:
            return "somebody else has removed it"
        return "whole again, somebody else has pulled it"

    async def _forget_if_broken(self, image_id: str) -> bool:
        """False for one that is whole, or not known: it may be pulled or removed at any moment."""
        while (record := self._catalog.get(image_id)) is not None:
            if await self._is_whole(record):
                return False
            if await self._images.forget(record):
                return True
        return False

    def _lacks(self, image: ImageRecord) -> bool:
        return not all(self._snapshots.has(diff_id) for diff_id in image.chain)

    async def _is_whole(self, image: ImageRecord) -> bool:
        if self._lacks(image):
            return False
        try:
            for digest in (image.id, image.manifest):
                await self._content.get(Digest.parse(digest))
        except PodwrightError:
            return False
        return True

    async def _doubtful(self, concerned: Collection[str]) -> list[ImageRecord]:
        """Images of these names, and those that lack a layer.

        One that came meanwhile was not yet there when its layer was found damaged.
        """
        images = await self._inventory.settled()
        return [image for image in images if _name(image) in concerned or self._lacks(image)]

    async def _forget_broken(self, concerned: Collection[str]) -> None:
        for image in await self._doubtful(concerned):
            if await self._forget_if_broken(image.id):
                _log.warning("repair was called off, image is forgotten", image=image.id)

    async def _tidied(self, finding: Finding) -> str:
        if finding.what.startswith(("sha256:", "sha512:")):
            await self._inventory.loose_documents(remove=True)
        else:
            await self._audit.remove_stray(finding.what)
        return "removed"


def _mended(finding: Finding, outcomes: dict[str, str]) -> Finding:
    said = dict.fromkeys(outcomes[name] for name in finding.images if name in outcomes)
    return replace(finding, outcome="; ".join(said) or "removed")


def _name(record: ImageRecord) -> str:
    return (*record.tags, *record.digests, record.id)[0]
