"""The table of an archive: which names are in it, where their bytes lie, and how they are read.

The scanner writes it to a file, sorted by the hashes of the names, and a name is looked up there.
An archive may have half a million members: as objects of the daemon they would take it a second and
some hundred MiB, in the process that everybody waits for. One record, little-endian:

    16 bytes   BLAKE2b of the name in its one spelling
     1 byte    whether it is a link that leads round in a circle; the rest is then 0
     8 bytes   where the bytes begin in the plain archive
     8 bytes   how many there are

Links inside the archive are followed by whoever writes the table; one that leads to nothing is not
in it. Two names with one hash would only confuse an archive with itself.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import struct
import threading
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec

from imageservice.errors import TooLarge
from sandbox.host.errors import Cancelled, Corrupt, NotFound, map_os_errors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: Links from one name to the next: `docker save` of old made one, nobody makes a chain.
_MAX_LINKS: Final = 8
_RECORD: Final = struct.Struct("<16s?QQ")
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

Kind = Literal["file", "link", "symlink"]


class Row(NamedTuple):
    """One member, under its `normal` name."""

    kind: Kind
    offset: int
    size_bytes: int
    link: bytes


class Scan(msgspec.Struct, frozen=True, tag=True):
    """How many members were found; `is_plain`: offsets are of the decompressed copy."""

    members: int
    is_plain: bool


class Failure(msgspec.Struct, frozen=True, tag=True):
    """Why there is no table; `kind` names an error class."""

    kind: str
    message: str
    hint: str = ""


class Extent(msgspec.Struct, frozen=True):
    """Where the bytes of one member lie."""

    offset: int
    size_bytes: int


def normal(name: bytes) -> bytes:
    """One spelling of a name. It is looked up and never opened, so `..` may stay where it is."""
    return posixpath.normpath(name).lstrip(b"/")


def write_table(rows: Mapping[bytes, Row], path: Path) -> None:
    """Write the table of these members to a new file; blocking, and long.

    Raises:
        ResourceExhausted: disk full.
    """
    records: list[bytes] = []
    for name in rows:
        row = _followed(rows, name)
        if row is not None:
            is_circle = row.kind != "file"
            extent = (0, 0) if is_circle else (row.offset, row.size_bytes)
            records.append(_RECORD.pack(_key(name), is_circle, *extent))
    records.sort()
    with (
        map_os_errors("cannot keep the table of an archive", path=str(path)),
        os.fdopen(os.open(path, _NEW_FILE, 0o600), "wb") as file,
    ):
        file.writelines(records)


def _followed(rows: Mapping[bytes, Row], name: bytes) -> Row | None:
    """The file that a name leads to; None for nothing, a link where they never end."""
    row = rows.get(name)
    for _ in range(_MAX_LINKS):
        if row is None or row.kind == "file":
            return row
        base = posixpath.dirname(name) if row.kind == "symlink" else b""
        name = normal(posixpath.join(base, row.link))
        row = rows.get(name)
    return row


def _key(name: bytes) -> bytes:
    return hashlib.blake2b(name, digest_size=16).digest()


class SharedFile:
    """A file that several threads read by position, and that is closed under none of them."""

    def __init__(self, path: Path) -> None:
        """Open it; blocking. Raises PodwrightError as the kernel says."""
        self._lock = threading.Lock()
        self._readers = 0
        self._is_closed = False
        self._fd = -1
        with map_os_errors("cannot read archive", path=str(path)):
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        """Up to `size_bytes` from `offset`; b"" at the end. Blocking.

        Raises:
            Cancelled: it was closed.
        """
        with self._lock:
            if self._is_closed:
                raise Cancelled("archive is not read any more")
            self._readers += 1
        try:
            with map_os_errors("cannot read archive"):
                return os.pread(self._fd, size_bytes, offset)
        finally:
            with self._lock:
                self._readers -= 1
            self._close_if_idle()

    def size_bytes(self) -> int:
        """Its length."""
        with map_os_errors("cannot read archive"):
            return os.fstat(self._fd).st_size

    def close(self) -> None:
        """Begin no reading any more; the last one that has begun closes the file. Idempotent."""
        with self._lock:
            self._is_closed = True
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        with self._lock:
            if not self._is_closed or self._readers:
                return
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class ArchiveTable:
    """Members by name, over open files. Reading blocks; for any thread."""

    def __init__(self, archive: SharedFile, table: SharedFile) -> None:
        """Both stay the caller's.

        Args:
            archive: the plain archive.
            table: what `write_table` has written of it.
        """
        self._archive = archive
        self._table = table
        self._count = table.size_bytes() // _RECORD.size

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def find(self, name: str) -> Extent:
        """The bytes of that name, links followed inside the archive.

        Raises:
            NotFound: no such member.
            Corrupt: links that lead nowhere.
        """
        found = self._find(name)
        if found is None:
            raise NotFound(f"archive has no member {name[:200]!a}")
        is_circle, extent = found
        if is_circle:
            raise Corrupt(f"archive has links without end at {name[:200]!a}")
        return extent

    def _find(self, name: str) -> tuple[bool, Extent] | None:
        wanted = _key(normal(name.encode("utf-8", "surrogatepass")))
        low, high = 0, self._count
        while low < high:
            middle = (low + high) // 2
            record = self._table.read_at(middle * _RECORD.size, _RECORD.size)
            if len(record) != _RECORD.size:
                raise Corrupt("the table of the archive was cut")
            key, is_circle, offset, size_bytes = _RECORD.unpack(record)
            if key == wanted:
                return bool(is_circle), Extent(offset, size_bytes)
            if key < wanted:
                low = middle + 1
            else:
                high = middle
        return None

    def read(self, name: str, *, limit_bytes: int) -> bytes:
        """A whole member.

        Raises:
            NotFound, Corrupt: see `find`; or the file was cut meanwhile.
            TooLarge: more than `limit_bytes`.
        """
        extent = self.find(name)
        if extent.size_bytes > limit_bytes:
            raise TooLarge(f"{name[:200]!a} in the archive is larger than {limit_bytes} bytes")
        data = self.read_at(extent, 0, extent.size_bytes)
        if len(data) != extent.size_bytes:
            raise Corrupt(f"archive ends inside of {name[:200]!a}")
        return data

    def read_at(self, extent: Extent, position: int, size_bytes: int) -> bytes:
        """Up to `size_bytes` of a member from `position`; b"" at its end."""
        size_bytes = min(size_bytes, extent.size_bytes - position)
        return self._archive.read_at(extent.offset + position, size_bytes)
