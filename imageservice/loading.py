"""Images that somebody brings in a file: an archive is spooled, looked through, and pulled from.

    loads/<n>/archive        the bytes as they came, where they came over a socket
    loads/<n>/plain          the same decompressed, where they were compressed
    loads/<n>/table          what is in it, sorted to be looked up
    loads/<n>/ingest/        blobs on their way to the workers

Everything of one load is below one directory, which goes when the load ends and, after a kill, when
the next daemon starts. That an archive lies on the disk twice for a while is the price of reading
it in the order of its documents: `docker save` writes them last.

A layer that is on the node already is not read from the archive. Images of an archive are loaded
one after another and are known as soon as they are whole: if the third is bad, two are there.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import msgspec

import imageservice
from imageservice import errors as image_errors
from imageservice.archives.formats import read_images, renamed
from imageservice.archives.source import ArchiveSource
from imageservice.archives.table import ArchiveTable, Failure, Scan, SharedFile
from imageservice.content import ContentStore
from imageservice.progress import SilentObserver
from imageservice.reference import Reference
from imageservice.unpack.compression import expansion_limit
from sandbox.host import errors as host_errors
from sandbox.host.errors import (
    Internal,
    PodwrightError,
    ResourceExhausted,
    map_os_errors,
)
from sandbox.host.files import make_private_dir, remove_tree
from sandbox.host.threads import in_one_piece, to_its_end

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from imageservice.archives.formats import ArchivedImage
    from imageservice.images import Image
    from imageservice.inventory import Inventory
    from imageservice.means import PullMeans
    from imageservice.progress import LayerOutcome, Progress, PullObserver
    from imageservice.pull import Puller
    from sandbox.host.processes import ProcessRunner

#: Archives at once; each is as large as its images, twice.
_MAX_LOADS: Final = 2
#: Looking through an archive reads it once; slower than this, the disk or the archive is ill.
_SCAN_TIMEOUT_S: Final = 3600.0
#: What it says of the archive; what is in that stays on the disk.
_SCAN_ANSWER_BYTES: Final = 64 * 1024
_BATCH_BYTES: Final = 1 << 20
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Loader:
    """Loads archives. For one event loop."""

    def __init__(self, inventory: Inventory, means: PullMeans, runner: ProcessRunner) -> None:
        self._settings = means.settings
        self._directory = means.settings.root / "loads"
        self._inventory = inventory
        # No registry is asked, so one that is silent must not keep an archive waiting.
        places = asyncio.Semaphore(_MAX_LOADS * means.settings.max_concurrent_downloads)
        self._means = means.apart(_LoadObserver(means.observer), places)
        self._runner = runner
        self._slots = asyncio.Semaphore(_MAX_LOADS)
        self._serial = itertools.count(1)
        self._pullers: set[Puller] = set()

    async def open(self) -> None:
        """Remove what loads of an earlier daemon have left; raises PodwrightError."""
        await asyncio.to_thread(self._open)

    def _open(self) -> None:
        remove_tree(self._directory)
        make_private_dir(self._directory)

    def held(self) -> set[str]:
        """Layers that loads in flight rely on."""
        return {diff_id for puller in self._pullers for diff_id in puller.held()}

    async def load(
        self,
        chunks: AsyncIterator[bytes],
        *,
        name: str = "",
        pinned: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> list[Image]:
        """The images of an archive whose bytes come.

        Args:
            chunks: a tar, or one compressed with gzip or zstd; the form is found out.
            name: what to call its one image, instead of what the archive says.
            pinned: garbage collection must leave the images alone.
            on_progress: hears of each layer once the archive is here.

        Raises:
            ReferenceInvalid: `name` is no name, or the archive has several images.
            Corrupt, ManifestInvalid, DigestMismatch, SizeMismatch: the archive is not what it
                says, naming the blob.
            ImageUnsupported, Unsupported, PlatformNotFound: not an archive, or not for us.
            ResourceExhausted: no space, or a limit of the settings.
        """
        async with self._slots, self._place() as place:
            await self._spool(chunks, place / "archive")
            return await self._load(place / "archive", place, name, pinned, on_progress)

    async def load_file(
        self,
        archive: Path,
        *,
        name: str = "",
        pinned: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> list[Image]:
        """The same of a file that nobody changes meanwhile; it is read where it is."""
        async with self._slots, self._place() as place:
            return await self._load(archive, place, name, pinned, on_progress)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[Path]:
        place = self._directory / str(next(self._serial))
        try:
            await to_its_end(lambda: make_private_dir(place))
            yield place
        finally:
            await to_its_end(lambda: remove_tree(place))

    async def _spool(self, chunks: AsyncIterator[bytes], path: Path) -> None:
        limit_bytes = self._settings.max_layer_bytes
        spool = _Spool(path)
        try:
            await to_its_end(spool.open)
            batch: list[bytes] = []
            waiting = total = 0
            async for chunk in chunks:
                batch.append(chunk)
                waiting, total = waiting + len(chunk), total + len(chunk)
                if total > limit_bytes:
                    raise ResourceExhausted("archive is too large", limit_bytes=limit_bytes)
                if waiting >= _BATCH_BYTES:
                    full, batch, waiting = batch, [], 0
                    await to_its_end(partial(spool.write, full))
            await to_its_end(lambda: spool.write(batch))
        finally:
            spool.close()

    async def _load(
        self,
        archive: Path,
        place: Path,
        name: str,
        pinned: bool,
        on_progress: Callable[[Progress], None] | None,
    ) -> list[Image]:
        scan = await self._scan(archive, place)
        with ExitStack() as files:

            def read() -> tuple[ArchiveTable, list[ArchivedImage]]:
                plain = SharedFile(place / "plain" if scan.is_plain else archive)
                files.callback(plain.close)
                rows = SharedFile(place / "table")
                files.callback(rows.close)
                table = ArchiveTable(plain, rows)
                return table, read_images(table, self._means.platform)

            table, images = await to_its_end(read)
            if name:
                images = renamed(images, name)
            content = ContentStore(place)
            await content.open()
            return [
                await self._take(image, table, content, pinned, on_progress) for image in images
            ]

    async def _scan(self, archive: Path, place: Path) -> Scan:
        status = await asyncio.to_thread(archive.stat)
        limit_bytes = str(
            expansion_limit(
                status.st_size,
                max_layer_bytes=self._settings.max_layer_bytes,
                max_ratio=self._settings.max_expansion_ratio,
            )
        )
        finished = await self._runner.run(
            [
                *(sys.executable, "-P", "-s", "-m", "imageservice.archives.scan"),
                *(str(archive), str(place / "plain"), str(place / "table"), limit_bytes),
            ],
            env={"PYTHONPATH": str(Path(imageservice.__path__[0]).parent)},
            timeout_s=_SCAN_TIMEOUT_S,
            output_limit_bytes=_SCAN_ANSWER_BYTES,
            check=Internal,
        )
        answer = _ANSWER.decode(finished.stdout)
        if isinstance(answer, Failure):
            raise _error(answer)
        return answer

    async def _take(
        self,
        image: ArchivedImage,
        table: ArchiveTable,
        content: ContentStore,
        pinned: bool,
        on_progress: Callable[[Progress], None] | None,
    ) -> Image:
        source = ArchiveSource(table, image.members)
        puller = self._means.puller(source, content)
        # Errors name what they are about: the first name, or that it has none.
        about = image.names[0] if image.names else Reference("archive", "image", None, image.digest)
        self._pullers.add(puller)
        try:
            with puller.holding(image.digest):
                pulled = await puller.fetch(
                    about,
                    None,
                    image.digest,
                    image.body,
                    image.manifest,
                    on_progress or _nobody,
                )
                return await self._inventory.add_pulled(
                    pulled,
                    _names(image),
                    created_ns=self._means.clock.wall_ns(),
                    pinned=pinned,
                )
        finally:
            # Called off, it still puts its downloads in order, which are in a place about to go.
            await in_one_piece(puller.settle())
            self._pullers.discard(puller)


class _Spool:
    """The file that an archive's bytes go to. Blocks; nothing of it runs while it is closed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def open(self) -> None:
        with map_os_errors("cannot keep archive", path=str(self._path)):
            self._fd = os.open(self._path, _NEW_FILE, 0o600)

    def write(self, batch: list[bytes]) -> None:
        with map_os_errors("cannot keep archive", path=str(self._path)):
            for chunk in batch:
                view = memoryview(chunk)
                while view:
                    view = view[os.write(self._fd, view) :]

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class _LoadObserver(SilentObserver):
    """Counts layers as loaded; their bytes and times are no registry's and are not counted."""

    def __init__(self, observer: PullObserver) -> None:
        self._observer = observer

    def layer_ended(self, outcome: LayerOutcome) -> None:
        """See `PullObserver`."""
        self._observer.layer_ended("loaded" if outcome == "fetched" else outcome)


_ANSWER: Final[msgspec.json.Decoder[Scan | Failure]] = msgspec.json.Decoder(
    cast("type[Scan | Failure]", Scan | Failure)
)


def _nobody(_progress: Progress) -> None:
    """Hears of progress that nobody waits for."""


def _names(image: ArchivedImage) -> list[str]:
    names: list[str] = []
    for reference in image.names:
        if image.named is not None:
            names.append(str(reference.with_digest(image.named)))
        names.append(reference.canonical)
    return list(dict.fromkeys(names))


def _error(failure: Failure) -> PodwrightError:
    kind = getattr(image_errors, failure.kind, None) or getattr(host_errors, failure.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, PodwrightError)):
        kind = Internal
    return kind(f"archive cannot be read: {failure.message}", hint=failure.hint)
