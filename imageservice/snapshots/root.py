"""What overlayfs is told: which of an image's layers, in which order, seen through which mapping.

overlayfs itself cannot be mounted with mapped owners, its layers can (Linux 5.19). For a pod with a
user namespace each layer is therefore mounted once more, with that namespace's mapping, and the
overlay made of those. overlayfs keeps its own references to the mounts it is made of, so the places
can be unmounted as soon as it is there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.host import fuse
from sandbox.host.errors import map_os_errors
from sandbox.host.files import make_private_dir
from sandbox.host.mounts import Mount, list_mounts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imageservice.snapshots.ledger import LayerRow
    from imageservice.snapshots.snapshotter import MappedRoot

#: Where `map_layers` mounts layers; in an overlay's options it tells them from other stores' own.
_MAPPED = "mapped-layers"


def effective(rows: Sequence[LayerRow]) -> list[LayerRow]:
    """The layers that matter, lowest first.

    overlayfs refuses one directory twice; of a layer that is in a chain twice the upper one alone
    has the same effect, for it brings everything again. It also ignores an opaque mark on a layer's
    root, so what lies below such a layer is left out.
    """
    kept: list[LayerRow] = []
    seen: set[str] = set()
    for row in reversed(rows):
        if row.diff_id not in seen:
            seen.add(row.diff_id)
            kept.append(row)
        if row.facts.opaque_root:
            break
    return kept[::-1]


def root_mount(
    lower: Sequence[Path], writable: tuple[str, ...], *, options: tuple[str, ...], empty: Path
) -> Mount:
    """The mount of a root file system; its target is left to the caller.

    Args:
        lower: directories of the layers, lowest first; overlayfs wants the topmost first.
        writable: the words that name the upper and the work directory; empty for read-only.
        options: what this kernel's overlayfs takes.
        empty: a directory without files.
    """
    if not lower and not writable:
        return Mount("bind", str(empty), Path(), ("bind", "ro"))
    directories = [*reversed(lower)] or [empty]
    if not writable and len(directories) == 1:
        directories.append(empty)  # without an upper directory overlayfs wants two
    words = (f"lowerdir={':'.join(map(str, directories))}", *writable)
    kept = options if writable else tuple(o for o in options if o != "volatile")
    mode = () if writable else ("ro",)
    return Mount("overlay", "overlay", Path(), (*words, *kept, *mode))


def map_layers(lower: Sequence[Path], mapped: MappedRoot) -> tuple[Mount, ...]:
    """A mount for each layer, in the same order; blocking, for it makes the places.

    Raises:
        ResourceExhausted: disk full.
    """
    top = mapped.layers_at / _MAPPED
    make_private_dir(top)
    with map_os_errors("cannot make places for layers", path=str(top)):
        for layer in lower:
            (top / layer.name).mkdir(mode=0o700, exist_ok=True)
    words = ("bind", "ro", mapped.ids.word)
    return tuple(Mount("bind", str(layer), top / layer.name, words) for layer in lower)


def layers_in_use(root: Path) -> set[str]:
    """Names of directories of the store `root` that some overlay is made of; blocking.

    A layer with mapped owners does not show whose it is: one of another store with the same name
    keeps ours, until the next start.
    """
    store = re.escape(str(root))
    layer = re.compile(rf"(?:{store}/(?:layers|mounts)|/{_MAPPED})/([0-9a-z]+)")
    found: set[str] = set()
    mounts = list_mounts()
    for mount in mounts:
        if mount.type == "overlay":
            found.update(layer.findall(str(mount.super_options)))
    if any(mount.type == fuse.FUSE_OVERLAYFS for mount in mounts):
        # The kernel does not know what such a mount is made of; its program was told.
        for _, words in fuse.servers():
            found.update(layer.findall(" ".join(words)))
    return found
