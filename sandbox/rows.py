"""Rows of the state database: reading, making, changing them, and putting bad ones aside.

Every object is one row with its whole document (JSON of the `model` value) plus the columns that
must be unique or searchable before a document can be trusted: id, name, pod.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeVar

import msgspec

from sandbox.host.database import as_int
from sandbox.host.journal import get_logger
from sandbox.model import Container, PodSandbox, container_name_key, pod_name_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sandbox.host.database import Connection

V = TypeVar("V", PodSandbox, Container)

Table = Literal["pods", "containers"]

_SELECT: Final[Mapping[Table, str]] = {
    "pods": "SELECT id, document FROM pods",
    "containers": "SELECT id, document FROM containers",
}
_DELETE: Final[Mapping[Table, str]] = {
    "pods": "DELETE FROM pods WHERE id = ?",
    "containers": "DELETE FROM containers WHERE id = ?",
}
_EXISTS: Final[Mapping[type, str]] = {
    PodSandbox: "SELECT 1 FROM pods WHERE id = ?",
    Container: "SELECT 1 FROM containers WHERE id = ?",
}
_UPDATE: Final[Mapping[type, str]] = {
    PodSandbox: "UPDATE pods SET document = ? WHERE id = ?",
    Container: "UPDATE containers SET document = ? WHERE id = ?",
}

_log = get_logger("store")


class BadRow(NamedTuple):
    """A record that cannot be read."""

    table: Table
    id: str
    document: bytes
    reason: str


def load(db: Connection, table: Table, kind: type[V], bad: list[BadRow]) -> dict[str, V]:
    """Every row of a table that can be read, by id; the others are added to `bad`."""
    good = {}
    for row_id, document in db.execute(_SELECT[table]).fetchall():
        raw = document if isinstance(document, bytes) else b""
        try:
            value = msgspec.json.decode(raw, type=kind)
        except msgspec.MsgspecError as error:
            bad.append(BadRow(table, str(row_id), raw, str(error)))
            _log.error("unreadable record", table=table, id=str(row_id), error=str(error))
        else:
            good[value.id] = value
    return good


def exists(db: Connection, value: PodSandbox | Container) -> bool:
    """Whether there is a row of the object."""
    return db.execute(_EXISTS[type(value)], (value.id,)).fetchone() is not None


def update(db: Connection, value: PodSandbox | Container, document: bytes) -> None:
    """Replace the document of a row."""
    db.execute(_UPDATE[type(value)], (document, value.id))


def delete(db: Connection, table: Table, object_id: str) -> None:
    """Erase a row."""
    db.execute(_DELETE[table], (object_id,))


def quarantined(db: Connection) -> int:
    """How many unreadable records have been put aside."""
    row = db.execute("SELECT count(*) FROM quarantine").fetchone()
    return as_int(row[0]) if row else 0


def insert(db: Connection, value: PodSandbox | Container, document: bytes) -> None:
    """Make the row of an object; its name must be free."""
    if isinstance(value, PodSandbox):
        key = pod_name_key(value.config.metadata)
        db.execute(
            "INSERT INTO pods (id, name, document) VALUES (?, ?, ?)", (value.id, key, document)
        )
        return
    config = value.config
    key = container_name_key(value.pod_id, config.name, config.attempt)
    db.execute(
        "INSERT INTO containers (id, pod_id, name, document) VALUES (?, ?, ?, ?)",
        (value.id, value.pod_id, key, document),
    )


def bring_in(db: Connection, write: Iterable[PodSandbox | Container], erase: Iterable[str]) -> None:
    """Erase rows by id, then make others (again)."""
    for object_id in erase:
        db.execute(_DELETE["pods"], (object_id,))
        db.execute(_DELETE["containers"], (object_id,))
    for value in write:
        insert(db, value, encode(value))


def quarantine(db: Connection, bad: Sequence[BadRow]) -> None:
    """Move rows out of the way, where a person can still read them."""
    for row in bad:
        _log.error("unreadable record quarantined", table=row.table, id=row.id, error=row.reason)
        db.execute(
            "INSERT INTO quarantine (origin, id, document, reason) VALUES (?, ?, ?, ?)",
            (row.table, row.id, row.document, row.reason),
        )
        db.execute(_DELETE[row.table], (row.id,))


def encode(value: PodSandbox | Container) -> bytes:
    """The document of an object."""
    return msgspec.json.encode(value)


def read_meta(db: Connection, key: str) -> str:
    """A value of the node; empty when never written."""
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return str(row[0]) if row else ""


def write_meta(db: Connection, key: str, value: str) -> None:
    """Write a value of the node."""
    db.execute(
        "INSERT INTO meta (key, value) VALUES (?, ?)"
        " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (key, value),
    )
