"""What may go: layers, blobs and documents that nothing refers to any more. Marking is pure.

Roots are the images, the leases of root file systems, and the chains of pulls in flight (`held`),
whose layers no image names yet. Marking and taking the layers out of sight happen without a
suspension in between (see `Snapshotter.remove`), so a pull that relies on a layer holds it either
before the mark, or finds it gone.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from imageservice.digest import Digest
from sandbox.host.errors import PodwrightError
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from imageservice.blobs import KeptBlobs
    from imageservice.catalog import Catalog, ImageRecord
    from imageservice.content import ContentStore
    from imageservice.snapshots.snapshotter import Snapshotter
    from sandbox.host.clock import Clock

_log = get_logger(__name__)


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


class Sweeper:
    """Removes what nobody refers to: at once when asked, and some time after a pull has failed.

    A pull that fails, or whose daemon is killed, leaves what it finished for the next try: its
    partial downloads and its finished layers, whose blobs are gone. If no try comes within the time
    that partial downloads are kept, they are rubbish. Until then they are told apart from layers
    that an image or a container has given up, because those must make room at once.
    """

    def __init__(
        self,
        catalog: Catalog,
        content: ContentStore,
        snapshots: Snapshotter,
        blobs: KeptBlobs,
        *,
        held: Callable[[], Collection[str]],
        group: asyncio.TaskGroup,
        clock: Clock,
        keep_s: float,
    ) -> None:
        """`held` says which layers pulls in flight rely on; `keep_s` how long rests are kept."""
        self._catalog = catalog
        self._content = content
        self._snapshots = snapshots
        self._blobs = blobs
        self._held = held
        self._group = group
        self._clock = clock
        self._keep_s = keep_s
        self._waiting: asyncio.TimerHandle | None = None
        #: Finished layers of pulls that were not.
        self._rests: set[str] = set()

    async def start(self) -> None:
        """After a start: old downloads go; layers without an image may be an interrupted pull's.

        They may also be of an image whose removal was interrupted. Nothing tells, and fetching a
        layer again is worse than to keep one for a while.

        Raises:
            ResourceExhausted: see `Snapshotter.remove`.
        """
        await self.partials()
        self.later()

    async def layers(self, *, rests_too: bool = False) -> bool:
        """Remove layers and blobs that are unreferenced at this moment; whether there were any.

        Args:
            rests_too: also what unfinished pulls have left, because there must be room.

        Raises:
            ResourceExhausted: see `Snapshotter.remove`.
        """
        if rests_too:
            self._rests.clear()
        doomed = self._unreferenced() - self._rests
        try:
            if doomed:
                await self._snapshots.remove(doomed)
        finally:
            # A container needs its layers and not the blobs that they were made of.
            images, held = self._catalog.images(), self._held()
            blobs = unreferenced_layers(self._blobs.layers(), images, (), held) - self._rests
            if blobs:
                await self._blobs.drop(blobs)
        return bool(doomed or blobs)

    def _unreferenced(self) -> set[str]:
        leases = self._snapshots.leases().values()
        return unreferenced_layers(
            self._snapshots.layers(), self._catalog.images(), leases, self._held()
        )

    async def partials(self, *, older_than_s: float | None = None) -> None:
        """Remove idle downloads of that age, by default those that nobody will come back for.

        What cannot be removed stays for later.
        """
        age_s = self._keep_s if older_than_s is None else older_than_s
        with suppress(PodwrightError):
            await self._content.sweep(now_ns=self._clock.wall_ns(), older_than_s=age_s)

    def named(self, chain: Collection[str]) -> None:
        """An image has these layers now: whose end is then the end of its last user."""
        self._rests.difference_update(chain)

    def later(self) -> None:
        """A pull has failed: look again when nobody will come back for its rests any more.

        Call it when the pull does not hold its layers any more.
        """
        self._rests |= self._unreferenced()
        if self._waiting is None:
            loop = asyncio.get_running_loop()
            self._waiting = loop.call_later(self._keep_s + 1, self._begin)

    def close(self) -> None:
        """Look no more."""
        if self._waiting is not None:
            self._waiting.cancel()

    def _begin(self) -> None:
        self._waiting = None
        work = self._all()
        try:
            self._group.create_task(work, name="image sweep")
        except RuntimeError:  # the daemon is ending; the next one sweeps at its start
            work.close()

    async def _all(self) -> None:
        try:
            await self.partials()
            await self.layers(rests_too=True)
        except PodwrightError as error:
            _log.warning("cannot remove what failed pulls have left", error=error)
