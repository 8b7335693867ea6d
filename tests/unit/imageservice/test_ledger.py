"""Leases in memory and on disk agree, also when a caller goes away in the middle."""

from __future__ import annotations

from pathlib import Path

from imageservice.catalog import APPLICATION_ID, MIGRATIONS
from imageservice.snapshots.ledger import Ledger
from sandbox.host.database import Connection, Database, Row
from tests.kit.blocked import Blocked, call_off_within, slow_tuple


def keys(connection: Connection) -> list[Row]:
    return connection.execute("SELECT key FROM lease_keys").fetchall()


async def test_what_was_called_off_while_it_was_written_can_be_given_up(tmp_path: Path) -> None:
    database = await Database.open(
        tmp_path / "catalog.db", migrations=MIGRATIONS, application_id=APPLICATION_ID
    )
    ledger = Ledger(database)
    await ledger.load()
    blocked = Blocked()
    chain = slow_tuple(["sha256:" + "a" * 64], blocked)
    await call_off_within(ledger.lease("container", chain), blocked)
    await ledger.unlease("container")
    assert dict(ledger.leases()) == {}
    assert await database.read(keys) == []
    await database.close()


async def test_layers_are_held_before_that_is_written(tmp_path: Path) -> None:
    """Whoever removes layers meanwhile finds them held."""
    database = await Database.open(
        tmp_path / "catalog.db", migrations=MIGRATIONS, application_id=APPLICATION_ID
    )
    ledger = Ledger(database)
    await ledger.load()
    writing = ledger.lease("container", ("sha256:" + "a" * 64,))
    assert list(ledger.leases()) == ["container"]
    assert await database.read(keys) == []
    await writing
    assert await database.read(keys) == [("container",)]
    await database.close()
