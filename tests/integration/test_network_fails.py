"""CNI plugins fail, hang, lie or are not there, around pods that must come and go all the same."""

from __future__ import annotations

import contextlib
import subprocess

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.calls import until
from tests.kit.faults import PATIENCE_S, Order
from tests.kit.messages import namespaces
from tests.kit.node import Node
from tests.kit.operations import supersede

SLEEP = ["sleep", "1000"]
#: Hanging plugins are killed soon, but not those that a busy machine holds up.
SETTINGS = {"cni.add_timeout_s": "4", "cni.delete_timeout_s": "4"}

BAD: list[Order] = ["fail-before", "fail-after", "kill-before", "kill-after", "garbage"]


def code_of(error: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    return error.value.code()  # type: ignore[attr-defined]


def network_ready(node: Node) -> bool:
    answer = node.runtime.Status(api.StatusRequest(), timeout=PATIENCE_S)
    return next(c.status for c in answer.status.conditions if c.type == "NetworkReady")


@pytest.mark.cell("CN1", "CN2", "CN5", "HD8")
@pytest.mark.parametrize("order", BAD)
@pytest.mark.parametrize("plugin", ["bridge", "host-local", "portmap"])
def test_add_goes_wrong(node: Node, plugin: str, order: Order) -> None:
    node.faults.order(plugin, "ADD", order)
    with pytest.raises(grpc.RpcError) as failed:
        node.run_pod("pod", ports=[api.PortMapping(container_port=80, host_port=18082)])
    assert node.faults.taken(plugin, "ADD")
    assert code_of(failed) is not grpc.StatusCode.UNKNOWN
    assert "Traceback" not in failed.value.details()  # type: ignore[attr-defined]
    assert not node.pods()
    node.remove_pod_cgroups()
    node.assert_clean()
    assert node.pod_status(node.run_pod("pod")).network.ip


@pytest.mark.cell("CN3")
@pytest.mark.parametrize("plugin", ["bridge", "portmap"])
def test_add_hangs(node: Node, plugin: str) -> None:
    node.faults.order(plugin, "ADD", "hold-after")
    with pytest.raises(grpc.RpcError) as late:
        node.run_pod("pod")
    assert code_of(late) is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not node.faults.release(plugin, "ADD"), "the plugin was not killed"
    assert not node.pods()
    node.remove_pod_cgroups()
    node.assert_clean()
    node.run_pod("pod")


@pytest.mark.cell("CN6")
@pytest.mark.parametrize("order", ["fail-before", "fail-after", "kill-before", "kill-after"])
@pytest.mark.parametrize("plugin", ["bridge", "host-local", "portmap"])
def test_delete_goes_wrong_once(node: Node, plugin: str, order: Order) -> None:
    pod = node.run_pod("pod", ports=[api.PortMapping(container_port=80, host_port=18082)])
    node.run(pod, "main", SLEEP)
    node.faults.order(plugin, "DEL", order)
    with contextlib.suppress(grpc.RpcError):
        node.stop_pod(pod)
    assert node.faults.taken(plugin, "DEL")
    # Whether or not it was told, the pod is not ready; and then again:
    assert node.pod_status(pod).state == api.SANDBOX_NOTREADY
    node.stop_pod(pod)
    assert not node.census()["addresses"]
    node.remove_pod(pod)


@pytest.mark.cell("CN7")
def test_delete_hangs_where_a_creation_is_called_off(node: Node) -> None:
    """Its time limit holds there as well, so the undo goes on, and what is left is tried again."""
    node.faults.order("bridge", "DEL", "hold-before")
    newer = supersede(node, "pod")
    assert not node.faults.release("bridge", "DEL"), "the plugin was not killed"
    until(lambda: [pod.id for pod in node.pods()] == [newer], "the older pod is gone")
    node.assert_true()
    node.remove_pod(newer)


@pytest.mark.cell("CN7")
def test_delete_hangs_once(node: Node) -> None:
    pod = node.run_pod("pod")
    node.faults.order("bridge", "DEL", "hold-before")
    with pytest.raises(grpc.RpcError):
        node.stop_pod(pod)
    assert node.pod_status(pod).state == api.SANDBOX_NOTREADY
    assert not node.faults.release("bridge", "DEL"), "the plugin was not killed"
    node.stop_pod(pod)
    assert not node.census()["addresses"]


@pytest.mark.cell("CN6")
def test_what_plugins_do_not_need_is_gone_where_they_fail(node: Node) -> None:
    pod = node.run_pod("pod")
    pins = node.run_root / "namespaces" / pod
    assert {pin.name for pin in pins.iterdir()} == {"net", "ipc", "uts", "pid"}
    node.faults.order("bridge", "DEL", "fail-before")
    with pytest.raises(grpc.RpcError):
        node.stop_pod(pod)
    assert [pin.name for pin in pins.iterdir()] == ["net"]
    node.stop_pod(pod)
    assert not pins.exists()


@pytest.mark.cell("CN6")
def test_removal_waits_for_the_network(node: Node) -> None:
    """A pod whose network cannot be detached stays listed, so that its address is not lost."""
    pod = node.run_pod("pod")
    node.faults.order("bridge", "DEL", "fail-before")
    with pytest.raises(grpc.RpcError):
        node.remove_pod(pod)
    assert [(p.id, p.state) for p in node.pods()] == [(pod, api.SANDBOX_NOTREADY)]
    node.remove_pod(pod)
    assert not node.pods()


@pytest.mark.cell("CN6")
def test_restart_with_the_network_still_attached(node: Node) -> None:
    pod = node.run_pod("pod")
    node.faults.order("bridge", "DEL", "fail-before")
    with pytest.raises(grpc.RpcError):
        node.stop_pod(pod)
    node.restart()
    assert node.pod_status(pod).state == api.SANDBOX_NOTREADY
    node.remove_pod(pod)
    assert not node.pods()


@pytest.mark.cell("CN6")
def test_undo_of_a_creation_fails_too(node: Node) -> None:
    """The pod stays listed as not ready, with its reason, and goes like any other."""
    node.faults.order("portmap", "ADD", "fail-before")
    node.faults.order("bridge", "DEL", "fail-before")
    with pytest.raises(grpc.RpcError):
        node.run_pod("pod")
    [pod] = node.pods()
    node.ids.add(pod.id)
    assert pod.state == api.SANDBOX_NOTREADY
    # The same request again first finishes the undo.
    again = node.run_pod("pod")
    assert again != pod.id
    assert [p.id for p in node.pods()] == [again]


@pytest.mark.cell("CN6")
def test_undo_of_a_creation_fails_and_the_client_removes_it(node: Node) -> None:
    node.faults.order("portmap", "ADD", "fail-before")
    node.faults.order("bridge", "DEL", "fail-before")
    with pytest.raises(grpc.RpcError):
        node.run_pod("pod")
    [pod] = node.pods()
    node.restart()
    node.stop_pod(pod.id)
    node.remove_pod(pod.id)
    assert not node.pods()


def test_configuration_comes_later(node: Node) -> None:
    node.kill()
    node.remove_network()
    node.start_daemon()
    assert not network_ready(node)
    with pytest.raises(grpc.RpcError) as refused:
        node.run_pod("pod")
    assert code_of(refused) is grpc.StatusCode.UNAVAILABLE
    on_host = node.run_pod("on-host", spaces=namespaces(network="NODE"))
    assert node.pod_status(on_host).state == api.SANDBOX_READY
    node.write_network()
    until(lambda: network_ready(node), "the network is ready")
    assert node.pod_status(node.run_pod("pod")).network.ip


@pytest.mark.cell("CN8")
def test_configuration_goes_before_the_pod(node: Node) -> None:
    pod = node.run_pod("pod", ports=[api.PortMapping(container_port=80, host_port=18082)])
    other = node.run_pod("other")
    node.remove_network()
    try:
        until(lambda: not network_ready(node), "the network is not ready")
        node.stop_pod(pod)
        node.remove_pod(pod)
        node.restart()
        node.remove_pod(other)
        assert not node.census()["addresses"]
        assert not node.census()["packet rules"]
    finally:
        node.write_network()
    until(lambda: network_ready(node), "the network is ready again")


@pytest.mark.cell("CN9")
def test_namespace_goes_before_the_pod(node: Node) -> None:
    pod = node.run_pod("pod")
    pin = node.run_root / "namespaces" / pod / "net"
    subprocess.run(["umount", "--lazy", pin], check=True)
    node.stop_pod(pod)
    node.remove_pod(pod)


@pytest.mark.cell("CN8")
def test_plugin_is_not_installed_any_more(node: Node) -> None:
    pod = node.run_pod("pod")
    places = [node.faults.programs / "cni" / "bridge", node.plugins / "bridge"]
    for place in places:
        place.rename(place.with_name("bridge.aside"))
    try:
        with pytest.raises(grpc.RpcError) as missing:
            node.stop_pod(pod)
        assert "bridge" in missing.value.details()  # type: ignore[attr-defined]
        assert node.pod_status(pod).state == api.SANDBOX_NOTREADY
    finally:
        for place in places:
            place.with_name("bridge.aside").rename(place)
    node.remove_pod(pod)
    assert not node.census()["addresses"]
