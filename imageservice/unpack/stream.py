"""A forward-only stream over chunks, read in exact amounts without copying file contents.

Tar needs 512 bytes here and 80 MB there. `io.BufferedReader` would copy every byte once more and
return short reads; this hands file contents to the writer as views of the decompressor's chunks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.host.errors import Corrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class ChunkStream:
    """Bytes from `next_chunk`, which returns b"" at the end.

    Attributes:
        position: bytes handed out so far.
    """

    __slots__ = ("_at", "_chunk", "_next", "position")

    def __init__(self, next_chunk: Callable[[], bytes]) -> None:
        self._next = next_chunk
        self._chunk = b""
        self._at = 0
        self.position = 0

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes; raises Corrupt at an early end."""
        at = self._at
        end = at + size
        if end <= len(self._chunk):
            self._at = end
            self.position += size
            return self._chunk[at:end]
        return b"".join(self.views(size))

    def read_block(self, size: int) -> bytes:
        """`size` bytes, or b"" when the stream ends exactly here; raises Corrupt in between."""
        if self._at == len(self._chunk) and not self._refill():
            return b""
        return self.read(size)

    def views(self, size: int) -> Iterator[memoryview]:
        """The next `size` bytes as views of the chunks they are in; each valid until the next."""
        while size > 0:
            if self._at == len(self._chunk) and not self._refill():
                raise Corrupt("archive ends early", missing_bytes=size, offset=self.position)
            at = self._at
            end = min(at + size, len(self._chunk))
            taken = end - at
            # Counted before it is handed out: a consumer that stops half-way is an error anyway.
            self._at = end
            self.position += taken
            size -= taken
            yield memoryview(self._chunk)[at:end]

    def skip(self, size: int) -> None:
        """Pass over exactly `size` bytes; raises Corrupt at an early end."""
        end = self._at + size
        if end <= len(self._chunk):
            self._at = end
            self.position += size
            return
        for _view in self.views(size):
            pass

    def pad(self, size: int) -> bool:
        """Pass over `size` bytes or what is left of them; whether they were all there."""
        while size > 0:
            if self._at == len(self._chunk) and not self._refill():
                return False
            taken = min(size, len(self._chunk) - self._at)
            self._at += taken
            self.position += taken
            size -= taken
        return True

    def drain(self) -> int:
        """Read to the end; the number of bytes passed over."""
        start = self.position
        self.position += len(self._chunk) - self._at
        self._at = len(self._chunk)
        while self._refill():
            self._at = len(self._chunk)
            self.position += self._at
        return self.position - start

    def _refill(self) -> bool:
        self._chunk = self._next()
        self._at = 0
        return bool(self._chunk)
