"""Rows 75 to 78: router advertisements, host ports that catch too much, texts in resolv.conf.

75, CVE-2020-10749: a pod believes whoever on its link says it is an IPv6 router.
76, CVE-2019-9946, CVE-2025-67499: the rules of a host port catch traffic that is not for the host.
77: strings of a pod's DNS configuration are written into resolv.conf as they are.
78: a host port of 0 means none; others are real, unique ports.
Tried with the real bridge and portmap plugins, in a network that they take for the host's.
"""

from __future__ import annotations

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.calls import until
from tests.kit.node import Node

SLEEP = ["sleep", "1000"]
#: Says who it is to everyone who connects, over and over.
SERVE = ["sh", "-c", "while true; do echo {name} | nc -l -p {port}; done"]


def serve(name: str, port: int) -> list[str]:
    return [word.format(name=name, port=port) for word in SERVE]


def refused_code(node: Node, **options: object) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as refused:
        node.run_pod("refused", **options)  # type: ignore[arg-type]
    assert refused.value.details().isprintable()  # type: ignore[attr-defined]
    return refused.value.code()  # type: ignore[attr-defined]


ACCEPT_RA = "/proc/sys/net/ipv6/conf/eth0/accept_ra"


def test_a_pod_does_not_believe_router_advertisements(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", SLEEP)
    assert node.exec(container, "cat", ACCEPT_RA)[1].strip() == "0"


def test_a_pod_that_lives_on_advertisements_can_say_so(node: Node, handler: str) -> None:
    sysctls = {"net.ipv6.conf.default.accept_ra": "1"}
    pod = node.run_pod("pod", handler=handler, sysctls=sysctls)
    container = node.run(pod, "main", SLEEP)
    assert node.exec(container, "cat", ACCEPT_RA)[1].strip() == "1"


def test_a_host_port_catches_what_is_for_the_host_and_nothing_else(
    node: Node, handler: str
) -> None:
    port = 18084
    ports = [api.PortMapping(protocol=api.TCP, container_port=80, host_port=port)]
    caught = node.run_pod("caught", handler=handler, ports=ports)
    node.run(caught, "main", serve("caught", 80))
    other = node.run_pod("other", handler=handler)
    node.run(other, "main", serve("other", port))
    client_pod = node.run_pod("client", handler=handler)
    client = node.run(client_pod, "main", SLEEP)

    def answer(address: str, options: str = "") -> str:
        ask = f"echo | nc {options} -w 3 {address} {port}"
        return node.exec(client, "sh", "-c", ask)[1].strip()

    address = node.pod_status(other).network.ip
    gateway = address.rpartition(".")[0] + ".1"
    until(lambda: answer(gateway) == "caught", "the host's port answers")
    # The same port of another pod is that pod's, not the host's.
    until(lambda: answer(address) == "other", "the other pod answers for itself")
    # An address beyond the host, and one of the link that nobody has, lead to nobody of us.
    assert answer("203.0.113.7") == ""
    assert answer(address.rpartition(".")[0] + ".253") == ""
    # Every rule that a packet meets first is for addresses of the host only.
    rules = node.host("iptables-save", "-t", "nat").splitlines()
    first = ("-A PREROUTING", "-A OUTPUT")
    entries = [rule for rule in rules if "HOSTPORT-DNAT" in rule and rule.startswith(first)]
    assert entries
    assert all("--dst-type LOCAL" in rule for rule in entries)


@pytest.mark.parametrize(
    "ports",
    [
        [(80, -1)],
        [(80, 65536)],
        [(80, 2**31 - 1)],
        [(0, 18085)],
        [(-80, 18085)],
        [(65536, 18085)],
        [(80, 18085), (81, 18085)],
    ],
)
def test_ports_that_are_none_are_refused_and_nothing_is_made(
    node: Node, ports: list[tuple[int, int]]
) -> None:
    wanted = [api.PortMapping(container_port=inner, host_port=outer) for inner, outer in ports]
    assert refused_code(node, ports=wanted) is grpc.StatusCode.INVALID_ARGUMENT
    assert not node.pods()


def test_host_port_0_publishes_nothing_and_protocols_do_not_collide(
    node: Node, handler: str
) -> None:
    ports = [
        api.PortMapping(container_port=80, host_port=0),
        api.PortMapping(container_port=81, host_port=0),
        api.PortMapping(protocol=api.TCP, container_port=53, host_port=18086),
        api.PortMapping(protocol=api.UDP, container_port=53, host_port=18086),
    ]
    pod = node.run_pod("pod", handler=handler, ports=ports)
    rules = [rule for rule in node.census()["packet rules"] if "--dport" in rule]
    assert any("18086" in rule and "-p tcp" in rule for rule in rules)
    assert any("18086" in rule and "-p udp" in rule for rule in rules)
    assert not any("--dport 0" in rule or ":80" in rule or ":81" in rule for rule in rules)
    node.stop_pod(pod)


@pytest.mark.parametrize(
    "dns",
    [
        {"servers": ["10.0.0.1\nnameserver 6.6.6.6"]},
        {"servers": ["10.0.0.1\0"]},
        {"servers": ["not-an-address"]},
        {"servers": ["10.0.0.1 # x"]},
        {"servers": ["10.0.0.1"] * 100},
        {"searches": ["a\noptions x"]},
        {"searches": ["a\rb"]},
        {"searches": ["a b"]},
        {"searches": ["\u2028"]},
        {"searches": ["x" * 10_000]},
        {"options": ["ndots:5\nnameserver 6.6.6.6"]},
        {"options": ["\x1b[31m"]},
        {"options": ["x" * 10_000]},
    ],
    ids=lambda dns: ascii(dns)[:40],
)
def test_dns_texts_that_would_write_more_than_a_word_are_refused(
    node: Node, dns: dict[str, list[str]]
) -> None:
    assert refused_code(node, dns=api.DNSConfig(**dns)) is grpc.StatusCode.INVALID_ARGUMENT
    assert not node.pods()


def test_resolv_conf_of_a_pod_is_written_by_no_other(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler, dns=api.DNSConfig(servers=["10.0.0.1"]))
    container = node.run(pod, "main", SLEEP)
    mode = node.exec(container, "stat", "-c", "%a %u %g", "/etc/resolv.conf")[1].split()
    assert int(mode[0], 8) & 0o022 == 0, mode
    assert mode[1:] == ["0", "0"]
    for path in node.run_root.rglob("resolv.conf"):
        assert path.stat().st_mode & 0o022 == 0
