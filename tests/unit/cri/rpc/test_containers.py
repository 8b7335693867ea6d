import json

import pytest

from cri.rpc.containers import ContainerCalls
from cri.rpc.sessions import SessionCalls, fit
from cri.validate import SECONDS_LIMIT
from protos import api_pb2 as pb
from sandbox.host.errors import DeadlineExceeded, InvalidArgument, NotFound
from sandbox.model import LinuxResources
from tests.fakes.daemon import FakeContainers
from tests.fakes.streaming import FakeStreaming

POD = "p" * 64


@pytest.fixture
def containers():
    return FakeContainers()


@pytest.fixture
def calls(containers):
    return ContainerCalls(containers)


@pytest.fixture
def sessions(containers):
    return SessionCalls(containers, FakeStreaming())


def request(name="c", pod=POD, **fields):
    return pb.CreateContainerRequest(
        pod_sandbox_id=pod,
        config=pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=name), image=pb.ImageSpec(image="i"), **fields
        ),
        sandbox_config=pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name="p", uid="u", namespace="n")
        ),
    )


async def create(calls, *args, **fields):
    return (await calls.create_container(request(*args, **fields))).container_id


async def listed(calls, **filters):
    wanted = pb.ListContainersRequest(filter=pb.ContainerFilter(**filters))
    data = await calls.list_containers(wanted)
    return [item.id for item in pb.ListContainersResponse.FromString(data).containers]


@pytest.mark.parametrize("part", ["config", "sandbox_config", "pod_sandbox_id"])
async def test_every_part_of_create_is_needed(calls, containers, part):
    message = request()
    message.ClearField(part)
    with pytest.raises(InvalidArgument, match=part):
        await calls.create_container(message)
    assert containers.calls == []


async def test_start_changes_what_is_listed(calls):
    first, second = await create(calls, "a"), await create(calls, "b")
    assert await listed(calls) == [second, first]
    await calls.start_container(pb.StartContainerRequest(container_id=first))
    running = pb.ContainerStateValue(state=pb.CONTAINER_RUNNING)
    assert await listed(calls, state=running) == [first]


async def test_list_filters(calls):
    first = await create(calls, "a", pod="a" * 64, labels={"x": "1"})
    second = await create(calls, "b", pod="b" * 64)
    assert await listed(calls, pod_sandbox_id="a" * 64) == [first]
    assert await listed(calls, pod_sandbox_id="b") == [second]
    assert await listed(calls, id=second) == [second]
    assert await listed(calls, label_selector={"x": "1"}) == [first]
    assert await listed(calls, id=first, pod_sandbox_id="b") == []


async def test_streamed_containers_are_the_listed_ones(calls):
    for name in "abc":
        await create(calls, name)
    messages = [
        pb.StreamContainersResponse.FromString(data)
        async for data in calls.stream_containers(pb.StreamContainersRequest())
    ]
    assert [c.id for m in messages for c in m.containers] == await listed(calls)
    none = pb.StreamContainersRequest(filter=pb.ContainerFilter(id="f" * 64))
    assert [data async for data in calls.stream_containers(none)] == []


@pytest.mark.parametrize(
    ("sent", "handed_over"),
    [(0, 0), (30, 30), (2**63 - 1, SECONDS_LIMIT), (SECONDS_LIMIT, SECONDS_LIMIT)],
)
async def test_grace_periods(calls, containers, sent, handed_over):
    await calls.stop_container(pb.StopContainerRequest(container_id="c", timeout=sent))
    assert containers.calls == [("stop", "c", handed_over)]


async def test_a_negative_grace_period(calls):
    with pytest.raises(InvalidArgument, match="timeout: -1 is negative"):
        await calls.stop_container(pb.StopContainerRequest(container_id="c", timeout=-1))


async def test_status_and_verbose(calls):
    container_id = await create(calls)
    wanted = pb.ContainerStatusRequest(container_id=container_id)
    assert not (await calls.container_status(wanted)).info
    wanted.verbose = True
    answer = await calls.container_status(wanted)
    assert answer.status.metadata.name == "c"
    assert json.loads(answer.info["info"])["sandboxID"] == POD
    with pytest.raises(NotFound):
        await calls.container_status(pb.ContainerStatusRequest(container_id="nope"))


async def test_update_resources(calls, containers):
    with pytest.raises(InvalidArgument, match="linux: is missing"):
        await calls.update_container_resources(pb.UpdateContainerResourcesRequest(container_id="c"))
    await calls.update_container_resources(
        pb.UpdateContainerResourcesRequest(
            container_id="c",
            linux=pb.LinuxContainerResources(cpu_shares=3),
            annotations={"a": "b"},
        )
    )
    assert containers.calls == [("update_resources", "c", LinuxResources(cpu_shares=3), {"a": "b"})]


async def test_remove_and_reopen(calls, containers):
    await calls.remove_container(pb.RemoveContainerRequest(container_id="c"))
    await calls.reopen_container_log(pb.ReopenContainerLogRequest(container_id="c"))
    assert containers.calls == [("remove", "c"), ("reopen_log", "c")]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"cmd": []}, "cmd"),
        ({"cmd": [""]}, "cmd"),
        ({"cmd": ["a\0"]}, "cmd"),
        ({"cmd": ["a"], "timeout": -1}, "timeout"),
        ({"cmd": ["a"], "container_id": ""}, "container_id"),
    ],
)
async def test_exec_requests_that_are_refused(sessions, containers, fields, field):
    with pytest.raises(InvalidArgument, match=field):
        await sessions.exec_sync(pb.ExecSyncRequest(**{"container_id": "c", **fields}))
    assert containers.calls == []


async def test_exec_timeouts(sessions, containers):
    await sessions.exec_sync(pb.ExecSyncRequest(container_id="c", cmd=["-x"], timeout=2**62))
    assert containers.calls == [("exec_sync", "c", ("-x",), SECONDS_LIMIT)]
    containers.fail["exec_sync"] = DeadlineExceeded("command timed out")
    with pytest.raises(DeadlineExceeded):
        await sessions.exec_sync(pb.ExecSyncRequest(container_id="c", cmd=["x"], timeout=1))


@pytest.mark.parametrize(
    ("out", "err", "kept"),
    [
        (3, 3, (3, 3)),
        (10, 0, (10, 0)),
        (20, 2, (8, 2)),
        (2, 20, (2, 8)),
        (20, 20, (5, 5)),
        (5, 20, (5, 5)),
    ],
)
def test_both_outputs_fit_together_and_the_shorter_one_is_kept(out, err, kept):
    stdout, stderr = fit(b"o" * out, b"e" * err, 10)
    assert (len(stdout), len(stderr)) == kept
