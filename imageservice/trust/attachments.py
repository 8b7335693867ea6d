"""Signatures as cosign and skopeo keep them in a registry, beside the image and in its repository.

The manifest tagged `sha256-<hex>.sig` is an OCI image whose layers are signatures: the blob is the
signed document, the layer's annotations are the signature, the certificate and the log's receipt.
They are looked for whenever a policy demands them. CRI-O asks for a switch as well
(`use-sigstore-attachments` in registries.d); without it such a policy can never be met there, so
there is nothing that it could usefully be off for.

The other place, bundles of the OCI 1.1 referrers API (cosign 3's default), is not looked at: what
they sign is a digest without a name, so nothing that a policy says of names could be checked.

Everything is a stranger's: a manifest has at most 500 layers in 4 MiB, documents are bounded one by
one and together, digests are checked by the source.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from imageservice.errors import (
    ImageNotFound,
    ImageUnsupported,
    ManifestInvalid,
    SignatureValidationFailed,
    TooLarge,
)
from imageservice.manifest import Manifest, parse_manifest
from imageservice.trust.model import ANNOTATIONS, Signature
from imageservice.trust.payload import MAX_PAYLOAD_BYTES
from sandbox.host.threads import apart

if TYPE_CHECKING:
    from imageservice.credentials import Keyring
    from imageservice.digest import Digest
    from imageservice.manifest import Descriptor
    from imageservice.reference import Reference
    from imageservice.registry.source import ImageSource

SIGNATURE_TYPE: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
#: All documents of one image; as much as a manifest.
MAX_TOTAL_BYTES: Final = 4 << 20
#: Documents fetched at once.
_WIDTH: Final = 4
#: A tag has at most 128 characters, so a sha512 cannot be one.
_SIGNABLE: Final = "sha256"


async def fetch_signatures(
    source: ImageSource, reference: Reference, digest: Digest, credential: Keyring | None
) -> tuple[Signature, ...]:
    """All signatures that the registry has of this digest; none is an empty tuple.

    Args:
        source: the registries.
        reference: the image; its repository is asked, its mirrors are used.
        digest: what is signed.
        credential: as for the image.

    Raises:
        SignatureValidationFailed: what is there is no list of signatures, or too large.
        RegistryUnavailable, ...: see `ImageSource`; whether there are any is not known then.
    """
    if digest.algorithm != _SIGNABLE:
        return ()
    place = replace(reference, tag=f"{digest.algorithm}-{digest.hex}.sig", digest=None)
    try:
        resolved = await source.resolve(place, credential)
    except ImageNotFound:
        return ()
    try:
        document = parse_manifest(resolved.body, resolved.content_type)
        if not isinstance(document, Manifest):
            raise ManifestInvalid("an index where signatures are expected")
        layers = [one for one in document.layers if one.media_type == SIGNATURE_TYPE]
        wanted = {one.parsed_digest: one for one in layers}
        total = sum(one.size_bytes for one in wanted.values())
        if total > MAX_TOTAL_BYTES:
            raise TooLarge(f"{total} bytes of signed documents, more than {MAX_TOTAL_BYTES}")
        payloads = await _fetch(source, place, wanted, credential)
    except (ManifestInvalid, ImageUnsupported, TooLarge) as error:
        raise SignatureValidationFailed(
            f"signatures of {reference} cannot be used: {error.message}", found_at=str(place)
        ) from error
    return tuple(
        Signature(
            payload=payloads[one.parsed_digest],
            annotations={
                key: value for key, value in (one.annotations or {}).items() if key in ANNOTATIONS
            },
        )
        for one in layers
    )


async def _fetch(
    source: ImageSource,
    place: Reference,
    wanted: dict[Digest, Descriptor],
    credential: Keyring | None,
) -> dict[Digest, bytes]:
    slots = asyncio.Semaphore(_WIDTH)
    found: dict[Digest, bytes] = {}

    async def one(digest: Digest, descriptor: Descriptor) -> None:
        async with slots:
            found[digest] = await source.fetch_small_blob(
                place, descriptor, credential, limit_bytes=MAX_PAYLOAD_BYTES
            )

    async def every() -> None:
        async with asyncio.TaskGroup() as group:
            for digest, descriptor in wanted.items():
                group.create_task(one(digest, descriptor), name=f"signature {digest}")

    try:
        await apart(every())  # an image may do without them
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return found
