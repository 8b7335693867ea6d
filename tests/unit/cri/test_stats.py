"""Who is looked at, and whose numbers a pod has. The groups are directories."""

import os

import pytest

from cri.stats import Stats
from metrics.settings import SamplerSettings
from sandbox.cgroups import Cgroups
from sandbox.host.cgroupfs import CgroupLayout
from sandbox.host.pidfd import start_ticks
from sandbox.layer_limits import LayerLimits
from sandbox.model import (
    Container,
    ContainerConfig,
    LinuxResources,
    NamespaceMode,
    NamespaceOptions,
    PodConfig,
    PodMetadata,
    PodSandbox,
    PodSecurity,
    ProcessRef,
)
from sandbox.paths import Paths
from sandbox.states import ContainerState, PodState
from tests.fakes.clock import FakeClock

OWN = ProcessRef(pid=os.getpid(), start_ticks=start_ticks(os.getpid()), boot_id="b")


class World:
    def __init__(self, root):
        self.root = root / "cgroup"
        self.root.mkdir()
        self.clock = FakeClock()
        layout = CgroupLayout(2, {}, self.root, frozenset({"cpu", "memory", "pids"}))
        self.cgroups = Cgroups(layout, "cgroupfs", clock=self.clock)
        self.paths = Paths(run_root=root / "run", state_root=root / "state")
        self.paths.layers.mkdir(parents=True)
        self.pods, self.containers = {}, {}
        self.stats = Stats(
            SamplerSettings(min_age_s=0),
            store=self,
            cgroups=self.cgroups,
            paths=self.paths,
            limits=LayerLimits(self.paths.layers, most_bytes=0, patterns={}),
            clock=self.clock,
        )

    def containers_of(self, pod_id):
        return [c for c in self.containers.values() if c.pod_id == pod_id]

    def group(self, path, usage_usec=1000, memory=100):
        directory = self.root / path.lstrip("/")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cpu.stat").write_text(f"usage_usec {usage_usec}\n")
        (directory / "memory.current").write_text(f"{memory}\n")
        (directory / "pids.current").write_text("2\n")
        (directory / "cgroup.procs").write_text(f"{os.getpid()}\n{os.getppid()}\n")

    def pod(self, pod_id, parent="", *, state=PodState.READY, host_network=False, **fields):
        mode = NamespaceMode.NODE if host_network else NamespaceMode.POD
        config = PodConfig(
            metadata=PodMetadata(name=pod_id, uid="u", namespace="n"),
            cgroup_parent=parent,
            security=PodSecurity(namespaces=NamespaceOptions(network=mode)),
        )
        self.pods[pod_id] = PodSandbox(
            id=pod_id, config=config, state=state, created_at_ns=1, pause=OWN
        )
        self.group(self.cgroups.parent_path(parent, pod_id), **fields)
        return self.pods[pod_id]

    def container(self, name, pod, *, state=ContainerState.RUNNING, **fields):
        path = self.cgroups.container_cgroup(pod.config.cgroup_parent, pod.id, name)
        self.containers[name] = Container(
            id=name,
            pod_id=pod.id,
            config=ContainerConfig(name=name),
            state=state,
            created_at_ns=1,
            started_at_ns=5_000_000_000,
            cgroup_path=path,
            init=OWN,
            resources=LinuxResources(cpu_shares=7),
        )
        self.group(path, **fields)
        upper = self.paths.layer(name) / "upper"
        upper.mkdir(parents=True)
        (upper / "file").write_text("x" * 5000)
        return self.containers[name]


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.stats.close()


async def test_a_container_has_its_group_and_its_layer(world):
    container = world.container("c", world.pod("p"), memory=55)
    [usage] = await world.stats.containers([container])
    assert usage.container is container
    assert usage.sample.stats.memory.usage_bytes == 55
    assert usage.layer.used_bytes >= 5000
    assert usage.layer.inodes == 2
    assert usage.mountpoint == str(world.paths.layers)


