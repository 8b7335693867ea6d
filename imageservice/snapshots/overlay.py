"""Layers on a disk, and root file systems that a driver makes of them (`drivers`).

    layers/<n>      a committed layer: its files, or its tar and an index over it (`forms`); n is a
                    short number, for 128 of them must fit in the page of option text that
                    mount(2) takes
    mounts/<n>      where an indexed layer is seen (`places`)
    layers/empty    the lower directory of an image without layers (overlayfs wants one)
    staging/<n>     a layer being written, on the same file system

Publishing a layer, in this order: syncfs (its files), rename into place, fsync of `layers` (its
name), then the ledger's row. containerd and Docker record first and leave writing to the kernel;
after a power failure their images have empty files, and pulling again does not help because the
layer is "there" (containerd#5854, #10655). Several layers that are ready at once share one syncfs.

Mount options: `volatile` where the kernel has it (5.10), because a container's writes need not
survive the node and because the unmount would otherwise write back the whole file system;
`index=off` so that an upper directory can be mounted again whatever it was mounted with before.
"""

from __future__ import annotations

import asyncio
import os
import re
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from imageservice.snapshots.audit import LayerAudit
from imageservice.snapshots.drivers import DriverWish, Plan, Storage, choose_driver
from imageservice.snapshots.indexed import probe_indexed
from imageservice.snapshots.ledger import LayerRow, Ledger
from imageservice.snapshots.places import LayerPlaces, directory_name, directory_number, lent_name
from imageservice.snapshots.root import effective, layers_in_use
from imageservice.snapshots.snapshotter import LayerFacts, MappedRoot, SnapshotUsage, Staging
from imageservice.snapshots.syncing import SyncGate
from imageservice.snapshots.upper import Correction, LowerLayer, find_corrections
from sandbox.host.clock import Clock, SystemClock
from sandbox.host.errors import (
    Busy,
    FailedPrecondition,
    NotFound,
    PodwrightError,
    ResourceExhausted,
    Unsupported,
    map_os_errors,
)
from sandbox.host.files import filesystem_usage, make_private_dir, remove_tree
from sandbox.host.journal import get_logger
from sandbox.host.mounts import unmount_tree
from sandbox.host.pidfd import boot_id
from sandbox.host.threads import beside, in_one_piece, to_its_end

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from imageservice.forms import LayerChoice, LayerForm
    from sandbox.host.database import Database
    from sandbox.host.mounts import Mount
    from sandbox.host.syscalls import Syscalls

_log = get_logger(__name__)
_EMPTY: Final = "empty"
#: A worker of a daemon that was killed may write for a moment longer.
_CLEAN_TRIES: Final = 50
_CLEAN_DELAY_S: Final = 0.1


