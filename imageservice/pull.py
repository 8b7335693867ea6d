"""Pulling: resolve, choose the platform, fetch, verify, unpack; what is in flight is shared.

    reference + credential ─► manifest ─► config ─┐
                                 └─► each layer: fetch ─► verify ─► unpack ─► commit ─┴─► names

Three kinds of work are shared (`flights`): a reference asked for with one credential, a manifest by
its digest (two tags of one image), a layer by its diffID (two images on one base). Every reference
is resolved with its own credential, so that joining the download of an image takes the registry's
permission first; work of another that failed is tried once more with our own rights.

A pull that ends early, for whatever reason, leaves committed layers and partial downloads for the
next try; what nobody comes back for is swept. `held` says which layers a sweep must leave alone.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from imageservice.errors import ImageUnsupported, ManifestInvalid
from imageservice.flights import Flights
from imageservice.layers import first_failure
from imageservice.manifest import (
    CONFIG_TYPES,
    MAX_CONFIG_BYTES,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    parse_config,
    parse_manifest,
    select_platform,
)
from sandbox.host.errors import PodwrightError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from imageservice.content import ContentStore
    from imageservice.credentials import Keyring
    from imageservice.digest import Digest
    from imageservice.layers import LayerPuller
    from imageservice.progress import Progress
    from imageservice.reference import Reference
    from imageservice.registry.source import ImageSource

#: Indexes inside indexes: none in practice, one is allowed.
_INDEX_DEPTH: Final = 2


@dataclass(frozen=True, slots=True)
class Pulled:
    """An image whose layers are all committed; not yet in the catalog.

    Attributes:
        manifest, config: digests of the two documents.
        documents: their bytes.
        parsed_config: the config as a value.
        chain: diffIDs, lowest layer first.
        size_bytes: compressed layers and config.
    """

    manifest: Digest
    config: Digest
    documents: tuple[tuple[Digest, bytes], ...]
    parsed_config: ImageConfig
    chain: tuple[str, ...]
    size_bytes: int


class Puller:
    """Makes images of references. For one event loop."""

    def __init__(
        self,
        source: ImageSource,
        content: ContentStore,
        layers: LayerPuller,
        *,
        group: asyncio.TaskGroup,
        platform: Platform,
        max_concurrent_downloads: int,
    ) -> None:
        self._source = source
        self._content = content
        self._layers = layers
        self._platform = platform
        self._max_concurrent_downloads = max_concurrent_downloads
        self._manifests: Flights[Pulled, Progress] = Flights(group, "image pull")
        self._users: Counter[Digest] = Counter()
        self._chains: dict[Digest, frozenset[str]] = {}

    def held(self) -> set[str]:
        """Layers that pulls in flight rely on."""
        return {diff_id for chain in self._chains.values() for diff_id in chain}

    async def settle(self) -> None:
        """Wait until pulls that were called off have put their downloads and stagings in order."""
        await self._manifests.settle()
        await self._layers.settle()

    @contextmanager
    def holding(self, manifest: Digest) -> Iterator[None]:
        """Keep the layers of this manifest, once its pull knows them, from being swept.

        From before the pull is joined until the catalog names the image: counted, because several
        callers join one pull and each needs its own end.
        """
        self._users[manifest] += 1
        try:
            yield
        finally:
            self._users[manifest] -= 1
            if not self._users[manifest]:
                del self._users[manifest]
                self._chains.pop(manifest, None)

    async def resolve(
        self, reference: Reference, credential: Keyring | None
    ) -> tuple[Digest, Digest, bytes, Manifest]:
        """What the reference means here: (digest it named, manifest's digest, body, manifest).

        Raises:
            PlatformNotFound: nothing in the index runs on this machine.
            ManifestInvalid, ImageUnsupported: not an image we can read.
            RegistryUnavailable, ...: see `ImageSource`.
        """
        resolved = await self._source.resolve(reference, credential)
        named = resolved.descriptor.parsed_digest
        body, digest = resolved.body, named
        document = parse_manifest(body, resolved.content_type)
        for _ in range(_INDEX_DEPTH):
            if isinstance(document, Manifest):
                break
            descriptor = select_platform(document, self._platform)
            digest = descriptor.parsed_digest
            body = await self._source.fetch_manifest(reference, descriptor, credential)
            document = parse_manifest(body, descriptor.media_type)
        if isinstance(document, Index):
            raise ImageUnsupported("image index is nested too deeply", image=str(reference))
        return named, digest, body, document

    async def fetch(
        self,
        reference: Reference,
        credential: Keyring | None,
        digest: Digest,
        body: bytes,
        manifest: Manifest,
        on_progress: Callable[[Progress], None],
    ) -> Pulled:
        """Everything the manifest names, on disk; joined by everyone who wants the same manifest.

        Call it inside `holding(digest)`.
        """
        return await self._manifests.join(
            digest,
            lambda emit: self._fetch(reference, credential, digest, body, manifest, emit),
            on_progress,
            retry_joined=True,
        )

    async def _fetch(
        self,
        reference: Reference,
        credential: Keyring | None,
        digest: Digest,
        body: bytes,
        manifest: Manifest,
        emit: Callable[[Progress], None],
    ) -> Pulled:
        _check_kinds(reference, manifest)
        config_body = await self._config(reference, credential, manifest)
        config = parse_config(config_body)
        chain = config.rootfs.diff_ids
        if len(chain) != len(manifest.layers):
            raise ManifestInvalid(
                f"image config names {len(chain)} layers, its manifest {len(manifest.layers)}",
                image=str(reference),
            )
        self._chains[digest] = frozenset(chain)
        slots = asyncio.Semaphore(self._max_concurrent_downloads)
        try:
            async with asyncio.TaskGroup() as group:
                # A layer that is in the image twice is one layer.
                for diff_id, layer in dict(zip(chain, manifest.layers, strict=True)).items():
                    job = self._layers.pull(reference, credential, layer, diff_id, slots, emit)
                    group.create_task(job, name=f"layer {diff_id}")
        except BaseExceptionGroup as failures:
            raise first_failure(failures) from None
        config_digest = manifest.config.parsed_digest
        return Pulled(
            manifest=digest,
            config=config_digest,
            documents=((digest, body), (config_digest, config_body)),
            parsed_config=config,
            chain=chain,
            size_bytes=manifest.config.size_bytes + sum(x.size_bytes for x in manifest.layers),
        )

    async def _config(
        self, reference: Reference, credential: Keyring | None, manifest: Manifest
    ) -> bytes:
        descriptor = manifest.config
        try:
            body = await self._content.get(descriptor.parsed_digest)
            if len(body) == descriptor.size_bytes:
                return body
        except PodwrightError:
            pass  # not here, or not what it was: the registry has it
        return await self._source.fetch_small_blob(
            reference, descriptor, credential, limit_bytes=MAX_CONFIG_BYTES
        )


def _check_kinds(reference: Reference, manifest: Manifest) -> None:
    """Refuse by name what is no container image, before anything of it is fetched."""
    kind = manifest.config.media_type
    if kind and kind not in CONFIG_TYPES:
        raise ImageUnsupported(
            "not a container image but another kind of artifact",
            media_type=ascii(kind)[:200],
            image=str(reference),
        )
    if any(layer.media_type.endswith("+encrypted") for layer in manifest.layers):
        raise ImageUnsupported("image layers are encrypted", image=str(reference))
