"""Which layers there are and who holds them: rows in SQLite, answers from memory.

Memory changes first and on the event loop, so that whoever asks next sees it; the row follows, and
if it cannot be written memory is put back. Two callers can therefore never both believe that they
decide over a layer.

The boot id beside a layer says under which run of the kernel it was written. What was written under
this one is in its page cache and true; what was written before, and never looked at since, is
checked once if the last end was not an orderly one.

Layers of additional stores are known as well, in memory only: `get` finds them where this store has
none of that name, and whatever changes, counts or lists layers means our own.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from imageservice.snapshots.snapshotter import LayerFacts
from sandbox.host.database import as_bytes, as_int, as_text

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine, Iterable, Mapping

    from imageservice.snapshots.lender import Lender
    from sandbox.host.database import Connection, Database, Row, SqlValue

_RUNNING_MARK: Final = "snapshots-running"
_COLUMNS: Final = (
    "diff_id, directory, entries, size_bytes, opaque_root, implied, boot_id, is_checked, "
    "used_bytes, inodes, form, index_digest"
)


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A committed layer.

    Attributes:
        directory: its name among the driver's layers.
        boot_id: run of the kernel it was written under.
        is_checked: nothing more to prove about its durability.
        used_bytes, inodes: what it takes on disk, once measured.
        lender: the store whose layer it is; None: our own.
    """

    diff_id: str
    directory: str
    facts: LayerFacts
    boot_id: str
    is_checked: bool = False
    used_bytes: int | None = None
    inodes: int | None = None
    lender: Lender | None = None


