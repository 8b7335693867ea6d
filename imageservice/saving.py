"""Images of this node as an archive: `podwright save`.

What is saved is the image, so its config is written byte by byte and its id is the same wherever
the archive is loaded. Where every blob that the manifest names is kept (`blobs`, or as the plain
tar of a layer), an OCI layout has the registry's manifest and blobs, byte by byte. Otherwise layers
are written as the plain tars that this node keeps, whose digests are the config's diffIDs, under a
manifest of our own.

A layer that is kept as files has no archive any more, unless its blob was kept. A tar made anew of
its files would be another layer with another diffID, and so another image under an old name: it is
refused, not imitated.

The same images give the same bytes: members in a fixed order, owned by root, of 1970. Contents are
hashed while they are written; a layer that has rotted on the disk ends the archive with an error.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from imageservice.archives.formats import CONTAINERD_NAME, OCI_NAME, manifest_bytes
from imageservice.archives.writer import BLOCK, END, header, padding
from imageservice.digest import Digest
from imageservice.errors import ImageNotFound
from imageservice.manifest import (
    OCI_CONFIG,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    parse_manifest,
)
from imageservice.reference import parse_reference
from sandbox.host.errors import Corrupt, FailedPrecondition, PodwrightError, map_os_errors
from sandbox.host.threads import to_its_end

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence
    from pathlib import Path

    from imageservice.blobs import KeptBlobs
    from imageservice.catalog import ImageRecord
    from imageservice.content import ContentStore
    from imageservice.holdings import Holdings
    from imageservice.snapshots.snapshotter import Snapshotter

ArchiveForm = Literal["oci", "docker"]

_OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
_CHUNK_BYTES: Final = 1 << 20
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class _Part:
    """One member: bytes, or an open file that must have the digest."""

    name: str
    size_bytes: int
    body: bytes = b""
    fd: int = -1
    digest: Digest | None = None


@dataclass(slots=True)
class SavedArchive:
    """An archive about to be written; a context manager that holds the layers' files open.

    An image removed meanwhile is still written whole.

    Attributes:
        images: ids.
        remade: names of images whose manifest is not the registry's.
        total_bytes: length of the archive.
    """

    images: tuple[str, ...]
    remade: list[str] = field(default_factory=list)
    parts: list[_Part] = field(default_factory=list)
    _files: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> SavedArchive:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    @property
    def total_bytes(self) -> int:
        """Length of the archive."""
        heads = sum(len(header(part.name, part.size_bytes)) for part in self.parts)
        return heads + sum(p.size_bytes + -p.size_bytes % BLOCK for p in self.parts) + len(END)

    def add(self, name: str, body: bytes) -> None:
        """A document."""
        self.parts.append(_Part(name, len(body), body))

    def add_file(self, name: str, path: Path, digest: Digest) -> int:
        """A layer's file; its length. Blocking."""
        with map_os_errors("cannot read layer", layer=str(digest)):
            fd = os.open(path, _READ)
            self._files.callback(os.close, fd)
            size_bytes = os.fstat(fd).st_size
        self.parts.append(_Part(name, size_bytes, fd=fd, digest=digest))
        return size_bytes

    async def chunks(self) -> AsyncIterator[bytes]:
        """The archive, in pieces of at most 1 MiB.

        Raises:
            Corrupt: a layer is not what was committed; what was written so far is no archive.
        """
        for part in self.parts:
            yield header(part.name, part.size_bytes)
            if part.body:
                yield part.body
            if part.fd >= 0:
                async for chunk in _contents(part):
                    yield chunk
            if part.size_bytes % BLOCK:
                yield padding(part.size_bytes)
        yield END


async def _contents(part: _Part) -> AsyncIterator[bytes]:
    assert part.digest is not None
    hasher, position = part.digest.hasher(), 0

    def read() -> bytes:
        with map_os_errors("cannot read layer", layer=str(part.digest)):
            data = os.pread(part.fd, min(_CHUNK_BYTES, part.size_bytes - position), position)
        hasher.update(data)
        return data

    while position < part.size_bytes:
        data = await to_its_end(read)  # the number is another's once the archive is closed
        if not data:
            break
        position += len(data)
        yield data
    if position != part.size_bytes or hasher.hexdigest() != part.digest.hex:
        raise Corrupt(
            "layer on the disk is not what was committed",
            layer=str(part.digest),
            hint="mend the store with podwright verify --repair",
        )


#: Manifest, its media type, and (digest, file) of its blobs.
_Kept = tuple[bytes, str, list[tuple[str, "Path"]]]


@dataclass(frozen=True, slots=True)
class _Wanted:
    record: ImageRecord
    tags: tuple[str, ...]


