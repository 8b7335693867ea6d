"""The programs that the daemon relies on die, hang or fail: conmon, pause, crun and runc."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit import census
from tests.kit.calls import until
from tests.kit.faults import PATIENCE_S, Order
from tests.kit.messages import namespaces
from tests.kit.node import Node
from tests.kit.state import edit_rows

SLEEP = ["sleep", "1000"]
#: conmon waits for ever for a runtime that was killed after it had made the container.
#: A runtime that is not asked cannot fail: the failing ones must be asked to start containers too.
SETTINGS = {"runtime.create_timeout_s": "5", "runtime.direct_start": "false"}


def conmon_of(node: Node, container: str) -> int:
    return int((node.run_root / "containers" / container / "conmon.pid").read_text())


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


# Deaths.


@pytest.mark.cell("HD1", "LG4")
def test_conmon_dies_and_its_container_lives(node: Node, handler: str) -> None:
    """The container goes on and is watched; only its output and its exit code are lost."""
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", SLEEP)
    os.kill(conmon_of(node, container), signal.SIGKILL)
    assert node.exec(container, "echo", "alive")[1] == "alive\n"
    assert node.status(container).state == api.CONTAINER_RUNNING
    with pytest.raises(grpc.RpcError) as refused:
        node.runtime.ReopenContainerLog(
            api.ReopenContainerLogRequest(container_id=container), timeout=PATIENCE_S
        )
    assert refused.value.code() is not grpc.StatusCode.UNKNOWN  # type: ignore[attr-defined]
    os.kill(node.container_pid(container), signal.SIGKILL)
    status = node.wait_exited(container)
    assert (status.exit_code, status.reason) == (255, "Unknown")
    assert status.message


@pytest.mark.cell("HD1")
def test_conmon_dies_and_the_container_is_stopped(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
    os.kill(conmon_of(node, container), signal.SIGKILL)
    node.stop_container(container, 1)
    assert node.status(container).state == api.CONTAINER_EXITED


@pytest.mark.cell("HD2")
@pytest.mark.parametrize("down", [False, True], ids=["daemon-up", "daemon-down"])
def test_conmon_and_container_die_together(node: Node, handler: str, down: bool) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", SLEEP)
    victims = [conmon_of(node, container), node.container_pid(container)]
    if down:
        node.kill()
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    until(lambda: all(gone(pid) for pid in victims), "both are dead")
    if down:
        node.start_daemon()
    status = node.wait_exited(container)
    assert status.exit_code in (137, 255)
    assert node.pod_status(pod).state == api.SANDBOX_READY


@pytest.mark.cell("HD3")
def test_conmon_dies_while_the_daemon_is_down(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", SLEEP)
    node.kill()
    os.kill(conmon_of(node, container), signal.SIGKILL)
    node.start_daemon()
    assert node.status(container).state == api.CONTAINER_RUNNING
    node.assert_true()
    node.stop_container(container)
    assert node.status(container).state == api.CONTAINER_EXITED


@pytest.mark.cell("DK6")
def test_exit_directory_that_is_gone(node: Node) -> None:
    """conmon cannot tell; its copy in the bundle does, or nobody, but the end is seen."""
    pod = node.run_pod("pod")
    container = node.run(pod, "main", SLEEP)
    exits = node.run_root / "exits"
    exits.rename(exits.with_name("elsewhere"))
    try:
        os.kill(node.container_pid(container), signal.SIGKILL)
        assert node.wait_exited(container).exit_code in (137, 255)
    finally:
        exits.with_name("elsewhere").rename(exits)


@pytest.mark.cell("DB9")
@pytest.mark.parametrize("text", ["", "garbage", "-1", "999999999999999999999"])
def test_exit_file_that_holds_nonsense(node: Node, text: str) -> None:
    pod = node.run_pod("pod")
    container = node.run(pod, "main", SLEEP)
    pids = [conmon_of(node, container), node.container_pid(container)]
    node.kill()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: all(gone(pid) for pid in pids))
    bundle = node.run_root / "containers" / container
    for path in (node.run_root / "exits" / container, bundle / "exit"):
        path.write_text(text)
    node.start_daemon()
    status = node.wait_exited(container)
    assert (status.exit_code, status.reason) == (255, "Unknown")


@pytest.mark.cell("HD5")
@pytest.mark.parametrize("pid_mode", ["CONTAINER", "POD"])
def test_pause_dies(node: Node, handler: str, pid_mode: str) -> None:
    spaces = namespaces(pid=pid_mode)
    pod = node.run_pod("pod", handler=handler, spaces=spaces)
    address = node.pod_status(pod).network.ip
    container = node.run(pod, "main", SLEEP, spaces=spaces)
    os.kill(node.pod_pid(pod), signal.SIGKILL)
    until(lambda: node.pod_status(pod).state == api.SANDBOX_NOTREADY, "the pod is not ready")
    if pid_mode == "POD":
        # Pause is the first process of the namespace: everything in it goes with it.
        assert node.wait_exited(container).exit_code == 137
    else:
        assert node.exec(container, "echo", "alive")[1] == "alive\n"
    # The address is held until the client stops the pod.
    assert any(a.endswith(f"/{address}") for a in node.census()["addresses"])
    with pytest.raises(grpc.RpcError):
        node.create(pod, "late", SLEEP)
    node.stop_pod(pod)
    assert not node.census()["addresses"]
    assert node.status(container).state == api.CONTAINER_EXITED


@pytest.mark.cell("HD9")
def test_container_dies_before_its_start(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = node.create(pod, "main", SLEEP)
    os.kill(node.container_pid(container), signal.SIGKILL)
    node.wait_exited(container)
    with pytest.raises(grpc.RpcError) as refused:
        node.start(container)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION  # type: ignore[attr-defined]


@pytest.mark.cell("HD13")
def test_number_of_a_dead_process_belongs_to_somebody_else(node: Node) -> None:
    """Nobody else is signalled: what counts is the number and when its process began."""
    pod = node.run_pod("pod")
    container = node.run(pod, "main", SLEEP)
    pids = [conmon_of(node, container), node.container_pid(container), node.pod_pid(pod)]
    node.kill()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: all(gone(pid) for pid in pids))
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        for table, key in (("pods", "pause"), ("containers", "init")):
            edit_rows(node, table, lambda row, key=key: row[key].update(pid=stranger.pid))
        (node.run_root / "containers" / container / "conmon.pid").write_text(str(stranger.pid))
        (node.run_root / "containers" / container / "pid").write_text(str(stranger.pid))
        node.start_daemon()
        assert node.wait_exited(container).state == api.CONTAINER_EXITED
        assert node.pod_status(pod).state == api.SANDBOX_NOTREADY
        node.remove_everything()
        assert stranger.poll() is None
        stranger.kill()


# Failures.

FAILURES: list[tuple[str, Order]] = [
    ("crun", "fail-before"),
    ("crun", "fail-after"),
    ("crun", "kill-before"),
    ("crun", "kill-after"),
    ("runc", "kill-after"),
]


@pytest.mark.cell("HD6")
@pytest.mark.parametrize(("handler", "order"), FAILURES)
@pytest.mark.parametrize("verb", ["create", "start"])
def test_runtime_fails_making_a_pod(node: Node, handler: str, verb: str, order: Order) -> None:
    node.faults.order(handler, verb, order)
    with pytest.raises(grpc.RpcError) as failed:
        node.run_pod("pod", handler=handler)
    assert failed.value.code() is not grpc.StatusCode.UNKNOWN  # type: ignore[attr-defined]
    assert node.faults.taken(handler, verb)
    assert not node.pods()
    node.remove_pod_cgroups()
    node.assert_clean()
    pod = node.run_pod("pod", handler=handler)
    assert node.pod_status(pod).state == api.SANDBOX_READY


@pytest.mark.cell("HD6")
@pytest.mark.parametrize(("handler", "order"), FAILURES)
@pytest.mark.parametrize(("program", "verb"), [("handler", "create"), ("conmon", "run")])
def test_container_cannot_be_created(
    node: Node, handler: str, program: str, verb: str, order: Order
) -> None:
    pod = node.run_pod("pod", handler=handler)
    before = node.settled_census()
    program = handler if program == "handler" else program
    node.faults.order(program, verb, order)
    with pytest.raises(grpc.RpcError) as failed:
        node.create(pod, "main", SLEEP)
    assert failed.value.code() is not grpc.StatusCode.UNKNOWN  # type: ignore[attr-defined]
    assert not node.containers()
    until(lambda: not census.difference(before, node.census()), "nothing of it is left")
    container = node.run(pod, "main", SLEEP)
    assert node.exec(container, "true")[0] == 0


@pytest.mark.cell("HD6")
@pytest.mark.parametrize(("handler", "order"), FAILURES)
def test_container_cannot_be_started(node: Node, handler: str, order: Order) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = node.create(pod, "main", SLEEP)
    node.faults.order(handler, "start", order)
    with pytest.raises(grpc.RpcError):
        node.start(container)
    status = node.status(container)
    assert (status.state, status.exit_code) == (api.CONTAINER_EXITED, 128)
    assert status.reason == "StartError"
    until(lambda: not node.processes_doing("sleep 1000"), "it does not run behind our back")
    node.remove_container(container)
    node.run(pod, "main", SLEEP)


@pytest.mark.cell("HD6")
@pytest.mark.parametrize(("handler", "order"), FAILURES)
def test_runtime_fails_to_delete(node: Node, handler: str, order: Order) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", SLEEP)
    node.faults.order(handler, "delete", order)
    node.stop_container(container)
    assert node.status(container).exit_code == 137
    node.remove_container(container)
    node.faults.order(handler, "delete", order)
    try:
        node.stop_pod(pod)
    except grpc.RpcError:
        node.stop_pod(pod)
    node.remove_pod(pod)
    assert not node.pods()


@pytest.mark.cell("HD6")
@pytest.mark.parametrize(("handler", "order"), FAILURES)
def test_runtime_fails_to_exec_and_update(node: Node, handler: str, order: Order) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", SLEEP)
    node.faults.order(handler, "exec", order)
    with pytest.raises(grpc.RpcError):
        raise _as_error(node.exec(container, "sleep", "0.1"))
    assert node.exec(container, "echo", "alive")[1] == "alive\n"
    before = node.status(container)
    node.faults.order(handler, "update", order)
    limits = api.LinuxContainerResources(memory_limit_in_bytes=64 << 20)
    request = api.UpdateContainerResourcesRequest(container_id=container, linux=limits)
    with pytest.raises(grpc.RpcError):
        node.runtime.UpdateContainerResources(request, timeout=PATIENCE_S)
    assert node.status(container).resources == before.resources
    node.runtime.UpdateContainerResources(request, timeout=PATIENCE_S)
    assert node.status(container).resources.linux.memory_limit_in_bytes == 64 << 20


def _as_error(answer: tuple[int, str, str]) -> Exception:
    """A command whose runtime fails may also end with the runtime's exit status."""
    code, out, err = answer
    assert code != 0, (out, err)
    return grpc.RpcError()


