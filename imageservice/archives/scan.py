"""Looks through an archive: `python -m imageservice.archives.scan FILE PLAIN TABLE LIMIT`.

It runs in a process of its own, like the workers that unpack layers and for the same reason:
whoever made the archive decides what it does to the program that reads it. The file's members and
where their bytes lie go to TABLE; a JSON document of a few bytes on standard output says how it
went. A compressed archive is decompressed to PLAIN, of at most LIMIT bytes, because an archive is
read in the order of its documents, not of its bytes.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from imageservice.archives.table import Failure, Kind, Row, Scan, normal, write_table
from imageservice.unpack.archive import DIRECTORY, HARDLINK, REGULAR, SYMLINK, read_members
from imageservice.unpack.compression import OUTPUT_BYTES, Compression, plain_chunks, sniff
from imageservice.unpack.stream import ChunkStream
from sandbox.host import oom
from sandbox.host.errors import Corrupt, PodwrightError, ResourceExhausted, map_os_errors

if TYPE_CHECKING:
    from collections.abc import Callable

#: Members of one archive: 500 layers of a thousand images.
MAX_MEMBERS: Final = 500_000
#: All names together.
MAX_NAME_BYTES: Final = 32 * 1024 * 1024
_MEMORY_BYTES: Final = 2 << 30
_KINDS: Final[dict[bytes, Kind]] = {REGULAR: "file", HARDLINK: "link", SYMLINK: "symlink"}
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def main() -> int:
    """Scan one archive; an exit status."""
    os.umask(0o077)
    oom.expose_self()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    archive, plain, table = map(Path, sys.argv[1:4])
    answer: Scan | Failure
    try:
        answer = scan(archive, plain, table, limit_bytes=int(sys.argv[4]))
    except PodwrightError as error:
        answer = Failure(kind=type(error).__name__, message=error.message, hint=error.hint)
    except MemoryError:
        answer = Failure(kind="ResourceExhausted", message="archive needs too much memory to read")
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    return 0


def scan(archive: Path, plain: Path, table: Path, *, limit_bytes: int) -> Scan:
    """Write down what is in the archive; blocking.

    Args:
        archive: a tar, or one that gzip or zstd have compressed.
        plain: where a compressed one is decompressed to; must not exist.
        table: where the table is written to; must not exist either.
        limit_bytes: of the plain archive.

    Raises:
        Corrupt: it is no archive, breaks off, or has a name twice: two readers might see two.
        Unsupported: a compression or kind of archive that is not read.
        ResourceExhausted: more members or bytes than allowed, disk full.
    """
    with map_os_errors("cannot read archive", path=str(archive)), archive.open("rb") as file:
        kind = sniff(os.pread(file.fileno(), 16, 0))
        if kind is Compression.NONE:
            rows = _members(lambda: file.read(OUTPUT_BYTES))
            write_table(rows, table)
            return Scan(members=len(rows), is_plain=False)
        chunks = plain_chunks(file, kind, limit_bytes=limit_bytes)
        fd = os.open(plain, _NEW_FILE, 0o600)
        with os.fdopen(fd, "wb", buffering=0) as target:

            def copied() -> bytes:
                chunk = next(chunks, b"")
                view = memoryview(chunk)
                while view:
                    view = view[target.write(view) :]
                return chunk

            rows = _members(copied)
        write_table(rows, table)
        return Scan(members=len(rows), is_plain=True)


def _members(next_chunk: Callable[[], bytes]) -> dict[bytes, Row]:
    stream = ChunkStream(next_chunk)
    rows: dict[bytes, Row] = {}
    names_bytes = 0
    for member in read_members(stream):
        names_bytes += len(member.name) + len(member.link_name)
        if len(rows) >= MAX_MEMBERS or names_bytes > MAX_NAME_BYTES:
            raise ResourceExhausted("archive has too many members", limit=MAX_MEMBERS)
        if member.type == DIRECTORY:
            continue
        kind = _KINDS.get(member.type)
        if kind is None or member.sparse is not None:
            raise Corrupt("archive of images has a member that is no plain file")
        name = normal(member.name)
        if name in rows:
            raise Corrupt(f"archive has {name[:200].decode('latin-1')!a} twice")
        size_bytes = member.size_bytes if kind == "file" else 0
        rows[name] = Row(kind, stream.position, size_bytes, member.link_name)
    stream.drain()
    return rows


if __name__ == "__main__":
    sys.exit(main())
