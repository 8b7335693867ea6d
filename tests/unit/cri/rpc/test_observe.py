"""Filters, codes and messages of the calls that tell how pods and containers are doing."""

import asyncio
import threading

import msgspec
import pytest

from cri.rpc import observe
from cri.rpc.observe import ObserveCalls
from cri.usage import PodScrape
from protos import api_pb2 as pb
from sandbox.errors import PodNotReady
from sandbox.host.errors import InvalidArgument, NotFound
from sandbox.model import Container, ContainerConfig, PodConfig, PodMetadata, PodSandbox
from sandbox.states import ContainerState, PodState
from tests.fakes.daemon import FakeContainers, FakeEvents, FakePods, FakeUsages
from tests.unit.cri.usages import measured, sample


def pod(number, state=PodState.READY, **labels):
    metadata = PodMetadata(name=f"p{number}", uid="u", namespace="n")
    config = PodConfig(metadata=metadata, labels=labels)
    return PodSandbox(id=f"{number:064x}", config=config, state=state, created_at_ns=number)


def container(number, pod_id="", state=ContainerState.RUNNING, **labels):
    config = ContainerConfig(name=f"c{number}", labels=labels)
    return Container(
        id=f"{number:064x}", pod_id=pod_id, config=config, state=state, created_at_ns=number
    )


class World:
    def __init__(self):
        self.pods, self.containers = FakePods(), FakeContainers()
        self.usages, self.events = FakeUsages(), FakeEvents()
        self.calls = ObserveCalls(self.pods, self.containers, self.usages, self.events)

    def add(self, value):
        kept = self.pods.pods if isinstance(value, PodSandbox) else self.containers.containers
        kept[value.id] = value
        self.usages.samples[value.id] = sample()
        return value.id

    async def listed(self, **filters):
        request = pb.ListContainerStatsRequest(filter=pb.ContainerStatsFilter(**filters))
        data = await self.calls.list_container_stats(request)
        return [s.attributes.id for s in pb.ListContainerStatsResponse.FromString(data).stats]

    async def listed_pods(self, **filters):
        request = pb.ListPodSandboxStatsRequest(filter=pb.PodSandboxStatsFilter(**filters))
        data = await self.calls.list_pod_sandbox_stats(request)
        return [s.attributes.id for s in pb.ListPodSandboxStatsResponse.FromString(data).stats]


@pytest.fixture
def world():
    return World()


@pytest.mark.parametrize("count", [observe._FEW, observe._FEW + 1])
async def test_many_are_a_threads_work_and_few_are_not(world, monkeypatch, count):
    ids = [world.add(container(number)) for number in range(count)]
    pods = [world.add(pod(number)) for number in range(count)]
    threads = set()

    def encoded(values, encode, own=observe._encoded):
        threads.add(threading.current_thread())
        return own(values, encode)

    monkeypatch.setattr(observe, "_encoded", encoded)
    assert await world.listed() == ids
    assert await world.listed_pods() == pods
    assert (threads == {threading.current_thread()}) == (count == observe._FEW)


async def test_one_container(world):
    container_id = world.add(container(1))
    answer = await world.calls.container_stats(pb.ContainerStatsRequest(container_id=container_id))
    assert answer.stats.attributes.id == container_id
    assert answer.stats.cpu.timestamp


async def test_an_exited_container_answers_with_what_it_has(world):
    container_id = world.add(container(1, state=ContainerState.EXITED))
    del world.usages.samples[container_id]
    answer = await world.calls.container_stats(pb.ContainerStatsRequest(container_id=container_id))
    assert answer.stats.attributes.id == container_id
    assert not answer.stats.HasField("cpu")


@pytest.mark.parametrize(("object_id", "error"), [("", InvalidArgument), ("f" * 64, NotFound)])
async def test_unknown_ids(world, object_id, error):
    with pytest.raises(error):
        await world.calls.container_stats(pb.ContainerStatsRequest(container_id=object_id))
    with pytest.raises(error):
        await world.calls.pod_sandbox_stats(pb.PodSandboxStatsRequest(pod_sandbox_id=object_id))


