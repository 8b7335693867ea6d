"""What drifts apart while the daemon runs is put right by its sweep, and what fails is retried."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit import groups
from tests.kit.calls import until
from tests.kit.faults import PATIENCE_S
from tests.kit.node import Node

SETTINGS = {"daemon.sweep_interval_s": "0.3"}
SLEEP = ["sleep", "1000"]
NOBODY = "f" * 64


def upkeep(node: Node) -> dict:
    """What the daemon says about retries and repairs."""
    answer = node.runtime.Status(api.StatusRequest(verbose=True), timeout=PATIENCE_S)
    return json.loads(answer.info["upkeep"])


def repaired(node: Node, kind: str) -> int:
    return upkeep(node)["repairs"].get(kind, 0)


def looked(node: Node, times: int = 3) -> None:
    """Return when the sweep has looked a few times from now on."""
    for _ in range(times):
        first = upkeep(node)["looks"]
        until(lambda first=first: upkeep(node)["looks"] > first, "the sweep has looked")


def test_a_node_at_rest_is_never_repaired(node: Node) -> None:
    """Pods of every kind and in every state, with calls going on beside: no difference is seen."""
    pod = node.run_pod("pod")
    node.run(pod, "running", SLEEP)
    node.create(pod, "created", SLEEP)
    node.wait_exited(node.run(pod, "exited", ["true"]))
    node.run_pod("host", spaces=api.NamespaceOption(network=api.NODE, pid=api.NODE, ipc=api.NODE))
    stopped = node.run_pod("stopped")
    node.run(stopped, "inside", SLEEP)
    node.stop_pod(stopped)
    before = upkeep(node)["repairs"]
    looked(node)
    for number in range(5):
        busy = node.run_pod(f"busy{number}")
        node.run(busy, "main", SLEEP)
        node.stop_pod(busy)
        node.remove_pod(busy)
    looked(node)
    assert upkeep(node)["repairs"] == before
    assert not upkeep(node)["retrying"]


def test_traces_without_a_record_are_swept(node: Node) -> None:
    """Directories, mounts, exit files, writable layers, leases of ids that nobody has recorded."""
    place = node.run_root / "containers" / NOBODY / "rootfs"
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    (node.run_root / "exits" / NOBODY).write_text("0")
    (node.state_root / "containers" / NOBODY / "upper").mkdir(parents=True)
    until(lambda: not (node.run_root / "containers" / NOBODY).exists(), "it is swept")
    until(lambda: not (node.run_root / "exits" / NOBODY).exists(), "the exit file is swept")
    until(lambda: not (node.state_root / "containers" / NOBODY).exists(), "the layer is swept")
    until(lambda: repaired(node, "trace") >= 1, "it is counted")
    assert NOBODY in node.log_tail()


def test_what_is_not_ours_is_never_touched(node: Node) -> None:
    """Other names in our directories, and cgroups of other runtimes, which are 64 digits too."""
    mine = node.run_root / "containers" / "somebody-elses"
    mine.mkdir()
    group = [Path(f"{top}{groups.top(node.tag)}", NOBODY) for top in groups.hierarchies()]
    for directory in group:
        directory.mkdir(parents=True)
    try:
        looked(node)
        assert mine.is_dir()
        assert all(directory.is_dir() for directory in group)
    finally:
        mine.rmdir()
        for directory in group:
            directory.rmdir()


def test_a_pin_that_was_unmounted_is_made_again(node: Node) -> None:
    """The namespaces of a ready pod: the next container must land in the same ones."""
    pod = node.run_pod("pod")
    first = node.run(pod, "first", SLEEP)
    link = node.exec(first, "readlink", "/proc/self/ns/net")[1]
    for kind in ("net", "ipc"):
        subprocess.run(["umount", node.run_root / "namespaces" / pod / kind], check=True)
    pins = [node.run_root / "namespaces" / pod / kind for kind in ("net", "ipc")]
    # Perhaps one after the other: the daemon may look between the two.
    until(lambda: all(os.path.ismount(pin) for pin in pins), "both are pinned again")
    until(lambda: repaired(node, "pin_lost"), "it is counted")
    second = node.run(pod, "second", SLEEP)
    assert node.exec(second, "readlink", "/proc/self/ns/net")[1] == link
    ipc = node.exec(first, "readlink", "/proc/self/ns/ipc")[1]
    assert node.exec(second, "readlink", "/proc/self/ns/ipc")[1] == ipc


def test_a_monitor_of_a_container_without_record_is_ended(node: Node) -> None:
    """A program that works on a run directory of ours whose container nobody knows."""
    bundle = node.run_root / "containers" / NOBODY
    code = "import ctypes,time;ctypes.CDLL(None).prctl(15,b'conmon');time.sleep(1000)"
    process = subprocess.Popen([sys.executable, "-c", code, f"{bundle}/pidfile"])
    try:
        until(lambda: process.poll() is not None, "it is ended")
        assert process.returncode == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()


def test_an_address_of_a_pod_without_record_is_given_back(node: Node) -> None:
    """The record of the network outlived that of the pod."""
    pod = node.run_pod("pod")
    (record,) = (node.state_root / "cni/results").glob(f"{pod}-*.json")
    text = record.read_text()
    node.stop_pod(pod)
    node.remove_pod(pod)
    again = record.with_name(record.name.replace(pod, NOBODY))
    # Whole at once: half a record would be one that cannot be read.
    new = node.state_root / "record"
    new.write_text(text.replace(pod, NOBODY))
    new.rename(again)
    until(lambda: not again.exists(), "it is detached")
    until(lambda: repaired(node, "address") == 1, "it is counted")


def test_a_network_record_that_cannot_be_read_is_put_aside(node: Node) -> None:
    record = node.state_root / "cni/results" / f"{NOBODY}-eth0.json"
    record.write_text("{")
    until(lambda: not record.exists(), "it is put aside")
    aside = record.with_name(f"{record.name}.unreadable")
    assert aside.read_text() == "{"
    aside.unlink()


def test_a_cgroup_made_again_after_the_removal_goes(node: Node) -> None:
    """As a runtime does that is slower to die than the removal of its container."""
    pod = node.run_pod("pod")
    container = node.run(pod, "main", SLEEP)
    path = groups.container(node.tag, "pod", container)
    group = [d for top in groups.hierarchies() if (d := Path(f"{top}{path}")).is_dir()]
    assert group
    node.remove_container(container)
    for directory in group:
        directory.mkdir(parents=True, exist_ok=True)
    until(lambda: not any(d.exists() for d in group), "it is removed")
    until(lambda: repaired(node, "cgroup") >= 1, "it is counted")


def test_a_teardown_that_fails_is_shown_and_retried(node: Node) -> None:
    """Nobody calls again: the pod is listed NOTREADY until the daemon itself has stopped it."""
    pod = node.run_pod("pod")
    node.faults.order("bridge", "DEL", "fail-before")
    with pytest.raises(grpc.RpcError):
        node.stop_pod(pod)
    (entry,) = upkeep(node)["retrying"]
    assert (entry["kind"], entry["id"], entry["wish"]) == ("pod", pod, "stop")
    assert entry["stage"] == "network"
    assert entry["tries"] == 1
    assert "ordered to fail" in entry["error"]
    assert node.pod_status(pod).state == api.SANDBOX_NOTREADY
    shown = subprocess.run(
        [Path(sys.executable).with_name("podwright"), "status", "--config", node.config],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    assert f"retrying: stop of pod {pod[:13]} at network since" in shown
    until(lambda: not upkeep(node)["retrying"], "the daemon has stopped it by itself")
    assert not node.census()["addresses"]
    assert node.pod_status(pod).state == api.SANDBOX_NOTREADY


def test_a_removal_that_fails_is_finished_without_a_client(node: Node) -> None:
    pod = node.run_pod("pod")
    container = node.run(pod, "main", SLEEP)
    node.faults.order("bridge", "DEL", "fail-before")
    with pytest.raises(grpc.RpcError):
        node.remove_pod(pod)
    assert [p.state for p in node.pods()] == [api.SANDBOX_NOTREADY]
    assert upkeep(node)["retrying"][0]["wish"] == "remove"
    until(lambda: not node.pods(), "it is removed by itself")
    assert container not in {c.id for c in node.containers()}


def test_a_stop_that_failed_is_finished_after_a_restart(node: Node) -> None:
    pod = node.run_pod("pod")
    node.faults.order("bridge", "DEL", "fail-before")
    with pytest.raises(grpc.RpcError):
        node.stop_pod(pod)
    node.restart()
    until(lambda: not node.census()["addresses"], "its address is given back")
    assert node.pod_status(pod).state == api.SANDBOX_NOTREADY


@pytest.fixture(autouse=True)
def _listed(node: Node) -> Iterator[None]:
    """Every retry of a test is over when it ends."""
    yield
    until(lambda: not upkeep(node)["retrying"], "nothing is retried")
