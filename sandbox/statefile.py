"""The database of the state: opened, or put aside when it is lost and begun from its last backup.

    state.db                     the place of record
    state.db.backup-1, -2        the last two backups, newest first
    state.db.version-N           before a migration of the schema (`sandbox.host.sqlite_file`)
    state.db.lost                why it is being made again; there until its records are written
    state.db.corrupt-TIME        what was put aside; a person's to look at and delete

A database of a newer schema, or of another program, is never touched: that raises.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Final

from sandbox.host.clock import SystemClock
from sandbox.host.database import Database, quarantine
from sandbox.host.errors import (
    Corrupt,
    FailedPrecondition,
    NotFound,
    PodwrightError,
    map_os_errors,
)
from sandbox.host.files import read_limited, write_atomic
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sandbox.host.clock import Clock

#: "PWRT" read as a big-endian number; tells our state file from any other SQLite database.
APPLICATION_ID: Final = 0x50575254
#: Backups kept: the older one, in case the machine died of what the newer one was made of.
BACKUPS: Final = 2
#: A backup larger than this is not ours: 100,000 containers take a tenth of it.
_BACKUP_LIMIT_BYTES: Final = 4 << 30

_MARK_LIMIT_BYTES: Final = 64 * 1024

_log = get_logger("store")


def migrations() -> Sequence[str]:
    """The numbered steps of schema.sql, oldest first; append-only."""
    text = resources.files("sandbox").joinpath("schema.sql").read_text(encoding="utf-8")
    steps = text.split("-- migration ")[1:]
    return [step.split("\n", 1)[1] for step in steps]


@dataclass(frozen=True, slots=True)
class Opened:
    """An open database, and what had to be done for it.

    Attributes:
        lost: why the old one was put aside; empty when it was not.
        aside: where it is now.
        backup: the backup that it was begun from; empty for an empty one.
    """

    database: Database
    lost: str = ""
    aside: str = ""
    backup: str = ""


def backup_of(path: Path, number: int) -> Path:
    """Where a backup is kept; 1 is the newest."""
    return path.with_name(f"{path.name}.backup-{number}")


async def open_state(path: Path) -> Opened:
    """Open or make the database; one that is lost is begun anew from the newest good backup.

    Raises:
        FailedPrecondition: it was written by a newer schema, or by another program.
        Busy, Denied, ResourceExhausted, Unavailable: as SQLite and the kernel say.
    """
    lost, is_there = await asyncio.to_thread(lambda: (_being_made_again(path), path.exists()))
    if is_there or not lost:
        try:
            # A start that made it again and died before the second copies were brought in has left
            # the older truth of a backup, which looks as good as any.
            return Opened(await _open(path), lost)
        except Corrupt as error:
            lost = lost or str(error)
    with suppress(PodwrightError):  # on a full disk without: only a second fault would need it
        await asyncio.to_thread(write_atomic, mark_of(path), lost.encode())
    label = str(SystemClock().wall_ns() // 1_000_000_000)
    aside = await asyncio.to_thread(quarantine, path, label)
    _log.error("state is lost and begun anew", error=lost, kept=str(aside))
    for number in range(1, BACKUPS + 1):
        backup = backup_of(path, number)
        try:
            data = await asyncio.to_thread(read_limited, backup, _BACKUP_LIMIT_BYTES)
            await asyncio.to_thread(write_atomic, path, data)
            return Opened(await _open(path), lost, str(aside), str(backup))
        except NotFound:
            continue
        except (Corrupt, FailedPrecondition) as error:
            _log.error("backup of the state cannot be used", path=str(backup), error=error)
            await asyncio.to_thread(quarantine, path, f"{label}-{number}")
    return Opened(await _open(path), lost, str(aside))


def mark_of(path: Path) -> Path:
    """Says why the database is being made again."""
    return path.with_name(f"{path.name}.lost")


def _being_made_again(path: Path) -> str:
    try:
        text = read_limited(mark_of(path), _MARK_LIMIT_BYTES)
    except NotFound:
        return ""
    return text.decode(errors="replace") or "an earlier start was making it again"


def made_again(path: Path) -> None:
    """Everything that could be brought back has been written. Blocking."""
    with map_os_errors("cannot remove mark", path=str(path)):
        mark_of(path).unlink(missing_ok=True)


async def _open(path: Path) -> Database:
    return await Database.open(path, migrations=migrations(), application_id=APPLICATION_ID)


async def back_up(database: Database, path: Path) -> None:
    """Make a new backup and keep the one before; killed at any moment, one of them is whole.

    Raises:
        PodwrightError: as `Database.copy_to`; those that were there are kept.
    """
    fresh = path.with_name(f"{path.name}.backup-new")
    try:
        await database.copy_to(fresh)
    except PodwrightError:
        with suppress(OSError):
            await asyncio.to_thread(fresh.unlink, missing_ok=True)
        raise

    def turn() -> None:
        for number in range(BACKUPS, 1, -1):
            with suppress(FileNotFoundError):
                backup_of(path, number - 1).replace(backup_of(path, number))
        fresh.replace(backup_of(path, 1))

    await asyncio.to_thread(turn)


class Backups:
    """Copies of an open database, made when it has changed.

    Attributes:
        changed: set by whoever writes to the database.
    """

    def __init__(self, database: Database, path: Path, clock: Clock) -> None:
        self._database = database
        self._path = path
        self._clock = clock
        self.changed = False
        self._made_ns = 0
        self._error = ""

    async def make(self, *, always: bool = False) -> None:
        """Make one, if anything has changed since the last one (or `always`).

        A failure is logged and shown in the report; the copies that are there stay.
        """
        if not (self.changed or always):
            return
        self.changed = False
        try:
            await back_up(self._database, self._path)
        except PodwrightError as error:
            self.changed = True
            self._error = str(error)
            _log.warning("state not backed up", error=error)
        else:
            self._error = ""
            self._made_ns = self._clock.wall_ns()

    def report(self) -> dict[str, object]:
        """When it was done last, as JSON values."""
        ago_ns = self._clock.wall_ns() - self._made_ns
        return {
            "backupSecondsAgo": round(ago_ns / 1e9) if self._made_ns else None,
            "backupError": self._error,
        }
