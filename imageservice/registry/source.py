"""What the image service needs from a registry, as a protocol for the pull pipeline.

`RegistryClient` (client.py) is the one over HTTP; tests may bring their own.

A pull, in the order of calls::

    resolved = await source.resolve(parse_reference("busybox:1"), credential)
    document = parse_manifest(resolved.body, resolved.content_type)
    if isinstance(document, Index):
        descriptor = select_platform(document, Platform.host())
        body = await source.fetch_manifest(reference, descriptor, credential)
    config = await source.fetch_small_blob(reference, manifest.config, credential, limit_bytes=…)
    for layer in manifest.layers:
        await source.fetch_blob(reference, layer, credential, sink, on_progress=bar.update)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from imageservice.credentials import Keyring
    from imageservice.manifest import Descriptor
    from imageservice.reference import Reference


class BlobSink(Protocol):
    """Where the bytes of a blob go; may be slow, its time is not the registry's."""

    async def write(self, chunk: bytes, /) -> None:
        """Take the next bytes, in order and without gaps; raising ends the transfer."""
        ...


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a name means at this moment.

    Attributes:
        descriptor: media type, digest (of `body`) and size.
        body: the manifest or index, its digest checked.
        content_type: as sent, without parameters.
        host: which endpoint answered, `name[:port]`, for messages.
    """

    descriptor: Descriptor
    body: bytes
    content_type: str
    host: str


class ImageSource(Protocol):
    """Reads images of registries.

    Any method may raise RegistryUnavailable (and its kinds RegistryUntrusted and
    RegistryProtocolError), RegistryUnauthenticated, RegistryDenied, RegistryThrottled,
    ImageNotFound, HostsConfigInvalid; each names registry, repository, tag or digest, and what was
    tried. Cancelling a call closes its connection.
    """

    async def resolve(self, reference: Reference, credential: Keyring | None) -> Resolved:
        """The manifest or index that `reference` names; its digest wins over its tag.

        Raises:
            DigestMismatch: the body is not what the reference or the registry's own header says.
            TooLarge: over 4 MiB.
        """
        ...

    async def head(self, reference: Reference, credential: Keyring | None) -> Descriptor | None:
        """What `resolve` would find, without the body (Docker Hub does not count it as a pull).

        None where the registry does not tell digest, type and size: then ask `resolve`.
        """
        ...

    async def fetch_manifest(
        self, reference: Reference, descriptor: Descriptor, credential: Keyring | None
    ) -> bytes:
        """The manifest of an index entry, its size and digest checked.

        Raises:
            DigestMismatch, SizeMismatch, TooLarge: see above.
        """
        ...

    async def fetch_small_blob(
        self,
        reference: Reference,
        descriptor: Descriptor,
        credential: Keyring | None,
        *,
        limit_bytes: int,
    ) -> bytes:
        """A blob in memory (an image config), its size and digest checked.

        Raises:
            TooLarge: the descriptor claims more than `limit_bytes`; nothing is fetched then.
            DigestMismatch, SizeMismatch: the body is not what the descriptor says.
        """
        ...

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
        """Stream a blob from `offset_bytes` to its end into `sink`; resumes by itself.

        Exactly `descriptor.size_bytes - offset_bytes` bytes are written, or an error is raised:
        what the sink has then is a prefix to continue from. The digest is not checked here, because
        the one pass over the bytes that hashes them belongs to the sink. When that finds a
        mismatch, start anew at 0 with `origin_only`, for a mirror may serve rot.

        Args:
            reference: which repository to ask for.
            descriptor: digest and exact size of the blob.
            credential: whose authority to use, if any.
            sink: receives chunks of 256 KiB or more (the last one may be smaller).
            offset_bytes: how many bytes the caller holds already.
            on_progress: called with the number of bytes held so far, counted from 0 of the blob;
                must be cheap, runs on the event loop for every chunk.
            origin_only: leave the mirrors out.

        Raises:
            SizeMismatch: the registry holds a blob of another size.
            PullStalled: too little progress for `pull_progress_timeout_s`.
            ImageUnsupported: a foreign layer that the registry itself does not hold; the URLs in a
                manifest are never followed (CVE-2020-15157).
        """
        ...

    async def close(self) -> None:
        """Close the connections; the object is not used after that."""
        ...
