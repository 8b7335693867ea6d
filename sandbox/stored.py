"""Everything that was stored, read at the start and made whole: rows, copies, unreadable records.

A row that cannot be read is made again from its second copy (`sandbox.records`). Where that cannot
be read either, it is moved to `quarantine` and named in the log: one bad record never keeps the
daemon from starting, and its id lets the sweep find what belonged to it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sandbox import rows
from sandbox.host.journal import get_logger
from sandbox.merge import merged
from sandbox.model import Container, PodSandbox

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandbox.host.database import Database
    from sandbox.records import Records

_log = get_logger("store")


@dataclass(frozen=True, slots=True)
class Stored:
    """What is true of all objects.

    Attributes:
        pods, containers: by id.
        adopted: what was taken from copies and what rows were dropped, how many of each.
        quarantined: how many unreadable records lie aside in the database.
    """

    pods: dict[str, PodSandbox]
    containers: dict[str, Container]
    adopted: Mapping[str, int] = field(default_factory=dict)
    quarantined: int = 0


async def read_stored(
    database: Database, records: Records | None, *, rebuilt: bool, restarted: bool
) -> Stored:
    """Read all of it, and write what had to be decided; see `sandbox.merge`.

    Args:
        database: of the state, open.
        records: the second copies; None where there are none.
        rebuilt: the rows are of a backup.
        restarted: a boot took the copies.

    Raises:
        PodwrightError: as the database says.
    """
    bad: list[rows.BadRow] = []
    pods, containers = await database.read(
        lambda db: (
            rows.load(db, "pods", PodSandbox, bad),
            rows.load(db, "containers", Container, bad),
        )
    )
    adopted: Mapping[str, int] = {}
    if records is not None:
        copies, old = await asyncio.to_thread(
            lambda: (
                (records.load(PodSandbox), records.load(Container)),
                (records.load_set_back(PodSandbox), records.load_set_back(Container)),
            )
        )
        result = merged(
            (pods, containers), copies, rebuilt=rebuilt, restarted=restarted, set_back=old
        )
        pods, containers, adopted = result.pods, result.containers, result.adopted
        if result.write or result.erase:
            await database.write(
                lambda db: rows.bring_in(db, result.write, result.erase), cleanup=True
            )
            _log.warning("state made whole from second copies", **adopted)
        await asyncio.to_thread(records.write_all, result.copy)
    lost = [row for row in bad if row.id not in pods and row.id not in containers]
    if lost:
        await database.write(lambda db: rows.quarantine(db, lost), cleanup=True)
    return Stored(pods, containers, adopted, await database.read(rows.quarantined))
