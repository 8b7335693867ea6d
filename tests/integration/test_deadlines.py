"""Clients that do not wait: short deadlines, cancelled calls, closed connections.

The work goes on without them, the same request again gets the same object, and nothing is left of
the impatience. Only a pull ends with its last client, and goes on from there with the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.calls import until
from tests.kit.faults import PATIENCE_S
from tests.kit.node import Node
from tests.kit.operations import OPERATIONS, SPARE_IMAGE

SLEEP = ["sleep", "1000"]
DEADLINES_MS = [1, 3, 8, 20, 50]
GONE = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


def code_of(error: grpc.RpcError) -> grpc.StatusCode:
    return error.code()  # type: ignore[attr-defined]


@pytest.mark.cell("LD4")
@pytest.mark.parametrize("milliseconds", DEADLINES_MS)
def test_pod_and_container_of_an_impatient_client(node: Node, milliseconds: int) -> None:
    """As the kubelet does it: the same request until there is an answer."""
    config = node.pod_config("pod")
    pod = _insist(lambda s: node.run_config(config, timeout=s), milliseconds)
    assert node.run_config(config) == pod
    request = node.create_request(pod, "main", SLEEP)
    container = _insist(
        lambda s: node.runtime.CreateContainer(request, timeout=s).container_id, milliseconds
    )
    assert node.create(pod, "main", SLEEP) == container
    assert [p.id for p in node.pods()] == [pod]
    assert [c.id for c in node.containers()] == [container]
    node.assert_true()


@pytest.mark.parametrize("milliseconds", DEADLINES_MS)
def test_pull_of_an_impatient_client(node: Node, milliseconds: int) -> None:
    for _ in range(3):
        _unless_late(lambda s: node.pull(SPARE_IMAGE, timeout=s), milliseconds)
    node.pull(SPARE_IMAGE)
    assert node.image_id(SPARE_IMAGE)
    ingest = node.state_root / "images/ingest"
    until(lambda: not list(ingest.iterdir()), "nothing is left of the pulls before it")
    node.remove_image(SPARE_IMAGE)


@pytest.mark.cell("LD4")
@pytest.mark.parametrize("milliseconds", DEADLINES_MS)
@pytest.mark.parametrize("name", ["RemovePodSandbox", "RemoveContainer", "StopPodSandbox"])
def test_teardown_by_an_impatient_client(node: Node, name: str, milliseconds: int) -> None:
    operation = OPERATIONS[name]
    scene = operation.prepare(node, "crun")
    call = operation.begin(node, scene)
    time.sleep(milliseconds / 1000)
    call.cancel()
    operation.retry(node, scene)
    node.assert_true()


@pytest.mark.cell("LD6")
@pytest.mark.parametrize("how", ["deadline", "cancel", "disconnect"])
def test_client_that_goes_away_does_not_shorten_the_grace(node: Node, how: str) -> None:
    pod = node.run_pod("pod")
    script = "trap 'echo got TERM' TERM; echo ready; while :; do sleep 0.1; done"
    container = node.run(pod, "main", ["sh", "-c", script])
    node.wait_log("pod", "main", "ready")
    request = api.StopContainerRequest(container_id=container, timeout=3600)
    # Long enough for the call to come to the daemon and the signal to the program.
    timeout_s = 2.0 if how == "deadline" else PATIENCE_S
    call = node.runtime.StopContainer.future(request, timeout=timeout_s)
    node.wait_log("pod", "main", "got TERM")
    if how == "cancel":
        call.cancel()
    elif how == "disconnect":
        node.connect()
    until(call.done)
    assert call.code() in GONE
    # Some of what a container writes later shows that it was not killed meanwhile.
    assert node.exec(container, "sleep", "0.5")[0] == 0
    assert node.status(container).state == api.CONTAINER_RUNNING
    node.stop_container(container, 0)
    assert node.log_of("pod", "main").count("got TERM") == 1


@pytest.mark.cell("LD4")
def test_creation_that_nobody_waits_for_is_finished(node: Node) -> None:
    node.faults.order("crun", "create", "hold-before")
    config = node.pod_config("pod")
    request = api.RunPodSandboxRequest(config=config)
    call = node.runtime.RunPodSandbox.future(request, timeout=PATIENCE_S)
    node.faults.wait_reached("crun", "create")
    call.cancel()
    again = node.runtime.RunPodSandbox.future(request, timeout=PATIENCE_S)
    node.faults.release("crun", "create")
    pod = again.result().pod_sandbox_id
    assert node.run_config(config) == pod
    assert node.pod_status(pod).state == api.SANDBOX_READY


@pytest.mark.cell("LD3")
def test_stop_of_a_pod_whose_container_is_being_created(node: Node) -> None:
    pod = node.run_pod("pod")
    node.faults.order("crun", "create", "hold-before")
    call = node.runtime.CreateContainer.future(
        node.create_request(pod, "main", SLEEP), timeout=PATIENCE_S
    )
    node.faults.wait_reached("crun", "create")
    stopping = node.runtime.StopPodSandbox.future(
        api.StopPodSandboxRequest(pod_sandbox_id=pod), timeout=PATIENCE_S
    )
    until(lambda: node.pod_status(pod).state == api.SANDBOX_NOTREADY, "the stop has begun")
    node.faults.release("crun", "create")
    stopping.result()
    assert call.exception() is not None
    assert not node.containers() or node.containers()[0].state == api.CONTAINER_EXITED
    node.remove_pod(pod)
    assert not node.containers()


@pytest.mark.cell("LD3")
def test_removal_of_a_pod_whose_container_is_being_created(node: Node) -> None:
    pod = node.run_pod("pod")
    node.faults.order("crun", "create", "hold-before")
    call = node.runtime.CreateContainer.future(
        node.create_request(pod, "main", SLEEP), timeout=PATIENCE_S
    )
    node.faults.wait_reached("crun", "create")
    removing = node.runtime.RemovePodSandbox.future(
        api.RemovePodSandboxRequest(pod_sandbox_id=pod), timeout=PATIENCE_S
    )
    until(
        lambda: (
            not node.pods() or node.pod_status(pod).state == api.SANDBOX_NOTREADY or removing.done()
        ),
        "the removal has begun",
    )
    node.faults.release("crun", "create")
    removing.result()
    assert call.exception() is not None
    assert not node.pods()
    assert not node.containers()


@pytest.mark.cell("LD7")
def test_answers_come_while_something_hangs(node: Node) -> None:
    """One object that is stuck is nobody else's concern."""
    node.faults.order("crun", "create", "hold-before")
    call = node.runtime.RunPodSandbox.future(
        api.RunPodSandboxRequest(config=node.pod_config("stuck")), timeout=PATIENCE_S
    )
    node.faults.wait_reached("crun", "create")
    other = node.run_pod("other")
    container = node.run(other, "main", SLEEP)
    assert node.exec(container, "echo", "alive")[1] == "alive\n"
    node.stop_pod(other)
    node.remove_pod(other)
    assert not node.pods()
    node.faults.release("crun", "create")
    call.result()


def _insist(call: Callable[[float], str], milliseconds: int) -> str:
    """Ask again after each deadline; the answer."""
    for number in range(1, 1001):
        if answer := _unless_late(call, milliseconds):
            return answer
        # Such a client may never be answered in time, on a busy machine nor on any; ask for what it
        # has brought about.
        if milliseconds < 8 or number % 100 == 0:
            milliseconds *= 2
    raise AssertionError("no answer")


def _unless_late(call: Callable[[float], str], milliseconds: int) -> str:
    """The answer, or nothing when it did not come in time."""
    try:
        return call(milliseconds / 1000)
    except grpc.RpcError as error:
        if code_of(error) is not grpc.StatusCode.DEADLINE_EXCEEDED:
            raise
        return ""
