"""A database on a disk that may be read-only: read whole, or refused, and never touched."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from sandbox.host.closed_database import read_closed
from sandbox.host.database import Connection, Database, Row
from sandbox.host.errors import Corrupt, FailedPrecondition, NotFound

OURS = 0x506F6432
FIRST = "CREATE TABLE items (n INTEGER PRIMARY KEY)"
SECOND = "ALTER TABLE items ADD COLUMN word TEXT NOT NULL DEFAULT 'none'"


def rows(connection: Connection) -> list[Row]:
    return connection.execute("SELECT * FROM items ORDER BY n").fetchall()


def read(path: Path, *migrations: str) -> list[Row]:
    return read_closed(path, rows, migrations=migrations or (FIRST,), application_id=OURS)


async def made(path: Path, *migrations: str) -> Database:
    database = await Database.open(
        path, migrations=migrations or (FIRST,), application_id=OURS, reserve_bytes=0
    )
    await database.write(
        lambda c: c.executemany("INSERT INTO items (n) VALUES (?)", [(n,) for n in range(500)])
    )
    return database


async def closed(path: Path, *migrations: str) -> Path:
    await (await made(path, *migrations)).close()
    return path


def state(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in directory.iterdir()}


async def test_what_was_closed_is_read_and_not_touched(tmp_path: Path) -> None:
    path = await closed(tmp_path / "it.db")
    before = state(tmp_path)
    assert [row[0] for row in read(path)] == list(range(500))
    assert state(tmp_path) == before


async def test_an_older_schema_is_brought_up_to_date_in_the_copy_only(tmp_path: Path) -> None:
    path = await closed(tmp_path / "it.db")
    before = state(tmp_path)
    assert read(path, FIRST, SECOND)[0] == (0, "none")
    assert state(tmp_path) == before


async def test_a_name_that_a_uri_gives_a_meaning_is_a_name(tmp_path: Path) -> None:
    directory = tmp_path / "a ?mode=rw#b%20"
    directory.mkdir()
    path = await closed(directory / "it.db")
    assert len(read(path)) == 500


async def test_what_is_in_use_is_refused(tmp_path: Path) -> None:
    database = await made(tmp_path / "it.db")
    with pytest.raises(FailedPrecondition, match="in use, or was not closed in order"):
        read(tmp_path / "it.db")
    await database.close()
    assert read(tmp_path / "it.db")


async def test_what_was_not_closed_in_order_is_refused(tmp_path: Path) -> None:
    database = await made(tmp_path / "first.db")
    for suffix in ("", "-wal"):  # as a kill leaves them
        (tmp_path / f"it.db{suffix}").write_bytes((tmp_path / f"first.db{suffix}").read_bytes())
    await database.close()
    before = state(tmp_path)
    with pytest.raises(FailedPrecondition, match="not closed in order"):
        read(tmp_path / "it.db")
    assert state(tmp_path) == before


async def test_a_newer_schema_is_refused_with_both_versions(tmp_path: Path) -> None:
    path = await closed(tmp_path / "it.db", FIRST, SECOND)
    with pytest.raises(FailedPrecondition, match=r"schema version 2, .* up to 1"):
        read(path)


async def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "it.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA application_id=77")
        connection.execute(FIRST)
    connection.close()
    with pytest.raises(FailedPrecondition, match="another program"):
        read(path)


async def test_damage_is_corruption(tmp_path: Path) -> None:
    path = await closed(tmp_path / "it.db")
    data = bytearray(path.read_bytes())
    data[4096:8192] = bytes(4096)
    path.write_bytes(data)
    with pytest.raises(Corrupt):
        read(path)


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100])
def test_what_is_no_database_is_corruption(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "it.db"
    path.write_bytes(content)
    path.with_name("it.db.made").touch()
    with pytest.raises(Corrupt):
        read(path)


def test_an_empty_file_without_a_marker_is_corruption_too(tmp_path: Path) -> None:
    path = tmp_path / "it.db"
    path.touch()
    with pytest.raises(Corrupt):
        read(path)


def test_nothing_is_made_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read(tmp_path / "it.db")
    assert list(tmp_path.iterdir()) == []
