"""The network's configuration changes under pods, and two pods want one host port."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.calls import until
from tests.kit.faults import PATIENCE_S
from tests.kit.node import Node

SLEEP = ["sleep", "1000"]
PORT = 18083


def web(host_ip: str = "") -> list[api.PortMapping]:
    return [api.PortMapping(container_port=80, host_port=PORT, host_ip=host_ip)]


def rules(node: Node) -> list[str]:
    """Packet rules about the port."""
    return [rule for rule in node.census()["packet rules"] if str(PORT) in rule]


def in_force(node: Node) -> str:
    """The name of the network in force."""
    answer = node.runtime.Status(api.StatusRequest(verbose=True), timeout=PATIENCE_S)
    return str(json.loads(answer.info["network"]).get("network", ""))


@contextlib.contextmanager
def another_network(node: Node) -> Iterator[None]:
    """Within it another bridge, other addresses, and nothing that maps ports."""
    file = node.conf_dir / "10-test.conflist"
    usual = file.read_text()
    document = json.loads(usual)
    document["name"] = "another-net"
    bridge = document["plugins"][0]
    bridge["bridge"] = "pwtest-other"
    bridge["ipam"]["ranges"] = [[{"subnet": "10.88.79.0/24"}]]
    document["plugins"] = [bridge]
    file.write_text(json.dumps(document))
    try:
        until(lambda: in_force(node) == "another-net", "the other network is in force")
        yield
    finally:
        file.write_text(usual)
        if node.process is not None:
            until(lambda: in_force(node) == "test-net", "the usual network is in force")
        node.host("ip", "link", "delete", "pwtest-other")


@pytest.mark.cell("CN10")
@pytest.mark.parametrize("restart", [False, True])
def test_old_pods_are_detached_by_what_they_were_attached_with(node: Node, restart: bool) -> None:
    """Its address goes back to the old range and its rules go, though nobody maps ports now."""
    old = node.run_pod("old", ports=web())
    container = node.run(old, "main", SLEEP)
    address = node.pod_status(old).network.ip
    assert rules(node)
    assert f"test-net/{address}" in node.census()["addresses"]
    with another_network(node):
        new = node.run_pod("new")
        assert node.pod_status(new).network.ip.startswith("10.88.79.")
        if restart:
            node.restart()
        assert node.pod_status(old).network.ip == address
        assert node.exec(container, "true")[0] == 0
        node.stop_pod(old)
        assert not rules(node)
        kept = node.census()["addresses"]
        assert f"test-net/{address}" not in kept
        assert any(line.startswith("another-net/10.88.79.") for line in kept)
        node.remove_pod(old)
        node.stop_pod(new)
        node.remove_pod(new)
        assert not node.census()["addresses"]
    again = node.run_pod("again", ports=web())
    assert not node.pod_status(again).network.ip.startswith("10.88.79.")


@pytest.mark.cell("CN13")
@pytest.mark.parametrize(("first", "second"), [("", ""), ("", "10.88.78.1"), ("0.0.0.0", "")])
def test_a_host_port_is_one_pods(node: Node, first: str, second: str) -> None:
    """The second is refused in words, over a restart as well, and gets it when the first stops."""
    holder = node.run_pod("first", ports=web(first))
    before = rules(node)
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as refused:
            node.run_pod("second", ports=web(second))
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION  # type: ignore[attr-defined]
        words = refused.value.details()  # type: ignore[attr-defined]
        assert f"{PORT}/tcp" in words
        assert "integration/first" in words
        assert holder in words
        assert [pod.id for pod in node.pods()] == [holder]
        assert rules(node) == before
        node.restart()
    node.run_pod("other-port", ports=[api.PortMapping(container_port=80, host_port=PORT + 1)])
    node.stop_pod(holder)
    node.run_pod("second", ports=web(second))
    assert rules(node)


@pytest.mark.cell("CN13")
def test_a_pod_that_has_died_frees_its_port(node: Node) -> None:
    """As the kubelet has it: the next sandbox of the same pod, with the same ports."""
    first = node.run_pod("pod", ports=web())
    os.kill(node.pod_pid(first), signal.SIGKILL)
    until(lambda: node.pod_status(first).state == api.SANDBOX_NOTREADY, "it is not ready")
    node.stop_pod(first)
    second = node.run_pod("pod", ports=web(), attempt=1)
    node.remove_pod(first)
    assert node.pod_status(second).state == api.SANDBOX_READY
    assert rules(node)


@pytest.mark.cell("CN13")
def test_of_many_at_once_one_gets_it(node: Node) -> None:
    def ask(number: int) -> grpc.StatusCode:
        try:
            node.run_pod(f"pod-{number}", ports=web())
        except grpc.RpcError as error:
            return error.code()  # type: ignore[attr-defined, no-any-return]
        return grpc.StatusCode.OK

    with ThreadPoolExecutor(6) as clients:
        codes = list(clients.map(ask, range(6)))
    assert sorted(codes, key=str).count(grpc.StatusCode.OK) == 1
    assert codes.count(grpc.StatusCode.FAILED_PRECONDITION) == 5
    assert len(node.pods()) == 1


@pytest.mark.cell("CN13")
@pytest.mark.parametrize("moment", ["hold-before", "hold-after"])
def test_rules_of_a_crash_are_gone_after_the_start(node: Node, moment: str) -> None:
    """The daemon dies beside the plugin that maps ports, before its work or after it."""
    node.faults.order("portmap", "ADD", moment)  # type: ignore[arg-type]
    request = api.RunPodSandboxRequest(config=node.pod_config("pod", ports=web()))
    call = node.runtime.RunPodSandbox.future(request, timeout=PATIENCE_S)
    node.faults.wait_reached("portmap", "ADD")
    assert bool(rules(node)) == (moment == "hold-after")
    node.kill()
    with pytest.raises(grpc.RpcError):
        call.result()
    node.start_daemon()
    until(lambda: not rules(node), "the rules are gone")
    until(lambda: not node.pods(), "nothing of the pod is left")
    node.run_pod("other", ports=web())
    assert rules(node)
