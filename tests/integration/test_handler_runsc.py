"""Pods under gVisor by the handler's name alone; every test ends with the census of the node."""

from __future__ import annotations

import shutil
from typing import Final

import pytest

from protos import api_pb2 as api
from tests.kit.calls import until
from tests.kit.node import PATIENCE_S, Node

RUNSC: Final = shutil.which("runsc")
pytestmark = pytest.mark.skipif(RUNSC is None, reason="runsc is not installed: apt install runsc")
SETTINGS: Final = {"runtimes.runsc.path": f'"{RUNSC}"'}


def test_life_of_a_pod(node: Node) -> None:
    pod = node.run_pod("guest", handler="runsc")
    assert node.pod_status(pod).state == api.SANDBOX_READY
    script = "echo out; echo err >&2; dmesg | head -1; exec sleep 1000"
    container = node.run(pod, "main", ["sh", "-c", script])
    log = node.logs / "guest" / "main_0.log"
    until(lambda: log.read_bytes().count(b"\n") >= 3, "it has said all")
    text = log.read_text()
    assert " stdout F out\n" in text
    assert " stderr F err\n" in text
    assert "Starting gVisor" in text, "the kernel that it sees is not the host's"
    assert node.exec(container, "sh", "-c", "echo hi; echo ho >&2; exit 3") == (3, "hi\n", "ho\n")
    assert (
        node.exec(container, "hostname")[1].strip()
        == node.exec(container, "cat", "/etc/hostname")[1].strip()
    )
    assert node.status(container).state == api.CONTAINER_RUNNING
    request = api.ContainerStatsRequest(container_id=container)
    stats = node.runtime.ContainerStats(request, timeout=PATIENCE_S).stats
    assert stats.cpu.usage_core_nano_seconds.value > 0
    assert stats.memory.working_set_bytes.value > 0
    # A second one beside it shares the pod's network, and its end is its own.
    other = node.run(pod, "other", ["sh", "-c", "ip addr; exit 4"])
    assert node.wait_exited(other).exit_code == 4
    address = node.pod_status(pod).network.ip
    assert f" {address}/" in (node.logs / "guest" / "other_0.log").read_text()
    node.stop_container(container)
    assert node.status(container).state == api.CONTAINER_EXITED


def test_pods_survive_the_daemon(node: Node) -> None:
    pod = node.run_pod("guest", handler="runsc")
    container = node.run(pod, "main", ["sleep", "1000"])
    node.restart()
    assert node.pod_status(pod).state == api.SANDBOX_READY
    assert node.exec(container, "echo", "alive")[1] == "alive\n"
