"""The life cycles above the engines, wired to each other, with what brings them back in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri.container_images import ContainerImages
from cri.container_lifecycle import ContainerLifecycle
from cri.events import Events
from cri.pod_lifecycle import PodLifecycle
from cri.recover import Recovery
from cri.retries import Retries
from cri.sweeper import Reconciler
from sandbox.sweep import Sweeper

if TYPE_CHECKING:
    from cni.network import PodNetwork
    from cri.engines import Engines, Parts
    from imageservice.service import ImageService


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifecycles:
    """What the calls are made of."""

    events: Events
    containers: ContainerLifecycle
    pods: PodLifecycle
    retries: Retries
    recovery: Recovery
    reconciler: Reconciler


def build_lifecycles(
    parts: Parts, engines: Engines, images: ImageService, network: PodNetwork
) -> Lifecycles:
    """Build them; nothing is started yet."""
    store, clock, group = parts.store, parts.clock, parts.group
    events = Events(store, clock=clock, observer=parts.instruments)
    retries = Retries(clock)
    containers = ContainerLifecycle(
        engine=engines.containers,
        endings=engines.endings,
        composer=engines.composer,
        execs=engines.execs,
        images=ContainerImages(images, engines.roots, parts.paths),
        store=store,
        paths=parts.paths,
        events=events,
        retries=retries,
        group=group,
    )
    pods = PodLifecycle(
        engine=engines.pods,
        network=network,
        store=store,
        containers=containers,
        events=events,
        retries=retries,
        group=group,
    )
    sweeper = Sweeper(
        paths=parts.paths,
        runtimes=parts.handlers.usable,
        namespaces=parts.namespaces,
        cgroups=parts.cgroups,
        leavings=parts.leavings,
        syscalls=parts.syscalls,
        shared_books=parts.handlers.shared_books,
    )
    recovery = Recovery(
        store=store,
        pods=pods,
        containers=containers,
        pod_engine=engines.pods,
        container_engine=engines.containers,
        endings=engines.endings,
        roots=engines.roots,
        images=images,
        sweeper=sweeper,
    )
    reconciler = Reconciler(
        store=store,
        pods=pods,
        containers=containers,
        container_engine=engines.containers,
        endings=engines.endings,
        images=images,
        network=network,
        sweeper=sweeper,
        retries=retries,
        observer=parts.instruments,
        clock=clock,
    )
    parts.instruments.watch_retries(retries.counts)
    return Lifecycles(
        events=events,
        containers=containers,
        pods=pods,
        retries=retries,
        recovery=recovery,
        reconciler=reconciler,
    )
