"""The table of an archive: which names are in it, where their bytes lie, and how they are read."""

from __future__ import annotations

import os
import posixpath
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from imageservice.errors import TooLarge
from sandbox.host.errors import Corrupt, NotFound, map_os_errors

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Links from one name to the next: `docker save` of old made one, nobody makes a chain.
_MAX_LINKS: Final = 8


Kind = Literal["file", "link", "symlink"]


class Row(msgspec.Struct, frozen=True, array_like=True):
    """One member; `name` and `link` are bytes read as latin-1."""

    name: str
    kind: Kind
    offset: int
    size_bytes: int
    link: str


class Scan(msgspec.Struct, frozen=True, tag=True):
    """What the scanner found; `is_plain`: offsets are of the decompressed copy."""

    members: list[Row]
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


class ArchiveTable:
    """Members by name, over an open file. Reading blocks; for any thread."""

    def __init__(self, fd: int, rows: Iterable[Row]) -> None:
        """`fd` stays the caller's.

        Raises:
            Corrupt: a name is there twice: two readers might see two archives.
        """
        self._fd = fd
        self._rows: dict[str, Row] = {}
        for row in rows:
            name = _normal(row.name)
            if name in self._rows:
                raise Corrupt(f"archive has {name[:200]!a} twice")
            self._rows[name] = row

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def find(self, name: str) -> Extent:
        """The bytes of that name, links followed inside the archive.

        Raises:
            NotFound: no such member.
            Corrupt: links that lead nowhere.
        """
        wanted = name = _normal(name)
        for _ in range(_MAX_LINKS):
            row = self._rows.get(name)
            if row is None:
                break
            if row.kind == "file":
                return Extent(row.offset, row.size_bytes)
            base = posixpath.dirname(name) if row.kind == "symlink" else ""
            name = _normal(posixpath.join(base, row.link))
        else:
            raise Corrupt(f"archive has links without end at {wanted[:200]!a}")
        raise NotFound(f"archive has no member {wanted[:200]!a}")

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
        with map_os_errors("cannot read archive"):
            return os.pread(self._fd, size_bytes, extent.offset + position)


def _normal(name: str) -> str:
    """One spelling of a name. It is looked up and never opened, so `..` may stay where it is."""
    return posixpath.normpath(name).lstrip("/")
