"""What a verification of a store says: how far it is, and what is not as it should be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FindingKind = Literal["layer", "blob", "document", "record", "stray", "lease", "store"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        what: digest of a layer, blob or document, name of a directory, key of a lease, path of a
            store.
        problem: in words.
        images: names of the images that it concerns.
        outcome: what a repair did; "" without one.
    """

    kind: FindingKind
    what: str
    problem: str
    images: tuple[str, ...] = ()
    outcome: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """How far a verification is: layers (and kept blobs) looked at, and their bytes."""

    layers: int
    of_layers: int
    done_bytes: int
    total_bytes: int
