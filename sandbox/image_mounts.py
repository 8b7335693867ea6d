"""Mounting what the snapshotter says: a container's root file system, or an image as a volume."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandbox.host import files, fuse, mounts
from sandbox.host.lsm_files import label_tree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandbox.host.mounts import Mount
    from sandbox.host.syscalls import Syscalls

#: Of an image volume: not even its upper directory is for writing, and device nodes are of no use.
VOLUME_OPTIONS: Final = ("ro", "nodev")


def mount_image(
    place: Path,
    parts: Sequence[Mount],
    *,
    syscalls: Syscalls,
    label: str = "",
    options: tuple[str, ...] = (),
) -> Sequence[Mount]:
    """Make the mount point and mount the parts there. Blocking.

    Args:
        place: the mount point.
        parts: mounts as the snapshotter gave them: the last one is the image, its target relative
            to the mount point; the others are there only to make it of, at places of their own.
        syscalls: the kernel.
        label: SELinux label of everything in it, where there is SELinux.
        options: further words for the last part.

    Returns:
        Nothing, or where a program has to serve the image: the parts as they are mounted, but for
        the last, which is for the caller (`sandbox.host.fuse`), as is taking the others away.

    Raises:
        PodwrightError: as the kernel says; nothing is mounted then.
    """
    files.make_private_dir(place, mode=0o755)
    placed = [
        dataclasses.replace(part, target=place / part.target, options=_with(label, part))
        for part in parts
    ]
    placed[-1] = dataclasses.replace(placed[-1], options=(*placed[-1].options, *options))
    if placed[-1].type == fuse.FUSE_OVERLAYFS:
        mounts.mount_all(placed[:-1], syscalls=syscalls)
        return placed
    if label and placed[-1].type == "bind":
        # A copy of the image, which is the container's own; a mount of its own would be labelled.
        label_tree(Path(placed[-1].source), label, syscalls=syscalls)
    mounts.mount_all(placed, syscalls=syscalls)
    for part in reversed(placed[:-1]):
        # Whoever copies the mount table from now on need not copy these.
        mounts.unmount(part.target, syscalls=syscalls)
    return ()


def _with(label: str, part: Mount) -> tuple[str, ...]:
    """The options of a part, with the label where it is a file system of the container's own."""
    if label and part.type in ("overlay", fuse.FUSE_OVERLAYFS):
        return (*part.options, f'context="{label}"')
    return part.options
