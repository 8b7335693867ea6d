"""A database that is only read, on a disk that may be read-only and shared by several machines.

SQLite needs to write even to read: it replays a log, takes locks, makes files of shared memory.
None of that may happen to a file that somebody else made and that others read at this moment, so it
is opened as one that cannot change (uri.html, "immutable"), copied into memory, and let go. What
that leaves out is looked for first: a log beside the file holds changes that the file has not, so
its last user was killed or is still at work, and what the file says alone may be anything.

A schema older than ours is brought up to date in the copy.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar

from sandbox.host.errors import Corrupt, FailedPrecondition, NotFound, map_os_errors
from sandbox.host.sqlite_file import check_file, mapped, migrate, sidecars

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sandbox.host.database import Connection

T = TypeVar("T")


def read_closed(
    path: Path,
    work: Callable[[Connection], T],
    *,
    migrations: Sequence[str],
    application_id: int,
) -> T:
    """What `work` makes of the database at `path`, of which nothing is touched. Blocking.

    Args:
        path: the file; nothing may write to it meanwhile.
        work: is given a copy in memory with the newest schema.
        migrations: see `Database.open`.
        application_id: see `Database.open`.

    Raises:
        NotFound: there is none.
        FailedPrecondition: it is in use or was not closed in order; its schema is newer; or it
            belongs to another program.
        Corrupt: empty, damaged, or not a database.
        Denied, Unavailable, ResourceExhausted: as SQLite and the kernel say.
    """
    with map_os_errors("cannot read database", path=str(path)):
        if not path.exists():
            raise NotFound("there is no database", path=str(path))
        for log in sidecars(path):
            # The index of a log ("-shm") without the log says nothing.
            if log.name.endswith(("-wal", "-journal")) and log.exists() and log.stat().st_size:
                raise FailedPrecondition(
                    "database is in use, or was not closed in order: it has a log of changes",
                    path=str(log),
                )
    if not check_file(path, len(migrations), application_id):
        raise Corrupt("database is empty", path=str(path))
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as copy:
            with closing(sqlite3.connect(uri, uri=True)) as disk:
                disk.backup(copy)
            _bring_up(copy, path, migrations)
            return work(copy)
    except sqlite3.Error as error:
        raise mapped(error, "cannot read database", path) from error


def _bring_up(copy: sqlite3.Connection, path: Path, migrations: Sequence[str]) -> None:
    copy.execute("PRAGMA trusted_schema=OFF")
    copy.execute("PRAGMA cell_size_check=ON")
    (verdict,) = copy.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise Corrupt(f"database is damaged: {verdict}", path=str(path))
    (version,) = copy.execute("PRAGMA user_version").fetchone()
    for number, script in enumerate(migrations[version:], start=version + 1):
        migrate(copy, script, number)
