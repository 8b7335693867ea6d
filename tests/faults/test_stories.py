"""Failures that other runtimes had on real nodes, each by its name.

Where a story is a cell or a longer test of its own stands elsewhere, that one carries its mark too.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit import census
from tests.kit.calls import until
from tests.kit.faults import PATIENCE_S, stranger
from tests.kit.messages import BUSYBOX, namespaces
from tests.kit.node import Node
from tests.kit.operations import SPARE_IMAGE, Bystander
from tests.kit.state import edit_rows

SLEEP = ["sleep", "1000"]
FAILPOINTS = True
SETTINGS = {"cni.delete_timeout_s": "2"}


def code_of(error: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    return error.value.code()  # type: ignore[attr-defined]


@pytest.mark.cell("S1")
def test_story_01_the_name_is_reserved_for_ever(node: Node) -> None:
    """The first creation outlives its client; every retry is told to wait, and gets its result."""
    pod = node.run_pod("pod")
    request = node.create_request(pod, "main", SLEEP)
    node.faults.order("conmon", "run", "hold-before")
    for _ in range(3):
        with pytest.raises(grpc.RpcError) as late:
            node.runtime.CreateContainer(request, timeout=0.5)
        assert code_of(late) is grpc.StatusCode.DEADLINE_EXCEEDED
    node.faults.wait_reached("conmon", "run")
    assert node.faults.release("conmon", "run")
    container = node.create(pod, "main", SLEEP)
    assert node.other_containers() == [container]
    assert node.exec(node.start(container), "true")[0] == 0


@pytest.mark.cell("S2")
def test_story_02_running_for_ever_after_its_death(node: Node, handler: str) -> None:
    """It dies while a command runs in it, a stop waits, and the daemon is killed."""
    pod = node.run_pod("pod", handler=handler)
    script = "trap '' TERM; while :; do sleep 0.1; done"
    container = node.run(pod, "main", ["sh", "-c", script])
    command = node.runtime.ExecSync.future(
        api.ExecSyncRequest(container_id=container, cmd=["sleep", "3338"]), timeout=PATIENCE_S
    )
    until(lambda: node.processes_doing("sleep 3338"), "the command runs")
    stop = node.runtime.StopContainer.future(
        api.StopContainerRequest(container_id=container, timeout=3600), timeout=PATIENCE_S
    )
    pid = node.container_pid(container)
    node.kill()
    os.kill(pid, signal.SIGKILL)
    for call in (command, stop):
        assert isinstance(call.exception(), grpc.RpcError)
    node.start_daemon()
    assert node.wait_exited(container).exit_code == 137
    node.stop_container(container)
    node.assert_true()


@pytest.mark.cell("S3")
def test_story_03_monitor_and_container_are_gone_and_the_pod_is_well(node: Node) -> None:
    """Nobody is left to write how it ended; that it ended is known all the same."""
    pod = node.run_pod("pod")
    container = node.run(pod, "main", SLEEP)
    bundle = node.run_root / "containers" / container
    for pid in (int((bundle / "conmon.pid").read_text()), node.container_pid(container)):
        os.kill(pid, signal.SIGKILL)
    status = node.wait_exited(container)
    assert status.exit_code in (137, 255)
    assert status.reason


@pytest.mark.cell("S4")
def test_story_04_the_nodes_name_becomes_a_pods(node: Node) -> None:
    """The number of a dead pause process is a stranger's: no container joins his namespaces."""
    spaces = namespaces(pid="POD")
    pod = node.run_pod("pod", hostname="name-of-the-pod", spaces=spaces)
    node.kill()
    found: list[int] = []
    edit_rows(node, "pods", lambda row: found.append(row["pause"]["pid"]))
    [pause] = found
    os.kill(pause, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pause}").exists())
    before = os.uname().nodename
    with stranger() as somebody:
        edit_rows(node, "pods", lambda row: row["pause"].update(pid=somebody.pid))
        node.start_daemon()
        with pytest.raises(grpc.RpcError):
            node.create(pod, "late", SLEEP, spaces=spaces)
        node.stop_pod(pod)
        node.remove_pod(pod)
        assert somebody.poll() is None
    assert os.uname().nodename == before


@pytest.mark.cell("S8")
def test_story_08_restarting_the_runtime_restarts_every_pod(node: Node) -> None:
    """What a kubelet compares is the same before and after: addresses, attempts, times, ids."""
    pod = node.run_pod("pod")
    container = node.run(pod, "main", SLEEP)
    before = (node.pod_status(pod), node.status(container))
    assert before[0].network.ip
    for how in (signal.SIGTERM, signal.SIGKILL):
        node.restart(how)
        assert (node.pod_status(pod), node.status(container)) == before
    node.assert_true()


