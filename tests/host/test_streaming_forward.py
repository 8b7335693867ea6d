"""Port-forward into real network namespaces: IPv4 first, then IPv6, and the host's own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cri.streaming.targets import PortForwardTarget
from sandbox.errors import PodNotReady
from sandbox.model import PodSandbox
from sandbox.states import PodState
from tests.fakes.streaming_clients import SpdyClient, TunnelClient, WebSocketClient
from tests.host.runtime_node import RuntimeNode
from tests.host.streaming_node import StreamingNode, streaming

pytestmark = [pytest.mark.root, pytest.mark.slow]

PORT = 18_080


@pytest.fixture
async def node(tmp_path: Path, cgroup_path: str) -> AsyncIterator[StreamingNode]:
    async with streaming(RuntimeNode(tmp_path / "n", cgroup_path, "crun")) as made:
        yield made


class Echo:
    """A server inside of a pod's namespace that says what it is before it repeats."""

    def __init__(self, node: StreamingNode) -> None:
        self._node = node
        self._servers: list[asyncio.Server] = []

    async def listen(self, pod: PodSandbox, address: str, port: int, greeting: bytes) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET

        def make() -> socket.socket:
            listener = socket.socket(family)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((address, port))
            return listener

        pin = self._node.paths.pins(pod.id) / "net"
        listener = await self._node.namespaces.run_in_network(pin, make) if pin.exists() else make()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(greeting)
            while data := await reader.read(65536):
                writer.write(data)
            writer.close()

        self._servers.append(await asyncio.start_server(serve, sock=listener))

    def close(self) -> None:
        for server in self._servers:
            server.close()


@pytest.fixture
def echo(node: StreamingNode):
    made = Echo(node)
    yield made
    made.close()


async def connect(node: StreamingNode, pod: PodSandbox, how: str) -> SpdyClient:
    url = node.server.portforward_url(PortForwardTarget(pod_id=pod.id))
    if how == "spdy":
        return await SpdyClient.connect(url, "portforward.k8s.io")
    return await TunnelClient.open_tunnel(url, "SPDY/3.1+portforward.k8s.io")


async def talk(client: SpdyClient, port: int, number: int = 0) -> tuple[bytes, bytes]:
    """(what came on the data stream after "hello", what came on the error stream)."""
    error = await client.open(streamType="error", port=str(port), requestID=str(number))
    data = await client.open(streamType="data", port=str(port), requestID=str(number))
    client.send(data, b"hello", fin=True)
    return await client.read_all(data), await client.read_all(error)


@pytest.mark.parametrize("how", ["spdy", "tunnel"])
async def test_a_pods_loopback(node: StreamingNode, echo: Echo, how: str) -> None:
    first, second = await node.pod("p1"), await node.pod("p2")
    await echo.listen(first, "127.0.0.1", PORT, b"first ")
    await echo.listen(second, "127.0.0.1", PORT, b"second ")
    for pod, greeting in ((first, b"first "), (second, b"second ")):
        client = await connect(node, pod, how)
        assert await talk(client, PORT) == (greeting + b"hello", b"")
        await client.close()


async def test_ipv6_is_tried_after_ipv4(node: StreamingNode, echo: Echo) -> None:
    pod = await node.pod("p1")
    await echo.listen(pod, "::1", PORT, b"six ")
    client = await connect(node, pod, "spdy")
    assert await talk(client, PORT, 0) == (b"six hello", b"")
    await echo.listen(pod, "127.0.0.1", PORT, b"four ")
    assert await talk(client, PORT, 1) == (b"four hello", b"")
    await client.close()


@pytest.mark.cell("ES8")
async def test_the_hosts_network(node: StreamingNode, echo: Echo) -> None:
    pod = await node.pod("p1", host_network=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    await echo.listen(pod, "127.0.0.1", port, b"host ")
    client = await connect(node, pod, "spdy")
    assert await talk(client, port) == (b"host hello", b"")
    await client.close()


async def test_a_port_of_the_host_is_not_the_pods(node: StreamingNode, echo: Echo) -> None:
    host = await node.pod("p0", host_network=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    await echo.listen(host, "127.0.0.1", port, b"host ")
    pod = await node.pod("p1")
    client = await connect(node, pod, "spdy")
    data, error = await talk(client, port)
    assert data == b""
    assert b"connection refused" in error
    await client.close()


@pytest.mark.cell("ES8")
async def test_a_closed_port_says_what_was_tried(node: StreamingNode) -> None:
    client = await connect(node, await node.pod("p1"), "spdy")
    _, error = await talk(client, 9)
    assert error.startswith(b"port 9 of the pod cannot be reached")
    assert b"127.0.0.1: connection refused" in error
    assert b"::1: connection refused" in error
    await client.close()


async def test_a_pod_that_is_stopped_meanwhile(node: StreamingNode) -> None:
    pod = await node.pod("p1")
    client = await connect(node, pod, "spdy")
    node.records.pods["p1"] = type(pod)(
        id="p1", config=pod.config, state=PodState.NOT_READY, created_at_ns=0
    )
    _, error = await talk(client, PORT)
    assert b"not ready" in error
    with pytest.raises(PodNotReady):
        node.server.portforward_url(PortForwardTarget(pod_id="p1"))
    await client.close()


async def test_a_namespace_that_is_gone(node: StreamingNode) -> None:
    pod = await node.pod("p1")
    client = await connect(node, pod, "spdy")
    await node.namespaces.unpin(node.paths.pins("p1"))
    _, error = await talk(client, PORT)
    assert b"network namespace" in error
    await client.close()


async def test_the_channel_form(node: StreamingNode, echo: Echo) -> None:
    pod = await node.pod("p1")
    await echo.listen(pod, "127.0.0.1", PORT, b"pod ")
    target = PortForwardTarget(pod_id="p1", ports=(PORT,))
    client = await WebSocketClient.connect(node.server.portforward_url(target), "v4.channel.k8s.io")
    client.send(0, b"hello")
    await client.until_received(0, b"pod hello")
    await client.close()


@pytest.mark.cell("ES8")
async def test_hundreds_of_connections_leave_nothing(node: StreamingNode, echo: Echo) -> None:
    pod = await node.pod("p1")
    await echo.listen(pod, "127.0.0.1", PORT, b"")

    async def one(client: SpdyClient, number: int) -> None:
        data, error = await talk(client, PORT if number % 5 else 9, number)
        assert (data, bool(error)) == ((b"hello", False) if number % 5 else (b"", True))

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    client = await connect(node, pod, "spdy")
    await talk(client, PORT, 10_000)
    before = descriptors()
    for start in range(0, 300, 30):
        await asyncio.gather(*(one(client, number) for number in range(start, start + 30)))
    while descriptors() > before:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await client.close()