async def test_container_filters(world):
    first, second = world.add(pod(1)), world.add(pod(2))
    one = world.add(container(0x10, first, app="a"))
    two = world.add(container(0x20, second, app="b"))
    world.add(container(0x30, second, ContainerState.EXITED, app="b"))
    made = world.add(container(0x40, second, ContainerState.CREATED))
    assert await world.listed() == [one, two, made]
    assert await world.listed(id=two) == [two]
    assert await world.listed(id="0" * 62) == [one, two, made]
    assert await world.listed(pod_sandbox_id=first) == [one]
    assert await world.listed(label_selector={"app": "b"}) == [two]
    assert await world.listed(label_selector={"app": "c"}) == []


async def test_a_container_that_ended_meanwhile_is_left_out(world):
    one, two = world.add(container(1)), world.add(container(2))
    del world.usages.samples[one]
    assert await world.listed() == [two]


async def test_pod_filters(world):
    one, two = world.add(pod(1, app="a")), world.add(pod(2, app="b"))
    world.add(pod(3, PodState.NOT_READY, app="b"))
    assert await world.listed_pods() == [one, two]
    assert await world.listed_pods(id=two) == [two]
    assert await world.listed_pods(label_selector={"app": "b"}) == [two]


async def test_a_stopped_pod_uses_nothing(world):
    pod_id = world.add(pod(1, PodState.NOT_READY))
    with pytest.raises(PodNotReady):
        await world.calls.pod_sandbox_stats(pb.PodSandboxStatsRequest(pod_sandbox_id=pod_id))


async def test_streams_have_what_the_lists_have(world):
    ids = [world.add(container(n, note="x" * 4000)) for n in range(1, 1001)]
    answers = [
        pb.StreamContainerStatsResponse.FromString(data)
        async for data in world.calls.stream_container_stats(pb.StreamContainerStatsRequest())
    ]
    assert len(answers) > 3
    assert all(answer.container_stats for answer in answers)
    assert [s.attributes.id for a in answers for s in a.container_stats] == ids


async def test_an_empty_stream_has_no_message(world):
    calls = world.calls
    for stream in (
        calls.stream_container_stats(pb.StreamContainerStatsRequest()),
        calls.stream_pod_sandbox_stats(pb.StreamPodSandboxStatsRequest()),
        calls.stream_pod_sandbox_metrics(pb.StreamPodSandboxMetricsRequest()),
    ):
        assert [data async for data in stream] == []


async def test_metrics_are_the_same_listed_and_streamed(world):
    world.usages.scrapes = [
        PodScrape(pod(n), "/p", sample(), ((container(n), measured()),)) for n in range(3)
    ]
    listed = pb.ListPodSandboxMetricsResponse.FromString(
        await world.calls.list_pod_sandbox_metrics(pb.ListPodSandboxMetricsRequest())
    )
    streamed = [
        metrics
        async for data in world.calls.stream_pod_sandbox_metrics(
            pb.StreamPodSandboxMetricsRequest()
        )
        for metrics in pb.StreamPodSandboxMetricsResponse.FromString(data).pod_sandbox_metrics
    ]
    assert len(listed.pod_metrics) == 3
    assert list(listed.pod_metrics) == streamed


async def test_descriptors(world):
    answer = await world.calls.list_metric_descriptors(pb.ListMetricDescriptorsRequest())
    assert len(answer.descriptors) == 56


async def test_subscribers_hear_the_same_and_leave_nothing(world):
    events = world.events
    value = msgspec.structs.replace(pod(1))
    events.pods[value.id] = value
    streams = [world.calls.get_container_events(pb.GetEventsRequest()) for _ in range(3)]
    waiting = [asyncio.ensure_future(anext(stream)) for stream in streams]
    await asyncio.sleep(0)
    assert events.broker.subscribers == 3
    events.broker.pod_started(value)
    first = await asyncio.gather(*waiting)
    assert {m.container_event_type for m in first} == {pb.CONTAINER_CREATED_EVENT}
    assert first[0] is first[1]  # converted once
    for stream in streams:
        await stream.aclose()
    assert events.broker.subscribers == 0
