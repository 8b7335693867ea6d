"""An archive as a registry: its blobs for the ordinary pull."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from imageservice.errors import DigestMismatch, ImageNotFound, SizeMismatch, TooLarge
from imageservice.registry.source import ImageSource, Resolved
from sandbox.host.errors import Corrupt, NotFound, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from imageservice.archives.table import ArchiveTable, Extent
    from imageservice.credentials import Keyring
    from imageservice.manifest import Descriptor
    from imageservice.reference import Reference
    from imageservice.registry.source import BlobSink

_CHUNK_BYTES: Final = 1 << 20


class ArchiveSource(ImageSource):
    """See `ImageSource`. What a name means was read from the archive's documents before."""

    def __init__(self, table: ArchiveTable, members: Mapping[str, str]) -> None:
        """`members` says by a blob's digest which member it is."""
        self._table = table
        self._members = members

    async def resolve(self, reference: Reference, credential: Keyring | None) -> Resolved:
        """Not asked of an archive."""
        raise Unsupported("an archive resolves no names", image=str(reference))

    async def head(self, reference: Reference, credential: Keyring | None) -> Descriptor | None:
        """Not known without reading."""
        return None

    async def fetch_manifest(
        self, reference: Reference, descriptor: Descriptor, credential: Keyring | None
    ) -> bytes:
        """Not asked of an archive."""
        raise Unsupported("an archive resolves no names", image=str(reference))

    async def fetch_small_blob(
        self,
        reference: Reference,
        descriptor: Descriptor,
        credential: Keyring | None,
        *,
        limit_bytes: int,
    ) -> bytes:
        """See `ImageSource`."""
        if descriptor.size_bytes > limit_bytes:
            raise TooLarge(f"blob {descriptor.digest} is larger than {limit_bytes} bytes")
        extent = await asyncio.to_thread(self._extent, descriptor)
        body = await asyncio.to_thread(self._table.read_at, extent, 0, descriptor.size_bytes)
        if len(body) != descriptor.size_bytes or not descriptor.parsed_digest.matches(body):
            raise DigestMismatch("blob in the archive is not its digest", blob=descriptor.digest)
        return body

    async def fetch_blob(
        self,
        reference: Reference,
        descriptor: Descriptor,
        credential: Keyring | None,
        sink: BlobSink,
        *,
        offset_bytes: int = 0,
        on_progress: Callable[[int], None] | None = None,
        origin_only: bool = False,
    ) -> None:
        """See `ImageSource`."""
        extent = await asyncio.to_thread(self._extent, descriptor)
        if extent.size_bytes != descriptor.size_bytes:
            raise SizeMismatch(
                "blob in the archive is not as long as its descriptor says",
                blob=descriptor.digest,
                expected_bytes=descriptor.size_bytes,
                actual_bytes=extent.size_bytes,
            )
        position = offset_bytes
        while position < extent.size_bytes:
            chunk = await asyncio.to_thread(self._table.read_at, extent, position, _CHUNK_BYTES)
            if not chunk:
                raise Corrupt("archive ends inside of a blob", blob=descriptor.digest)
            await sink.write(chunk)
            position += len(chunk)
            if on_progress is not None:
                on_progress(position)

    async def close(self) -> None:
        """The file is its owner's."""

    def _extent(self, descriptor: Descriptor) -> Extent:
        try:
            return self._table.find(self._members.get(descriptor.digest, ""))
        except NotFound as error:
            raise ImageNotFound("archive lacks a blob", blob=descriptor.digest) from error
