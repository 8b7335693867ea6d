"""Signatures of the images on this node, kept so that a container's start asks no registry.

One row for each signature, under the digest that it is of (a manifest's or an index's). They are
strangers' words as before: whoever reads them has them judged again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from imageservice.trust.model import Signature
from sandbox.host.database import as_bytes, as_text
from sandbox.host.errors import Corrupt

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sandbox.host.database import Connection, Database, Row


class KeptSignatures:
    """Reads and writes the table `signatures` of the catalog's database."""

    def __init__(
        self, database: Database, lent: Mapping[str, tuple[Signature, ...]] | None = None
    ) -> None:
        """`lent` are those of images of additional stores, by the digest that they are of."""
        self._database = database
        self._lent = lent or {}

    async def of(self, digests: Iterable[str]) -> tuple[Signature, ...]:
        """All that are kept of these digests."""
        wanted = tuple(digests)

        def work(connection: Connection) -> tuple[Signature, ...]:
            return tuple(
                _signature(row)
                for digest in wanted
                for row in connection.execute(
                    "SELECT payload, annotations FROM signatures WHERE digest = ?"
                    " ORDER BY position",
                    (digest,),
                ).fetchall()
            )

        kept = await self._database.read(work)
        lent = (one for digest in wanted for one in self._lent.get(digest, ()))
        return (*kept, *(one for one in lent if one not in kept))

    async def put(self, found: Mapping[str, Iterable[Signature]]) -> None:
        """Keep these in the place of those of the same digests.

        Raises:
            ResourceExhausted: disk full; nothing has changed.
        """
        rows = [
            (digest, position, one.payload, msgspec.json.encode(one.annotations).decode())
            for digest, signatures in found.items()
            for position, one in enumerate(signatures)
        ]

        def work(connection: Connection) -> None:
            connection.executemany(
                "DELETE FROM signatures WHERE digest = ?", [(digest,) for digest in found]
            )
            connection.executemany(
                "INSERT INTO signatures (digest, position, payload, annotations)"
                " VALUES (?, ?, ?, ?)",
                rows,
            )

        if found:
            await self._database.write(work)

    async def sweep(self) -> None:
        """Delete those of images that are not on the node any more.

        Raises:
            ResourceExhausted: a full disk could not record even that.
        """
        await self._database.write(_sweep, cleanup=True)


def read_signatures(connection: Connection) -> dict[str, tuple[Signature, ...]]:
    """All that a database keeps, by digest; raises Corrupt."""
    found: dict[str, tuple[Signature, ...]] = {}
    query = "SELECT payload, annotations, digest FROM signatures ORDER BY digest, position"
    for row in connection.execute(query).fetchall():
        digest = as_text(row[2])
        found[digest] = (*found.get(digest, ()), _signature(row))
    return found


def _signature(row: Row) -> Signature:
    try:
        annotations = msgspec.json.decode(as_text(row[1]), type=dict[str, str])
    except msgspec.MsgspecError as error:
        raise Corrupt("database holds no annotations where it must") from error
    return Signature(payload=as_bytes(row[0]), annotations=annotations)


def _sweep(connection: Connection) -> None:
    connection.execute(
        "DELETE FROM signatures WHERE digest NOT IN ("
        " SELECT manifest FROM images"
        " UNION SELECT substr(name, instr(name, '@') + 1) FROM names WHERE instr(name, '@') > 0)"
    )
