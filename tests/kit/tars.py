"""Tar archives member by member, the impossible ones too: headers are written as they are told."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping
from typing import Final

EPOCH_S: Final = 1_580_601_600
BLOCK: Final = 512


class Tar:
    """An archive being written; every method returns it, so that calls can be chained."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def raw(self, data: bytes) -> Tar:
        """Bytes as they are."""
        self._parts.append(data)
        return self

    def add(
        self,
        name: str,
        *,
        kind: bytes = tarfile.REGTYPE,
        content: bytes = b"",
        link: str = "",
        mode: int = 0o644,
        uid: int = 0,
        gid: int = 0,
        mtime: float = EPOCH_S,
        device: tuple[int, int] = (0, 0),
        pax: Mapping[str, str] | None = None,
        size: int | None = None,
    ) -> Tar:
        """One member; `size` claims another length than the contents have."""
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.mode = kind, link, mode
        info.uid, info.gid, info.mtime = uid, gid, mtime
        info.devmajor, info.devminor = device
        info.size = len(content) if size is None else size
        info.pax_headers = dict(pax or {})
        self._parts.append(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        self._parts.append(content + bytes(-len(content) % BLOCK))
        return self

    def file(self, name: str, content: bytes = b"inside", mode: int = 0o644) -> Tar:
        return self.add(name, content=content, mode=mode)

    def directory(self, name: str, mode: int = 0o755) -> Tar:
        return self.add(name, kind=tarfile.DIRTYPE, mode=mode)

    def symlink(self, name: str, target: str) -> Tar:
        return self.add(name, kind=tarfile.SYMTYPE, link=target, mode=0o777)

    def hardlink(self, name: str, target: str, mode: int = 0o644) -> Tar:
        return self.add(name, kind=tarfile.LNKTYPE, link=target, mode=mode)

    def done(self) -> bytes:
        """The archive with its end marker."""
        return b"".join(self._parts) + bytes(2 * BLOCK)


def with_xattrs(tar: Tar, name: str, xattrs: Mapping[str, bytes], content: bytes = b"x") -> Tar:
    """A file with extended attributes, as pax records of raw bytes."""
    records = b"".join(_record(b"SCHILY.xattr." + k.encode(), v) for k, v in xattrs.items())
    tar.add("pax", kind=tarfile.XHDTYPE, content=records)
    return tar.file(name, content)


def pax_member(records: Mapping[str, bytes]) -> bytes:
    """A pax header with exactly these records, to stand in front of a member."""
    body = b"".join(_record(key.encode(), value) for key, value in records.items())
    return Tar().add("pax", kind=tarfile.XHDTYPE, content=body)._parts[0] + _padded(body)


def _padded(body: bytes) -> bytes:
    return body + bytes(-len(body) % BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


def diff_id(data: bytes) -> str:
    """The digest of a plain tar."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def members(data: bytes) -> list[tarfile.TarInfo]:
    """The members as the standard library sees them, for comparison."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getmembers()
