"""One layer of a pull: fetched, verified and unpacked at the same time, then committed.

    registry ─► download ─► ingest file ─► worker ─► staging ─► commit
                   └── how much is there ──┘

The worker follows the file that the download writes (`unpack.feed`), and is the one that hashes the
blob; nothing is committed before it has found both digests right. A layer that is here already is
not fetched, whatever its blob's digest in this registry: the diffID is what counts, and it was
checked when the layer was unpacked. The slot of a download is given back when the last byte has
come, whatever the worker still has to do, so the network and the processors work at the same time.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageservice.errors import BlobMismatch, RegistryThrottled, SizeMismatch
from imageservice.flights import Flights
from imageservice.progress import Progress, Stage, measured
from imageservice.snapshots.snapshotter import LayerFacts
from imageservice.unpack.compression import declared, expansion_limit
from imageservice.unpack.feed import Feed
from imageservice.unpack.protocol import Job
from sandbox.host.errors import Corrupt, PodwrightError, ResourceExhausted, Unsupported
from sandbox.host.journal import get_logger
from sandbox.host.threads import apart, in_one_piece

if TYPE_CHECKING:
    from collections.abc import Callable

    from imageservice.blobs import KeptBlobs
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


@dataclass(frozen=True, slots=True)
class _Work:
    """What is to be made of what; `end_download` gives the slot of the download back, once."""

    reference: Reference
    credential: Keyring | None
    layer: Descriptor
    diff_id: str
    end_download: Callable[[], None]
    report: Callable[[Stage, int], None]


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
        places: asyncio.Semaphore,
        blobs: KeptBlobs,
    ) -> None:
        """`places` are for the downloads of all pulls; see `PullMeans`, as for `blobs`."""
        self._source = source
        self._content = content
        self._snapshots = snapshots
        self._pool = pool
        self._settings = settings
        self._observer = observer
        self._clock = clock
        self._places = places
        self._blobs = blobs
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

    async def settle(self) -> None:
        """Wait until layers that were called off have put everything in order."""
        await self._flights.settle()

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
        with ExitStack() as slot:
            with measured(self._observer, "wait", self._clock):
                # Its pull's first: who waits for that keeps no other pull from fetching.
                for places in (slots, self._places):
                    await places.acquire()
                    slot.callback(places.release)
            work = _Work(reference, credential, layer, diff_id, slot.close, report)
            try:
                await self._make(work, origin_only=False)
            except (BlobMismatch, SizeMismatch) as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise  # called off while the task group ended, which tells of its failure only
                # A mirror may serve rot, and what an earlier try left may have been lost with the
                # power: once more from the start and from the origin.
                self._observer.asked_again("mismatch")
                _log.warning("layer is fetched anew", layer=layer.digest, error=error)
                try:
                    await self._make(work, origin_only=True)
                except (BlobMismatch, SizeMismatch) as again:
                    again.fields = {**again.fields, "tries": 2}
                    raise
        self._observer.layer_ended("fetched")
        report(Stage.DONE, layer.size_bytes)

    async def _make(self, work: _Work, *, origin_only: bool) -> None:
        """Fetch, unpack and commit; what may help the next try is kept."""
        layer = work.layer
        ingest = await self._content.begin(layer.parsed_digest, layer.size_bytes)
        staging: Staging | None = None
        try:
            staging = await self._snapshots.stage(work.diff_id)
            done = await self._fill(ingest, staging, work, origin_only=origin_only)
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
        except BaseException as error:
            # Wholly, although another layer that fails now calls this one off as well.
            await in_one_piece(self._give_up(ingest, staging, error))
            raise
        await in_one_piece(self._end(ingest, work, done))

    async def _give_up(self, ingest: Ingest, staging: Staging | None, why: BaseException) -> None:
        """Remove what was unpacked; keep what was fetched if it may help the next try."""
        if staging is not None:
            try:
                await self._snapshots.discard(staging)
            except PodwrightError as error:
                _log.warning("staging cannot be removed now", layer=staging.diff_id, error=error)
        # The same bytes would fail again, or are in the way; a registry's patience is neither.
        in_vain = isinstance(why, Corrupt | ResourceExhausted | Unsupported)
        if in_vain and not isinstance(why, RegistryThrottled):
            await ingest.discard()
        else:
            await ingest.release()

    async def _end(self, ingest: Ingest, work: _Work, done: Done) -> None:
        await self._keep(ingest, work, done)
        await ingest.discard()

    async def _keep(self, ingest: Ingest, work: _Work, done: Done) -> None:
        """Keep the blob where that is wanted; a plain tar that is kept anyway is not kept twice."""
        blob = work.layer.digest
        if not self._blobs.enabled or (blob == work.diff_id and done.form == "indexed"):
            return
        try:
            await self._blobs.take(work.diff_id, blob, ingest.path)
        except PodwrightError as error:
            _log.warning("blob cannot be kept", layer=blob, error=error)

    async def _fill(
        self, ingest: Ingest, staging: Staging, work: _Work, *, origin_only: bool
    ) -> Done:
        """The staging filled by a worker that follows the download."""
        feed = Feed(work.layer.size_bytes)
        ingest.follow(feed.grow)

        async def unpack() -> Done:
            with measured(self._observer, "unpack", self._clock):
                job = _job(ingest, work.layer, staging, self._settings)
                return await self._pool.unpack(
                    job, lambda done: work.report(Stage.UNPACKING, done), feed
                )

        async def both() -> Done:
            async with asyncio.TaskGroup() as group:
                unpacking = group.create_task(unpack(), name="unpack")
                await self._fetch(ingest, work, origin_only=origin_only)
                work.end_download()
                work.report(Stage.UNPACKING, 0)
            return unpacking.result()

        try:
            return await apart(both())  # a mismatch is followed by another try
        except BaseExceptionGroup as failures:
            failure = first_failure(failures)
            if isinstance(failure, PodwrightError):
                _name(failure, work)
            raise failure from None

    async def _fetch(self, ingest: Ingest, work: _Work, *, origin_only: bool) -> None:
        """The whole blob in its file, of the right length."""
        held_bytes, layer = ingest.received_bytes, work.layer
        with measured(self._observer, "download", self._clock):
            if held_bytes < layer.size_bytes:
                await self._source.fetch_blob(
                    work.reference,
                    layer,
                    work.credential,
                    ingest,
                    offset_bytes=held_bytes,
                    on_progress=lambda done: work.report(Stage.FETCHING, done),
                    origin_only=origin_only,
                )
            await ingest.finish()
        self._observer.layer_fetched(fetched_bytes=layer.size_bytes - held_bytes)


def _name(failure: PodwrightError, work: _Work) -> None:
    """Say what it is of: a worker knows neither the blob's name nor whose it is."""
    about = {"blob": work.layer.digest, "of": work.reference.repository}
    said = str(failure)
    failure.fields = {**failure.fields, **{k: v for k, v in about.items() if v not in said}}


def first_failure(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure to report: what made others fail is what they were cancelled for."""
    for failure in failures.exceptions:
        if isinstance(failure, ResourceExhausted):
            return failure
    chosen = failures.exceptions[0]
    return first_failure(chosen) if isinstance(chosen, BaseExceptionGroup) else chosen


def _job(ingest: Ingest, layer: Descriptor, staging: Staging, settings: ImageSettings) -> Job:
    return Job(
        blob=str(ingest.path),
        blob_digest=layer.digest,
        blob_bytes=layer.size_bytes,
        available_bytes=0,
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
