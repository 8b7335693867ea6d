"""The least that a pull can take once its bytes are here: see `PULL_FLOOR`."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from isal import isal_zlib

PULL_FLOOR: Final = (
    "reading the layers from the registry's disk, hashing, inflating, hashing again "
    "and writing them, as many at once as there are cores"
)

_PIECE_BYTES: Final = 1 << 20


def pull_floor_ms(storage: Path, *images: str) -> float:
    """Read, hash, inflate, hash and write the layers of images in a registry's directory.

    Args:
        storage: what the registry serves.
        images: such as registry.localhost/bench/large:1; a layer of several is taken once.
    """
    place = storage / "docker/registry/v2"
    found: dict[str, Path] = {}
    for image in images:
        repository, _, tag = image.partition("/")[2].rpartition(":")
        link = place / "repositories" / repository / f"_manifests/tags/{tag}/current/link"
        manifest = json.loads(_blob(place, link.read_text().strip()).read_bytes())
        found |= {each["digest"]: _blob(place, each["digest"]) for each in manifest["layers"]}
    layers = list(found.values())
    # On the disk that the kit's runtimes have their layers on.
    with tempfile.TemporaryDirectory(prefix="podwright-floor-", dir="/var/tmp") as there:
        began_ns = time.monotonic_ns()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            outputs = [Path(there, str(number)) for number in range(len(layers))]
            list(pool.map(_take_in, layers, outputs))
        return (time.monotonic_ns() - began_ns) / 1e6


def _blob(place: Path, digest: str) -> Path:
    name = digest.removeprefix("sha256:")
    return place / "blobs/sha256" / name[:2] / name / "data"


def _take_in(layer: Path, output: Path) -> None:
    packed, plain = hashlib.sha256(), hashlib.sha256()
    inflating = isal_zlib.decompressobj(wbits=31)
    with layer.open("rb") as source, output.open("wb") as sink:
        while piece := source.read(_PIECE_BYTES):
            packed.update(piece)
            text = inflating.decompress(piece)
            plain.update(text)
            sink.write(text)
