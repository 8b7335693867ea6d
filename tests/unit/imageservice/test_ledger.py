"""Leases in memory and on disk agree, also when a caller goes away in the middle."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from imageservice.catalog import APPLICATION_ID, MIGRATIONS
from imageservice.snapshots.ledger import Ledger
from sandbox.host.database import Connection, Database, Row


def keys(connection: Connection) -> list[Row]:
    return connection.execute("SELECT key FROM lease_keys").fetchall()


class _Slow(tuple[str, ...]):
    """A chain that is read within the transaction, and not before it is let."""

    begun = threading.Event()
    may_go_on = threading.Event()

    def __iter__(self) -> Iterator[str]:
        self.begun.set()
        self.may_go_on.wait()
        return super().__iter__()


async def test_what_was_called_off_while_it_was_written_can_be_given_up(tmp_path: Path) -> None:
    database = await Database.open(
        tmp_path / "catalog.db", migrations=MIGRATIONS, application_id=APPLICATION_ID
    )
    ledger = Ledger(database)
    await ledger.load()
    chain = _Slow(("sha256:" + "a" * 64,))
    leasing = asyncio.ensure_future(ledger.lease("container", chain))
    await asyncio.to_thread(chain.begun.wait)
    leasing.cancel()
    await asyncio.sleep(0)
    chain.may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await leasing
    await ledger.unlease("container")
    assert dict(ledger.leases()) == {}
    assert await database.read(keys) == []
    await database.close()
