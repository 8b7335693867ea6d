"""Where each layer is seen as a directory: a tree as it lies, an indexed one mounted while needed.

An indexed layer is mounted once, at `mounts/NAME`, for all containers that have it, so they share
its page cache; it is mounted when the first lease needs it and unmounted when the last one ends.
Mounts survive the daemon and die with the boot, so none of this is recorded: whether a place is
mounted is asked of the kernel each time (a different device than its parent), at the cost of a
stat. A place that somebody unmounted by hand is mounted again, never taken for an empty layer.

A layer of an additional store is seen at `mounts/` too, whatever its form; a tree is bound there.
So its path is short and needs no quoting, its name is nobody else's, and a running container does
not care whether the store's own mount point still is where it was. The name is from the diffID: it
holds whichever store lends the layer, and in whatever order they are configured.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from imageservice.forms import TAR_NAME
from imageservice.snapshots.indexed import is_whole, mount_index
from imageservice.trees import count_tree
from sandbox.host.errors import NotFound, PodwrightError, map_os_errors
from sandbox.host.files import make_private_dir
from sandbox.host.journal import get_logger
from sandbox.host.mounts import Mount, list_mounts, mount_one, unmount
from sandbox.host.threads import to_its_end

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from pathlib import Path

    from imageservice.snapshots.ledger import LayerRow
    from sandbox.host.syscalls import Syscalls

_log = get_logger(__name__)
#: Digits of a diffID; our own layers' names are a few characters long.
_LENT_NAME_CHARS: Final = 16
#: How many places are looked at on the event loop; each takes 3 microseconds.
_LOOKS: Final = 32
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


class LayerPlaces:
    """The places of one store's layers. For one event loop."""

    def __init__(self, root: Path, *, syscalls: Syscalls) -> None:
        """Layers are committed in `root`/layers and mounted in `root`/mounts."""
        self.layers_dir = root / "layers"
        self._mounts_dir = root / "mounts"
        self._syscalls = syscalls
        # A mount for a new lease must not meet the unmount for one that ended.
        self._changing = asyncio.Lock()

    def of(self, row: LayerRow) -> Path:
        """The directory that shows the layer's files, once `mount` has run."""
        if row.lender is None and row.facts.form == "tree":
            return self.layers_dir / row.directory
        return self._mounts_dir / _name(row)

    def directory_of(self, row: LayerRow) -> Path:
        """What was committed: the tree, or the directory of the tar and the index."""
        return (row.lender.layers_dir if row.lender else self.layers_dir) / row.directory

    def tar_of(self, row: LayerRow) -> Path | None:
        """The layer's plain tar, where it is kept as one."""
        return self.directory_of(row) / TAR_NAME if row.facts.form == "indexed" else None

    async def open(self, needed: Collection[str]) -> None:
        """Unmount what a former daemon left of layers that are not in `needed`.

        Args:
            needed: directory names of our own, `lent_name` of what may be another store's.

        Raises:
            PodwrightError: as the kernel says.
        """
        await asyncio.to_thread(self._open, frozenset(needed))

    async def mount(self, rows: Iterable[LayerRow]) -> None:
        """Have the layers' files seen at their places.

        Raises:
            NotFound, Corrupt: the files of an indexed layer are gone or damaged.
            Unavailable: the additional store that has a layer is gone.
            PodwrightError: as the kernel says.
        """
        mounted = [row for row in rows if _is_mounted(row)]
        if mounted and not self._are_seen(mounted):
            async with self._changing:
                await to_its_end(partial(self._mount, mounted))

    def _are_seen(self, rows: Sequence[LayerRow]) -> bool:
        """Whether all are mounted, and stay so for the lease that the caller already has.

        Asked on the event loop: the kernel has the root of a mount, and all that leads to it, in
        memory. Not so of another store's layers, which may be on a network. Measured on the
        reference machine: CreateContainer 0.3 ms shorter than with a thread for it.
        """
        if self._changing.locked() or len(rows) > _LOOKS or any(row.lender for row in rows):
            return False
        try:
            above = self._mounts_dir.stat().st_dev
            return all((self._mounts_dir / _name(row)).stat().st_dev != above for row in rows)
        except OSError:
            return False

    async def unmount_unless(
        self, is_needed: Callable[[LayerRow], bool], rows: Iterable[LayerRow]
    ) -> None:
        """Unmount those of `rows` that nothing needs at this moment; trouble is logged only.

        A place that stays mounted costs some memory, and the next start sees to it.
        """
        async with self._changing:
            idle = [row for row in rows if _is_mounted(row) and not is_needed(row)]
            if idle:
                await to_its_end(partial(self._unmount, [_name(row) for row in idle]))

    def find_broken(self, rows: Iterable[LayerRow]) -> list[LayerRow]:
        """Those that are not what was committed; see `layer_problem`. Blocking."""
        return [row for row in rows if layer_problem(self.directory_of(row), row)]

    def _open(self, needed: frozenset[str]) -> None:
        make_private_dir(self._mounts_dir)
        with map_os_errors("cannot read the places of layers", path=str(self._mounts_dir)):
            names = [path.name for path in self._mounts_dir.iterdir()]
        self._unmount([name for name in names if name not in needed])

    def _mount(self, rows: Iterable[LayerRow]) -> None:
        for row in rows:
            place, directory = self._mounts_dir / _name(row), self.directory_of(row)
            is_bound = row.facts.form == "tree"
            with map_os_errors("cannot make the place of a layer", path=str(place)):
                place.mkdir(mode=0o700, exist_ok=True)
                mounted = (
                    _is_bound(place, directory)
                    if is_bound
                    else place.stat().st_dev != self._mounts_dir.stat().st_dev
                )
            if mounted:
                continue
            if row.lender is not None:
                row.lender.check()
            if is_bound:
                bind = Mount("bind", str(directory), place, ("bind", "ro", "private"))
                mount_one(bind, syscalls=self._syscalls)
            else:
                mount_index(directory, place, syscalls=self._syscalls)

    def _unmount(self, names: Iterable[str]) -> None:
        for name in names:
            place = self._mounts_dir / name
            try:
                unmount(place, syscalls=self._syscalls)
                # Gone when two leases have ended at the same time.
                with (
                    suppress(NotFound),
                    map_os_errors("cannot remove the place of a layer", path=str(place)),
                ):
                    place.rmdir()
            except PodwrightError as error:
                _log.warning("cannot unmount layer", path=str(place), error=str(error))


