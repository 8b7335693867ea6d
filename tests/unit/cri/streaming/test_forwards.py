"""Port-forward over real sockets, to small servers of the test."""

import asyncio
import contextlib

import pytest

from cri.streaming import forwards
from cri.streaming.targets import PortForwardTarget
from sandbox.host.errors import Unavailable
from tests.fakes.streaming import FakeSessions
from tests.fakes.streaming_clients import SpdyClient, TunnelClient, WebSocketClient
from tests.unit.cri.streaming.test_server import serving, until_idle

FORWARD = PortForwardTarget(pod_id="p")
PROTOCOL = "portforward.k8s.io"


@pytest.fixture
def sessions():
    return FakeSessions()


@pytest.fixture
async def server(sessions):
    async with serving(sessions) as running:
        yield running


@contextlib.asynccontextmanager
async def pod_server(sessions, port, handle):
    """What listens on `port` of the pod."""
    done = []

    async def serve(reader, writer):
        try:
            await handle(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()
            done.append(True)

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    sessions.ports[port] = listener.sockets[0].getsockname()[:2]
    async with listener:
        yield done


async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def sink(reader, writer):
    """Reads to the end, then says how much it was."""
    total = 0
    while data := await reader.read(65536):
        total += len(data)
    writer.write(str(total).encode())
    await writer.drain()


async def connect(server, how):
    url = server.portforward_url(FORWARD)
    if how == "spdy":
        return await SpdyClient.connect(url, PROTOCOL)
    return await TunnelClient.open_tunnel(url, f"SPDY/3.1+{PROTOCOL}")


@pytest.fixture(params=["spdy", "tunnel"])
async def client(request, server):
    client = await connect(server, request.param)
    yield client
    await client.close()
    await until_idle(server)


async def open_pair(client, port, number):
    error = await client.open(streamType="error", port=str(port), requestID=str(number))
    client.finish(error)
    data = await client.open(streamType="data", port=str(port), requestID=str(number))
    return error, data


async def test_there_and_back(client, sessions):
    async with pod_server(sessions, 80, echo):
        error, data = await open_pair(client, 80, 0)
        client.send(data, b"hello")
        await client.until_received(data, b"hello")
        client.finish(data)
        assert await client.read_all(data) == b"hello"
        assert await client.read_all(error) == b""


async def test_half_close_reaches_the_pod_and_the_answer_comes_back(client, sessions):
    async with pod_server(sessions, 80, sink):
        error, data = await open_pair(client, 80, 0)
        for _ in range(50):
            client.send(data, b"x" * 30_000)
            await client.drain()
        client.finish(data)
        assert await client.read_all(data) == b"1500000"
        assert await client.read_all(error) == b""


async def test_a_server_that_finishes_first_ends_the_stream_with_all_its_bytes(client, sessions):
    async def talk(reader, writer):
        writer.write(b"y" * 2_000_000)
        await writer.drain()

    async with pod_server(sessions, 80, talk):
        error, data = await open_pair(client, 80, 0)
        assert len(await client.read_all(data)) == 2_000_000
        client.finish(data)
        assert await client.read_all(error) == b""


async def test_a_port_nobody_listens_on_is_told_and_the_others_go_on(client, sessions):
    async with pod_server(sessions, 80, echo):
        _, good = await open_pair(client, 80, 0)
        bad_error, bad = await open_pair(client, 81, 1)
        assert b"port 81 of the pod cannot be reached" in await client.read_all(bad_error)
        await client.ended[bad].wait()
        client.send(good, b"still here")
        await client.until_received(good, b"still here")


@pytest.mark.parametrize("port", ["", "0", "65536", "-1", "http", "99999999", "٨٠"])
async def test_ports_that_are_none(client, port):
    error, data = await open_pair(client, port, 0)
    assert b"port" in await client.read_all(error)
    await client.ended[data].wait()


async def test_a_connection_that_is_reset_leaves_the_others_and_says_nothing(client, sessions):
    async def slam(reader, writer):
        import socket
        import struct

        await reader.readexactly(1)
        link = writer.get_extra_info("socket")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with pod_server(sessions, 80, echo), pod_server(sessions, 81, slam):
        _, good = await open_pair(client, 80, 0)
        error, data = await open_pair(client, 81, 1)
        client.send(data, b"x")
        assert await client.read_all(data) == b""
        client.finish(data)
        assert await client.read_all(error) == b"", "an error here would end kubectl's session"
        client.send(good, b"still here")
        await client.until_received(good, b"still here")


async def test_a_client_that_resets_a_stream_ends_its_connection(client, sessions):
    from cri.streaming import spdy_frames as frames

    async with pod_server(sessions, 80, echo) as done:
        error, data = await open_pair(client, 80, 0)
        client.send(data, b"x")
        await client.until_received(data, b"x")
        client.write(frames.rst_stream(data, frames.CANCEL))
        assert await client.read_all(error) == b""
        while not done:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_a_client_that_dies_ends_all_its_connections(client, server, sessions):
    async with pod_server(sessions, 80, echo) as done:
        for number in range(5):
            _, data = await open_pair(client, 80, number)
            client.send(data, b"x")
            await client.until_received(data, b"x")
        await client.die()
        while len(done) < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    await until_idle(server)


async def test_old_clients_without_request_ids(client, sessions):
    async with pod_server(sessions, 80, echo):
        error = await client.open(streamType="error", port="80")
        data = await client.open(streamType="data", port="80")
        client.send(data, b"old")
        await client.until_received(data, b"old")
        client.finish(data)
        assert await client.read_all(error) == b""


async def test_streams_that_fit_nowhere_are_reset(client, sessions):
    async with pod_server(sessions, 80, echo):
        await open_pair(client, 80, 0)
        again = await client.open(streamType="data", port="80", requestID="0")
        odd = await client.open(streamType="stdin", port="80", requestID="7")
        await client.until(lambda: {again, odd} <= client.resets.keys())


async def test_half_a_pair_is_not_kept(sessions):
    async with serving(sessions, creation_timeout_s=0.05) as server:
        client = await connect(server, "spdy")
        lonely = await client.open(streamType="data", port="80", requestID="0")
        await client.ended[lonely].wait()
        assert lonely in client.resets
        await client.close()


async def test_connections_are_bounded_and_a_place_becomes_free_again(
    server, sessions, monkeypatch
):
    monkeypatch.setattr(forwards, "CONNECTIONS_LIMIT", 3)
    client = await connect(server, "spdy")
    async with pod_server(sessions, 80, echo):
        pairs = [await open_pair(client, 80, number) for number in range(3)]
        refused = await client.open(streamType="error", port="80", requestID="9")
        await client.until(lambda: refused in client.resets)
        error, data = pairs[0]
        client.finish(data)
        await client.read_all(error)
        _, data = await open_pair(client, 80, 10)
        client.send(data, b"free")
        await client.until_received(data, b"free")
        await client.close()
    await until_idle(server)


async def test_a_flood_of_streams_opened_and_reset_costs_nothing_that_stays(server, sessions):
    from cri.streaming import spdy_frames as frames

    sessions.ports[80] = Unavailable("nobody")
    client = await connect(server, "spdy")
    for number in range(500):
        error = client.open_now(streamType="error", port="80", requestID=str(number))
        data = client.open_now(streamType="data", port="80", requestID=str(number))
        client.write(frames.rst_stream(error, 5) + frames.rst_stream(data, 5))
        await client.drain()
    async with pod_server(sessions, 80, echo):
        _, data = await open_pair(client, 80, 999)
        client.send(data, b"alive")
        await client.until_received(data, b"alive")
        (wire,) = server._tasks.values()
        link = wire.receiver.__self__
        assert len(link.streams()) <= 4
        await client.close()
    await until_idle(server)


async def test_many_connections_at_once(client, sessions):
    async with pod_server(sessions, 80, echo):
        pairs = [await open_pair(client, 80, number) for number in range(40)]

        async def one(number, error, data):
            for _ in range(20):
                client.send(data, bytes([number]) * 5000)
                await client.drain()
            client.finish(data)
            assert await client.read_all(data) == bytes([number]) * 100_000
            assert await client.read_all(error) == b""

        await asyncio.gather(*(one(n, *pair) for n, pair in enumerate(pairs)))


# The channel form.


async def test_channels_of_websocket(server, sessions):
    async with pod_server(sessions, 80, echo), pod_server(sessions, 8080, echo):
        target = PortForwardTarget(pod_id="p", ports=(80, 8080, 9))
        client = await WebSocketClient.connect(server.portforward_url(target), "v4.channel.k8s.io")
        await client.until(lambda: len(client.messages) >= 6)
        # Each channel begins with its port, two bytes, the lower one first.
        assert client.messages[:6] == [
            bytes([channel]) + port.to_bytes(2, "little")
            for channel, port in enumerate((80, 80, 8080, 8080, 9, 9))
        ]
        client.send(0, b"first")
        client.send(2, b"second")
        await client.until_received(0, b"first")
        await client.until_received(2, b"second")
        await client.until_received(5, b"port 9 of the pod cannot be reached")
        client.say_goodbye()
        await client.wait_closed()
        await client.close()
    await until_idle(server)


async def test_a_session_of_channels_ends_with_its_last_connection(server, sessions, monkeypatch):
    monkeypatch.setattr(forwards, "LINGER_S", 0.01)

    async def talk(reader, writer):
        writer.write(b"bye")

    async with pod_server(sessions, 80, talk):
        target = PortForwardTarget(pod_id="p", ports=(80,))
        client = await WebSocketClient.connect(server.portforward_url(target), "v4.channel.k8s.io")
        await client.wait_closed()
        assert client.received[0].endswith(b"bye")
        assert client.code == 1000
        await client.close()