@pytest.mark.parametrize("state", [ContainerState.EXITED, ContainerState.UNKNOWN])
async def test_what_has_ended_uses_its_layer_only(world, state):
    container = world.container("c", world.pod("p"), state=state)
    [usage] = await world.stats.containers([container])
    assert usage.sample is None
    assert usage.layer.inodes == 2


async def test_a_pods_numbers_are_those_of_its_own_group(world):
    pod = world.pod("p", usage_usec=9000, memory=500)
    world.container("a", pod)
    world.container("b", pod)
    world.container("gone", pod, state=ContainerState.EXITED)
    [usage] = await world.stats.pods([pod])
    assert usage.sample.stats.cpu_usage_ns == 9_000_000
    assert usage.sample.stats.memory.usage_bytes == 500
    assert [c.container.id for c in usage.containers] == ["a", "b"]
    assert usage.processes == 5
    assert usage.sample.network is not None


@pytest.mark.parametrize("parent", ["/shared", "/"])
async def test_a_group_that_is_not_the_pods_alone_is_not_its_usage(world, parent):
    pods = [world.pod(name, parent, memory=10_000) for name in ("p", "q")]
    world.container("a", pods[0], usage_usec=10, memory=7)
    world.container("b", pods[0], usage_usec=20, memory=8)
    with_containers, without = await world.stats.pods(pods)
    assert with_containers.sample.stats.cpu_usage_ns == 30_000
    assert with_containers.sample.stats.memory.usage_bytes == 15
    assert with_containers.sample.usage_nano_cores is None
    assert without.sample.stats.memory is None
    world.clock.advance(2)
    world.group("/shared/a" if parent != "/" else "/a", usage_usec=10 + 1_000_000)
    [again] = await world.stats.pods(pods[:1])
    assert again.sample.usage_nano_cores == 500_000_000


async def test_a_pod_in_the_nodes_network_has_no_network(world):
    [usage] = await world.stats.pods([world.pod("p", host_network=True)])
    assert usage.sample.network is None


async def test_stopped_pods_are_left_out(world):
    pods = [world.pod("p"), world.pod("q", state=PodState.NOT_READY)]
    assert [usage.pod.id for usage in await world.stats.pods(pods)] == ["p"]
    assert [scrape.pod.id for scrape in await world.stats.scrape()] == ["p"]


async def test_a_scrape_has_everything(world):
    pod = world.pod("p")
    world.container("c", pod)
    [scrape] = await world.stats.scrape()
    assert scrape.cgroup == "/podwright/podp"
    [(container, measured)] = scrape.containers
    assert container.id == "c"
    assert measured.cgroup == "/podwright/podp/c"
    assert measured.sample.detail.processes.file_descriptors > 0
    assert measured.started_at_ns == 5_000_000_000
    assert (measured.limits.cpu_shares, measured.limits.cpu_period_usec) == (7, 100_000)
    assert measured.filesystem.size_bytes > measured.filesystem.inodes_free > 0
    assert measured.layer.inodes == 2


async def test_a_container_that_ends_during_a_scrape_is_left_out(world):
    pod = world.pod("p")
    container = world.container("c", pod)
    for file in (world.root / "podwright/podp/c").iterdir():
        file.unlink()
    [scrape] = await world.stats.scrape()
    assert scrape.containers == ()
    [usage] = await world.stats.containers([container])
    assert usage.sample is None


async def test_in_the_background_all_that_lives_is_looked_at(world):
    pod = world.pod("p")
    world.container("c", pod)
    world.container("gone", pod, state=ContainerState.EXITED)
    world.pod("q", state=PodState.NOT_READY)
    assert [target.id for target in world.stats._targets()] == ["c", "p"]


async def test_a_pods_group_is_that_of_the_pod_as_it_is_and_forgotten_with_it(world):
    world.pod("p", memory=500)
    [usage] = await world.stats.pods(list(world.pods.values()))
    assert usage.sample.stats.memory.usage_bytes == 500
    world.pod("p", "/moved", memory=700)
    [usage] = await world.stats.pods(list(world.pods.values()))
    assert usage.sample.stats.memory.usage_bytes == 700
    world.pods.clear()
    world.stats._targets()
    assert world.stats._parents == {}
