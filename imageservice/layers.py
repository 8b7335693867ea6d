"""One layer of a pull: its blob fetched and verified, unpacked by a worker, committed.

A layer that is here already is not fetched, whatever its blob's digest in this registry: the diffID
is what counts, and it was checked when the layer was unpacked. The slot of a download is given back
before unpacking, so the network and the disk work at the same time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imageservice.errors import DigestMismatch, SizeMismatch
from imageservice.flights import Flights
from imageservice.progress import Progress, Stage, measured
from imageservice.snapshots.snapshotter import LayerFacts
from imageservice.unpack.compression import declared, expansion_limit
from imageservice.unpack.protocol import Job
from sandbox.host.errors import Corrupt, PodwrightError, ResourceExhausted, Unsupported
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from imageservice.content import ContentStore, Ingest
    from imageservice.credentials import Keyring
    from imageservice.manifest import Descriptor
    from imageservice.progress import PullObserver
    from imageservice.reference import Reference
    from imageservice.registry.source import ImageSource
    from imageservice.settings import ImageSettings
    from imageservice.snapshots.snapshotter import Snapshotter, Staging
    from imageservice.unpack.pool import UnpackPool
    from imageservice.unpack.protocol import Done
    from sandbox.host.clock import Clock

_log = get_logger(__name__)


class LayerPuller:
    """Makes layers of blobs. For one event loop."""

    def __init__(
        self,
        source: ImageSource,
        content: ContentStore,
        snapshots: Snapshotter,
        pool: UnpackPool,
        *,
        group: asyncio.TaskGroup,
        settings: ImageSettings,
        observer: PullObserver,
        clock: Clock,
    ) -> None:
        self._source = source
        self._content = content
        self._snapshots = snapshots
        self._pool = pool
        self._settings = settings
        self._observer = observer
        self._clock = clock
        self._flights: Flights[None, Progress] = Flights(group, "layer pull")

    async def pull(
        self,
        reference: Reference,
        credential: Keyring | None,
        layer: Descriptor,
        diff_id: str,
        slots: asyncio.Semaphore,
        emit: Callable[[Progress], None],
    ) -> None:
        """Have the layer committed; the work is shared by all images that have it.

        Args:
            reference: an image it belongs to.
            credential: for that image's registry.
            layer: its blob.
            diff_id: what the plain tar hashes to.
            slots: limits the downloads of one pull.
            emit: hears of the progress.

        Raises:
            DigestMismatch, SizeMismatch: the registry's blob is not what the manifest says.
            Corrupt, Unsupported, ResourceExhausted: see `unpack`.
            RegistryUnavailable, ...: see `ImageSource.fetch_blob`.
        """
        await self._flights.join(
            diff_id,
            lambda emit: self._pull(reference, credential, layer, diff_id, slots, emit),
            emit,
            retry_joined=True,
        )

    async def _pull(
        self,
        reference: Reference,
        credential: Keyring | None,
        layer: Descriptor,
        diff_id: str,
        slots: asyncio.Semaphore,
        emit: Callable[[Progress], None],
    ) -> None:
        def report(stage: Stage, done_bytes: int) -> None:
            emit(Progress(layer.digest, stage, done_bytes, layer.size_bytes))

        if self._snapshots.has(diff_id):
            # A pull that was called off, or killed, just after the commit leaves its download.
            await self._content.drop(layer.parsed_digest)
            self._observer.layer_ended("reused")
            report(Stage.EXISTS, layer.size_bytes)
            return
        report(Stage.WAITING, 0)
        await self._pool.warm()
        with measured(self._observer, "wait", self._clock):
            await slots.acquire()
        try:
            with measured(self._observer, "download", self._clock):
                ingest = await self._fetch(
                    reference, credential, layer, lambda done: report(Stage.FETCHING, done)
                )
        finally:
            slots.release()
        try:
            await self._unpack(ingest, layer, diff_id, lambda d: report(Stage.UNPACKING, d))
        except (Corrupt, ResourceExhausted, Unsupported):
            await ingest.discard()  # the same bytes would fail again, or are in the way
            raise
        except BaseException:
            await ingest.release()
            raise
        await ingest.discard()
        self._observer.layer_ended("fetched")
        report(Stage.DONE, layer.size_bytes)

    async def _fetch(
        self,
        reference: Reference,
        credential: Keyring | None,
        layer: Descriptor,
        on_progress: Callable[[int], None],
    ) -> Ingest:
        """The whole, verified blob; the caller ends the ingest."""
        try:
            return await self._fetch_once(reference, credential, layer, on_progress, again=False)
        except (DigestMismatch, SizeMismatch) as error:
            # A mirror may serve rot, and what an earlier try left may have been lost with the
            # power: once more from the start and from the origin.
            self._observer.asked_again("mismatch")
            _log.warning("layer is fetched anew", layer=layer.digest, error=error)
        return await self._fetch_once(reference, credential, layer, on_progress, again=True)

    async def _fetch_once(
        self,
        reference: Reference,
        credential: Keyring | None,
        layer: Descriptor,
        on_progress: Callable[[int], None],
        *,
        again: bool,
    ) -> Ingest:
        ingest = await self._content.begin(layer.parsed_digest, layer.size_bytes)
        try:
            held_bytes = ingest.received_bytes
            if held_bytes < layer.size_bytes:
                await self._source.fetch_blob(
                    reference,
                    layer,
                    credential,
                    ingest,
                    offset_bytes=held_bytes,
                    on_progress=on_progress,
                    origin_only=again,
                )
            await ingest.finish()
        except (DigestMismatch, SizeMismatch, ResourceExhausted):
            await ingest.discard()
            raise
        except BaseException:
            await ingest.release()
            raise
        self._observer.layer_fetched(fetched_bytes=layer.size_bytes - held_bytes)
        return ingest

    async def _unpack(
        self, ingest: Ingest, layer: Descriptor, diff_id: str, on_progress: Callable[[int], None]
    ) -> None:
        settings = self._settings
        staging = await self._snapshots.stage(diff_id)
        try:
            on_progress(0)
            with measured(self._observer, "unpack", self._clock):
                done = await self._pool.unpack(_job(ingest, layer, staging, settings), on_progress)
            said = declared(layer.media_type)
            if said is not None and said.value != done.compression:
                _log.warning(
                    "layer is not compressed as its media type says",
                    layer=layer.digest,
                    media_type=layer.media_type,
                    compression=done.compression,
                )
            with measured(self._observer, "commit", self._clock):
                await self._snapshots.commit(staging, _facts(done))
        except BaseException:
            try:
                await self._snapshots.discard(staging)
            except PodwrightError as error:
                _log.warning("staging cannot be removed now", layer=diff_id, error=error)
            raise


def _job(ingest: Ingest, layer: Descriptor, staging: Staging, settings: ImageSettings) -> Job:
    return Job(
        blob=str(ingest.path),
        target=str(staging.path),
        form=staging.form,
        diff_id=staging.diff_id,
        max_plain_bytes=expansion_limit(
            layer.size_bytes,
            max_layer_bytes=settings.max_layer_bytes,
            max_ratio=settings.max_expansion_ratio,
        ),
        max_entries=settings.max_layer_entries,
    )


def _facts(done: Done) -> LayerFacts:
    return LayerFacts(
        form=done.form,
        entries=done.entries,
        size_bytes=done.size_bytes,
        opaque_root=done.opaque_root,
        implied=frozenset(path.encode("latin-1") for path in done.implied),
        index_digest=done.index_digest,
    )
