"""The parts of an image service, made and opened in the order in which they need each other."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageservice.additional.stores import AdditionalStores
from imageservice.blobs import KeptBlobs
from imageservice.catalog import Catalog
from imageservice.collect import Sweeper
from imageservice.holdings import Holdings
from imageservice.inventory import Inventory
from imageservice.loading import Loader
from imageservice.means import PullMeans
from imageservice.saving import Saver
from imageservice.snapshots.drivers import DriverWish
from imageservice.snapshots.overlay import OverlaySnapshotter
from imageservice.trust.gate import TrustGate
from imageservice.trust.kept import KeptSignatures
from imageservice.usage import UsageMeter
from imageservice.verify import Mender, StoreVerifier

if TYPE_CHECKING:
    from pathlib import Path

    from imageservice.content import ContentStore
    from imageservice.keyrings import NodeKeyrings
    from imageservice.manifest import Platform
    from imageservice.progress import PullObserver
    from imageservice.pull import Puller
    from imageservice.registry.source import ImageSource
    from imageservice.settings import ImageSettings
    from imageservice.snapshots.drivers import Storage
    from imageservice.snapshots.snapshotter import Snapshotter
    from imageservice.unpack.pool import UnpackPool
    from sandbox.host.clock import Clock
    from sandbox.host.database import Database
    from sandbox.host.processes import ProcessRunner
    from sandbox.host.syscalls import Syscalls


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the service stands on; see `ImageService`. `mender` is the service itself."""

    settings: ImageSettings
    source: ImageSource
    runner: ProcessRunner
    syscalls: Syscalls
    clock: Clock
    containers_dir: Path
    observer: PullObserver
    platform: Platform
    content: ContentStore
    keyrings: NodeKeyrings
    pool: UnpackPool
    mender: Mender


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What it does its work with."""

    catalog: Catalog
    stores: AdditionalStores
    snapshots: Snapshotter
    storage: Storage
    inventory: Inventory
    holdings: Holdings
    usage: UsageMeter
    puller: Puller
    loader: Loader
    saver: Saver
    verifier: StoreVerifier
    sweeper: Sweeper
    gate: TrustGate


async def open_parts(database: Database, group: asyncio.TaskGroup, given: Given) -> Parts:
    """Bring what is on disk and what is recorded to agree.

    Args:
        database: of catalog and snapshots; the caller closes it.
        group: where pulls run.
        given: everything else.

    Raises:
        Unsupported, FailedPrecondition: this host cannot keep images at that place.
        PodwrightError: as the kernel says.
    """
    settings, content, clock = given.settings, given.content, given.clock
    catalog = Catalog(database)
    await catalog.load()
    stores = await AdditionalStores.open(
        settings.additional_stores, own_root=settings.root, syscalls=given.syscalls
    )
    content.borrow(stores.usable_roots)
    blobs = KeptBlobs(settings.root, enabled=settings.keep_blobs)
    await blobs.open()
    blobs.borrow(stores.usable_roots)
    snapshots = OverlaySnapshotter(
        settings.root,
        database,
        syscalls=given.syscalls,
        clock=clock,
        layer_form=settings.layer_form,
        lent=stores.layers,
        driver=DriverWish.of(settings, given.runner),
    )
    await snapshots.open()
    inventory = Inventory(catalog, content, snapshots, pinned=settings.pinned_images)
    holdings = Holdings(catalog, inventory, content, snapshots, stores)
    means = PullMeans(
        snapshots=snapshots,
        pool=given.pool,
        group=group,
        settings=settings,
        observer=given.observer,
        platform=given.platform,
        clock=clock,
        blobs=blobs,
        places=asyncio.Semaphore(settings.max_node_downloads),
    )
    puller = means.puller(given.source, content)
    loader = Loader(inventory, means, given.runner)
    await loader.open()
    parts = Parts(
        catalog=catalog,
        stores=stores,
        snapshots=snapshots,
        storage=snapshots.storage,
        inventory=inventory,
        holdings=holdings,
        usage=UsageMeter(
            settings.root,
            given.containers_dir,
            snapshots,
            (snapshots.layers_dir,),
            clock=clock,
        ),
        puller=puller,
        loader=loader,
        saver=Saver(holdings, content, snapshots, blobs),
        verifier=StoreVerifier(catalog, content, inventory, snapshots, blobs, stores, given.mender),
        sweeper=Sweeper(
            catalog,
            content,
            snapshots,
            blobs,
            held=lambda: puller.held() | loader.held(),
            group=group,
            clock=clock,
            keep_s=settings.keep_partial_s,
        ),
        gate=TrustGate(
            settings,
            given.source,
            KeptSignatures(database, stores.signatures),
            given.keyrings,
            given.runner,
            clock=clock,
        ),
    )
    await inventory.load()
    await holdings.load()
    await parts.sweeper.start()
    return parts