class Saver:
    """Makes archives of images. For one event loop."""

    def __init__(
        self,
        holdings: Holdings,
        content: ContentStore,
        snapshots: Snapshotter,
        blobs: KeptBlobs,
    ) -> None:
        self._holdings = holdings
        self._content = content
        self._snapshots = snapshots
        self._blobs = blobs

    async def save(self, images: Sequence[str], form: ArchiveForm) -> SavedArchive:
        """What is to be written for these images; close it in the end.

        An image asked for by a tag is saved under that tag, by id or digest under all its tags.

        Raises:
            ImageNotFound: one is not on this node; nothing is written then.
            FailedPrecondition: a layer is kept as files.
            Corrupt: a document is not what was kept.
        """
        wanted = self._find(images)
        archive = SavedArchive(tuple(one.record.id for one in wanted))
        try:
            await (self._oci if form == "oci" else self._docker)(archive, wanted)
        except BaseException:
            archive.__exit__()
            raise
        return archive

    def _find(self, images: Iterable[str]) -> list[_Wanted]:
        found: dict[str, _Wanted] = {}
        for text in images:
            record = self._holdings.find_record(text)
            if record is None:
                raise ImageNotFound("image is not on this node", image=text[:300])
            tags = record.tags
            try:
                tagged = parse_reference(text).tagged
            except PodwrightError:
                tagged = None
            if tagged in record.tags:
                tags = (tagged,) if tagged else ()
            before = found.get(record.id)
            names = (*(before.tags if before else ()), *tags)
            found[record.id] = _Wanted(record, tuple(dict.fromkeys(names)))
        return list(found.values())

    async def _oci(self, archive: SavedArchive, wanted: Sequence[_Wanted]) -> None:
        documents: dict[str, bytes] = {}
        files: dict[str, tuple[Path, Digest]] = {}
        entries: list[dict[str, object]] = []
        for one in wanted:
            record = one.record
            config = await self._content.get(Digest.parse(record.id))
            kept = await self._as_it_was(record)
            if kept is None:
                archive.remade.append((*one.tags, record.id)[0])
                tars = [(d, self._tar(record, d)) for d in record.chain]
                body = manifest_bytes(await asyncio.to_thread(_plain_manifest, config, tars))
                kept = body, OCI_MANIFEST, tars
            body, media_type, blobs = kept
            files.update({_blob(Digest.parse(d)): (p, Digest.parse(d)) for d, p in blobs})
            digest = Digest.of(body)
            documents[_blob(digest)] = body
            documents[_blob(Digest.parse(record.id))] = config
            entries += [
                {
                    "mediaType": media_type,
                    "digest": str(digest),
                    "size": len(body),
                    **({"annotations": {CONTAINERD_NAME: tag, OCI_NAME: tag}} if tag else {}),
                }
                for tag in one.tags or ("",)
            ]
        archive.add("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": entries}
        archive.add("index.json", msgspec.json.encode(index))
        await to_its_end(partial(_add_sorted, archive, documents, files))

    async def _docker(self, archive: SavedArchive, wanted: Sequence[_Wanted]) -> None:
        documents: dict[str, bytes] = {}
        files: dict[str, tuple[Path, Digest]] = {}
        saved: list[dict[str, object]] = []
        for one in wanted:
            record = one.record
            name = f"{Digest.parse(record.id).hex}.json"
            documents[name] = await self._content.get(Digest.parse(record.id))
            layers: list[str] = []
            for diff_id in record.chain:
                path, digest = await asyncio.to_thread(self._tar_or_blob, record, diff_id)
                layers.append(f"{digest.hex[:64]}.tar")
                files[layers[-1]] = path, digest
            saved.append({"Config": name, "RepoTags": list(one.tags) or None, "Layers": layers})
        archive.add("manifest.json", msgspec.json.encode(saved))
        await to_its_end(partial(_add_sorted, archive, documents, files))

    async def _as_it_was(self, record: ImageRecord) -> _Kept | None:
        """The registry's manifest, its media type and its blobs, if all of them are here."""
        body = await self._content.get(Digest.parse(record.manifest))
        manifest = parse_manifest(body, "")
        if not isinstance(manifest, Manifest) or len(manifest.layers) != len(record.chain):
            return None

        def find() -> list[tuple[str, Path]] | None:
            found: list[tuple[str, Path]] = []
            for diff_id, layer in zip(record.chain, manifest.layers, strict=True):
                path = self._blobs.find(diff_id, layer.digest)
                if path is None and layer.digest == diff_id:
                    path = self._snapshots.tar_of(diff_id)
                if path is None:
                    return None
                found.append((layer.digest, path))
            return found

        blobs = await asyncio.to_thread(find)
        return None if blobs is None else (body, manifest.media_type or OCI_MANIFEST, blobs)

    def _tar_or_blob(self, record: ImageRecord, diff_id: str) -> tuple[Path, Digest]:
        """For docker, which takes layers compressed as well. Blocking."""
        blob = self._blobs.find_any(diff_id) if self._snapshots.tar_of(diff_id) is None else None
        if blob is not None:
            return blob.path, Digest.parse(blob.digest)
        return self._tar(record, diff_id), Digest.parse(diff_id)

    def _tar(self, record: ImageRecord, diff_id: str) -> Path:
        path = self._snapshots.tar_of(diff_id)
        if path is None:
            raise FailedPrecondition(
                "a layer of the image is kept as files, its archive is gone",
                hint="save it on a node whose kernel can mount indexed layers (image.layer_form),"
                " or set image.keep_blobs, remove it and pull it again",
                image=(*record.tags, record.id)[0],
                layer=diff_id,
            )
        return path


_INDEX: Final = "application/vnd.oci.image.index.v1+json"


def _blob(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _plain_manifest(config: bytes, tars: Sequence[tuple[str, Path]]) -> Manifest:
    """Layers as plain tars; blocking."""
    with map_os_errors("cannot read layers"):
        layers = [
            Descriptor(media_type=_OCI_LAYER, digest=diff_id, size_bytes=path.stat().st_size)
            for diff_id, path in tars
        ]
    own = Descriptor(media_type=OCI_CONFIG, digest=str(Digest.of(config)), size_bytes=len(config))
    return Manifest(schema_version=2, media_type=OCI_MANIFEST, config=own, layers=tuple(layers))


def _add_sorted(
    archive: SavedArchive, documents: dict[str, bytes], files: dict[str, tuple[Path, Digest]]
) -> None:
    for name in sorted(documents):
        archive.add(name, documents[name])
    for name in sorted(files):
        archive.add_file(name, *files[name])
