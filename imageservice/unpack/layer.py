"""One layer from blob to disk: decompress and hash in one thread, write in another.

Decompression and SHA-256 release the interpreter lock, and so do the system calls that write; a
small queue of large chunks between them lets both run at once, which shows where one large layer is
the last of a pull. The hash covers every plain byte, those behind the archive's end marker
included, because that is what a diffID is a hash of.

Where the kernel can mount it, what is written is the plain tar and an index over it. The time of a
layer is then that of its bytes (hash, inflate, one file) and not of its files.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import queue
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from imageservice.digest import Digest
from imageservice.errors import DigestMismatch
from imageservice.forms import INDEX_NAME, TAR_NAME
from imageservice.unpack.apply import TreeBuilder
from imageservice.unpack.archive import read_members
from imageservice.unpack.blob import FollowedBlob
from imageservice.unpack.compression import OUTPUT_BYTES, Compression, plain_chunks, sniff
from imageservice.unpack.entries import plan_entry
from imageservice.unpack.erofs import NotIndexable, write_index
from imageservice.unpack.layer_tree import LayerTree
from imageservice.unpack.protocol import Done
from imageservice.unpack.stream import ChunkStream
from sandbox.host.errors import Corrupt, ResourceExhausted, Unsupported, map_os_errors
from sandbox.host.writeback import begin_writeback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from imageservice.forms import LayerForm
    from imageservice.unpack.apply import TreeFacts
    from imageservice.unpack.protocol import Job

#: Chunks on their way between the threads; a chunk is at most 512 KiB.
_QUEUE_CHUNKS: Final = 8
_HEAD_BYTES: Final = 16
#: Of the plain tar, before the kernel is asked to write it out: a few large writes to the disk.
_WRITEBACK_BYTES: Final = 8 << 20
_NEW_FILE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def _nothing_comes(_read_bytes: int) -> int:
    raise Corrupt("download ends early")


def unpack_layer(
    job: Job, on_progress: Callable[[int], None], more: Callable[[int], int] = _nothing_comes
) -> Done:
    """Fill `job.target`, which must be empty; blocking, in a process of its own.

    Args:
        job: what to do.
        on_progress: called for every chunk with the bytes of the blob read so far.
        more: see `FollowedBlob`; called from another thread.

    Raises:
        BlobMismatch: the bytes of the blob are not what they should be, whatever is in them.
        Corrupt: malformed blob, archive or layer; DigestMismatch when the diffID is wrong.
        ResourceExhausted: a limit of the job, or of the machine.
        Unsupported: a compression or an archive that no layer may have.
        PodwrightError: what the kernel said.
    """
    with map_os_errors("cannot unpack layer"), Path(job.blob).open("rb", buffering=0) as file:
        blob = FollowedBlob(
            file.fileno(),
            Digest.parse(job.blob_digest),
            size_bytes=job.blob_bytes,
            available_bytes=job.available_bytes,
            more=more,
        )
        try:
            return _unpack_blob(blob, job, on_progress)
        except (Corrupt, ResourceExhausted, Unsupported):
            # Perhaps only because these are not the bytes that were asked for.
            blob.verify()
            raise


def _unpack_blob(blob: FollowedBlob, job: Job, on_progress: Callable[[int], None]) -> Done:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    root_fd = os.open(job.target, flags)
    try:
        kind = sniff(blob.head(_HEAD_BYTES))
        producer = _Producer(blob, kind, Digest.parse(job.diff_id), job.max_plain_bytes)
        make = _unpack if job.form == "tree" else _index
        try:
            producer.start()
            return make(producer, root_fd, job, on_progress)
        finally:
            producer.close()
    finally:
        os.close(root_fd)


def _unpack(
    producer: _Producer, root_fd: int, job: Job, on_progress: Callable[[int], None]
) -> Done:
    def next_chunk() -> bytes:
        chunk = producer.next_chunk()
        on_progress(producer.blob_bytes)
        return chunk

    stream = ChunkStream(next_chunk)
    facts, implied = _build_tree(stream, root_fd, job, producer.verify)
    return _done("tree", facts, implied, stream.position, producer)


def _build_tree(
    stream: ChunkStream, root_fd: int, job: Job, verify: Callable[[], None]
) -> tuple[TreeFacts, list[bytes]]:
    builder = TreeBuilder(root_fd, max_entries=job.max_entries)
    try:
        for member in read_members(stream):
            entry = plan_entry(member)
            if entry is not None:
                builder.apply(entry, stream)
        stream.drain()
        verify()
        implied = builder.implied
        return builder.finish(), implied
    finally:
        builder.close()


def _index(producer: _Producer, root_fd: int, job: Job, on_progress: Callable[[int], None]) -> Done:
    """Write the plain tar down as it comes, and an index over it at the end."""
    tar_fd = os.open(TAR_NAME, _NEW_FILE, 0o600, dir_fd=root_fd)
    try:
        tar = _Tar(tar_fd)

        def next_chunk() -> bytes:
            chunk = producer.next_chunk()
            tar.write(chunk)
            on_progress(producer.blob_bytes)
            return chunk

        tree = LayerTree(max_entries=job.max_entries)
        stream = ChunkStream(next_chunk)
        for member in read_members(stream):
            entry = plan_entry(member)
            if entry is not None:
                tree.apply(entry, stream.position)
        stream.drain()
        producer.verify()
        facts = tree.finish()
        index = write_index(tree.root, tar_bytes=stream.position, uuid=_uuid(job.diff_id))
        try:
            pieces = itertools.chain([next(index)], index)
        except NotIndexable:
            return _unpack_written(tar_fd, root_fd, job, producer)
        index_fd = os.open(INDEX_NAME, _NEW_FILE, 0o600, dir_fd=root_fd)
        hasher = hashlib.sha256()
        try:
            for piece in pieces:
                hasher.update(piece)
                _write(index_fd, piece)
        finally:
            os.close(index_fd)
        done = _done("indexed", facts, tree.implied, stream.position, producer)
        return msgspec.structs.replace(done, index_digest=f"sha256:{hasher.hexdigest()}")
    finally:
        os.close(tar_fd)


def _unpack_written(tar_fd: int, root_fd: int, job: Job, producer: _Producer) -> Done:
    """The tar, verified and written down already, as a tree after all."""
    os.unlink(TAR_NAME, dir_fd=root_fd)
    os.lseek(tar_fd, 0, os.SEEK_SET)
    stream = ChunkStream(lambda: os.read(tar_fd, OUTPUT_BYTES))
    facts, implied = _build_tree(stream, root_fd, job, lambda: None)
    return _done("tree", facts, implied, stream.position, producer)


def _done(
    form: LayerForm,
    facts: TreeFacts,
    implied: Iterable[bytes],
    plain_bytes: int,
    producer: _Producer,
) -> Done:
    return Done(
        form=form,
        entries=facts.entries,
        size_bytes=facts.size_bytes,
        opaque_root=facts.opaque_root,
        implied=tuple(path.decode("latin-1") for path in implied),
        plain_bytes=plain_bytes,
        compression=producer.kind.value,
    )


class _Tar:
    """The plain tar on its way to the disk.

    The kernel begins to write it out while it still grows. Of 245 MB in five layers that left the
    sync before the commit 20 to 50 ms of work instead of 130, for 15 ms more in the writing.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._written = self._begun = 0

    def write(self, chunk: bytes) -> None:
        _write(self._fd, chunk)
        self._written += len(chunk)
        if self._written - self._begun >= _WRITEBACK_BYTES:
            begin_writeback(self._fd, self._begun, self._written - self._begun)
            self._begun = self._written


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _uuid(diff_id: str) -> bytes:
    """The kernel shows it in /proc and nobody relies on it; so it says which layer it is."""
    return bytes.fromhex(Digest.parse(diff_id).hex[:32])


