"""Which images there are and by what names: rows in SQLite, answers from memory.

An image is a config document; its digest is the image's id. Names point to it: tags such as
`docker.io/library/busybox:1.36`, and repo digests such as `docker.io/library/busybox@sha256:…` (the
digest that was pulled, of a manifest or an index). A tag has one image at a time; when it moves,
the image it leaves keeps its other names. The chain of an image is its layers' diffIDs, lowest
first; where the layers are is the snapshotter's business, in tables of the same database
(`MIGRATIONS`).

Reads never touch the disk: the kubelet asks for the list every few seconds.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from imageservice.errors import ReferenceInvalid
from imageservice.reference import parse_reference
from sandbox.host.database import Database, as_int, as_text, quarantine
from sandbox.host.errors import Corrupt
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from sandbox.host.clock import Clock
    from sandbox.host.database import Connection

_log = get_logger(__name__)

#: SQLite's application_id of the catalog: "PWim".
APPLICATION_ID: Final = 0x5057696D
#: Append only; one that was released never changes.
MIGRATIONS: Final = (
    """
    CREATE TABLE images (
        id TEXT PRIMARY KEY,
        manifest TEXT NOT NULL,
        size_bytes INTEGER NOT NULL,
        created_ns INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE image_layers (
        image_id TEXT NOT NULL,
        position INTEGER NOT NULL,
        diff_id TEXT NOT NULL,
        PRIMARY KEY (image_id, position)
    ) STRICT;
    CREATE TABLE names (
        name TEXT PRIMARY KEY,
        image_id TEXT NOT NULL
    ) STRICT;
    CREATE TABLE layers (
        diff_id TEXT PRIMARY KEY,
        directory TEXT NOT NULL UNIQUE,
        entries INTEGER NOT NULL,
        size_bytes INTEGER NOT NULL,
        opaque_root INTEGER NOT NULL,
        implied BLOB NOT NULL,
        boot_id TEXT NOT NULL,
        is_checked INTEGER NOT NULL,
        used_bytes INTEGER,
        inodes INTEGER
    ) STRICT;
    CREATE TABLE leases (
        key TEXT NOT NULL,
        position INTEGER NOT NULL,
        diff_id TEXT NOT NULL,
        PRIMARY KEY (key, position)
    ) STRICT;
    CREATE TABLE lease_keys (
        key TEXT PRIMARY KEY
    ) STRICT;
    CREATE TABLE marks (
        name TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) STRICT;
    """,
    """
    ALTER TABLE layers ADD COLUMN form TEXT NOT NULL DEFAULT 'tree';
    ALTER TABLE layers ADD COLUMN index_digest TEXT NOT NULL DEFAULT '';
    """,
    """
    CREATE TABLE signatures (
        digest TEXT NOT NULL,
        position INTEGER NOT NULL,
        payload BLOB NOT NULL,
        annotations TEXT NOT NULL,
        PRIMARY KEY (digest, position)
    ) STRICT;
    """,
    """
    ALTER TABLE images ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
    """,
    """
    ALTER TABLE images ADD COLUMN borrows INTEGER NOT NULL DEFAULT 0;
    """,
    # Where a signature was found was not recorded: in any repository that the image is known by.
    """
    CREATE TABLE kept_signatures (
        repository TEXT NOT NULL,
        digest TEXT NOT NULL,
        position INTEGER NOT NULL,
        payload BLOB NOT NULL,
        annotations TEXT NOT NULL,
        PRIMARY KEY (repository, digest, position)
    ) STRICT;
    INSERT OR IGNORE INTO kept_signatures (repository, digest, position, payload, annotations)
        SELECT substr(names.name, 1, instr(names.name, '@') - 1), signatures.digest,
            signatures.position, signatures.payload, signatures.annotations
        FROM signatures
        JOIN images ON TRUE
        JOIN names ON names.image_id = images.id AND instr(names.name, '@') > 0
        WHERE signatures.digest = images.manifest
            OR signatures.digest = substr(names.name, instr(names.name, '@') + 1);
    DROP TABLE signatures;
    """,
)
#: Fewest characters of an id that are looked up: three are too likely to be somebody's image name.
MIN_PREFIX_CHARS: Final = 4
_HEX: Final = frozenset("0123456789abcdef")


async def open_database(path: Path, *, clock: Clock) -> Database:
    """The file of the catalog and the snapshots; one that is corrupt is put aside.

    Raises:
        FailedPrecondition: it is of a newer version, or of another program.
        PodwrightError: as the kernel says.
    """
    try:
        return await Database.open(path, migrations=MIGRATIONS, application_id=APPLICATION_ID)
    except Corrupt as error:
        # Images can be pulled again; a daemon that does not start cannot be helped by anyone.
        label = str(clock.wall_ns() // 1_000_000_000)
        aside = await asyncio.to_thread(quarantine, path, label)
        _log.error("image catalog is corrupt and begun anew", error=error, kept=str(aside))
    return await Database.open(path, migrations=MIGRATIONS, application_id=APPLICATION_ID)


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image.

    Attributes:
        id: `sha256:<config digest>`.
        manifest: digest of its manifest, which is kept as a document.
        chain: diffIDs, lowest layer first.
        size_bytes: compressed layers and config, as the registry holds them.
        created_ns: when it was first pulled, wall clock.
        pinned: somebody said so by hand; the settings may pin it as well (`images.image_of`).
        borrows: when it came, some of its layers were additional stores'; it is not forgotten while
            such a store is away.
        tags, digests: its names, sorted.
    """

    id: str
    manifest: str
    chain: tuple[str, ...]
    size_bytes: int
    created_ns: int
    pinned: bool = False
    borrows: bool = False
    tags: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()


class Catalog:
    """The images; make one, then `load`. For one event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._images: dict[str, ImageRecord] = {}
        self._names: dict[str, str] = {}

    async def load(self) -> None:
        """Read everything; raises Corrupt."""
        self._images, self._names = await self._database.read(read_images)

    def images(self) -> list[ImageRecord]:
        """All images, oldest first."""
        return sorted(self._images.values(), key=lambda image: (image.created_ns, image.id))

    def get(self, image_id: str) -> ImageRecord | None:
        """The image of exactly this id."""
        return self._images.get(image_id)

    def find(self, text: str) -> ImageRecord | None:
        """The image that `text` means: a name in any spelling, an id, or the beginning of one.

        A name wins over the beginning of an id; a beginning must be unique.
        """
        image_id = find_id(text, self._images.keys(), self._names)
        return None if image_id is None else self._images[image_id]

    def is_named(self, name: str) -> bool:
        """Whether the canonical name means an image of this catalog."""
        return name in self._names

    async def record(self, image: ImageRecord, names: Iterable[str]) -> ImageRecord:
        """Add an image, or names to one that is there; each name now means this image.

        Raises:
            ResourceExhausted: disk full; nothing has changed.
        """
        new_names = tuple(names)
        known = self._images.get(image.id)
        kept = image
        if known is not None:
            # Pulled or loaded again: what was pinned by hand is unpinned by hand only.
            pinned = image.pinned or known.pinned
            kept = replace(image, created_ns=known.created_ns, pinned=pinned)

        def work(connection: Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO images "
                "(id, manifest, size_bytes, created_ns, pinned, borrows) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (
                    *(kept.id, kept.manifest, kept.size_bytes, kept.created_ns),
                    *(int(kept.pinned), int(kept.borrows)),
                ),
            )
            connection.execute("DELETE FROM image_layers WHERE image_id = ?", (kept.id,))
            connection.executemany(
                "INSERT INTO image_layers (image_id, position, diff_id) VALUES (?, ?, ?)",
                [(kept.id, position, diff_id) for position, diff_id in enumerate(kept.chain)],
            )
            connection.executemany(
                "INSERT OR REPLACE INTO names (name, image_id) VALUES (?, ?)",
                [(name, kept.id) for name in new_names],
            )

        await self._database.write(work)
        self._images[kept.id] = kept
        moved = {self._names[name] for name in new_names if name in self._names}
        self._names.update(dict.fromkeys(new_names, kept.id))
        for image_id in moved | {kept.id}:
            self._rename(image_id)
        return self._images[kept.id]

    async def pin(self, image_id: str, *, pinned: bool) -> ImageRecord | None:
        """Set or clear the mark; the record now, None when there is no such image.

        Raises:
            ResourceExhausted: disk full; nothing has changed.
        """

        def work(connection: Connection) -> None:
            connection.execute("UPDATE images SET pinned = ? WHERE id = ?", (int(pinned), image_id))

        await self._database.write(work)
        if image_id not in self._images:
            return None
        self._images[image_id] = replace(self._images[image_id], pinned=pinned)
        return self._images[image_id]

    def hide(self, image_id: str) -> None:
        """Answer as if the image were gone; `erase` makes it so on disk."""
        self._images.pop(image_id, None)
        self._names = {name: i for name, i in self._names.items() if i != image_id}

    async def erase(self, image_ids: Iterable[str]) -> None:
        """Delete the rows of images that are hidden; unknown ones are fine.

        Raises:
            ResourceExhausted: disk full; the rows are still there.
        """
        gone = [(image_id,) for image_id in image_ids]

        def work(connection: Connection) -> None:
            connection.executemany("DELETE FROM names WHERE image_id = ?", gone)
            connection.executemany("DELETE FROM image_layers WHERE image_id = ?", gone)
            connection.executemany("DELETE FROM images WHERE id = ?", gone)

        await self._database.write(work, cleanup=True)

    def _rename(self, image_id: str) -> None:
        """Bring the names inside the record up to date."""
        image = self._images.get(image_id)
        if image is not None:
            self._images[image_id] = _named(image, self._names)


def find_id(text: str, ids: Collection[str], names: Mapping[str, str]) -> str | None:
    """The id that `text` means among `ids`; see `Catalog.find`. `names` are canonical ones."""
    bare = text.removeprefix("sha256:")
    if (bare != text or len(bare) == 64) and f"sha256:{bare}" in ids:
        return f"sha256:{bare}"
    try:
        reference = parse_reference(text)
    except ReferenceInvalid:
        pass
    else:
        digest = reference.digest
        name = reference.canonical if digest is None else f"{reference.repository}@{digest}"
        if name in names:
            return names[name]
    if len(bare) < MIN_PREFIX_CHARS or not _HEX.issuperset(bare):
        return None
    matches = [i for i in ids if i.startswith(f"sha256:{bare}")]
    return matches[0] if len(matches) == 1 else None


def read_images(connection: Connection) -> tuple[dict[str, ImageRecord], dict[str, str]]:
    """Images by id, and ids by name, as a database records them; raises Corrupt."""
    chains: dict[str, list[str]] = {}
    query = "SELECT image_id, diff_id FROM image_layers ORDER BY image_id, position"
    for row in connection.execute(query).fetchall():
        chains.setdefault(as_text(row[0]), []).append(as_text(row[1]))
    query = "SELECT id, manifest, size_bytes, created_ns, pinned, borrows FROM images"
    images = {
        as_text(row[0]): ImageRecord(
            id=as_text(row[0]),
            manifest=as_text(row[1]),
            chain=tuple(chains.get(as_text(row[0]), ())),
            size_bytes=as_int(row[2]),
            created_ns=as_int(row[3]),
            pinned=bool(as_int(row[4])),
            borrows=bool(as_int(row[5])),
        )
        for row in connection.execute(query).fetchall()
    }
    names = {
        as_text(row[0]): as_text(row[1])
        for row in connection.execute("SELECT name, image_id FROM names").fetchall()
        if as_text(row[1]) in images
    }
    return {image_id: _named(image, names) for image_id, image in images.items()}, names


def _named(image: ImageRecord, names: Mapping[str, str]) -> ImageRecord:
    own = sorted(name for name, target in names.items() if target == image.id)
    return replace(
        image,
        tags=tuple(name for name in own if "@" not in name),
        digests=tuple(name for name in own if "@" in name),
    )
