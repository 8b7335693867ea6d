"""Committed layers held against the disk while all goes on: what is damaged, missing, or nobody's.

At a start the snapshotter checks what an unclean end may have hurt; this is for an operator who
asks at any time, and so looks at every layer and takes nothing for granted.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from imageservice.snapshots.places import layer_problem
from imageservice.snapshots.root import layers_in_use
from sandbox.host.errors import map_os_errors
from sandbox.host.files import remove_tree

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from imageservice.snapshots.ledger import LayerRow, Ledger
    from imageservice.snapshots.places import LayerPlaces


class LayerAudit:
    """Looks at the layers of one store. For one event loop."""

    def __init__(
        self, root: Path, ledger: Ledger, places: LayerPlaces, staged: Collection[Path]
    ) -> None:
        """`staged` are the places of layers that are on their way, the committing ones too."""
        self._root = root
        self._ledger = ledger
        self._places = places
        self._staged = staged

    def rows(self) -> list[LayerRow]:
        """All committed layers."""
        return list(self._ledger.layers().values())

    def is_current(self, row: LayerRow) -> bool:
        """Whether the layer is still that one: it may have been removed, or made anew."""
        now = self._ledger.layers().get(row.diff_id)
        return now is not None and now.directory == row.directory

    async def problem(self, row: LayerRow) -> str:
        """What is wrong with a layer's files, "" when nothing is; see `layer_problem`."""
        return await asyncio.to_thread(layer_problem, self._places.directory_of(row), row)

    async def strays(self) -> list[str]:
        """Directories among the layers that no record names and nothing has mounted."""
        present, in_use = await asyncio.to_thread(self._present)
        # Asked after the disk: a layer is recorded a moment after its directory has come.
        known = {row.directory for row in self._ledger.layers().values()}
        known |= {path.name for path in self._staged}
        return sorted(present - known - in_use)

    def _present(self) -> tuple[set[str], set[str]]:
        directory = self._places.layers_dir
        with map_os_errors("cannot read layers directory", path=str(directory)):
            return {p.name for p in directory.iterdir()} - {"empty"}, layers_in_use(self._root)

    async def remove_stray(self, name: str) -> None:
        """Remove a directory that `strays` named."""
        await asyncio.to_thread(remove_tree, self._places.layers_dir / name)

    async def drop(self, rows: Collection[LayerRow]) -> None:
        """Forget layers, leased ones too, and remove their files where nothing has them mounted.

        A container that runs on one goes on with what it has.
        """
        dropped = self._ledger.drop(row.diff_id for row in rows if self.is_current(row))
        await self._ledger.erase(dropped)
        # Root file systems that are mounted keep what they have of these (overlayfs clones its
        # lower mounts); nobody will look for the places any more, for they are named by directory.
        await self._places.unmount_unless(lambda _row: False, dropped)
        for name in await self.strays():
            if name in {row.directory for row in dropped}:
                await self.remove_stray(name)