@pytest.mark.cell("S9")
def test_story_09_monitors_leak_when_unmounting_is_slow(node: Node) -> None:
    assert node.failpoints is not None
    pod = node.run_pod("pod")
    containers = [node.run(pod, f"main-{n}", SLEEP) for n in range(3)]
    with node.failpoints.ordered("delay:4", match="^umount2 RUN/containers/ID/rootfs", times=9):
        for container in containers:
            with contextlib.suppress(grpc.RpcError):
                node.runtime.RemoveContainer(
                    api.RemoveContainerRequest(container_id=container), timeout=1
                )
    for container in containers:
        node.remove_container(container)
    until(lambda: not node.processes_doing("conmon"), "no monitor is left")


@pytest.mark.cell("S10")
def test_story_10_the_grace_is_cut_or_the_second_stop_does_nothing(node: Node) -> None:
    pod = node.run_pod("pod")
    script = "trap 'echo got TERM' TERM; echo ready; while :; do sleep 0.1; done"
    container = node.run(pod, "main", ["sh", "-c", script])
    node.wait_log("pod", "main", "ready")
    with pytest.raises(grpc.RpcError):
        node.runtime.StopContainer(
            api.StopContainerRequest(container_id=container, timeout=3600), timeout=0.5
        )
    assert node.exec(container, "sleep", "0.5")[0] == 0
    assert node.status(container).state == api.CONTAINER_RUNNING
    node.stop_container(container, 1)
    assert node.status(container).exit_code == 137


@pytest.mark.cell("S12")
def test_story_12_logs_vanish_while_a_pod_terminates(node: Node) -> None:
    pod = node.run_pod("pod")
    script = "trap '' TERM; i=0; while :; do echo line $i; i=$((i+1)); sleep 0.02; done"
    container = node.run(pod, "main", ["sh", "-c", script])
    node.wait_log("pod", "main", "line 2\n")
    stop = node.runtime.StopPodSandbox.future(
        api.StopPodSandboxRequest(pod_sandbox_id=pod), timeout=PATIENCE_S
    )
    log = node.logs / "pod" / "main_0.log"
    with contextlib.suppress(grpc.RpcError):
        # It may have ended by now; if it has not, the log goes on in a new file.
        log.rename(log.with_name("rotated"))
        node.runtime.ReopenContainerLog(
            api.ReopenContainerLogRequest(container_id=container), timeout=PATIENCE_S
        )
        assert log.exists()
    stop.result()
    assert log.with_name("rotated").stat().st_size


@pytest.mark.cell("S13")
def test_story_13_pods_cannot_be_deleted_once_the_network_is_gone(node: Node) -> None:
    pod = node.run_pod("pod")
    node.remove_network()
    try:
        node.restart()
        node.stop_pod(pod)
        node.remove_pod(pod)
        assert not node.other_pods()
        assert not node.census()["addresses"]
    finally:
        node.write_network()

    def ready() -> bool:
        answer = node.runtime.Status(api.StatusRequest(), timeout=PATIENCE_S)
        return next(c.status for c in answer.status.conditions if c.type == "NetworkReady")

    until(ready, "the network is ready again")


@pytest.mark.cell("S15", "DK4")
def test_story_15_every_failed_creation_leaves_a_directory(node: Node) -> None:
    """A few dozen of them leave not one file, for each of the ways to fail."""
    pod = node.run_pod("pod")
    before = node.settled_census()
    for number in range(20):
        for program, verb in (("crun", "create"), ("conmon", "run")):
            node.faults.order(program, verb, "fail-before")
            with pytest.raises(grpc.RpcError):
                node.create(pod, f"never-{number}", SLEEP)
        with pytest.raises(grpc.RpcError):
            node.create(pod, f"never-{number}", ["/no/such/program"], image="no/such:image")
    until(lambda: not census.difference(before, node.census()), "nothing of them is left")


@pytest.mark.cell("LD12")
def test_story_also_image_removed_while_it_is_pulled(node: Node, bystander: Bystander) -> None:
    """Pull, removal and creation of one image at once: never a container without its layers."""
    from concurrent.futures import ThreadPoolExecutor

    pod = node.run_pod("pod")

    def use(number: int) -> None:
        try:
            container = node.run(pod, f"main-{number}", SLEEP, image=SPARE_IMAGE)
        except grpc.RpcError as error:
            if error.code() not in (  # type: ignore[attr-defined]
                grpc.StatusCode.NOT_FOUND,
                grpc.StatusCode.FAILED_PRECONDITION,
            ):
                raise
        else:
            assert node.exec(container, "ls", "/test-image-1")[0] == 0

    with ThreadPoolExecutor(6) as clients:
        work = []
        for number in range(8):
            work += [
                clients.submit(node.pull, SPARE_IMAGE),
                clients.submit(use, number),
                clients.submit(node.remove_image, SPARE_IMAGE),
            ]
        for each in work:
            each.result()
    assert node.image_id(BUSYBOX)
    bystander.assert_untouched()
    node.remove_everything()
    node.remove_image(SPARE_IMAGE)
