"""Signatures of the images on this node, kept so that a container's start asks no registry.

One row for each signature, under the repository that it was found in and the digest that it is of
(a manifest's or an index's): one image may lie in several repositories, each of which has the
signatures that name it and none of the others'. They are strangers' words as before: whoever reads
them has them judged again.
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


#: A repository and a digest in it.
Place = tuple[str, str]


class KeptSignatures:
    """Reads and writes the table `kept_signatures` of the catalog's database."""

    def __init__(
        self, database: Database, lent: Mapping[Place, tuple[Signature, ...]] | None = None
    ) -> None:
        """`lent` are those of images of additional stores."""
        self._database = database
        self._lent = lent or {}

    async def of(self, repository: str, digests: Iterable[str]) -> tuple[Signature, ...]:
        """All that are kept of these digests and were found in that repository."""
        wanted = tuple(digests)

        def work(connection: Connection) -> tuple[Signature, ...]:
            return tuple(
                _signature(row)
                for digest in wanted
                for row in connection.execute(
                    "SELECT payload, annotations FROM kept_signatures"
                    " WHERE repository = ? AND digest = ? ORDER BY position",
                    (repository, digest),
                ).fetchall()
            )

        kept = await self._database.read(work)
        lent = (one for digest in wanted for one in self._lent.get((repository, digest), ()))
        return (*kept, *(one for one in lent if one not in kept))

    async def put(self, repository: str, found: Mapping[str, Iterable[Signature]]) -> None:
        """Keep these in the place of those of the same repository and digests.

        Args:
            repository: with its host, as in `Reference.repository`.
            found: by digest.

        Raises:
            ResourceExhausted: disk full; nothing has changed.
        """
        rows = [
            (
                repository,
                digest,
                position,
                one.payload,
                msgspec.json.encode(one.annotations).decode(),
            )
            for digest, signatures in found.items()
            for position, one in enumerate(signatures)
        ]

        def work(connection: Connection) -> None:
            connection.executemany(
                "DELETE FROM kept_signatures WHERE repository = ? AND digest = ?",
                [(repository, digest) for digest in found],
            )
            connection.executemany(
                "INSERT INTO kept_signatures (repository, digest, position, payload, annotations)"
                " VALUES (?, ?, ?, ?, ?)",
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


def read_signatures(connection: Connection) -> dict[Place, tuple[Signature, ...]]:
    """All that a database keeps; raises Corrupt."""
    found: dict[Place, tuple[Signature, ...]] = {}
    query = (
        "SELECT payload, annotations, repository, digest FROM kept_signatures"
        " ORDER BY repository, digest, position"
    )
    for row in connection.execute(query).fetchall():
        place = as_text(row[2]), as_text(row[3])
        found[place] = (*found.get(place, ()), _signature(row))
    return found


def _signature(row: Row) -> Signature:
    try:
        annotations = msgspec.json.decode(as_text(row[1]), type=dict[str, str])
    except msgspec.MsgspecError as error:
        raise Corrupt("database holds no annotations where it must") from error
    return Signature(payload=as_bytes(row[0]), annotations=annotations)


def _text(annotations: dict[str, str]) -> str:
    return msgspec.json.encode(annotations).decode()


def _sweep(connection: Connection) -> None:
    wanted: set[tuple[str, str]] = set()
    for row in connection.execute(
        "SELECT names.name, images.manifest FROM names JOIN images ON images.id = names.image_id"
    ).fetchall():
        # A name is the repository, then `@` and a digest or `:` and a tag (`catalog`).
        name, manifest = as_text(row[0]), as_text(row[1])
        repository, at, digest = name.partition("@")
        wanted |= {(repository if at else name.rpartition(":")[0], manifest), (repository, digest)}
    kept = connection.execute("SELECT DISTINCT repository, digest FROM kept_signatures").fetchall()
    connection.executemany(
        "DELETE FROM kept_signatures WHERE repository = ? AND digest = ?",
        [row for row in kept if (as_text(row[0]), as_text(row[1])) not in wanted],
    )
