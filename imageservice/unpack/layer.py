"""One layer from blob to tree: decompress and hash in one thread, create files in another.

Decompression and SHA-256 release the interpreter lock, and so do the system calls that create
files; a small queue of large chunks between them lets both run at once, which shows where one large
layer is the last of a pull. The hash covers every plain byte, those behind the archive's end
marker included, because that is what a diffID is a hash of.
"""

from __future__ import annotations

import os
import queue
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from imageservice.digest import Digest
from imageservice.errors import DigestMismatch
from imageservice.unpack.apply import TreeBuilder
from imageservice.unpack.archive import read_members
from imageservice.unpack.compression import Compression, plain_chunks, sniff
from imageservice.unpack.entries import plan_entry
from imageservice.unpack.protocol import Done
from imageservice.unpack.stream import ChunkStream
from sandbox.host.errors import map_os_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from imageservice.unpack.protocol import Job

#: Chunks on their way between the threads; a chunk is at most 512 KiB.
_QUEUE_CHUNKS: Final = 8
_HEAD_BYTES: Final = 16


def unpack_layer(job: Job, on_progress: Callable[[int], None]) -> Done:
    """Fill `job.tree`, which must be empty; blocking, in a process of its own.

    Args:
        job: what to do.
        on_progress: called for every chunk with the bytes of the blob read so far.

    Raises:
        Corrupt: malformed blob, archive or layer; DigestMismatch when the diffID is wrong.
        ResourceExhausted: a limit of the job, or of the machine.
        Unsupported: a compression or an archive that no layer may have.
        PodwrightError: what the kernel said.
    """
    expected = Digest.parse(job.diff_id)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with (
        map_os_errors("cannot unpack layer"),
        Path(job.blob).open("rb", buffering=0) as blob,
    ):
        root_fd = os.open(job.tree, flags)
        try:
            return _unpack(blob, root_fd, job, expected, on_progress)
        finally:
            os.close(root_fd)


def _unpack(
    blob: IO[bytes], root_fd: int, job: Job, expected: Digest, on_progress: Callable[[int], None]
) -> Done:
    kind = sniff(os.pread(blob.fileno(), _HEAD_BYTES, 0))
    producer = _Producer(blob, kind, expected, job.max_plain_bytes)

    def next_chunk() -> bytes:
        chunk = producer.next_chunk()
        on_progress(producer.blob_bytes)
        return chunk

    builder = TreeBuilder(root_fd, max_entries=job.max_entries)
    try:
        producer.start()
        stream = ChunkStream(next_chunk)
        for member in read_members(stream):
            entry = plan_entry(member)
            if entry is not None:
                builder.apply(entry, stream)
        stream.drain()
        actual = producer.hexdigest()
        if actual != expected.hex:
            raise DigestMismatch(
                "layer does not have the diffID that the image config names",
                expected=str(expected),
                actual=f"{expected.algorithm}:{actual}",
            )
        implied = tuple(path.decode("latin-1") for path in builder.implied)
        facts = builder.finish()
    finally:
        producer.close()
        builder.close()
    return Done(
        entries=facts.entries,
        size_bytes=facts.size_bytes,
        opaque_root=facts.opaque_root,
        implied=implied,
        plain_bytes=stream.position,
        compression=kind.value,
    )


class _Producer:
    """The thread that decompresses and hashes."""

    def __init__(self, blob: IO[bytes], kind: Compression, expected: Digest, limit: int) -> None:
        self._blob = blob
        self._kind = kind
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

    def hexdigest(self) -> str:
        """The hash of everything, once `next_chunk` has returned b""."""
        self._thread.join()
        return self._hasher.hexdigest()

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
            for chunk in plain_chunks(self._blob, self._kind, limit_bytes=self._limit):
                self._hasher.update(chunk)
                self.blob_bytes = self._blob.tell()
                self._chunks.put(chunk)
                if self._stopping:
                    return
            self._chunks.put(b"")
        except Exception as error:
            self._chunks.put(error)
