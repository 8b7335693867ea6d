"""What is written of pods and containers, as work for the database's own thread.

A row and its second copy (`sandbox.records`) are written in the same transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox import rows
from sandbox.host.errors import PodwrightError
from sandbox.host.journal import get_logger
from sandbox.model import PodSandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sandbox.host.database import Connection, WriteMore
    from sandbox.model import Container
    from sandbox.records import Records

    Object = PodSandbox | Container
    Work = Callable[[Connection], None]

_log = get_logger("store")


def inserting(value: Object, records: Records | None) -> Work:
    """Make the row of an object."""
    document = rows.encode(value)

    def work(db: Connection) -> None:
        if records is not None:
            records.write(value, document)
        rows.insert(db, value, document)

    return work


def updating(values: Iterable[Object], records: Records | None) -> Work:
    """Replace the documents of those objects that are still there."""
    documents = [(value, rows.encode(value)) for value in values]

    def work(db: Connection) -> None:
        for value, document in documents:
            # Removed since this was asked for: its copy must not come back, because a copy
            # without a row is taken for an object whose row was lost.
            if not rows.exists(db, value):
                continue
            if records is not None:
                records.write(value, document)
            rows.update(db, value, document)

    return work


def deleting(
    kind: type[PodSandbox] | type[Container], object_id: str, records: Records | None
) -> Work:
    """Erase a row."""

    def work(db: Connection) -> None:
        if records is not None:
            records.remove(kind, object_id)
        rows.delete(db, "pods" if kind is PodSandbox else "containers", object_id)

    return work


class Sequel:
    """What an object's record begins once it is committed, and what has become of the object.

    `value` is None while nothing has; `unwritten` when that could not be recorded.
    """

    __slots__ = ("_begin", "_records", "unwritten", "value")

    def __init__(self, begin: Callable[[], Object | None], records: Records | None) -> None:
        """`begin` returns the object as it then is, None where it is as before."""
        self._begin = begin
        self._records = records
        self.value: Object | None = None
        self.unwritten = False

    def __call__(self, write: WriteMore) -> None:
        """Begin, and record what came of it; called on the database's thread."""
        self.value = self._begin()
        if self.value is None:
            return
        try:
            write(updating([self.value], self._records))
        except PodwrightError as error:
            self.unwritten = True
            _log.warning("state not written, kept for later", objects=1, error=str(error))
