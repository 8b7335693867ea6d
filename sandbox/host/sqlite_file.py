"""The file under a `Database`: looked at before it is opened, opened, migrated, copied, put aside.

Apart from database.py because this is what happens once, at the start, with a file that may be
anything; there is what happens all day. Everything here blocks and runs on the database's thread.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import (
    AlreadyExists,
    Busy,
    Corrupt,
    Denied,
    DiskFull,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PodwrightError,
    ResourceExhausted,
    Unavailable,
    map_os_errors,
)
from sandbox.host.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: First bytes of every SQLite 3 file (fileformat2.html, "The Database Header").
_MAGIC: Final = b"SQLite format 3\0"
_HEADER_BYTES: Final = 100
_USER_VERSION_OFFSET: Final = 60
_APPLICATION_ID_OFFSET: Final = 68
#: Enough log for removing some hundred pods and containers.
DEFAULT_RESERVE_BYTES: Final = 1024 * 1024
#: A state of ten thousand containers takes less.
LOOK_LIMIT_BYTES: Final = 256 * 1024 * 1024
#: SQLite primary result code -> class; the rest is Internal (rescode.html).
_CLASSES: Final[Mapping[int, type[PodwrightError]]] = {
    sqlite3.SQLITE_BUSY: Busy,
    sqlite3.SQLITE_LOCKED: Busy,
    sqlite3.SQLITE_FULL: DiskFull,
    sqlite3.SQLITE_NOMEM: ResourceExhausted,
    sqlite3.SQLITE_CORRUPT: Corrupt,
    sqlite3.SQLITE_NOTADB: Corrupt,
    sqlite3.SQLITE_READONLY: Denied,
    sqlite3.SQLITE_PERM: Denied,
    sqlite3.SQLITE_AUTH: Denied,
    # One failed write or fsync; later ones succeed when the disk is well again.
    sqlite3.SQLITE_IOERR: Unavailable,
    sqlite3.SQLITE_CANTOPEN: Unavailable,
    sqlite3.SQLITE_TOOBIG: InvalidArgument,
}
_UNIQUE: Final = (
    sqlite3.SQLITE_CONSTRAINT_UNIQUE,
    sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
    sqlite3.SQLITE_CONSTRAINT_ROWID,
)


def marker_of(path: Path) -> Path:
    """The file that says a database was made at `path`."""
    return path.with_name(path.name + ".made")


def sidecars(path: Path) -> list[Path]:
    """What SQLite may have beside the database: logs and their index."""
    return [path.with_name(path.name + suffix) for suffix in ("-wal", "-shm", "-journal")]


class Reserve:
    """Disk space held by a file beside the database; all calls on the database's thread."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._file = path.with_name(path.name + ".reserve")
        self._size_bytes = size_bytes
        self._kept = False

    def keep(self) -> None:
        """Hold the space if it is not held; that there is none now is not an error."""
        if self._kept or not self._size_bytes:
            return
        try:
            fd = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.posix_fallocate(fd, 0, self._size_bytes)
                self._kept = True
            finally:
                os.close(fd)
        except OSError:
            with suppress(OSError):  # do not sit on a part of what is short
                self._file.unlink()

    def release(self) -> bool:
        """Give the space up; False when there was none."""
        self._kept = False
        try:
            self._file.unlink()
        except OSError:
            return False
        return True


def quarantine(path: Path, label: str) -> Path:
    """Put a corrupt database aside, with its log and its marker, so that a new one can be made.

    `label` tells it from others, such as a time stamp. Returns where the database went (which may
    not exist, when it was missing). Blocking; close it first.

    Raises:
        PodwrightError: as the kernel says.
    """
    target = path.with_name(f"{path.name}.corrupt-{label}")
    with map_os_errors("cannot put database aside", path=str(path)):
        for old in (path, *sidecars(path)):
            with suppress(FileNotFoundError):
                old.rename(target.with_name(target.name + old.name.removeprefix(path.name)))
        # The marker last: until then a crash leaves a database that is still known to be lost.
        with suppress(FileNotFoundError):
            marker_of(path).unlink()
    return target


def mapped(error: sqlite3.Error, what: str, path: Path) -> PodwrightError:
    """The failure that stands for SQLite's `error`; raise it `from error`."""
    # Errors of the binding itself (a closed connection, a wrong parameter) have no code.
    code = getattr(error, "sqlite_errorcode", None)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    text = f"{what}: {str(error).lower()} [{name}]"
    if not isinstance(code, int):
        return Internal(text, path=str(path))
    if code in _UNIQUE:
        return AlreadyExists(text, path=str(path))
    if code == sqlite3.SQLITE_IOERR_SHMSIZE:
        return DiskFull(text, path=str(path))
    return _CLASSES.get(code & 0xFF, Internal)(text, path=str(path))


def open_connection(
    path: Path, migrations: Sequence[str], application_id: int
) -> sqlite3.Connection:
    """A checked, migrated connection, bound to the calling thread; see `Database.open`."""
    known = check_file(path, len(migrations), application_id)
    with map_os_errors("cannot make database", path=str(path)):
        # SQLite gives its log the mode of the database, and makes the database by the umask.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    try:
        connection = sqlite3.connect(path, timeout=0, isolation_level=None, cached_statements=256)
        try:
            _prepare(connection, path, migrations, application_id, known=known)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise mapped(error, "cannot open database", path) from error
    return connection


