"""SQLite as the one place of record: opened with suspicion, written one transaction at a time.

Settings, and why: WAL with synchronous=FULL, so that what was committed survives a power failure;
locking_mode=EXCLUSIVE, so that no second daemon can open it and so that no shared-memory file is
needed, which could not be made on a full disk; transactions are begun by hand, so that it is plain
where one ends. The connection lives in one thread of its own and never blocks the event loop.

A full disk refuses even a DELETE, because the log grows first. A file of reserved space lies beside
the database and is given up for writes that clean up, so that removing things can always begin.

A file of length zero is a valid empty database to SQLite. A small marker file beside the database
says that one was made here, so a lost or emptied one is `Corrupt` and not silently made anew, with
every running pod forgotten.
"""

from __future__ import annotations

import asyncio
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from sandbox.host.errors import Corrupt, ResourceExhausted, Unavailable
from sandbox.host.sqlite_file import (
    DEFAULT_RESERVE_BYTES,
    Reserve,
    copy_into,
    mapped,
    marker_of,
    open_connection,
    quarantine,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    #: One more transaction, written as the one before it, on the database's own thread.
    WriteMore = Callable[[Callable[["Connection"], object]], object]

T = TypeVar("T")
Argument = TypeVar("Argument")
__all__ = [
    "Connection",
    "Cursor",
    "Database",
    "Row",
    "SqlValue",
    "as_bytes",
    "as_int",
    "as_text",
    "marker_of",
    "quarantine",
]

SqlValue = str | int | float | bytes | None
Row = tuple[SqlValue, ...]


class Cursor(Protocol):
    """The part of sqlite3.Cursor that is used."""

    @property
    def rowcount(self) -> int:
        """Rows changed by the last statement, -1 for a SELECT."""
        ...

    def fetchone(self) -> Row | None:
        """The next row."""
        ...

    def fetchall(self) -> list[Row]:
        """The rows left."""
        ...


class Connection(Protocol):
    """The part of sqlite3.Connection that work given to a `Database` may use."""

    def execute(self, sql: str, parameters: Sequence[SqlValue] = (), /) -> Cursor:
        """One statement, `?` for each parameter."""
        ...

    def executemany(self, sql: str, parameters: Iterable[Sequence[SqlValue]], /) -> Cursor:
        """One statement for each set of parameters."""
        ...


def as_text(value: SqlValue) -> str:
    """A column that must be text; Corrupt when it is not."""
    if isinstance(value, str):
        return value
    raise Corrupt("database holds no text where it must", kind=type(value).__name__)


def as_int(value: SqlValue) -> int:
    """A column that must be an integer; Corrupt when it is not."""
    if isinstance(value, int):
        return value
    raise Corrupt("database holds no number where it must", kind=type(value).__name__)


def as_bytes(value: SqlValue) -> bytes:
    """A column that must be bytes; Corrupt when it is not."""
    if isinstance(value, bytes):
        return value
    raise Corrupt("database holds no bytes where it must", kind=type(value).__name__)


class Database:
    """An open database; make it with `open`, end it with `close`."""

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        thread: ThreadPoolExecutor,
        reserve: Reserve,
    ) -> None:
        self._path = path
        self._connection = connection
        self._thread = thread
        self._reserve = reserve
        self._closed = False

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        migrations: Sequence[str],
        application_id: int,
        reserve_bytes: int = DEFAULT_RESERVE_BYTES,
    ) -> Database:
        """Open or make the database at `path` and bring its schema up to date.

        `migrations[n]` is the SQL that leads from schema version n to n+1; one that was released
        is never changed. Before an existing schema is changed, the file is copied to
        `NAME.version-N`. `reserve_bytes` of disk are kept for writes that clean up.

        Raises:
            Corrupt: empty or missing though it was made before, damaged, or not a database.
            FailedPrecondition: its schema is newer, or it belongs to another program.
            Busy: another process has it open.
            ResourceExhausted, Denied, Unavailable: as SQLite and the kernel say.
        """
        thread = ThreadPoolExecutor(1, thread_name_prefix=f"db-{path.name}")
        loop = asyncio.get_running_loop()
        try:
            connection = await loop.run_in_executor(
                thread, open_connection, path, tuple(migrations), application_id
            )
        except BaseException:
            thread.shutdown(wait=False)
            raise
        reserve = Reserve(path, reserve_bytes)
        await loop.run_in_executor(thread, reserve.keep)
        return cls(path, connection, thread, reserve)

    async def write(
        self,
        work: Callable[[Connection], T],
        *,
        cleanup: bool = False,
        synced: bool = True,
        then: Callable[[WriteMore], object] | None = None,
    ) -> T:
        """`work` in one transaction on the database's thread; committed when it returns.

        An exception of `work` rolls everything back and comes out as it is. A caller that is
        cancelled does not stop a transaction that has begun. `cleanup` marks a write that removes
        something: on a full disk it may use the space kept in reserve, and `work` is then called a
        second time.

        Without `synced` the commit is not waited for on disk: a killed process loses nothing by
        that, a power failure may take this one back, unless a synced one came after it. For what
        means nothing after a power failure, such as the intent to start a process. Measured on the
        reference machine: 0.3 ms each on a quick disk.

        `then` is called on the same thread once that is committed, for what was only to wait for
        the record: it saves the way back and forth, 0.2 to 0.4 ms. It must be short. It is given a
        function that writes another `work` in the same manner, for what has become of it.

        Raises:
            AlreadyExists: a unique key is taken.
            ResourceExhausted: the disk is full; nothing was changed, reading goes on working.
            Corrupt, Unavailable, Denied: as SQLite says; nothing was changed.
        """
        call = self._write_cleaning if cleanup else self._write
        if not synced:
            call = partial(self._unsynced, call)
        return await self._run(call if then is None else partial(_in_turn, call, then), work)

    def _unsynced(
        self, call: Callable[[Callable[[Connection], T]], T], work: Callable[[Connection], T]
    ) -> T:
        # Consistent all the same: sqlite.org/pragma.html#pragma_synchronous, about WAL and NORMAL.
        self._connection.execute("PRAGMA synchronous=NORMAL")
        try:
            return call(work)
        finally:
            self._connection.execute("PRAGMA synchronous=FULL")

    def _write_cleaning(self, work: Callable[[Connection], T]) -> T:
        try:
            return self._transact(work)
        except ResourceExhausted:
            if not self._reserve.release():
                raise
            return self._transact(work)

    def _write(self, work: Callable[[Connection], T]) -> T:
        result = self._transact(work)
        self._reserve.keep()
        return result

    def _transact(self, work: Callable[[Connection], T]) -> T:
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise mapped(error, "cannot write database", self._path) from error
        return result

    async def read(self, work: Callable[[Connection], T]) -> T:
        """`work` on the database's thread, all of it on one state; it cannot change anything.

        Raises:
            Corrupt, Unavailable: as SQLite says.
        """
        return await self._run(self._read, work)

    def _read(self, work: Callable[[Connection], T]) -> T:
        connection = self._connection
        try:
            connection.execute("PRAGMA query_only=ON")
            try:
                return work(connection)
            finally:
                connection.execute("PRAGMA query_only=OFF")
        except sqlite3.Error as error:
            raise mapped(error, "cannot read database", self._path) from error

    async def copy_to(self, target: Path) -> None:
        """Write a whole, consistent copy to `target`, replacing it.

        Raises:
            PodwrightError: as `write`; `target` is then as it was.
        """
        await self._run(lambda _: copy_into(self._connection, target), None)

    async def _run(self, call: Callable[[Argument], T], argument: Argument) -> T:
        if self._closed:
            raise Unavailable("database is closed", path=str(self._path))
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, argument)

    async def close(self) -> None:
        """Finish what was given so far and close. Idempotent."""
        if self._closed:
            return
        self._closed = True
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, self._connection.close)
        finally:
            self._thread.shutdown(wait=False)


def _in_turn(
    call: Callable[[Callable[[Connection], T]], T],
    then: Callable[[WriteMore], object],
    work: Callable[[Connection], T],
) -> T:
    result = call(work)
    then(call)  # type: ignore[arg-type]  # the same for work with another result
    return result
