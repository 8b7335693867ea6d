"""What may go: layers and documents that nothing refers to any more. Pure marking, then a sweep.

Roots are the images, the leases of root file systems, and the chains of pulls in flight (`held`),
whose layers no image names yet. Marking and taking the layers out of sight happen without a
suspension in between (see `Snapshotter.remove`), so a pull that relies on a layer holds it either
before the mark, or finds it gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imageservice.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from imageservice.catalog import ImageRecord
    from imageservice.snapshots.snapshotter import Snapshotter


def unreferenced_layers(
    layers: Iterable[str],
    images: Iterable[ImageRecord],
    leases: Iterable[Collection[str]],
    held: Collection[str],
) -> set[str]:
    """DiffIDs that no image, lease or pull refers to."""
    used = set(held)
    for image in images:
        used.update(image.chain)
    for chain in leases:
        used.update(chain)
    return set(layers) - used


def referenced_documents(images: Iterable[ImageRecord]) -> set[Digest]:
    """Digests of the manifests and configs of these images."""
    found: set[Digest] = set()
    for image in images:
        found.add(Digest.parse(image.id))
        found.add(Digest.parse(image.manifest))
    return found


async def sweep_layers(
    snapshots: Snapshotter, images: Iterable[ImageRecord], held: Collection[str]
) -> int:
    """Remove what is unreferenced at this moment; how many layers that were.

    Raises:
        ResourceExhausted: see `Snapshotter.remove`.
    """
    doomed = unreferenced_layers(snapshots.layers(), images, snapshots.leases().values(), held)
    if doomed:
        await snapshots.remove(doomed)
    return len(doomed)
