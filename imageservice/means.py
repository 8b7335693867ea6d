"""What every pull of a node is made with, whatever it pulls from: a registry or an archive."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from imageservice.layers import LayerPuller
from imageservice.pull import Puller

if TYPE_CHECKING:
    import asyncio

    from imageservice.blobs import KeptBlobs
    from imageservice.content import ContentStore
    from imageservice.manifest import Platform
    from imageservice.progress import PullObserver
    from imageservice.registry.source import ImageSource
    from imageservice.settings import ImageSettings
    from imageservice.snapshots.snapshotter import Snapshotter
    from imageservice.unpack.pool import UnpackPool
    from sandbox.host.clock import Clock


@dataclass(frozen=True, slots=True)
class PullMeans:
    """See the module's text.

    Attributes:
        group: where the work runs.
        places: one for each layer that is fetched at a time, for all pulls together.
        blobs: where layers' blobs are kept, if they are.
    """

    snapshots: Snapshotter
    pool: UnpackPool
    group: asyncio.TaskGroup
    settings: ImageSettings
    observer: PullObserver
    platform: Platform
    clock: Clock
    places: asyncio.Semaphore
    blobs: KeptBlobs

    def apart(self, observer: PullObserver, places: asyncio.Semaphore) -> PullMeans:
        """The same with another listener and other places, for what comes from no registry."""
        return replace(self, observer=observer, places=places)

    def puller(self, source: ImageSource, content: ContentStore) -> Puller:
        """Who pulls from that source; downloads go through that store."""
        layers = LayerPuller(
            source,
            content,
            self.snapshots,
            self.pool,
            group=self.group,
            settings=self.settings,
            observer=self.observer,
            clock=self.clock,
            places=self.places,
            blobs=self.blobs,
        )
        return Puller(
            source,
            content,
            layers,
            group=self.group,
            platform=self.platform,
            max_concurrent_downloads=self.settings.max_concurrent_downloads,
        )
