"""A blob as a worker reads it: behind its download, hashed on the way, judged at the end.

Nothing of a layer counts before both digests were right: the blob's, which is the registry's word,
and the diffID of what it holds. They answer different questions when something is wrong. Bytes that
are not the blob are the fault of a mirror or of this disk, and another try elsewhere may bring the
right ones; a blob that is right and holds nonsense will hold it tomorrow. So whoever stumbles over
the contents asks here first (`verify` reads to the end) whether these were the bytes at all.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from imageservice.errors import BlobMismatch
from sandbox.host.errors import Corrupt, map_os_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from imageservice.digest import Digest

_READ_BYTES = 256 * 1024


class FollowedBlob:
    """A file that grows while it is read. For one thread at a time."""

    def __init__(
        self,
        fd: int,
        digest: Digest,
        *,
        size_bytes: int,
        available_bytes: int,
        more: Callable[[int], int],
    ) -> None:
        """Reads from the beginning; the descriptor stays the caller's.

        Args:
            fd: the file.
            digest: what the whole must hash to.
            size_bytes: of the whole.
            available_bytes: what may be read now.
            more: is told how much was read and returns, when there is more, how much may be.
        """
        self._fd = fd
        self._digest = digest
        self._size_bytes = size_bytes
        self._available_bytes = available_bytes
        self._more = more
        self._hasher = digest.hasher()
        self._at = 0

    def head(self, size: int) -> bytes:
        """The first bytes, if they are there; not counted as read."""
        return os.pread(self._fd, min(size, self._available_bytes), 0)

    def tell(self) -> int:
        """Bytes read so far."""
        return self._at

    def read(self, size: int = _READ_BYTES) -> bytes:
        """At most `size` of the next bytes, waiting for the first of them; b"" at the end.

        Raises:
            Corrupt: the file is shorter than was said.
        """
        if self._at >= self._available_bytes:
            if self._at >= self._size_bytes:
                return b""
            self._available_bytes = self._more(self._at)
        with map_os_errors("cannot read download"):
            data = os.pread(self._fd, min(size, self._available_bytes - self._at), self._at)
        if not data:
            raise Corrupt("download is shorter than it was", offset=self._at)
        self._hasher.update(data)
        self._at += len(data)
        return data

    def verify(self) -> None:
        """Read what is left and judge the whole.

        Raises:
            BlobMismatch: these bytes are not the blob.
        """
        while self.read():
            pass
        actual = self._hasher.hexdigest()
        if actual != self._digest.hex:
            raise BlobMismatch(
                "blob does not have the digest it was asked for by",
                expected=str(self._digest),
                actual=f"{self._digest.algorithm}:{actual}",
            )
