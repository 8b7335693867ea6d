"""The writable directories of a root file system, with what unpacking layers apart has cost.

A layer's archive may hold `tmp/x` without describing `tmp`. Unpacked on top of the layers below,
`tmp` would keep the mode 1777 that a lower layer gave it; unpacked alone it has to be made up, and
overlayfs shows the attributes of the topmost directory of a name. Docker's overlay2 and
containers/storage live with that. Here each new upper directory gets those few directories with the
attributes of the topmost layer that does describe them; most images have none.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from sandbox.host.errors import map_os_errors
from sandbox.host.files import remove_tree

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sandbox.host.idmap import IdMap

_OPAQUE: Final = "trusted.overlay.opaque"
#: Directories corrected in one image; each costs an inode in every container of it.
MAX_CORRECTIONS: Final = 1024


@dataclass(frozen=True, slots=True)
class LowerLayer:
    """A layer's tree, and the directories in it that its archive does not describe."""

    path: Path
    implied: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Correction:
    """`path` in the image must look like the directory `source`."""

    path: bytes
    source: bytes


def find_corrections(layers: Sequence[LowerLayer]) -> tuple[Correction, ...]:
    """What to correct, parents before what is in them; `layers` topmost first. Blocking.

    Raises:
        OSError: a layer cannot be read.
    """
    wanted: set[bytes] = set()
    for layer in layers[:-1]:  # below the lowest there is nobody to ask
        wanted.update(layer.implied - {b""})
    found: dict[bytes, Correction] = {}
    for path in sorted(wanted):
        source = _described(layers, path, needs_correction=True)
        if source is None or len(found) >= MAX_CORRECTIONS:
            continue
        # The upper directory needs the parents too, and they must look as they do below it.
        parts = path.split(b"/")
        for depth in range(1, len(parts)):
            parent = b"/".join(parts[:depth])
            if parent not in found:
                parent_source = _described(layers, parent, needs_correction=False)
                if parent_source is None:
                    break
                found[parent] = Correction(parent, parent_source)
        else:
            found[path] = Correction(path, source)
    return tuple(sorted(found.values(), key=lambda correction: correction.path))


def _described(
    layers: Sequence[LowerLayer], path: bytes, *, needs_correction: bool
) -> bytes | None:
    """The directory of the topmost layer that describes `path`, or None.

    None also when the topmost layer that has it describes it itself and `needs_correction`: then
    overlayfs shows the right attributes already. A path that only implied directories have is shown
    as the topmost of them is.
    """
    fallback: bytes | None = None
    for layer in layers:
        state, hides_below = _look(layer.path, path)
        if state == "directory":
            own = os.fsencode(layer.path) + b"/" + path
            if path not in layer.implied:
                return None if needs_correction and fallback is None else own
            fallback = fallback or own
        if hides_below:
            break
    return None if needs_correction else fallback


def _look(root: Path, path: bytes) -> tuple[Literal["directory", "other", "absent"], bool]:
    """What a layer has at `path`, and whether it hides what layers below have there."""
    here = os.fsencode(root)
    hides = False
    for part in path.split(b"/"):
        here = here + b"/" + part
        try:
            status = os.lstat(here)
        except FileNotFoundError:
            return "absent", hides
        if not stat.S_ISDIR(status.st_mode):
            return "other", True  # a whiteout, or a file in the place of a directory
        hides = hides or _is_opaque(here)
    return "directory", hides


def _is_opaque(path: bytes) -> bool:
    try:
        return os.getxattr(path, _OPAQUE, follow_symlinks=False) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise


def make_upper(
    upper_dir: Path,
    work_dir: Path,
    root_like: Path | None,
    corrections: Sequence[Correction] = (),
    ids: IdMap | None = None,
) -> None:
    """Make the writable directories. Blocking.

    An upper directory that exists is kept: it holds what a container wrote. The work directory is
    made anew: after an unclean end `volatile` leaves a mark in it that forbids mounting, and
    nothing in it is of any use.

    Args:
        upper_dir: becomes the root of the container, so it looks like the image's root.
        work_dir: overlayfs' own.
        root_like: the directory to look like; None for root's 0755.
        corrections: see the module's text.
        ids: whose owners those are, on a layer's disk; None where they are the node's. What a
            container writes belongs to the ids outside, so the directories do, too.

    Raises:
        ResourceExhausted: disk full; what was made is incomplete and `upper_dir` is gone again.
        PodwrightError: as the kernel says.
    """
    remove_tree(work_dir)
    with map_os_errors("cannot make root file system directories", path=str(upper_dir)):
        work_dir.mkdir(0o700, parents=True)
        try:
            upper_dir.mkdir(0o755, parents=True)
        except FileExistsError:
            return
        try:
            upper_dir.chmod(0o755)
            upper = os.fsencode(upper_dir)
            for correction in corrections:
                target = upper + b"/" + correction.path
                os.mkdir(target, 0o700)  # noqa: PTH102 - a path in bytes
                _look_like(target, correction.source, ids)
            # Deepest first: making a directory moved the times of the one above it.
            for correction in reversed(corrections):
                status = os.lstat(correction.source)
                times = (status.st_atime_ns, status.st_mtime_ns)
                os.utime(upper + b"/" + correction.path, ns=times)
            if root_like is not None:
                _look_like(upper, os.fsencode(root_like), ids)
            elif ids is not None:
                os.chown(upper_dir, *ids.root)
        except BaseException:
            remove_tree(upper_dir)
            raise


def _look_like(target: bytes, source: bytes, ids: IdMap | None) -> None:
    """Owner, mode, then attributes, as for any file."""
    status = os.lstat(source)
    owner = (status.st_uid, status.st_gid)
    os.chown(target, *(owner if ids is None else ids.owner(*owner)))
    os.chmod(target, stat.S_IMODE(status.st_mode))  # noqa: PTH101 - a path in bytes
    for name in os.listxattr(source, follow_symlinks=False):
        if name.startswith(("trusted.overlay.", "security.")):
            continue
        with suppress(OSError):
            os.setxattr(target, name, os.getxattr(source, name))