class Ledger:
    """Layers and leases; make one, then `load`. For one event loop."""

    def __init__(self, database: Database, lent: Iterable[LayerRow] = ()) -> None:
        """`lent` are layers of additional stores; of several with one name the first counts."""
        self._database = database
        self._lent: dict[str, LayerRow] = {}
        for row in lent:
            self._lent.setdefault(row.diff_id, row)
        self._layers: dict[str, LayerRow] = {}
        self._leases: dict[str, tuple[str, ...]] = {}

    async def load(self) -> None:
        """Read everything; raises Corrupt."""
        rows, keys, leases = await self._database.read(_read_all)
        self._layers = {row.diff_id: row for row in rows}
        held: dict[str, list[str]] = {as_text(row[0]): [] for row in keys}
        for key, diff_id in leases:
            held.setdefault(as_text(key), []).append(as_text(diff_id))
        self._leases = {key: tuple(diff_ids) for key, diff_ids in held.items()}

    def get(self, diff_id: str) -> LayerRow | None:
        """The layer, if it is committed here, or else in an additional store."""
        return self._layers.get(diff_id) or self._lent.get(diff_id)

    def layers(self) -> Mapping[str, LayerRow]:
        """All of our own by diffID."""
        return self._layers

    def leases(self) -> Mapping[str, tuple[str, ...]]:
        """Key -> diffIDs, lowest first."""
        return self._leases

    async def add(self, row: LayerRow) -> None:
        """Record a layer whose data is on disk; visible when this returns."""
        await self._database.write(lambda connection: _insert(connection, (row,)))
        self._layers[row.diff_id] = row

    async def update(self, rows: Collection[LayerRow]) -> None:
        """Replace what is recorded of layers; those dropped meanwhile stay dropped."""
        known = [row for row in rows if self._has(row)]
        for row in known:
            self._layers[row.diff_id] = row
        if known:
            await self._database.write(lambda connection: _insert(connection, known))

    def _has(self, row: LayerRow) -> bool:
        """Not so when the layer was removed and committed anew."""
        now = self._layers.get(row.diff_id)
        return now is not None and now.directory == row.directory

    def hide(self, diff_ids: Iterable[str]) -> list[LayerRow]:
        """Take layers out of memory, leased ones excepted; `erase` follows for those returned."""
        leased = {diff_id for chain in self._leases.values() for diff_id in chain}
        hidden = [
            self._layers[diff_id]
            for diff_id in dict.fromkeys(diff_ids)
            if diff_id in self._layers and diff_id not in leased
        ]
        for row in hidden:
            del self._layers[row.diff_id]
        return hidden

    def drop(self, diff_ids: Iterable[str]) -> list[LayerRow]:
        """The same for layers that are no longer there to be held: leased ones too."""
        return [self._layers.pop(diff_id) for diff_id in diff_ids if diff_id in self._layers]

    async def erase(self, rows: Collection[LayerRow]) -> None:
        """Delete the records of hidden layers; one committed anew meanwhile stays.

        Raises:
            ResourceExhausted: disk full; nothing was deleted.
        """
        gone = [(row.diff_id, row.directory) for row in rows]

        def work(connection: Connection) -> None:
            connection.executemany("DELETE FROM layers WHERE diff_id = ? AND directory = ?", gone)

        await self._database.write(work, cleanup=True)

    def holds(self, row: LayerRow) -> bool:
        """Whether anybody has a lease of the layer."""
        return any(row.diff_id in chain for chain in self._leases.values())

    def lease(self, key: str, chain: tuple[str, ...]) -> Coroutine[None, None, None]:
        """Hold the layers under `key`, instead of what it held before.

        Held from now on, and safe from our own death when what is returned was awaited. After a
        power failure nothing uses the layers any more, and what may remove them is recorded after
        this.
        """
        before = self._leases.get(key)
        self._leases[key] = chain
        return self._write_lease(key, chain, before)

    async def _write_lease(
        self, key: str, chain: tuple[str, ...], before: tuple[str, ...] | None
    ) -> None:
        def work(connection: Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO lease_keys (key) VALUES (?)", (key,))
            connection.execute("DELETE FROM leases WHERE key = ?", (key,))
            connection.executemany(
                "INSERT INTO leases (key, position, diff_id) VALUES (?, ?, ?)",
                [(key, position, diff_id) for position, diff_id in enumerate(chain)],
            )

        try:
            await self._database.write(work, synced=False)
        except asyncio.CancelledError:
            raise  # the transaction may go on: who called it off gives up what he may hold
        except BaseException:
            if before is None:
                self._leases.pop(key, None)
            else:
                self._leases[key] = before
            raise

    async def unlease(self, key: str) -> None:
        """Hold nothing under `key`.

        Safe from our own death when it returns. What a power failure takes back is a lease of a
        container that is no more, which the next start gives up; layers are only removed by what is
        recorded after this.
        """
        before = self._leases.pop(key, None)

        def work(connection: Connection) -> None:
            connection.execute("DELETE FROM leases WHERE key = ?", (key,))
            connection.execute("DELETE FROM lease_keys WHERE key = ?", (key,))

        if before is None:
            return
        try:
            await self._database.write(work, cleanup=True, synced=False)
        except BaseException:
            self._leases.setdefault(key, before)
            raise

    async def mark_running(self, boot_id: str) -> bool:
        """Note that a daemon is at work; whether the last one ended in order (or never was)."""

        def work(connection: Connection) -> Row | None:
            row = connection.execute(
                "SELECT value FROM marks WHERE name = ?", (_RUNNING_MARK,)
            ).fetchone()
            connection.execute(
                "INSERT OR REPLACE INTO marks (name, value) VALUES (?, ?)", (_RUNNING_MARK, boot_id)
            )
            return row

        return await self._database.write(work) is None

    async def mark_ended(self) -> None:
        """Note an orderly end: everything recorded so far needs no check."""
        self._layers = {key: replace(row, is_checked=True) for key, row in self._layers.items()}

        def work(connection: Connection) -> None:
            connection.execute("UPDATE layers SET is_checked = 1")
            connection.execute("DELETE FROM marks WHERE name = ?", (_RUNNING_MARK,))

        await self._database.write(work)


def _insert(connection: Connection, rows: Collection[LayerRow]) -> None:
    values: list[tuple[SqlValue, ...]] = [
        (
            row.diff_id,
            row.directory,
            row.facts.entries,
            row.facts.size_bytes,
            int(row.facts.opaque_root),
            # A NUL cannot be in a path; sorted, so that equal rows are equal bytes.
            b"\0".join(path + b"/" for path in sorted(row.facts.implied)),
            row.boot_id,
            int(row.is_checked),
            row.used_bytes,
            row.inodes,
            row.facts.form,
            row.facts.index_digest,
        )
        for row in rows
    ]
    connection.executemany(
        f"INSERT OR REPLACE INTO layers ({_COLUMNS}) "  # noqa: S608 - a constant
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        values,
    )


def _layer(row: Row) -> LayerRow:
    (diff_id, directory, entries, size, opaque, implied, boot_id, checked) = row[:8]
    (used, inodes, form, index_digest) = row[8:]
    paths = as_bytes(implied)
    return LayerRow(
        diff_id=as_text(diff_id),
        directory=as_text(directory),
        facts=LayerFacts(
            entries=as_int(entries),
            size_bytes=as_int(size),
            opaque_root=bool(as_int(opaque)),
            implied=frozenset(path[:-1] for path in paths.split(b"\0")) if paths else frozenset(),
            form="indexed" if as_text(form) == "indexed" else "tree",
            index_digest=as_text(index_digest),
        ),
        boot_id=as_text(boot_id),
        is_checked=bool(as_int(checked)),
        used_bytes=None if used is None else as_int(used),
        inodes=None if inodes is None else as_int(inodes),
    )


def read_layers(connection: Connection) -> list[LayerRow]:
    """All layers that a database records; raises Corrupt."""
    rows = connection.execute(f"SELECT {_COLUMNS} FROM layers").fetchall()  # noqa: S608
    return [_layer(row) for row in rows]


def was_closed(connection: Connection) -> bool:
    """Whether whoever wrote to the database last has recorded an orderly end."""
    query = "SELECT 1 FROM marks WHERE name = ?"
    return connection.execute(query, (_RUNNING_MARK,)).fetchone() is None


def _read_all(connection: Connection) -> tuple[list[LayerRow], list[Row], list[Row]]:
    return (
        read_layers(connection),
        connection.execute("SELECT key FROM lease_keys").fetchall(),
        connection.execute("SELECT key, diff_id FROM leases ORDER BY key, position").fetchall(),
    )
