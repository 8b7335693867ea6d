"""Rows 75 to 78: router advertisements, host ports that catch too much, texts in resolv.conf.

75, CVE-2020-10749: a pod believes whoever on its link says it is an IPv6 router.
76, CVE-2019-9946, CVE-2025-67499: the rules of a host port catch traffic that is not for the host.
77: strings of a pod's DNS configuration are written into resolv.conf as they are.
78: a host port of 0 means none; others are real, unique ports.
Tried with the real bridge and portmap plugins, in a network that they take for the host's.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

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


SERVER = """
import socket, sys
name, port = sys.argv[1].encode(), int(sys.argv[2])
tcp, udp = (socket.socket(type=kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM))
for each in tcp, udp:
    each.bind(("0.0.0.0", port))
tcp.listen()
print("listening", flush=True)
import selectors
both = selectors.DefaultSelector()
both.register(tcp, 1), both.register(udp, 1)
while True:
    for key, _ in both.select():
        if key.fileobj is udp:
            udp.sendto(name, udp.recvfrom(100)[1])
        else:
            with tcp.accept()[0] as link:
                link.sendall(name)
"""
CLIENT = """
import socket, sys
kind = socket.SOCK_DGRAM if sys.argv[1] == "udp" else socket.SOCK_STREAM
with socket.socket(type=kind) as link:
    link.settimeout(float(sys.argv[4]))
    try:
        link.connect((sys.argv[2], int(sys.argv[3])))
        link.send(b"who")
        print(link.recv(100).decode())
    except OSError:
        pass
"""
#: An address of the node beside that of its bridge, one of nobody, and the containers' port.
SECOND, BEYOND, INNER = "198.51.100.7", "203.0.113.7", 7000
#: How long silence is listened to (seconds).
SILENCE_S = "2"


@contextlib.contextmanager
def serving(node: Node, **pods: str) -> Iterator[None]:
    """Have each pod answer with its name on INNER, over TCP and UDP (busybox has no UDP)."""
    with contextlib.ExitStack() as stack:
        for name, pod in pods.items():
            enter = ("nsenter", f"--target={node.pod_pid(pod)}", "--net")
            argv = [*enter, sys.executable, "-IS", "-c", SERVER, name, str(INNER)]
            server = stack.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))
            stack.callback(server.kill)
            assert server.stdout is not None
            assert server.stdout.readline() == "listening\n"
        yield


def ask(node: Node, pod: str, protocol: str, address: str, port: int) -> str:
    """Who answers somebody in the network of `pod`, or of the host if it is none."""
    network = f"--net=/proc/{node.pod_pid(pod)}/ns/net" if pod else f"--net={node.network}"
    argv = ["nsenter", network, sys.executable, "-IS", "-c", CLIENT, protocol, address, str(port)]
    done = subprocess.run([*argv, SILENCE_S], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def answered(node: Node, pod: str, protocol: str, address: str, port: int) -> str:
    """The first answer that comes; somebody must answer.

    Not always the first time: whoever had this address before has left his hardware address in
    others' tables, and a datagram is not sent twice.
    """
    return until(lambda: ask(node, pod, protocol, address, port), f"{address}:{port} answers")


def published(port: int, host_ip: str = "", *protocols: str) -> list[api.PortMapping]:
    return [
        api.PortMapping(
            protocol=api.Protocol.Value(protocol.upper()),
            container_port=INNER,
            host_port=port,
            host_ip=host_ip,
        )
        for protocol in protocols or ("tcp", "udp")
    ]


@pytest.fixture
def gateway(node: Node) -> Iterator[str]:
    """The bridge's address; the "host" has SECOND as well meanwhile."""
    pod = node.run_pod("first-of-all")
    address = node.pod_status(pod).network.ip.rpartition(".")[0] + ".1"
    node.host("ip", "addr", "add", f"{SECOND}/32", "dev", "lo")
    yield address
    node.host("ip", "addr", "del", f"{SECOND}/32", "dev", "lo")


def test_a_host_port_is_on_its_address_and_of_its_protocol(
    node: Node, handler: str, gateway: str
) -> None:
    port, anywhere = 18087, 18088
    pods = {
        "one": node.run_pod("one", handler=handler, ports=published(port, gateway)),
        "other": node.run_pod("other", handler=handler, ports=published(port, SECOND, "tcp")),
        "wild": node.run_pod("wild", handler=handler, ports=published(anywhere, "0.0.0.0")),
    }
    client = node.run_pod("client", handler=handler)
    with serving(node, **pods):
        for asker in (client, ""):
            expected = {
                ("tcp", gateway, port): "one",
                ("udp", gateway, port): "one",
                ("tcp", SECOND, port): "other",
                ("udp", SECOND, port): "",
                ("tcp", gateway, anywhere): "wild",
                ("udp", gateway, anywhere): "wild",
                ("tcp", SECOND, anywhere): "wild",
                ("udp", SECOND, anywhere): "wild",
            }
            # First who is to answer: what nobody answers then is not for want of a way.
            for (protocol, address, number), who in sorted(expected.items(), key=_silent_last):
                asking = answered if who else ask
                assert asking(node, asker, protocol, address, number) == who
        # What only passes through is somebody else's, whatever its port.
        own = node.pod_status(client).network.ip
        for protocol in ("tcp", "udp"):
            for address in (BEYOND, own):
                assert ask(node, client, protocol, address, anywhere) == ""


def _silent_last(item: tuple[object, str]) -> bool:
    return not item[1]


def test_a_host_port_that_is_taken_stays_with_its_first_pod(
    node: Node, handler: str, gateway: str
) -> None:
    port = 18089
    first = node.run_pod("first", handler=handler, ports=published(port))
    client = node.run_pod("client", handler=handler)
    for protocol in ("tcp", "udp"):
        for host_ip in ("", gateway):
            wanted = published(port, host_ip, protocol)
            code = refused_code(node, handler=handler, ports=wanted)
            assert code is grpc.StatusCode.FAILED_PRECONDITION
    with serving(node, first=first):
        for protocol in ("tcp", "udp"):
            assert answered(node, client, protocol, gateway, port) == "first"
    node.stop_pod(first)
    second = node.run_pod("second", handler=handler, ports=published(port))
    with serving(node, second=second):
        for protocol in ("tcp", "udp"):
            assert answered(node, client, protocol, gateway, port) == "second"
    node.stop_pod(second)
    assert not any(str(port) in rule for rule in node.census()["packet rules"])


def test_rules_of_host_ports_come_after_those_that_were_there(
    node: Node, handler: str, gateway: str
) -> None:
    """An address that a proxy of services gives a meaning is not the host port's."""
    port = 18090
    chain = ("PREROUTING", "-p", "tcp", "-d", SECOND, "--dport", str(port), "-j", "RETURN")
    node.host("iptables", "-t", "nat", "-F", "PREROUTING")
    node.host("iptables", "-t", "nat", "-A", *chain)
    try:
        pod = node.run_pod("pod", handler=handler, ports=published(port))
        client = node.run_pod("client", handler=handler)
        with serving(node, pod=pod):
            assert answered(node, client, "tcp", gateway, port) == "pod"
            assert ask(node, client, "tcp", SECOND, port) == ""
    finally:
        node.host("iptables", "-t", "nat", "-D", *chain)


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
