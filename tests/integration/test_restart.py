"""The daemon is killed and started again in every state: every answer is as before, or truer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.calls import until
from tests.kit.faults import PATIENCE_S
from tests.kit.messages import namespaces
from tests.kit.node import Node

SLEEP = ["sleep", "1000"]
#: Waits until it is told to go on, from outside, and then runs what follows.
WAIT = "while [ ! -e /tmp/go ]; do sleep 0.05; done; "
HOW = pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])


def everything(node: Node) -> dict[str, object]:
    """Every field of every status and list that a client can see."""
    pods, containers = node.pods(), node.containers()
    return {
        "pods": sorted(pods, key=lambda p: p.id),
        "containers": sorted(containers, key=lambda c: c.id),
        "pod statuses": {p.id: node.pod_status(p.id) for p in pods},
        "container statuses": {c.id: node.status(c.id) for c in containers},
        "pids": {
            **{p.id: node.pod_pid(p.id) for p in pods},
            **{c.id: node.container_pid(c.id) for c in containers},
        },
        "images": list(node.images.ListImages(api.ListImagesRequest(), timeout=PATIENCE_S).images),
    }


@pytest.mark.cell("RB3")
@HOW
def test_every_state_is_told_as_before(node: Node, handler: str, how: signal.Signals) -> None:
    pod = node.run_pod(
        "ready",
        handler=handler,
        spaces=namespaces(pid="POD"),
        dns=api.DNSConfig(servers=["10.0.0.1"]),
        sysctls={"net.ipv4.ip_forward": "1"},
    )
    limits = api.LinuxContainerResources(memory_limit_in_bytes=64 << 20, cpu_shares=512)
    node.create(pod, "created", SLEEP, resources=limits)
    running = node.run(pod, "running", SLEEP, resources=limits, user=1000, groups=[5])
    node.wait_exited(node.run(pod, "exited", ["sh", "-c", "exit 3"]))
    node.stop_container(node.run(pod, "stopped", SLEEP))
    stopped = node.run_pod("stopped", handler=handler)
    node.run(stopped, "inside", SLEEP)
    node.create(stopped, "never", SLEEP)
    node.stop_pod(stopped)
    empty = node.run_pod("empty", handler=handler, spaces=namespaces(network="NODE"))
    before = everything(node)
    for _ in range(2):
        node.restart(how)
        assert everything(node) == before
        node.assert_true()
    # And everything still works.
    assert node.exec(running, "echo", "alive")[1] == "alive\n"
    assert node.run_pod("empty", handler=handler, spaces=namespaces(network="NODE")) == empty
    created = next(c.id for c in node.containers() if c.metadata.name == "created")
    node.start(created)
    node.stop_container(running)
    assert node.status(running).exit_code == 137
    node.wait_exited(node.run(pod, "late", ["true"]))
    with pytest.raises(grpc.RpcError):
        node.run_pod("stopped", handler=handler)


@pytest.mark.cell("SC3")
def test_exits_while_the_daemon_is_down_are_told_truly(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    by_itself = node.run(pod, "by-itself", ["sh", "-c", f"{WAIT} exit 23"])
    killed = node.run(pod, "killed", SLEEP)
    created = node.create(pod, "created", SLEEP)
    limits = api.LinuxContainerResources(memory_limit_in_bytes=16 << 20)
    hungry = f"{WAIT} exec dd if=/dev/zero of=/dev/null bs=64M"
    hog = node.run(pod, "hog", ["sh", "-c", hungry], resources=limits)
    pids = {c: node.container_pid(c) for c in (by_itself, killed, created, hog)}
    node.kill()
    for container in (by_itself, hog):
        Path(f"/proc/{pids[container]}/root/tmp/go").touch()
    for container in (killed, created):
        os.kill(pids[container], signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids.values()), "all ended")
    told = [node.run_root / "exits" / c for c in (by_itself, killed)]
    # Which is after the processes are gone.
    until(lambda: all(path.exists() for path in told), "their monitors have told of it")
    down_until = max(path.stat().st_mtime_ns for path in told)
    node.start_daemon()
    assert node.wait_exited(by_itself).exit_code == 23
    assert node.wait_exited(killed).exit_code == 137
    assert node.wait_exited(created).state == api.CONTAINER_EXITED
    status = node.wait_exited(hog)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")
    # When it ended, not when it was noticed.
    assert node.status(by_itself).finished_at <= down_until
    assert node.pod_status(pod).state == api.SANDBOX_READY
    assert node.exec(node.run(pod, "late", SLEEP), "true")[0] == 0


def test_pause_that_died_meanwhile_makes_the_pod_not_ready(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", SLEEP)
    pause = node.pod_pid(pod)
    node.kill()
    os.kill(pause, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pause}").exists())
    node.start_daemon()
    assert node.pod_status(pod).state == api.SANDBOX_NOTREADY
    assert node.status(container).state == api.CONTAINER_RUNNING
    node.assert_true()
    node.stop_pod(pod)
    assert node.status(container).state == api.CONTAINER_EXITED


@pytest.mark.cell("ST1")
def test_stop_in_its_grace_is_not_cut_short_by_a_restart(node: Node) -> None:
    pod = node.run_pod("pod")
    script = "trap 'echo got TERM' TERM; echo ready; while :; do sleep 0.1; done"
    container = node.run(pod, "main", ["sh", "-c", script])
    node.wait_log("pod", "main", "ready")
    call = node.runtime.StopContainer.future(
        api.StopContainerRequest(container_id=container, timeout=3600), timeout=PATIENCE_S
    )
    node.wait_log("pod", "main", "got TERM")
    node.kill()
    # Whichever the client sees first: the end of the daemon, or that the kit closes the channel.
    assert call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    node.start_daemon()
    assert node.status(container).state == api.CONTAINER_RUNNING
    node.stop_container(container, 1)
    assert node.status(container).exit_code == 137


def test_termination_ends_calls_in_flight_and_no_pod(node: Node) -> None:
    pod = node.run_pod("pod")
    script = "trap '' TERM; echo ready; while :; do sleep 1; done"
    container = node.run(pod, "main", ["sh", "-c", script])
    node.wait_log("pod", "main", "ready")
    stopping = node.runtime.StopContainer.future(
        api.StopContainerRequest(container_id=container, timeout=3600), timeout=PATIENCE_S
    )
    running = node.runtime.ExecSync.future(
        api.ExecSyncRequest(container_id=container, cmd=["sleep", "3333"]), timeout=PATIENCE_S
    )
    until(lambda: node.processes_doing("sleep 3333"), "the command runs")
    assert node.stop() == 0
    for call in (stopping, running):
        assert call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert not node.census()["sockets"]
    node.start_daemon()
    assert node.status(container).state == api.CONTAINER_RUNNING
    until(lambda: not node.processes_doing("sleep 3333"), "the command is gone")


@pytest.mark.cell("EX1")
def test_restart_in_the_middle_of_an_exec_leaves_none(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler, spaces=namespaces(pid="POD"))
    container = node.run(pod, "main", SLEEP, spaces=namespaces(pid="POD"))
    script = "setsid sleep 4441 & sleep 4442"
    call = node.runtime.ExecSync.future(
        api.ExecSyncRequest(container_id=container, cmd=["sh", "-c", script]), timeout=PATIENCE_S
    )
    until(lambda: node.processes_doing("sleep 4441"), "the command runs")
    node.restart()
    call.cancel()
    until(lambda: not node.processes_doing("sleep 444"), "the command is gone")
    bundle = node.run_root / "containers" / container
    until(lambda: not list(bundle.glob("exec-*")), "and what was written for it")
    assert node.exec(container, "true")[0] == 0


@pytest.mark.cell("BOOT1")
def test_killed_five_times_while_it_recovers(node: Node) -> None:
    pod = node.run_pod("pod")
    container = node.run(pod, "main", SLEEP)
    node.create(pod, "created", SLEEP)
    before = everything(node)
    for milliseconds in (300, 600, 700, 800, 900):
        node.kill()
        node.start_daemon(wait=False)
        subprocess.run(["sleep", str(milliseconds / 1000)], check=True)
    node.kill()
    node.start_daemon()
    assert everything(node) == before
    assert node.exec(container, "true")[0] == 0


@pytest.mark.cell("DB6")
def test_second_daemon_is_refused_and_the_first_goes_on(node: Node) -> None:
    container = node.run(node.run_pod("pod"), "main", SLEEP)
    before = everything(node)
    second = subprocess.run(
        [Path(sys.executable).with_name("podwright"), "serve", "--config", node.config],
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 1
    assert f"another podwright serves this run root (path={node.run_root}" in second.stderr
    assert everything(node) == before
    assert node.exec(container, "true")[0] == 0


def test_no_file_socket_or_lock_is_in_the_way_of_a_start(node: Node) -> None:
    node.kill()
    assert node.socket.exists()
    node.start_daemon()
    node.stop()
    node.start_daemon()


def test_many_pods_come_back_quickly_and_truly(node: Node) -> None:
    with ThreadPoolExecutor(8) as clients:

        def make(number: int) -> None:
            pod = node.run_pod(f"pod-{number}", spaces=namespaces(network="NODE"))
            node.run(pod, "main", SLEEP)

        list(clients.map(make, range(24)))
    before = everything(node)
    node.restart()
    assert everything(node) == before
    node.assert_true()
