"""Documents kept by digest, and downloads on their way.

    content/sha256/<hex>       manifests and image configs: small, durable, read back verified
    ingest/sha256-<hex>.<n>    a layer's blob while it is fetched and until it is unpacked

Compressed layers are not kept: after unpacking nobody reads them, and they cost a third more disk.
A download that breaks off leaves its file; the next one of the same blob goes on from its end.
Nothing in `ingest` needs to be durable, for nothing there is ever believed: after a crash it may
hold anything, and the worker that reads it hashes every byte (`unpack.blob`). It is not hashed here
as well: that would be the second time, in the process that answers everybody.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from imageservice.digest import Digest
from imageservice.errors import DigestInvalid, SizeMismatch
from imageservice.verified import Verifier
from sandbox.host.errors import Corrupt, NotFound, PodwrightError, map_os_errors
from sandbox.host.files import make_private_dir, read_limited, write_atomic
from sandbox.host.threads import in_one_piece, to_its_end

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from pathlib import Path

MIB: Final = 1024 * 1024
#: Largest document: manifests and configs are bounded to this where they are parsed.
MAX_DOCUMENT_BYTES: Final = 4 * MIB
#: Bytes gathered before a thread writes them: a hop to a thread costs about 0.1 ms.
_BATCH_BYTES: Final = MIB
_NS: Final = 1_000_000_000


class ContentStore:
    """Documents and downloads below one directory. All methods are for one event loop."""

    def __init__(self, root: Path) -> None:
        self._documents = root / "content"
        self._ingest = root / "ingest"
        self._active: set[str] = set()
        #: Active ones that are in the way and not to be kept, however they end.
        self._unwanted: set[str] = set()
        self._serial = itertools.count(1)
        self._lent: tuple[Path, ...] = ()

    def borrow(self, roots: Iterable[Path]) -> None:
        """Find documents that are not kept here in these stores, which are only read."""
        self._lent = tuple(root / "content" for root in roots)

    async def open(self) -> None:
        """Make the directories; raises PodwrightError when that is not possible."""
        await asyncio.to_thread(self._make)

    def _make(self) -> None:
        make_private_dir(self._documents)
        make_private_dir(self._ingest)

    async def put(self, digest: Digest, body: bytes) -> None:
        """Keep a document, on disk when this returns; one that is there already stays.

        Raises:
            DigestMismatch: `body` does not have that digest.
            ResourceExhausted: disk full.
        """
        await to_its_end(partial(self._put, digest, body))

    def _put(self, digest: Digest, body: bytes) -> None:
        _verify(digest, body)
        path = self._path(digest)
        with suppress(PodwrightError):
            _verify(digest, read_limited(path, MAX_DOCUMENT_BYTES))
            return
        make_private_dir(path.parent)
        write_atomic(path, body)

    async def get(self, digest: Digest) -> bytes:
        """A document, its digest checked.

        Raises:
            NotFound: it is not kept.
            DigestMismatch: what is on disk is not what was written.
        """
        return await asyncio.to_thread(self._get, digest)

    def _get(self, digest: Digest) -> bytes:
        try:
            body = read_limited(self._path(digest), MAX_DOCUMENT_BYTES)
        except NotFound:
            for documents in self._lent:
                with suppress(PodwrightError):
                    body = read_limited(
                        documents / digest.algorithm / digest.hex, MAX_DOCUMENT_BYTES
                    )
                    _verify(digest, body)
                    return body
            raise
        _verify(digest, body)
        return body

    async def keep_only(self, digests: Collection[Digest]) -> None:
        """Delete every document that is not named."""
        await to_its_end(partial(self._keep_only, frozenset(digests)))

    def _keep_only(self, kept: frozenset[Digest]) -> None:
        with map_os_errors("cannot remove documents", path=str(self._documents)):
            for directory in self._documents.iterdir():
                for path in directory.iterdir():
                    try:
                        wanted = Digest(directory.name, path.name) in kept
                    except DigestInvalid:
                        wanted = False  # a temporary file of an interrupted write
                    if not wanted:
                        path.unlink(missing_ok=True)

    async def documents(self) -> set[Digest]:
        """All that are kept."""

        def read() -> set[Digest]:
            found: set[Digest] = set()
            with map_os_errors("cannot read documents", path=str(self._documents)):
                for directory in self._documents.iterdir():
                    for path in directory.iterdir():
                        with suppress(DigestInvalid):
                            found.add(Digest(directory.name, path.name))
            return found

        return await asyncio.to_thread(read)

    async def delete(self, digests: Collection[Digest]) -> None:
        """Delete documents; those not there are fine."""

        def unlink() -> None:
            with map_os_errors("cannot remove document"):
                for digest in digests:
                    self._path(digest).unlink(missing_ok=True)

        await to_its_end(unlink)

    async def begin(self, digest: Digest, size_bytes: int) -> Ingest:
        """Take up a download of the blob where an earlier one broke off, or begin one.

        Raises:
            ResourceExhausted: no descriptors, disk full.
        """
        idle = await asyncio.to_thread(self._list, digest)
        name = self._choose(digest, size_bytes, idle)
        self._active.add(name)
        ingest = Ingest(self, name, self._ingest / name, size_bytes)
        try:
            await ingest.open()
        except BaseException:
            await (ingest.discard() if ingest.is_new else ingest.release())
            raise
        return ingest

    def _list(self, digest: Digest) -> dict[str, int]:
        """Downloads of this blob and how many bytes each holds."""
        with map_os_errors("cannot read directory", path=str(self._ingest)):
            return {
                path.name: path.stat().st_size
                for path in self._ingest.glob(f"{digest.algorithm}-{digest.hex}.*")
            }

    def _choose(self, digest: Digest, size_bytes: int, lengths: dict[str, int]) -> str:
        """The longest idle download, or a name that nobody uses; on the loop, so nobody else is."""
        usable = [
            name
            for name, length in lengths.items()
            if name not in self._active and length <= size_bytes
        ]
        if usable:
            return max(usable, key=lengths.__getitem__)
        while True:
            name = f"{digest.algorithm}-{digest.hex}.{next(self._serial)}"
            if name not in self._active and name not in lengths:
                return name

    def free(self, name: str) -> None:
        """The download of that name is idle."""
        self._active.discard(name)
        self._unwanted.discard(name)

    def is_unwanted(self, name: str) -> bool:
        """Whether a download that breaks off is not to be left for a later one."""
        return name in self._unwanted

    async def sweep(self, *, now_ns: int, older_than_s: float) -> None:
        """Delete idle downloads that nobody came back for.

        With an age of 0 there must be room now, and so those go as well that break off later: the
        other layers of a pull that has failed end a moment after it.
        """
        if older_than_s <= 0:
            self._unwanted |= self._active

        def unlink() -> None:
            with map_os_errors("cannot sweep downloads", path=str(self._ingest)):
                for path in self._ingest.iterdir():
                    if path.name in self._active:
                        continue
                    with suppress(FileNotFoundError):
                        if now_ns - path.stat().st_mtime_ns >= older_than_s * _NS:
                            path.unlink()

        await to_its_end(unlink)

    async def drop(self, digest: Digest) -> None:
        """Delete idle downloads of a blob that is not needed any more."""
        idle = set(await asyncio.to_thread(self._list, digest)) - self._active
        if idle:
            self._active |= idle  # nobody takes them up meanwhile
            try:
                await to_its_end(partial(self._unlink, idle))
            finally:
                self._active -= idle

    def _unlink(self, names: Collection[str]) -> None:
        with map_os_errors("cannot remove downloads", path=str(self._ingest)):
            for name in names:
                (self._ingest / name).unlink(missing_ok=True)

    def _path(self, digest: Digest) -> Path:
        return self._documents / digest.algorithm / digest.hex


class Ingest:
    """One download: a sink for a blob's bytes that writes them in a thread.

    One batch is on its way to the disk while the next arrives. End it with `finish`, when the blob
    is whole, or with `release`; then with `discard` once nobody needs the file.
    """

    def __init__(self, store: ContentStore, name: str, path: Path, size_bytes: int) -> None:
        self._store = store
        self._name = name
        self._size_bytes = size_bytes
        self._written_bytes = 0
        self._fd = -1
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._flushing: asyncio.Future[int] | None = None
        self._on_written: Callable[[int], None] | None = None
        self.path = path

    @property
    def received_bytes(self) -> int:
        """Bytes held when nothing is being written: where a download is to go on."""
        return self._written_bytes + self._batch_bytes

    @property
    def is_new(self) -> bool:
        """Whether it was opened and nothing is in it: no earlier download, and none begun."""
        return self._fd >= 0 and self.received_bytes == 0

    async def open(self) -> None:
        """Open the file and see what an earlier download left in it."""
        # Left to itself the thread would leave a file and a descriptor that nobody knows.
        await to_its_end(self._open)

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with map_os_errors("cannot open download", path=str(self.path)):
            self._fd = os.open(self.path, flags, 0o600)
            self._written_bytes = os.lseek(self._fd, 0, os.SEEK_END)

    def follow(self, on_written: Callable[[int], None]) -> None:
        """Have `on_written` told, now and whenever it grows, how much of the file can be read."""
        self._on_written = on_written
        on_written(self._written_bytes)

    async def write(self, chunk: bytes) -> None:
        """Take the next bytes.

        Raises:
            SizeMismatch: more than the blob has.
            ResourceExhausted: disk full.
        """
        if self.received_bytes + len(chunk) > self._size_bytes:
            raise SizeMismatch("blob is longer than announced", expected_bytes=self._size_bytes)
        self._batch.append(chunk)
        self._batch_bytes += len(chunk)
        if self._batch_bytes >= _BATCH_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        await self._settle()
        batch, self._batch = self._batch, []
        self._written_bytes += self._batch_bytes
        self._batch_bytes = 0
        loop = asyncio.get_running_loop()
        # The interpreter lock is free while write(2) runs, the loop reads on meanwhile.
        self._flushing = loop.run_in_executor(None, self._write, batch, self._written_bytes)
        self._flushing.add_done_callback(self._tell)

    def _tell(self, flushed: asyncio.Future[int]) -> None:
        if self._on_written is not None and not flushed.cancelled() and flushed.exception() is None:
            self._on_written(flushed.result())

    async def _settle(self) -> None:
        flushing, self._flushing = self._flushing, None
        if flushing is not None:
            try:
                await asyncio.shield(flushing)
            except asyncio.CancelledError:
                self._flushing = flushing  # still in its thread: release waits for it
                raise

    def _write(self, batch: list[bytes], end: int) -> int:
        """Write what ends at `end`, which is returned."""
        with map_os_errors("cannot write download", path=str(self.path)):
            written = os.writev(self._fd, batch)
            if written < sum(map(len, batch)):
                view = memoryview(b"".join(batch))[written:]
                while view:
                    view = view[os.write(self._fd, view) :]
        return end

    async def finish(self) -> Path:
        """The path of the whole blob, which nobody has hashed yet.

        Raises:
            SizeMismatch: it is shorter than announced.
            ResourceExhausted: disk full.
        """
        if self._batch:
            await self._flush()
        await self._settle()
        if self._written_bytes != self._size_bytes:
            raise SizeMismatch(
                "blob is shorter than announced",
                expected_bytes=self._size_bytes,
                received_bytes=self._written_bytes,
            )
        await self._close()
        return self.path

    async def release(self) -> None:
        """Stop writing and leave the file for a later download; safe to call at any time."""
        await in_one_piece(self._release())

    async def _release(self) -> None:
        flushing, self._flushing = self._flushing, None
        self._batch.clear()
        if flushing is not None:
            with suppress(PodwrightError, OSError):
                await asyncio.shield(flushing)
        await self._close()
        try:
            if self._store.is_unwanted(self._name):
                with suppress(OSError):
                    await asyncio.to_thread(self.path.unlink, missing_ok=True)
        finally:
            self._store.free(self._name)

    async def discard(self) -> None:
        """Stop writing and delete the file; safe to call at any time."""
        await in_one_piece(self._discard())

    async def _discard(self) -> None:
        await self._release()
        with map_os_errors("cannot remove download", path=str(self.path)):
            await asyncio.to_thread(self.path.unlink, missing_ok=True)

    async def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _verify(digest: Digest, body: bytes) -> None:
    if len(body) > MAX_DOCUMENT_BYTES:
        raise Corrupt("document is too large", digest=str(digest), size_bytes=len(body))
    verifier = Verifier(digest, len(body))
    verifier.update(body)
    verifier.finish()