def check_file(path: Path, newest: int, application_id: int) -> bool:
    """Whether a database is there; raises for what must not be opened at all."""
    made = marker_of(path).exists()
    with map_os_errors("cannot read database", path=str(path)):
        try:
            with path.open("rb") as file:
                header = file.read(_HEADER_BYTES)
        except FileNotFoundError:
            header = b""
        log = path.with_name(path.name + "-wal")
        log_left = log.exists() and log.stat().st_size > 0
    if not header:
        if made or log_left:
            raise Corrupt(
                "database is empty or missing, but one was made here before", path=str(path)
            )
        return False
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise Corrupt("file is not a database", path=str(path))
    # Read without SQLite, which would replay a log left over and so change the file.
    owner = int.from_bytes(header[_APPLICATION_ID_OFFSET:][:4], "big")
    version = int.from_bytes(header[_USER_VERSION_OFFSET:][:4], "big")
    if owner == 0:
        raise Corrupt("database has no owner mark", path=str(path))
    if owner != application_id:
        raise FailedPrecondition(
            f"database belongs to another program (application id {owner:#x})", path=str(path)
        )
    _refuse_newer(version, newest, path)
    return True


def _refuse_newer(version: int, newest: int, path: Path) -> None:
    if version > newest:
        raise FailedPrecondition(
            f"database has schema version {version}, this program knows up to {newest}",
            hint="use the newer release, or restore the copy it made before upgrading",
            path=str(path),
        )


def _prepare(
    connection: sqlite3.Connection,
    path: Path,
    migrations: Sequence[str],
    application_id: int,
    *,
    known: bool,
) -> None:
    # Exclusive before the first access: then WAL keeps its index in memory.
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA trusted_schema=OFF")
    connection.execute("PRAGMA cell_size_check=ON")
    connection.execute("PRAGMA temp_store=MEMORY")
    if not known:
        connection.execute(f"PRAGMA application_id={application_id:d}")
    # First the header, then the marker, then the log: whatever a crash leaves in between, a marker
    # means that the file has a header, and a log means that there is a marker.
    if not marker_of(path).exists():
        write_atomic(marker_of(path), f"{application_id:#x}\n".encode())
    (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
    if mode != "wal":
        raise Unavailable(f"database cannot use a write-ahead log, only {mode}", path=str(path))
    connection.execute("PRAGMA journal_size_limit=4194304")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    _refuse_newer(version, len(migrations), path)
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise Corrupt(f"database is damaged: {verdict}", path=str(path))
    if 0 < version < len(migrations):
        copy_into(connection, path.with_name(f"{path.name}.version-{version}"))
    for number, script in enumerate(migrations[version:], start=version + 1):
        migrate(connection, script, number)


def migrate(connection: sqlite3.Connection, script: str, number: int) -> None:
    """Run the script that leads to schema version `number`, whole or not at all."""
    # BEGIN is part of the text because executescript first commits whatever is open; the version
    # is set inside the transaction, so a schema and its number cannot disagree.
    try:
        connection.executescript(
            f"BEGIN IMMEDIATE;\n{script};\nPRAGMA user_version={number:d};\nCOMMIT;"
        )
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def copy_into(connection: sqlite3.Connection, target: Path) -> None:
    """VACUUM INTO a new file, then rename: the copy is whole or not there."""
    partial = target.with_name(target.name + ".partial")
    with map_os_errors("cannot copy database", path=str(target)):
        with suppress(FileNotFoundError):
            partial.unlink()
        # VACUUM INTO accepts an empty file, which carries the mode we want.
        os.close(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            connection.execute("VACUUM INTO ?", (str(partial),))
            fd = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            partial.replace(target)
        except sqlite3.Error as error:
            raise mapped(error, "cannot copy database", target) from error
        finally:
            with suppress(FileNotFoundError):
                partial.unlink()


def rows_of_copy(path: Path, query: str) -> list[tuple[str | int | float | bytes | None, ...]]:
    """What a query finds in a copy of a database that another process may hold. Blocking.

    The daemon holds its database for itself, and to open one that was not closed would change it;
    so the file and its log are copied. A copy that was made while something was written may be of
    no use, which is told like damage.

    Raises:
        NotFound: there is no database.
        ResourceExhausted: it is larger than what is copied for a look.
        Corrupt, PodwrightError: it cannot be read.
    """
    if not path.exists():
        raise NotFound("there is no database", path=str(path))
    with tempfile.TemporaryDirectory(prefix="podwright-look-") as place:
        copy = Path(place, "copy.db")
        with map_os_errors("cannot copy database", path=str(path)):
            for suffix in ("", "-wal"):
                source = path.with_name(path.name + suffix)
                if source.exists():
                    if source.stat().st_size > LOOK_LIMIT_BYTES:
                        raise ResourceExhausted(
                            "database is too large to be copied", path=str(path)
                        )
                    shutil.copyfile(source, copy.with_name(copy.name + suffix))
        try:
            with closing(sqlite3.connect(copy)) as connection:
                return list(connection.execute(query).fetchall())
        except sqlite3.Error as error:
            raise mapped(error, "cannot read database", path) from error
