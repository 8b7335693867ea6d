"""One additional store, read once: its images, layers and signatures as this node will use them."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from imageservice.catalog import APPLICATION_ID, MIGRATIONS, read_images
from imageservice.forms import INDEX_NAME, TAR_NAME
from imageservice.snapshots.ledger import read_layers, was_closed
from imageservice.snapshots.lender import CATALOG_NAME, Lender
from imageservice.trust.kept import read_signatures
from sandbox.host.closed_database import read_closed
from sandbox.host.errors import Corrupt, FailedPrecondition, NotFound, map_os_errors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from imageservice.catalog import ImageRecord
    from imageservice.snapshots.ledger import LayerRow
    from imageservice.trust.kept import Place
    from imageservice.trust.model import Signature
    from sandbox.host.database import Connection

#: As the driver names them; anything else could lead out of the store.
_DIRECTORY: Final = re.compile(r"[0-9a-z]+")
_NOT_THERE: Final = "mount its disk, or take it out of image.additional_stores"
_NOT_CLOSED: Final = (
    "end the daemon that uses it, or put it in order where it can be written:"
    " podwright verify --root DIR"
)


@dataclass(frozen=True, slots=True)
class StoredImages:
    """What a store has.

    Attributes:
        root: the store.
        images: with their names there.
        layers: those whose files are there.
        signatures: by where they were found and the digest that they are of.
        lost: layers that are recorded and not on its disk.
    """

    root: Path
    images: tuple[ImageRecord, ...]
    layers: tuple[LayerRow, ...]
    signatures: Mapping[Place, tuple[Signature, ...]]
    lost: tuple[LayerRow, ...] = ()


def read_store(root: Path) -> StoredImages:
    """What the store at `root` has; nothing is written. Blocking.

    Raises:
        NotFound: there is no store.
        FailedPrecondition: it is in use or was not closed in order, is of a newer release, or
            others than root can write to it.
        Corrupt: its catalog is damaged.
        PodwrightError: as the kernel says.
    """
    with map_os_errors("cannot read image store", path=str(root)):
        try:
            _refuse_foreign(root)
            lender = Lender.at(root)
        except FileNotFoundError as error:
            raise NotFound("there is no image store", path=str(root), hint=_NOT_THERE) from error
    try:
        closed, images, rows, signatures = read_closed(
            root / CATALOG_NAME, _read, migrations=MIGRATIONS, application_id=APPLICATION_ID
        )
        if not closed:
            raise FailedPrecondition(
                "image store is in use, or was not closed in order", path=str(root)
            )
    except FailedPrecondition as error:
        error.hint = error.hint or _NOT_CLOSED
        raise
    lent = [replace(row, lender=lender) for row in rows]
    with map_os_errors("cannot read image store", path=str(root)):
        there = {row: _is_there(row, lender) for row in lent}
    return StoredImages(
        root,
        images,
        tuple(row for row in lent if there[row]),
        signatures,
        tuple(row for row in lent if not there[row]),
    )


def _read(
    connection: Connection,
) -> tuple[bool, tuple[ImageRecord, ...], list[LayerRow], dict[Place, tuple[Signature, ...]]]:
    images, _names = read_images(connection)
    oldest_first = sorted(images.values(), key=lambda image: (image.created_ns, image.id))
    closed = was_closed(connection)
    return closed, tuple(oldest_first), read_layers(connection), read_signatures(connection)


def _refuse_foreign(root: Path) -> None:
    """Who can write there decides what runs as root here."""
    for path in (root, root / CATALOG_NAME):
        status = path.stat()
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise FailedPrecondition(
                "image store can be written to by others than root",
                path=str(path),
                uid=status.st_uid,
                mode=oct(stat.S_IMODE(status.st_mode)),
                hint="give it to root, mode 0700",
            )


def _is_there(row: LayerRow, lender: Lender) -> bool:
    if _DIRECTORY.fullmatch(row.directory) is None:
        raise Corrupt("image store names no directory of its own", layer=row.diff_id)
    directory = lender.layers_dir / row.directory
    if row.facts.form == "indexed":
        return (directory / TAR_NAME).is_file() and (directory / INDEX_NAME).is_file()
    return directory.is_dir()