def layer_problem(directory: Path, row: LayerRow) -> str:
    """What is wrong with a layer's files, "" when nothing is. Blocking.

    The tar and the index of an indexed layer are hashed. Of a layer kept as files only their number
    and their lengths are known.
    """
    if not directory.is_dir():
        return "its directory is missing"
    if row.facts.form == "indexed":
        if is_whole(directory, row.diff_id, row.facts.index_digest):
            return ""
        return "its tar or its index is not what was committed"
    with suppress(OSError):
        if count_tree(directory) == (row.facts.entries, row.facts.size_bytes):
            return ""
    return "its files are not as many or not as long as they were"


def directory_name(number: int) -> str:
    """Base 36: two characters for the first 1296 layers of a node."""
    digits = ""
    while True:
        number, digit = divmod(number, len(_DIGITS))
        digits = _DIGITS[digit] + digits
        if not number:
            return digits


def directory_number(name: str) -> int:
    """The number that a directory of ours is named by; 0 for another's."""
    return int(name, 36) if name.isascii() and name.isalnum() else 0


def lent_name(diff_id: str) -> str:
    """Name of the place of a layer that another store has."""
    return diff_id.partition(":")[2][:_LENT_NAME_CHARS]


def _name(row: LayerRow) -> str:
    return row.directory if row.lender is None else lent_name(row.diff_id)


def _is_bound(place: Path, directory: Path) -> bool:
    try:
        return place.samefile(directory)
    except OSError:  # the store is away; what is bound of it still shows the layer
        return any(mount.target == place for mount in list_mounts())


def _is_mounted(row: LayerRow) -> bool:
    """Whether the layer is seen at a mount, and not as it lies."""
    return row.lender is not None or row.facts.form == "indexed"
