"""Joins what exists (pods, containers) with what was measured (groups, networks, layers).

Who is looked at: containers that have a process, and ready pods. A pod's numbers are those of the
control group above its containers, which is the pod's own with every kubelet; where several pods
share a parent, or it is the root, that group says nothing of the pod, and its containers' numbers
are added up instead.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from cri.usage import ContainerUsage, PodScrape, PodUsage
from metrics.descriptors import Filesystem, Limits, Measured
from metrics.disk_usage import LayerMeter
from metrics.followed import Target
from metrics.network_stats import NetworkPlace
from metrics.sampler import Sampler
from metrics.sums import add_up
from sandbox.cgroups import limited_path, real_path
from sandbox.host.errors import PodwrightError
from sandbox.host.journal import get_logger
from sandbox.host.mounts import mount_of
from sandbox.host.trees import TreeUsage, filesystem_usage
from sandbox.model import LinuxResources, NamespaceMode
from sandbox.states import ContainerState, PodState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from metrics.disk_usage import LayerUsage
    from metrics.followed import Sample
    from metrics.settings import SamplerSettings
    from sandbox.cgroups import Cgroups
    from sandbox.host.clock import Clock
    from sandbox.layer_limits import LayerLimits
    from sandbox.model import Container, PodSandbox
    from sandbox.paths import Paths
    from sandbox.store import StateStore

_BLOCK_DEVICES: Final = Path("/sys/dev/block")
_ALIVE: Final = (ContainerState.CREATED, ContainerState.RUNNING)
_DEFAULTS: Final = Limits()

_log = get_logger("stats")


class Stats:
    """Answers for usage; see the module text."""

    def __init__(
        self,
        settings: SamplerSettings,
        *,
        store: StateStore,
        cgroups: Cgroups,
        paths: Paths,
        limits: LayerLimits,
        clock: Clock,
    ) -> None:
        self._store = store
        self._cgroups = cgroups
        self._sampler = Sampler(cgroups.layout, settings, clock=clock)
        self._limits = limits
        self._layers = LayerMeter(
            clock=clock, max_age_s=settings.layer_age_s, measure=self._measure_layer
        )
        self._paths = paths
        self._mountpoint = str(paths.layers)
        self._device: str | None = None
        #: Control groups above pods' containers, each of the pod as it was then.
        self._parents: dict[str, tuple[PodSandbox, str]] = {}
        #: Targets of containers as they were then, by whether their processes are counted.
        self._known: dict[tuple[str, bool], tuple[Container, Target]] = {}
        self._known_pods: dict[str, tuple[PodSandbox, Target]] = {}

    async def run(self) -> None:
        """Measure in the background, until cancelled or closed."""
        await self._sampler.run(self._targets)

    def forget(self, object_id: str) -> None:
        """A pod or container has stopped: its files are closed now, not at the next round."""
        self._sampler.forget(object_id)

    def close(self) -> None:
        """End the threads. Idempotent."""
        self._sampler.close()
        self._layers.close()

    def _targets(self) -> list[Target]:
        """Everything that is to be sampled in the background; also forgets what is gone."""
        self._layers.keep(set(self._store.containers))
        for gone in self._parents.keys() - self._store.pods.keys():
            del self._parents[gone]
            self._known_pods.pop(gone, None)
        for key in [key for key in self._known if key[0] not in self._store.containers]:
            del self._known[key]
        return [
            *(self._target(c) for c in self._store.containers.values() if _alive(c)),
            *self._pod_targets(p for p in self._store.pods.values() if _ready(p)),
        ]

    async def containers(self, chosen: Collection[Container]) -> list[ContainerUsage]:
        """Usage of each of the containers, in their order; exited ones have their layer only."""
        samples, layers = await asyncio.gather(
            self._sampler.sample([self._target(c, members=False) for c in chosen if _alive(c)]),
            self._read_layers(chosen),
        )
        return self._usages(chosen, samples, layers)

    async def pods(self, chosen: Collection[PodSandbox]) -> list[PodUsage]:
        """Usage of each of the pods that are ready, with their containers."""
        ready = [pod for pod in chosen if _ready(pod)]
        inside = {pod.id: self._inside(pod) for pod in ready}
        everyone = [container for group in inside.values() for container in group]
        pod_targets = self._pod_targets(ready)
        samples, layers = await asyncio.gather(
            self._sampler.sample([*pod_targets, *map(self._target, everyone)]),
            self._read_layers(everyone),
        )
        shared = {target.id for target in pod_targets if not target.cgroup}
        found = []
        for pod in ready:
            usages = self._usages(inside[pod.id], samples, layers)
            sample = samples.get(pod.id)
            if pod.id in shared:
                sample = _added_up(sample, usages)
            found.append(PodUsage(pod, sample, tuple(usages)))
        return found

    async def scrape(self) -> list[PodScrape]:
        """All metrics of all ready pods."""
        ready = [pod for pod in self._store.pods.values() if _ready(pod)]
        inside = {pod.id: self._inside(pod) for pod in ready}
        everyone = [container for group in inside.values() for container in group]
        networks, samples, layers, facts = await asyncio.gather(
            self._sampler.networks(self._pod_targets(ready)),
            self._sampler.sample([self._target(c) for c in everyone], detail=True),
            self._read_layers(everyone),
            asyncio.to_thread(self._machine),
        )
        filesystem, devices = facts

        def measured(container: Container) -> Measured | None:
            sample = samples.get(container.id)
            if sample is None or sample.detail is None:
                return None
            return Measured(
                sample=sample,
                started_at_ns=container.started_at_ns or container.created_at_ns,
                limits=_limits(container),
                layer=layers.get(container.id),
                filesystem=filesystem,
                devices=devices,
                cgroup=real_path(container.cgroup_path),
            )

        return [
            PodScrape(
                pod=pod,
                cgroup=self._parent(pod),
                sample=networks.get(pod.id),
                containers=tuple(
                    (container, found)
                    for container in inside[pod.id]
                    if (found := measured(container)) is not None
                ),
            )
            for pod in ready
        ]

    # Inside.

    def _inside(self, pod: PodSandbox) -> list[Container]:
        return [c for c in self._store.containers_of(pod.id) if _alive(c)]

    def _parent(self, pod: PodSandbox) -> str:
        known = self._parents.get(pod.id)
        if known is None or known[0] is not pod:
            path = self._cgroups.parent_path(pod.config.cgroup_parent, pod.id)
            known = self._parents[pod.id] = (pod, path)
        return known[1]

    def _target(self, container: Container, *, members: bool = True) -> Target:
        known = self._known.get((container.id, members))
        if known is not None and known[0] is container:
            return known[1]
        cgroup = limited_path(self._cgroups.layout, container.cgroup_path)
        target = Target(
            id=container.id,
            cgroup=cgroup,
            first_pid=container.init.pid if container.init is not None else 0,
            members=members,
            pod=container.pod_id,
        )
        # With systemd the group with the limits may appear later than the container.
        if self._cgroups.layout.version == 1 or cgroup == container.cgroup_path:
            self._known[container.id, members] = (container, target)
        return target

    def _pod_targets(self, pods: Iterable[PodSandbox]) -> list[Target]:
        """A pod whose parent is not its own is sampled for its network only: cgroup is empty."""
        parents = {p.id: self._parent(p) for p in self._store.pods.values() if _ready(p)}
        owners = Counter(parents.values())
        targets = []
        for pod in pods:
            parent = parents.get(pod.id) or self._parent(pod)
            own = parent != "/" and owners[parent] <= 1
            targets.append(self._pod_target(pod, parent if own else ""))
        return targets

    def _pod_target(self, pod: PodSandbox, cgroup: str) -> Target:
        known = self._known_pods.get(pod.id)
        if known is not None and known[0] is pod and known[1].cgroup == cgroup:
            return known[1]
        target = Target(id=pod.id, cgroup=cgroup, network=_network_place(pod), members=False)
        self._known_pods[pod.id] = (pod, target)
        return target

    async def _read_layers(self, containers: Iterable[Container]) -> dict[str, LayerUsage]:
        return await self._layers.read([container.id for container in containers])

    def _measure_layer(self, container_id: str) -> TreeUsage:
        """What the kernel has counted where the layer has a limit; a walk where it has none."""
        use = self._limits.use(container_id)
        if use is None:
            return filesystem_usage(self._paths.layer(container_id) / "upper")
        return TreeUsage(use.used_bytes, use.inodes)

    def _usages(
        self,
        containers: Iterable[Container],
        samples: Mapping[str, Sample],
        layers: Mapping[str, LayerUsage],
    ) -> list[ContainerUsage]:
        return [
            ContainerUsage(c, samples.get(c.id), layers.get(c.id), self._mountpoint)
            for c in containers
        ]

    def _machine(self) -> tuple[Filesystem | None, dict[tuple[int, int], str]]:
        """The file system of the layers and the names of block devices; blocking."""
        return self._filesystem(), _device_names()

    def _filesystem(self) -> Filesystem | None:
        path = self._paths.layers
        try:
            if self._device is None:
                self._device = mount_of(path).source
            facts = os.statvfs(path)
        except (OSError, PodwrightError) as error:
            _log.warning("file system of layers not measured", path=str(path), error=error)
            return None
        return Filesystem(
            device=self._device,
            size_bytes=facts.f_blocks * facts.f_frsize,
            inodes=facts.f_files,
            inodes_free=facts.f_ffree,
        )


def _device_names(directory: Path = _BLOCK_DEVICES) -> dict[tuple[int, int], str]:
    """Names such as /dev/sda by (major, minor)."""
    found = {}
    try:
        entries = list(directory.iterdir())
    except OSError:
        return {}
    for entry in entries:
        major, _, minor = entry.name.partition(":")
        if major.isdecimal() and minor.isdecimal():
            with suppress(OSError):
                found[int(major), int(minor)] = f"/dev/{entry.readlink().name}"
    return found


def _limits(container: Container) -> Limits:
    asked = container.resources or LinuxResources()
    return Limits(
        cpu_period_usec=asked.cpu_period_usec or _DEFAULTS.cpu_period_usec,
        cpu_quota_usec=max(0, asked.cpu_quota_usec),
        cpu_shares=asked.cpu_shares or _DEFAULTS.cpu_shares,
    )


def _added_up(sample: Sample | None, usages: Sequence[ContainerUsage]) -> Sample | None:
    """`sample`, which has the network only, with the sum of the containers'."""
    parts = [usage.sample for usage in usages if usage.sample is not None]
    if sample is None or not parts:
        return sample
    rates = [part.usage_nano_cores for part in parts]
    known = [rate for rate in rates if rate is not None]
    return msgspec.structs.replace(
        sample,
        stats=add_up([part.stats for part in parts]),
        usage_nano_cores=sum(known) if len(known) == len(rates) else None,
    )


def _alive(container: Container) -> bool:
    return container.state in _ALIVE and container.init is not None


def _ready(pod: PodSandbox) -> bool:
    return pod.state is PodState.READY


def _network_place(pod: PodSandbox) -> NetworkPlace | None:
    if pod.pause is None or pod.config.security.namespaces.network is NamespaceMode.NODE:
        return None
    return NetworkPlace(pod.pause.pid, pod.pause.start_ticks)
