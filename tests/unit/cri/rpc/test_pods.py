import json

import pytest

from cri.rpc.containers import ContainerCalls
from cri.rpc.pods import PodCalls
from protos import api_pb2 as pb
from sandbox.host.clock import SystemClock
from sandbox.host.errors import InvalidArgument, NotFound
from sandbox.model import LinuxResources
from tests.fakes.daemon import FakeContainers, FakePods


@pytest.fixture
def pods():
    return FakePods()


@pytest.fixture
def containers():
    return FakeContainers()


@pytest.fixture
def calls(pods, containers):
    return PodCalls(pods, containers, SystemClock())


def config(name="web", **fields):
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name=name, uid="u", namespace="ns"), **fields
    )


async def run(calls, *args, **fields):
    request = pb.RunPodSandboxRequest(config=config(*args, **fields))
    return (await calls.run_pod_sandbox(request)).pod_sandbox_id


async def listed(calls, **filters):
    request = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(**filters))
    data = await calls.list_pod_sandbox(request)
    return [item.id for item in pb.ListPodSandboxResponse.FromString(data).items]


async def test_run_hands_over_the_value_and_the_handler(calls, pods):
    request = pb.RunPodSandboxRequest(config=config(hostname="h"), runtime_handler="runc")
    assert len((await calls.run_pod_sandbox(request)).pod_sandbox_id) == 64
    [(name, value, handler)] = pods.calls
    assert (name, value.hostname, handler) == ("run", "h", "runc")


async def test_run_without_a_config(calls):
    with pytest.raises(InvalidArgument, match="config: is missing"):
        await calls.run_pod_sandbox(pb.RunPodSandboxRequest())


@pytest.mark.parametrize("method", ["stop_pod_sandbox", "remove_pod_sandbox", "pod_sandbox_status"])
async def test_an_id_is_needed(calls, method):
    request = {
        "stop_pod_sandbox": pb.StopPodSandboxRequest,
        "remove_pod_sandbox": pb.RemovePodSandboxRequest,
        "pod_sandbox_status": pb.PodSandboxStatusRequest,
    }[method]()
    with pytest.raises(InvalidArgument, match="pod_sandbox_id: must not be empty"):
        await getattr(calls, method)(request)


async def test_stop_and_remove_of_unknown_ids_succeed(calls, pods):
    await calls.stop_pod_sandbox(pb.StopPodSandboxRequest(pod_sandbox_id="nope"))
    await calls.remove_pod_sandbox(pb.RemovePodSandboxRequest(pod_sandbox_id="nope"))
    assert pods.calls == [("stop", "nope"), ("remove", "nope")]


async def test_status_has_the_containers_of_the_pod_and_of_no_other(calls, containers):
    first = await run(calls, "a")
    second = await run(calls, "b")
    container_calls = ContainerCalls(containers)
    for pod_id in (first, second):
        await container_calls.create_container(
            pb.CreateContainerRequest(
                pod_sandbox_id=pod_id,
                config=pb.ContainerConfig(
                    metadata=pb.ContainerMetadata(name="c"), image=pb.ImageSpec(image="i")
                ),
                sandbox_config=config(),
            )
        )
    answer = await calls.pod_sandbox_status(pb.PodSandboxStatusRequest(pod_sandbox_id=second))
    assert answer.status.id == second
    assert answer.status.metadata.name == "b"
    assert [status.metadata.name for status in answer.containers_statuses] == ["c"]
    assert answer.timestamp > 0
    assert not answer.info


async def test_status_of_an_unknown_pod(calls):
    with pytest.raises(NotFound):
        await calls.pod_sandbox_status(pb.PodSandboxStatusRequest(pod_sandbox_id="nope"))


async def test_verbose_status_is_one_json_document(calls):
    pod_id = await run(calls)
    request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod_id, verbose=True)
    answer = await calls.pod_sandbox_status(request)
    assert list(answer.info) == ["info"]
    assert json.loads(answer.info["info"])["pid"] == 42


async def test_list_is_newest_first_and_follows_changes(calls, pods):
    first, second, third = [await run(calls, name) for name in "abc"]
    assert await listed(calls) == [third, second, first]
    await calls.stop_pod_sandbox(pb.StopPodSandboxRequest(pod_sandbox_id=second))
    ready = pb.PodSandboxStateValue(state=pb.SANDBOX_READY)
    assert await listed(calls, state=ready) == [third, first]
    notready = pb.PodSandboxStateValue(state=pb.SANDBOX_NOTREADY)
    assert await listed(calls, state=notready) == [second]
    await calls.remove_pod_sandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=third))
    assert await listed(calls) == [second, first]


async def test_list_filters(calls):
    first = await run(calls, "a", labels={"app": "x", "tier": "1"})
    second = await run(calls, "b", labels={"app": "x"})
    assert await listed(calls, id=first) == [first]
    assert await listed(calls, id=first[:8]) == [second, first]
    assert await listed(calls, id="F" * 64) == []
    assert await listed(calls, id="") == [second, first]
    assert await listed(calls, label_selector={"app": "x"}) == [second, first]
    assert await listed(calls, label_selector={"app": "x", "tier": "1"}) == [first]
    with pytest.raises(InvalidArgument, match=r"filter\.id"):
        await listed(calls, id="x" * 10_000)


async def test_streamed_pods_are_the_listed_ones(calls):
    for name in "abc":
        await run(calls, name)
    messages = [
        pb.StreamPodSandboxesResponse.FromString(data)
        async for data in calls.stream_pod_sandboxes(pb.StreamPodSandboxesRequest())
    ]
    assert [p.id for m in messages for p in m.pod_sandboxes] == await listed(calls)
    none = pb.StreamPodSandboxesRequest(filter=pb.PodSandboxFilter(id="f" * 64))
    assert [data async for data in calls.stream_pod_sandboxes(none)] == []


async def test_update_hands_over_what_is_set(calls, pods):
    await calls.update_pod_sandbox_resources(
        pb.UpdatePodSandboxResourcesRequest(
            pod_sandbox_id="p", resources=pb.LinuxContainerResources(cpu_shares=3)
        )
    )
    await calls.update_pod_sandbox_resources(
        pb.UpdatePodSandboxResourcesRequest(
            pod_sandbox_id="p", overhead=pb.LinuxContainerResources()
        )
    )
    assert pods.calls == [
        ("update_resources", "p", None, LinuxResources(cpu_shares=3)),
        ("update_resources", "p", LinuxResources(), None),
    ]


async def test_an_update_is_checked_as_a_request_is(calls, pods):
    bad = pb.LinuxContainerResources(cpu_period=1)
    for fields in ({"resources": bad}, {"overhead": bad}):
        with pytest.raises(InvalidArgument, match="cpu_period"):
            await calls.update_pod_sandbox_resources(
                pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id="p", **fields)
            )
    with pytest.raises(InvalidArgument, match="pod_sandbox_id"):
        await calls.update_pod_sandbox_resources(pb.UpdatePodSandboxResourcesRequest())
    assert pods.calls == []
