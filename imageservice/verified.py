"""Size and digest of bytes on their way: nothing from a registry is used before both were right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imageservice.errors import DigestMismatch, SizeMismatch

if TYPE_CHECKING:
    from imageservice.digest import Digest


class Verifier:
    """Is fed the bytes of one blob in order, and judges.

    One byte too many is refused at once and not hashed: a body without an end must not become a
    file without an end.
    """

    def __init__(self, digest: Digest, size_bytes: int) -> None:
        self._digest = digest
        self._size_bytes = size_bytes
        self._hasher = digest.hasher()
        self._received_bytes = 0

    @property
    def received_bytes(self) -> int:
        """Bytes fed so far."""
        return self._received_bytes

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes; raises SizeMismatch when they are more than announced."""
        if self._received_bytes + len(data) > self._size_bytes:
            raise SizeMismatch(
                "blob is longer than announced",
                digest=str(self._digest),
                expected_bytes=self._size_bytes,
            )
        self._hasher.update(data)
        self._received_bytes += len(data)

    def finish(self) -> None:
        """Judge the whole; raises SizeMismatch when bytes are missing, DigestMismatch."""
        if self._received_bytes != self._size_bytes:
            raise SizeMismatch(
                "blob is shorter than announced",
                digest=str(self._digest),
                expected_bytes=self._size_bytes,
                received_bytes=self._received_bytes,
            )
        actual = self._hasher.hexdigest()
        if actual != self._digest.hex:
            raise DigestMismatch(
                "blob does not have the digest it was asked for by",
                expected=str(self._digest),
                actual=f"{self._digest.algorithm}:{actual}",
            )
