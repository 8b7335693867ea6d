"""A blob that is read while it grows: every byte hashed once, judged at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from imageservice.digest import Digest
from imageservice.errors import BlobMismatch
from imageservice.unpack.blob import FollowedBlob
from sandbox.host.errors import Corrupt

BLOB = bytes(range(256)) * 2000


class Growing:
    """A file that is written further each time more is asked for."""

    def __init__(self, path: Path, data: bytes, step: int) -> None:
        self._data = data
        self._step = step
        self.asked: list[int] = []
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)

    def more(self, read_bytes: int) -> int:
        self.asked.append(read_bytes)
        os.write(self.fd, self._data[read_bytes : read_bytes + self._step])
        return min(read_bytes + self._step, len(BLOB))

    def blob(self) -> FollowedBlob:
        return FollowedBlob(
            self.fd, Digest.of(BLOB), size_bytes=len(BLOB), available_bytes=0, more=self.more
        )


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    return tmp_path / "blob"


def test_it_is_read_to_its_end_however_it_comes(path: Path) -> None:
    growing = Growing(path, BLOB, 70_001)
    blob = growing.blob()
    read = b""
    while data := blob.read(50_000):
        assert len(data) <= 50_000
        read += data
        assert blob.tell() == len(read)
    assert read == BLOB
    blob.verify()
    blob.verify()
    assert growing.asked == list(range(0, len(BLOB), 70_001))
    os.close(growing.fd)


def test_the_head_is_not_waited_for_and_not_counted(path: Path) -> None:
    growing = Growing(path, BLOB, 100)
    blob = growing.blob()
    assert blob.head(16) == b""
    assert blob.read(5) == BLOB[:5]
    assert blob.head(16) == BLOB[:16]
    assert blob.read(5) == BLOB[5:10]
    blob.verify()
    os.close(growing.fd)


def test_the_judgement_counts_what_nobody_read(path: Path) -> None:
    growing = Growing(path, BLOB[:-1] + b"x", 200_000)
    blob = growing.blob()
    blob.read(10)
    with pytest.raises(BlobMismatch):
        blob.verify()
    os.close(growing.fd)


def test_a_file_that_lost_its_end_is_no_end(path: Path) -> None:
    growing = Growing(path, BLOB[:1000], 100_000)
    blob = growing.blob()
    assert len(blob.read(100_000)) == 1000
    with pytest.raises(Corrupt, match="shorter"):
        blob.read(1)
    os.close(growing.fd)
