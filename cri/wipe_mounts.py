"""Whose a mount below our directories is, told by its place alone. Pure.

What the daemon mounts lies at places of its own making, always below a directory that it has made
for the purpose: a container's, a pod's, a handler's, a layer's. What is mounted at one of the fixed
directories themselves (images, their layers, containers, exit files) is somebody's disk or tmpfs,
put there so that ours has the room. That is emptied like the directory that it stands for, and
never unmounted. Mounts at any other place are not known here, and nothing is done to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

#: Directories of the run root below which the daemon mounts, and at which depth at least.
_RUN: Final = {"pods": 2, "containers": 2, "namespaces": 2, "programs": 2, "probe": 1}
#: The same of the image root (`imageservice.snapshots`).
_IMAGES: Final = {"mounts": 1, "staging": 1, "probe-mapping": 1, "probe-stores": 1}
#: Directories that the daemon makes for itself right below a root, besides those.
_HELD: Final = frozenset({"exits", "records", "runtime", "containers", "cni", "images", "pause"})
_HELD_IMAGES: Final = frozenset({"layers", "content", "ingest", "blobs", "containers"})


@dataclass(frozen=True, slots=True)
class Ground:
    """The three roots."""

    run_root: Path
    state_root: Path
    image_root: Path

    def own(self, targets: Iterable[Path]) -> list[Path]:
        """Those of the mount points that the daemon has made, in their order."""
        return [target for target in targets if self._is_own(target)]

    def foreign(self, targets: Iterable[Path]) -> list[Path]:
        """Those below the roots that it has not."""
        return [t for t in targets if self._is_below(t) and not self._is_own(t)]

    def holds_ours(self, target: Path) -> bool:
        """Whether what lies on a mount of others at `target` is the daemon's by its place."""
        if target == self.image_root:
            return True
        if target.parent == self.image_root:
            return target.name in _HELD_IMAGES | _IMAGES.keys()
        return (
            target.parent in (self.run_root, self.state_root) and target.name in _HELD | _RUN.keys()
        )

    def _is_below(self, target: Path) -> bool:
        roots = (self.run_root, self.state_root, self.image_root)
        return any(target != root and target.is_relative_to(root) for root in roots)

    def _is_own(self, target: Path) -> bool:
        for root, places in ((self.run_root, _RUN), (self.image_root, _IMAGES)):
            if target != root and target.is_relative_to(root):
                top, *below = target.relative_to(root).parts
                return top in places and len(below) >= places[top]
        return False