class OverlaySnapshotter:
    """See `Snapshotter`."""

    def __init__(
        self,
        root: Path,
        database: Database,
        *,
        syscalls: Syscalls,
        clock: Clock | None = None,
        layer_form: LayerChoice = "tree",
        lent: Iterable[LayerRow] = (),
        driver: DriverWish | None = None,
    ) -> None:
        self._root = root
        self._places = LayerPlaces(root, syscalls=syscalls)
        self._choice: LayerChoice = layer_form
        self.layer_form: LayerForm = "tree"
        self.layers_dir = self._places.layers_dir
        self._staging_dir = root / "staging"
        self._empty = self.layers_dir / _EMPTY
        self._ledger = Ledger(database, lent)
        self._syscalls = syscalls
        self._clock = clock or SystemClock()
        self._sync = SyncGate(self.layers_dir, syscalls)
        self._removing = asyncio.Semaphore(2)
        self._next = 0
        self._staged: dict[Path, int] = {}  # with `SyncGate.failures` when each was begun
        self.audit = LayerAudit(root, self._ledger, self._places, self._staged)
        self._wish = driver or DriverWish("overlay")
        #: How root file systems are made; after `open`.
        self.storage: Storage
        self._corrections: dict[tuple[str, ...], tuple[Correction, ...]] = {}

    async def open(self) -> None:
        """See `Snapshotter`; also tries how root file systems can be made here.

        Raises:
            FailedPrecondition: the path cannot be written into overlay options.
        """
        if re.search(r"[:,\\\"\s]", str(self._root)):
            raise FailedPrecondition(
                "image directory has a character that overlay options give a meaning",
                hint="choose a path without colon, comma, quote, backslash and blank",
                path=str(self._root),
            )
        await asyncio.to_thread(self._make_directories)
        await self._empty_staging()
        probe = self._staging_dir / "probe"
        self.storage = await choose_driver(self._wish, probe, syscalls=self._syscalls)
        await self._choose_form()
        await self._ledger.load()
        was_orderly = await self._ledger.mark_running(boot_id())
        present = await asyncio.to_thread(self._list_layers)
        await self._drop_broken(present, was_orderly=was_orderly)
        await self._places.open(self._leased())
        self._next = 1 + max((directory_number(name) for name in present), default=0)

    async def _choose_form(self) -> None:
        if self._choice == "tree":
            return
        reason = await asyncio.to_thread(
            probe_indexed, self._staging_dir / "probe-indexed", self._syscalls
        )
        if not reason:
            self.layer_form = "indexed"
        elif self._choice == "indexed":
            raise Unsupported(
                f"layers cannot be indexed here: {reason}",
                hint="set image.layer_form to auto or tree, or use Linux 6.12 with EROFS",
                path=str(self._root),
            )

    def _leased(self) -> set[str]:
        """Names of places that leases may need; a lender that is away now may have been mounted."""
        held = {diff_id for chain in self._ledger.leases().values() for diff_id in chain}
        own = self._ledger.layers()
        return {own[d].directory for d in held if d in own} | {lent_name(d) for d in held}

    async def close(self) -> None:
        """See `Snapshotter`."""
        await self._sync.close()
        await self._ledger.mark_ended()

    def has(self, diff_id: str) -> bool:
        """See `Snapshotter`."""
        return self._ledger.get(diff_id) is not None

    def tar_of(self, diff_id: str) -> Path | None:
        """See `Snapshotter`."""
        row = self._ledger.get(diff_id)
        return None if row is None else self._places.tar_of(row)

    def layers(self) -> Collection[str]:
        """See `Snapshotter`."""
        return self._ledger.layers().keys()

    def leases(self) -> Mapping[str, tuple[str, ...]]:
        """See `Snapshotter`."""
        return self._ledger.leases()

    async def stage(self, diff_id: str) -> Staging:
        """See `Snapshotter`."""
        path = self._staging_dir / directory_name(self._next)
        self._next += 1
        self._staged[path] = self._sync.failures
        try:
            with map_os_errors("cannot stage layer"):
                await to_its_end(partial(path.mkdir, 0o755))
        except BaseException:
            with suppress(OSError):
                path.rmdir()
            self._staged.pop(path, None)
            raise
        return Staging(diff_id, path, self.layer_form)

    async def commit(self, staging: Staging, facts: LayerFacts) -> None:
        """See `Snapshotter`."""
        if staging.path not in self._staged:
            raise NotFound("layer staging is gone", layer=staging.diff_id)
        if self.has(staging.diff_id):
            await self.discard(staging)
            return
        await self._sync.run(self._staged[staging.path])
        # Name, row and memory are one: who is called off in between has committed it or has not.
        await in_one_piece(self._make_visible(staging, facts))

    async def _make_visible(self, staging: Staging, facts: LayerFacts) -> None:
        name = staging.path.name
        try:
            await asyncio.to_thread(self._publish, staging.path)
            await self._ledger.add(LayerRow(staging.diff_id, name, facts, boot_id()))
        except BaseException:
            with suppress(OSError):
                (self.layers_dir / name).rename(staging.path)  # where `discard` finds it
            raise
        self._staged.pop(staging.path, None)

    def _publish(self, path: Path) -> None:
        with map_os_errors("cannot publish layer", path=str(path)):
            path.rename(self.layers_dir / path.name)
            fd = os.open(self.layers_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    async def discard(self, staging: Staging) -> None:
        """See `Snapshotter`."""
        if staging.path in self._staged:
            await to_its_end(partial(remove_tree, staging.path))
            self._staged.pop(staging.path, None)

    async def prepare(
        self,
        key: str,
        chain: tuple[str, ...],
        *,
        upper_dir: Path,
        work_dir: Path,
        read_only: bool = False,
        mapped: MappedRoot | None = None,
    ) -> tuple[Mount, ...]:
        """See `Snapshotter`."""
        known: list[LayerRow] = []
        for diff_id in chain:
            row = self._ledger.get(diff_id)
            if row is None:
                raise NotFound("image layer is not on this node", layer=diff_id)
            known.append(row)
        rows = effective(known)
        lower = [LowerLayer(self._places.of(row), row.facts.implied) for row in rows]
        driver = self.storage.driver
        wants = driver.corrects and not read_only
        try:
            async with beside(self._ledger.lease(key, chain)):
                await self._places.mount(rows)
                return await driver.compose(
                    Plan(
                        lower=lower,
                        empty=self._empty,
                        upper_dir=upper_dir,
                        work_dir=work_dir,
                        read_only=read_only,
                        mapped=mapped,
                        corrections=await self._corrections_of(lower) if wants else (),
                    )
                )
        except BaseException:
            # Without its lease nobody finds by the key what was mounted beside.
            if key not in self._ledger.leases():
                await in_one_piece(self._places.unmount_unless(self._ledger.holds, rows))
            raise

    async def _corrections_of(self, lower: Sequence[LowerLayer]) -> tuple[Correction, ...]:
        """Remembered for each chain, by its places: layers never change."""
        key = tuple(layer.path.name for layer in lower)
        known = self._corrections.get(key)
        if known is None:
            with map_os_errors("cannot read image layers"):
                known = await asyncio.to_thread(find_corrections, lower[::-1])
            self._corrections[key] = known
        return known

    async def release(self, key: str) -> None:
        """See `Snapshotter`. Torn in two, nobody would know which layers are still mounted."""
        await in_one_piece(self._release(key))

    async def _release(self, key: str) -> None:
        rows = [self._ledger.get(diff_id) for diff_id in self._ledger.leases().get(key, ())]
        await self._ledger.unlease(key)
        await self._places.unmount_unless(
            self._ledger.holds, [row for row in rows if row is not None]
        )

    async def remove(self, diff_ids: Collection[str]) -> None:
        """See `Snapshotter`."""
        rows = self._ledger.hide(diff_ids)
        if not rows:
            return
        gone = {row.directory for row in rows}
        self._corrections = {
            names: found for names, found in self._corrections.items() if gone.isdisjoint(names)
        }
        await in_one_piece(self._remove(rows))

    async def _remove(self, rows: Collection[LayerRow]) -> None:
        try:
            await self._ledger.erase(rows)
        except ResourceExhausted:
            # A full disk cannot even record that something is gone: make room first. Should the
            # daemon die now, the next start finds rows without directories and drops them.
            await self._remove_directories(rows)
            await self._ledger.erase(rows)
            return
        await self._remove_directories(rows)

    async def _remove_directories(self, rows: Iterable[LayerRow]) -> None:
        # Removing a big tree takes a thread for seconds; mounts of new pods need threads as well.
        async with self._removing:
            for row in rows:
                await asyncio.to_thread(self._remove_directory, row.directory)

    def _remove_directory(self, name: str) -> None:
        """Out of `layers` first, so that half a layer is never found there."""
        target = self._staging_dir / name
        with suppress(NotFound), map_os_errors("cannot remove layer", layer=name):
            (self.layers_dir / name).rename(target)
        remove_tree(target)

    async def usage(self) -> SnapshotUsage:
        """See `Snapshotter`."""
        fresh = [row for row in self._ledger.layers().values() if row.used_bytes is None]
        if fresh:
            measured = await asyncio.to_thread(self._measure, fresh)
            await self._ledger.update(measured)
        rows = self._ledger.layers().values()
        return SnapshotUsage(
            sum(row.used_bytes or 0 for row in rows), sum(row.inodes or 0 for row in rows)
        )

    def _measure(self, rows: Iterable[LayerRow]) -> list[LayerRow]:
        found: list[LayerRow] = []
        for row in rows:
            used = filesystem_usage(self.layers_dir / row.directory)
            found.append(replace(row, used_bytes=used.used_bytes, inodes=used.inodes))
        return found

    def _make_directories(self) -> None:
        for directory in (self._root, self.layers_dir, self._staging_dir):
            make_private_dir(directory)
        make_private_dir(self._empty, 0o755)
        self._sync.open()

    async def _empty_staging(self) -> None:
        """Remove what an earlier daemon was writing, once its last worker has noticed its end."""
        for attempt in range(_CLEAN_TRIES):
            try:
                await asyncio.to_thread(self._remove_stagings)
                return
            except Busy:
                if attempt == _CLEAN_TRIES - 1:
                    raise
            await self._clock.sleep(_CLEAN_DELAY_S)

    def _remove_stagings(self) -> None:
        with map_os_errors("cannot read staging directory", path=str(self._staging_dir)):
            paths = list(self._staging_dir.iterdir())
        for path in paths:
            # A daemon that was killed while it tried what the kernel can do has left a mount.
            unmount_tree(path, syscalls=self._syscalls)
            remove_tree(path)

    def _list_layers(self) -> set[str]:
        with map_os_errors("cannot read layers directory", path=str(self.layers_dir)):
            return {path.name for path in self.layers_dir.iterdir()} - {_EMPTY}

    async def _drop_broken(self, present: set[str], *, was_orderly: bool) -> None:
        """Records without a directory, directories without a record, and layers that are not whole.

        A directory that is mounted somewhere stays even without a record: when the catalog is lost,
        containers may still be running on it.
        """
        rows = self._ledger.layers()
        missing = [row.diff_id for row in rows.values() if row.directory not in present]
        here = boot_id()
        doubtful = [
            row
            for row in rows.values()
            if row.directory in present and not row.is_checked and row.boot_id != here
        ]
        broken: list[LayerRow] = []
        if doubtful and not was_orderly:
            broken = await asyncio.to_thread(self._places.find_broken, doubtful)
        for row in broken:
            _log.warning("layer is not whole and is dropped", layer=row.diff_id)
        dropped = self._ledger.drop([*missing, *(row.diff_id for row in broken)])
        await self._ledger.erase(dropped)
        checked = [replace(row, is_checked=True) for row in doubtful if row not in broken]
        await self._ledger.update(checked)
        recorded = {row.directory for row in self._ledger.layers().values()}
        await asyncio.to_thread(self._remove_strays, present - recorded)

    def _remove_strays(self, names: set[str]) -> None:
        mounted = layers_in_use(self._root) if names else set()
        for name in names - mounted:
            try:
                self._remove_directory(name)
            except PodwrightError as error:
                _log.warning("cannot remove stray layer", directory=name, error=error)