@pytest.mark.cell("HD6")
def test_runtime_that_cannot_be_asked_at_start(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    created = node.create(pod, "created", SLEEP)
    running = node.run(pod, "running", SLEEP)
    node.kill()
    node.faults.order(handler, "state", "fail-before")
    node.start_daemon()
    assert node.status(created).state == api.CONTAINER_CREATED
    assert node.status(running).state == api.CONTAINER_RUNNING
    node.start(created)


@pytest.mark.cell("DB10")
def test_state_of_the_runtime_deleted_behind_our_back(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    running = node.run(pod, "running", SLEEP)
    created = node.create(pod, "created", SLEEP)
    for each in (pod, running, created):
        shutil.rmtree(node.run_root / "runtime" / handler / each)
    with pytest.raises(grpc.RpcError):
        node.start(created)
    node.restart()
    node.stop_container(running)
    assert node.status(running).state == api.CONTAINER_EXITED
    node.stop_pod(pod)
    node.remove_pod(pod)


@pytest.mark.cell("DB7")
def test_files_of_a_container_deleted_behind_our_back(node: Node) -> None:
    pod = node.run_pod("pod")
    container = node.run(pod, "main", SLEEP)
    bundle = node.run_root / "containers" / container
    for path in bundle.iterdir():
        if not path.is_mount():
            path.unlink()
    shutil.rmtree(node.run_root / "pods" / pod / "bundle")
    with pytest.raises(grpc.RpcError) as refused:
        node.exec(container, "true")
    assert refused.value.code() is not grpc.StatusCode.UNKNOWN  # type: ignore[attr-defined]
    node.restart()
    assert node.status(container).state == api.CONTAINER_RUNNING
    node.stop_container(container)
    node.stop_pod(pod)
    node.remove_pod(pod)