class _Producer:
    """The thread that decompresses and hashes."""

    def __init__(self, blob: FollowedBlob, kind: Compression, expected: Digest, limit: int) -> None:
        self._blob = blob
        self.kind = kind
        self._expected = expected
        self._limit = limit
        self._hasher = expected.hasher()
        self._chunks: queue.Queue[bytes | Exception] = queue.Queue(_QUEUE_CHUNKS)
        self._stopping = False
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="decompress", daemon=True)
        self.blob_bytes = 0

    def start(self) -> None:
        self._thread.start()

    def next_chunk(self) -> bytes:
        """The next chunk, b"" at the end; raises what decompression raised."""
        if self._ended:
            return b""  # the thread is gone: nothing would ever come
        chunk = self._chunks.get()
        if isinstance(chunk, Exception):
            self._ended = True
            raise chunk
        self._ended = not chunk
        return chunk

    def verify(self) -> None:
        """Compare the hash of everything, once `next_chunk` has returned b""."""
        self._thread.join()
        expected, actual = self._expected, self._hasher.hexdigest()
        if actual != expected.hex:
            raise DigestMismatch(
                "layer does not have the diffID that the image config names",
                expected=str(expected),
                actual=f"{expected.algorithm}:{actual}",
            )

    def close(self) -> None:
        """End the thread, whatever it does; at most one chunk of work away."""
        self._stopping = True
        while self._thread.is_alive():
            try:
                self._chunks.get(timeout=0.01)
            except queue.Empty:
                continue

    def _run(self) -> None:
        try:
            for chunk in plain_chunks(self._blob, self.kind, limit_bytes=self._limit):
                self._hasher.update(chunk)
                self.blob_bytes = self._blob.tell()
                self._chunks.put(chunk)
                if self._stopping:
                    return
            self._blob.verify()
            self._chunks.put(b"")
        except Exception as error:
            self._chunks.put(error)
