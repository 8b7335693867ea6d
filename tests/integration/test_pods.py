"""What pods are, with both OCI runtimes: namespaces, files, addresses, names, and how they end."""

from __future__ import annotations

import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from sandbox.host.cgroupfs import CgroupLayout
from sandbox.host.host_facts import HostFacts
from sandbox.host.priority import MANY, NICENESS
from tests.kit import groups
from tests.kit.calls import until
from tests.kit.messages import WEB_SERVER, namespaces
from tests.kit.node import Node
from tests.kit.operations import ping, supersede

IMAGES = ("registry.localhost/busybox:latest", WEB_SERVER)

SLEEP = ["sleep", "1000"]


def namespace_of(pid: int | str, kind: str) -> str:
    return str(Path(f"/proc/{pid}/ns/{kind}").readlink())


def code_of(error: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    return error.value.code()  # type: ignore[attr-defined]


@pytest.mark.parametrize("pid_mode", ["POD", "CONTAINER", "NODE"])
@pytest.mark.parametrize("ipc", ["POD", "NODE"])
@pytest.mark.parametrize("network", ["POD", "NODE"])
def test_namespaces_are_shared_as_asked(
    node: Node, handler: str, network: str, ipc: str, pid_mode: str
) -> None:
    spaces = namespaces(network=network, ipc=ipc, pid=pid_mode)
    pod = node.run_pod("pod", handler=handler, spaces=spaces)
    first = node.run(pod, "first", SLEEP, spaces=spaces)
    second = node.run(pod, "second", SLEEP, spaces=spaces)
    pids = [node.container_pid(c) for c in (first, second)]
    for kind, mode in (("net", network), ("ipc", ipc), ("pid", pid_mode)):
        one, other = (namespace_of(pid, kind) for pid in pids)
        own = namespace_of("self", kind)
        assert (one == own) == (mode == "NODE"), kind
        assert (one == other) == (mode != "CONTAINER"), kind
    uts = [namespace_of(pid, "uts") for pid in pids]
    assert uts[0] == uts[1]
    assert (uts[0] == namespace_of("self", "uts")) == (network == "NODE")
    if pid_mode == "POD":
        assert namespace_of(node.pod_pid(pod), "pid") == namespace_of(pids[0], "pid")
        assert "catatonit" in node.exec(first, "ps")[1]
    status = node.pod_status(pod)
    assert bool(status.network.ip) == (network == "POD")
    assert status.linux.namespaces.options == spaces
    assert node.exec(first, "hostname")[1].strip() == (
        "pod" if network == "POD" else os.uname().nodename
    )


def test_target_pid_namespace_is_that_of_the_target(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    target = node.run(pod, "target", SLEEP)
    spaces = namespaces(pid="TARGET", target=target)
    debugger = node.run(pod, "debugger", ["sh", "-c", "ps; sleep 1000"], spaces=spaces)
    assert namespace_of(node.container_pid(debugger), "pid") == namespace_of(
        node.container_pid(target), "pid"
    )
    assert "sleep 1000" in node.wait_log("pod", "debugger", "ps")
    # The target's end is everybody's end in there: it is their init.
    node.stop_container(target)
    assert node.wait_exited(debugger).exit_code == 137


def test_target_must_be_a_running_container_of_the_pod(node: Node) -> None:
    pod, other = node.run_pod("pod"), node.run_pod("other")
    stranger = node.run(other, "stranger", SLEEP)
    for target in (stranger, "0" * 64, ""):
        spaces = namespaces(pid="TARGET", target=target)
        with pytest.raises(grpc.RpcError):
            node.create(pod, "debugger", SLEEP, spaces=spaces)
    assert [c.id for c in node.containers()] == [stranger]


def test_address_is_real_in_both_families(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", SLEEP)
    network = node.pod_status(pod).network
    addresses = {network.ip, *(each.ip for each in network.additional_ips)}
    assert len(addresses) == 2
    shown = node.exec(container, "ip", "addr", "show", "dev", "eth0")[1]
    assert all(address in shown for address in addresses)
    ping(node, network.ip)
    hosts = node.exec(container, "cat", "/etc/hosts")[1]
    assert f"{network.ip}\tpod" in hosts


def test_addresses_of_pods_differ_and_come_back(node: Node) -> None:
    pods = [node.run_pod(f"pod-{number}") for number in range(3)]
    addresses = {node.pod_status(pod).network.ip for pod in pods}
    assert len(addresses) == 3
    leased = set(node.census()["addresses"])
    assert {a.rpartition("/")[2] for a in leased} >= addresses
    for pod in pods:
        node.stop_pod(pod)
    assert not node.census()["addresses"]


def test_host_port_leads_to_the_container(node: Node, handler: str) -> None:
    ports = [api.PortMapping(protocol=api.TCP, container_port=80, host_port=18080)]
    pod = node.run_pod("pod", handler=handler, ports=ports)
    node.run(pod, "web", [], image=WEB_SERVER)
    address = node.pod_status(pod).network.ip
    # From outside of the "host": a second pod, which knows only the host's address.
    client_pod = node.run_pod("client")
    client = node.run(client_pod, "client", SLEEP)

    def answered(host: str, port: int) -> bool:
        # Not wget: busybox, linked statically, cannot look up names without the C library's files.
        ask = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {host} {port}"
        return "Welcome" in node.exec(client, "sh", "-c", ask)[1]

    until(lambda: answered(address, 80), "the pod answers")
    gateway = address.rpartition(".")[0] + ".1"
    until(lambda: answered(gateway, 18080), "the host's port answers")
    assert any("18080" in rule for rule in node.census()["packet rules"])
    node.stop_pod(pod)
    assert not any("18080" in rule for rule in node.census()["packet rules"])
    assert not answered(gateway, 18080)


def test_small_things_are_as_asked(node: Node, handler: str) -> None:
    pod = node.run_pod(
        "pod",
        handler=handler,
        hostname="told",
        sysctls={"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"},
        dns=api.DNSConfig(
            servers=["10.9.8.7", "fd00::1"], searches=["a.example", "b"], options=["ndots:5"]
        ),
    )
    container = node.run(pod, "main", SLEEP)
    assert node.exec(container, "cat", "/etc/resolv.conf")[1].splitlines() == [
        "search a.example b",
        "nameserver 10.9.8.7",
        "nameserver fd00::1",
        "options ndots:5",
    ]
    assert node.exec(container, "cat", "/etc/hostname")[1] == "told\n"
    for name, value in (
        ("net/ipv4/ip_forward", "1"),
        ("kernel/shm_rmid_forced", "1"),
        ("net/ipv4/ping_group_range", "0\t2147483647"),
        ("net/ipv4/ip_unprivileged_port_start", "0"),
    ):
        assert node.exec(container, "cat", f"/proc/sys/{name}")[1].strip() == value, name
    shown = node.exec(container, "df", "-k", "/dev/shm")[1].splitlines()[-1].split()
    assert shown[1] == "65536"


def test_shared_memory_is_the_pods(node: Node) -> None:
    pod = node.run_pod("pod")
    one, other = node.run(pod, "one", SLEEP), node.run(pod, "other", SLEEP)
    assert node.exec(one, "sh", "-c", "echo hello > /dev/shm/note")[0] == 0
    assert node.exec(other, "cat", "/dev/shm/note")[1] == "hello\n"


@pytest.mark.parametrize(
    "sysctls", [{"kernel.core_pattern": "|/x"}, {"vm.swappiness": "1"}, {"net.ipv4.no_such": "1"}]
)
def test_sysctl_of_the_host_is_refused_and_nothing_is_made(
    node: Node, sysctls: dict[str, str]
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        node.run_pod("pod", sysctls=sysctls)
    assert code_of(refused) is grpc.StatusCode.INVALID_ARGUMENT
    assert not node.pods()


def test_sysctl_of_the_network_is_refused_on_the_hosts_network(node: Node) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        node.run_pod("pod", spaces=namespaces(network="NODE"), sysctls={"net.ipv4.ip_forward": "1"})
    assert code_of(refused) is grpc.StatusCode.INVALID_ARGUMENT


def test_unknown_handler_is_refused(node: Node) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        node.run_pod("pod", handler="no-such")
    assert code_of(refused) is grpc.StatusCode.INVALID_ARGUMENT
    assert "no-such" in refused.value.details()  # type: ignore[attr-defined]


# Names.


def test_same_request_again_is_the_same_pod(node: Node) -> None:
    first = node.run_pod("pod")
    pid = node.pod_pid(first)
    assert node.run_pod("pod") == first
    assert node.pod_pid(first) == pid
    assert len(node.pods()) == 1


@pytest.mark.cell("LD2")
def test_twenty_same_requests_at_once_are_one_pod(node: Node) -> None:
    with ThreadPoolExecutor(20) as clients:
        pods = list(clients.map(lambda _: node.run_pod("pod"), range(20)))
        assert len(set(pods)) == 1
        made = list(clients.map(lambda _: node.create(pods[0], "main", SLEEP), range(20)))
    assert len(set(made)) == 1
    assert [pod.id for pod in node.pods()] == pods[:1]
    assert [container.id for container in node.containers()] == made[:1]


def test_stopped_pod_keeps_its_name_until_it_is_removed(node: Node) -> None:
    pod = node.run_pod("pod")
    node.stop_pod(pod)
    with pytest.raises(grpc.RpcError) as refused:
        node.run_pod("pod")
    assert code_of(refused) is grpc.StatusCode.ALREADY_EXISTS
    newer = node.run_config(node.pod_config("pod", attempt=1))
    assert newer != pod
    node.remove_pod(pod)
    assert node.run_pod("pod") not in (pod, newer)


def test_newer_attempt_supersedes_one_in_flight(node: Node) -> None:
    newer = supersede(node, "pod")
    assert [(p.id, p.metadata.attempt) for p in node.pods()] == [(newer, 1)]
    node.assert_true()


def test_newer_attempt_of_a_container_supersedes_one_in_flight(node: Node) -> None:
    pod = node.run_pod("pod")
    node.faults.order("crun", "create", "hold-before")
    with ThreadPoolExecutor(1) as client:
        older = client.submit(node.create, pod, "main", SLEEP)
        node.faults.wait_reached("crun", "create")
        newer = node.create(pod, "main", SLEEP, attempt=1)
        node.faults.release("crun", "create")
        ended = older.exception()
    # Either it was called off, or it had its own end; what must not be is a half of it.
    ids = {c.id for c in node.containers()}
    assert newer in ids
    assert len(ids) == (1 if ended else 2)
    node.assert_true()


# The end.


def test_unknown_pod(node: Node) -> None:
    for unknown in ("0" * 64, "no-such"):
        node.stop_pod(unknown)
        node.remove_pod(unknown)
        with pytest.raises(grpc.RpcError) as missing:
            node.pod_status(unknown)
        assert code_of(missing) is grpc.StatusCode.NOT_FOUND


def test_stop_ends_containers_and_may_be_repeated(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    running = node.run(pod, "running", ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
    created = node.create(pod, "created", SLEEP)
    node.stop_pod(pod)
    assert node.pod_status(pod).state == api.SANDBOX_NOTREADY
    assert node.status(running).state == api.CONTAINER_EXITED
    assert node.status(created).state == api.CONTAINER_EXITED
    assert not node.census()["addresses"]
    # A monitor leaves a moment after it has told of its container's end.
    until(lambda: not node.census()["processes"], "nothing of the pod runs")
    node.stop_pod(pod)
    with pytest.raises(grpc.RpcError) as refused:
        node.create(pod, "late", SLEEP)
    assert code_of(refused) is grpc.StatusCode.FAILED_PRECONDITION
    node.remove_pod(pod)
    node.remove_pod(pod)
    assert not node.containers()


def test_remove_takes_a_running_pod_with_everything(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    node.run(pod, "main", SLEEP)
    node.remove_pod(pod)
    assert not node.pods()
    assert not node.containers()


@pytest.mark.cell("LD3")
def test_many_removals_at_once(node: Node) -> None:
    pod = node.run_pod("pod")
    container = node.run(pod, "main", SLEEP)
    with ThreadPoolExecutor(12) as clients:
        calls = [
            *(clients.submit(node.stop_container, container) for _ in range(3)),
            *(clients.submit(node.remove_container, container) for _ in range(3)),
            *(clients.submit(node.stop_pod, pod) for _ in range(3)),
            *(clients.submit(node.remove_pod, pod) for _ in range(3)),
        ]
        for call in calls:
            call.result()
    assert not node.pods()


def test_pod_without_parent_group_leaves_none(node: Node, handler: str) -> None:
    """Whose request names no parent gets one of ours, which goes with the pod."""
    pod = node.run_pod("pod", handler=handler, cgroup_parent="")
    container = node.run(pod, "main", SLEEP)
    own = Path(f"/proc/{node.container_pid(container)}/cgroup").read_text()
    below = f"pod{pod}/{container}"
    if groups.DRIVER == "systemd":
        below = f"pod{pod}.slice/podwright-{container}.scope"
    assert below in own


def test_what_has_come_since_a_stop_goes_with_the_pod(node: Node, handler: str) -> None:
    """A removal does not stop once more what was stopped whole, and takes apart all the same."""
    pod = node.run_pod("pod", handler=handler, cgroup_parent="")
    node.stop_pod(pod)
    group = CgroupLayout.detect().dirs(f"/podwright/pod{pod}/late")[0]
    if groups.DRIVER != "systemd":  # there a slice is made by nobody else
        group.mkdir(parents=True)
    place = node.run_root / "pods" / pod / "late"
    place.mkdir()
    node.remove_pod(pod)
    assert not group.parent.exists()
    assert not place.parent.exists()


def test_verbose_status_tells_what_is_there(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    request = api.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
    answer = node.runtime.PodSandboxStatus(request, timeout=60)
    assert answer.status.runtime_handler == handler
    text = json.dumps(dict(answer.info))
    assert node.pod_status(pod).network.ip in text
    assert socket.gethostname() not in text


@pytest.mark.cell("LD3")
def test_pods_made_and_removed_at_once(node: Node) -> None:
    with ThreadPoolExecutor(8) as clients:

        def life(number: int) -> None:
            pod = node.run_pod(f"pod-{number}", handler=["crun", "runc"][number % 2])
            container = node.run(pod, "main", ["sh", "-c", f"exit {number}"])
            assert node.wait_exited(container).exit_code == number
            node.stop_pod(pod)
            node.remove_pod(pod)

        list(clients.map(life, range(16)))
    assert not node.pods()


def test_the_daemon_comes_first_among_many_calls_and_nothing_that_it_starts_does(
    node: Node, handler: str
) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    with ThreadPoolExecutor(MANY) as clients:
        pods = list(clients.map(lambda n: node.run_pod(f"n-{n}", handler=handler), range(MANY)))
        if own == 0 and "CAP_SYS_NICE" in HostFacts.detect().capabilities_effective:
            assert os.getpriority(os.PRIO_PROCESS, node.pid) == NICENESS
        containers = list(clients.map(lambda pod: node.run(pod, "main", SLEEP), pods))
    inits = [node.container_pid(c) for c in containers]
    stats = [Path(f"/proc/{init}/stat").read_text().rpartition(")")[2].split() for init in inits]
    started = [*inits, *(int(stat[1]) for stat in stats), *(node.pod_pid(pod) for pod in pods)]
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in started} == {own}
    inside = node.exec(containers[0], "cat", "/proc/self/stat")[1].rpartition(")")[2].split()
    assert int(inside[16]) == own  # field 19 of proc_pid_stat(5)
    until(lambda: os.getpriority(os.PRIO_PROCESS, node.pid) == own, "one call is not many")
