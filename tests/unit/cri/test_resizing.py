"""Who may be resized, one after the other, and what is recorded."""

import asyncio

import msgspec
import pytest

from cri.resizing import ContainerResizing, PodResizing
from sandbox.errors import ContainerNotRunning, PodNotReady
from sandbox.host.errors import InvalidArgument, NotFound
from sandbox.model import (
    Container,
    ContainerConfig,
    LinuxResources,
    PodConfig,
    PodMetadata,
    PodSandbox,
)
from sandbox.resize import Resize
from sandbox.spec.resources import merge_resources
from sandbox.states import ContainerState, PodState


class World:
    """Store, composer and engines in one; the engine records and can be held."""

    def __init__(self):
        self.container = Container(
            id="c",
            pod_id="p",
            config=ContainerConfig(name="c"),
            state=ContainerState.RUNNING,
            created_at_ns=1,
        )
        self.pod = PodSandbox(
            id="p",
            config=PodConfig(metadata=PodMetadata(name="p", uid="u", namespace="n")),
            state=PodState.READY,
            created_at_ns=1,
        )
        self.applied = []
        self.noted = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fail = None

    def find_container(self, container_id):
        if container_id != "c":
            raise NotFound("no such container")
        return self.container

    def find_pod(self, pod_id):
        if pod_id != "p":
            raise NotFound("no such pod")
        return self.pod

    # The composer's part.

    def resize(self, container, asked):
        merged = merge_resources(container.resources, asked)
        return Resize(asked=asked, merged=merged, document=b"", oom_score_adj=None)

    def note_resize(self, container, change):
        self.noted.append(change.merged)
        if self.fail == "note":
            raise NotFound("document is gone")

    # The engines' part.

    async def update_resources(self, container, change):
        await self.gate.wait()
        if self.fail == "apply":
            raise InvalidArgument("no")
        self.applied.append(change.merged)
        self.container = msgspec.structs.replace(self.container, resources=change.merged)


class Pods:
    """The pod engine's part."""

    def __init__(self, world):
        self.world = world

    async def resize(self, pod_id, config):
        await self.world.gate.wait()
        self.world.pod = msgspec.structs.replace(self.world.pod, config=config)


@pytest.fixture
def world():
    return World()


@pytest.fixture
async def group():
    async with asyncio.TaskGroup() as tasks:
        yield tasks


@pytest.fixture
def containers(world, group):
    return ContainerResizing(engine=world, composer=world, store=world, group=group)


@pytest.fixture
def pods(world, group):
    return PodResizing(engine=Pods(world), store=world, group=group)


async def test_what_is_applied_is_noted(containers, world):
    await containers.resize("c", LinuxResources(cpu_shares=5))
    assert world.applied == world.noted == [LinuxResources(cpu_shares=5)]


@pytest.mark.parametrize(
    "state", [ContainerState.EXITED, ContainerState.UNKNOWN, ContainerState.REMOVING]
)
async def test_only_what_has_processes_is_resized(containers, world, state):
    world.container = msgspec.structs.replace(world.container, state=state)
    with pytest.raises(ContainerNotRunning, match=state.name):
        await containers.resize("c", LinuxResources(cpu_shares=5))
    assert world.applied == []


async def test_unknown_objects(containers, pods):
    with pytest.raises(NotFound):
        await containers.resize("x", LinuxResources())
    with pytest.raises(NotFound):
        await pods.resize("x", None, LinuxResources())


async def test_two_at_once_both_hold(containers, world):
    """Each begins from what the other recorded, so neither undoes the other."""
    world.gate.clear()
    both = [
        asyncio.ensure_future(containers.resize("c", LinuxResources(cpu_shares=5))),
        asyncio.ensure_future(containers.resize("c", LinuxResources(memory_limit_bytes=9))),
    ]
    await asyncio.sleep(0)
    world.gate.set()
    await asyncio.gather(*both)
    assert world.container.resources == LinuxResources(cpu_shares=5, memory_limit_bytes=9)


async def test_a_client_that_leaves_does_not_stop_the_work(containers, world):
    world.gate.clear()
    asking = asyncio.ensure_future(containers.resize("c", LinuxResources(cpu_shares=5)))
    for _ in range(5):
        await asyncio.sleep(0)
    asking.cancel()
    world.gate.set()
    await containers.resize("c", LinuxResources(cpu_quota_usec=2000))
    assert world.container.resources == LinuxResources(cpu_shares=5, cpu_quota_usec=2000)


async def test_a_failure_is_told_and_records_nothing(containers, world):
    world.fail = "apply"
    with pytest.raises(InvalidArgument):
        await containers.resize("c", LinuxResources(cpu_shares=5))
    assert (world.container.resources, world.noted) == (None, [])


async def test_a_document_that_is_gone_does_not_fail_what_was_done(containers, world, caplog):
    world.fail = "note"
    await containers.resize("c", LinuxResources(cpu_shares=5))
    assert world.applied == [LinuxResources(cpu_shares=5)]
    assert "stored document not updated" in caplog.text


async def test_a_pod_keeps_what_is_not_named(pods, world):
    await pods.resize("p", LinuxResources(cpu_shares=1), LinuxResources(memory_limit_bytes=7))
    await pods.resize("p", None, LinuxResources(cpu_shares=9))
    config = world.pod.config
    assert config.overhead == LinuxResources(cpu_shares=1)
    assert config.resources == LinuxResources(memory_limit_bytes=7, cpu_shares=9)


async def test_a_stopped_pod_is_not_resized(pods, world):
    world.pod = msgspec.structs.replace(world.pod, state=PodState.NOT_READY)
    with pytest.raises(PodNotReady):
        await pods.resize("p", None, LinuxResources(cpu_shares=9))
