"""The server over real sockets on loopback, with the node played by the test."""

import asyncio
import contextlib
import json
import ssl
import subprocess

import pytest

from cri.streaming import server as server_module
from cri.streaming import wire as wire_module
from cri.streaming.channels import UNREAD_LIMIT_BYTES
from cri.streaming.server import StreamingServer
from cri.streaming.settings import StreamingSettings
from cri.streaming.targets import AttachTarget, ExecTarget, PortForwardTarget
from sandbox.host.clock import SystemClock
from sandbox.host.errors import Internal, InvalidArgument, NotFound, Unavailable
from tests.fakes.clock import HeldClock, settle
from tests.fakes.streaming import FakeSessions
from tests.fakes.streaming_clients import (
    Refused,
    SpdyClient,
    WebSocketClient,
    raw_request,
    websocket_key,
)

V4 = "v4.channel.k8s.io"
V5 = "v5.channel.k8s.io"
EXEC = ExecTarget(container_id="c", command=("sh",), stdin=True, stdout=True, stderr=True)
TTY = ExecTarget(container_id="c", command=("sh",), tty=True, stdin=True, stdout=True)
FORWARD = PortForwardTarget(pod_id="p")
TUNNEL = "SPDY/3.1+portforward.k8s.io"
STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)


@contextlib.asynccontextmanager
async def serving(sessions, clock=None, **settings):
    async with asyncio.TaskGroup() as group:
        server = StreamingServer(
            StreamingSettings(**settings), sessions, clock=clock or SystemClock()
        )
        await server.start(group)
        try:
            yield server
        finally:
            await server.close()


@pytest.fixture
def sessions():
    return FakeSessions()


@pytest.fixture
async def server(sessions):
    async with serving(sessions) as running:
        yield running


async def until_idle(server):
    while server.active:  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(0.001)


async def exec_spdy(server, sessions, target=EXEC, protocol=V4, **connect):
    client = await SpdyClient.connect(server.exec_url(target), protocol, **connect)
    kinds = ["error", "stdin", "stdout", *(["resize"] if target.tty else ["stderr"])]
    streams = await client.open_all(*kinds)
    return client, streams, await sessions.started.get()


async def exec_websocket(server, sessions, target=EXEC, protocol=V5):
    client = await WebSocketClient.connect(server.exec_url(target), protocol)
    return client, await sessions.started.get()


# Exec and attach over SPDY.


async def test_exec_over_spdy(server, sessions):
    client, streams, command = await exec_spdy(server, sessions)
    assert sessions.targets[0].container_id == "c" * 64, "the full id"
    client.send(streams["stdin"], b"hello ")
    client.send(streams["stdin"], b"there", fin=True)
    await command.stdin.finished.wait()
    assert command.stdin.received == b"hello there"
    command.stdout.put(b"out ", b"put")
    command.stderr.put(b"err")
    command.end(3)
    status = json.loads(await client.read_all(streams["error"]))
    assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]
    assert await client.read_all(streams["stdout"]) == b"out put"
    assert await client.read_all(streams["stderr"]) == b"err"
    await client.ended[streams["stdin"]].wait()
    await client.wait_closed()
    assert client.gone_away
    assert command.closed.is_set()
    await client.close()
    await until_idle(server)


async def test_a_terminal_over_spdy(server, sessions):
    client, streams, command = await exec_spdy(server, sessions, TTY)
    client.send(streams["resize"], b'{"Width":100,"Height":30}\n')
    await command.resized.wait()
    assert command.sizes == [(100, 30)]
    command.end()
    assert json.loads(await client.read_all(streams["error"]))["status"] == "Success"
    await client.close()


@pytest.mark.parametrize(
    ("protocol", "kinds"),
    [
        ("v3.channel.k8s.io", ("error", "stdin", "stdout", "resize")),
        ("v2.channel.k8s.io", ("error", "stdin", "stdout")),
        ("channel.k8s.io", ("error", "stdin", "stdout")),
    ],
)
async def test_older_protocols_tell_the_end_in_words(server, sessions, protocol, kinds):
    client = await SpdyClient.connect(server.exec_url(TTY), protocol)
    assert client.protocol == protocol
    streams = await client.open_all(*kinds)
    command = await sessions.started.get()
    command.end(7)
    assert await client.read_all(streams["error"]) == b"command terminated with exit code 7"
    await client.close()


async def test_a_success_in_words_is_silence(server, sessions):
    client, streams, command = await exec_spdy(server, sessions, protocol="v2.channel.k8s.io")
    command.end(0)
    assert await client.read_all(streams["error"]) == b""
    await client.close()


async def test_attach(server, sessions):
    target = AttachTarget(container_id="c", stdout=True)
    client = await SpdyClient.connect(server.attach_url(target), V4)
    streams = await client.open_all("error", "stdout")
    command = await sessions.started.get()
    command.stdout.put(b"x")
    command.end(None)
    assert await client.read_all(streams["stdout"]) == b"x"
    assert json.loads(await client.read_all(streams["error"]))["status"] == "Success"
    await client.close()


async def test_what_cannot_be_started_is_told_on_the_error_stream(server, sessions):
    sessions.fail = InvalidArgument("no such program")
    client = await SpdyClient.connect(server.exec_url(EXEC), V4)
    streams = await client.open_all("error", "stdin", "stdout", "stderr")
    status = json.loads(await client.read_all(streams["error"]))
    assert status["reason"] == "InternalError"
    assert "no such program" in status["message"]
    await client.close()


async def test_what_fails_later_is_told_after_the_output(server, sessions):
    client, streams, command = await exec_spdy(server, sessions)
    command.stderr.put(b"words of the runtime")
    command.fail(Internal("runtime broke"))
    status = json.loads(await client.read_all(streams["error"]))
    assert "runtime broke" in status["message"]
    assert await client.read_all(streams["stderr"]) == b"words of the runtime"
    await client.close()


async def test_streams_nobody_asked_for_are_reset(server, sessions):
    client = await SpdyClient.connect(server.exec_url(EXEC), V4)
    first = await client.open_all("error", "stdin")
    odd = await client.open(streamType="resize")
    again = await client.open(streamType="stdin")
    nameless = await client.open()
    rest = await client.open_all("stdout", "stderr")
    command = await sessions.started.get()
    late = await client.open(streamType="stdout")
    await client.until(lambda: {odd, again, nameless, late} <= client.resets.keys())
    command.end()
    assert json.loads(await client.read_all(first["error"]))["status"] == "Success"
    assert not client.resets.keys() & {*first.values(), *rest.values()}
    await client.close()


async def test_a_client_that_opens_too_little_is_left(sessions):
    async with serving(sessions, creation_timeout_s=0.05) as server:
        client = await SpdyClient.connect(server.exec_url(EXEC), V4)
        await client.open_all("error")
        await client.wait_closed()
        await client.close()
    assert sessions.targets == []


async def test_what_a_client_sends_before_the_answer_is_not_lost(server, sessions):
    compressor_client = await SpdyClient.connect(server.exec_url(EXEC), V4)
    await compressor_client.close()
    await until_idle(server)
    # A second client sends its first stream together with the request.
    from cri.streaming import spdy_frames as frames
    from cri.streaming.spdy_headers import HeaderCompressor

    compressor = HeaderCompressor()
    early = frames.syn_stream(1, compressor.compress({"streamType": "error"}))
    client = await SpdyClient.connect(server.exec_url(EXEC), V4, early=early)
    client._compressor, client._next = compressor, 3
    await client.until(lambda: 1 in client.replied)
    await client.open_all("stdin", "stdout", "stderr")
    (await sessions.started.get()).end()
    assert json.loads(await client.read_all(1))["status"] == "Success"
    await client.close()


# WebSocket.


@pytest.mark.parametrize("protocol", [V5, V4])
async def test_exec_over_websocket(server, sessions, protocol):
    client, command = await exec_websocket(server, sessions, protocol=protocol)
    assert client.protocol == protocol
    await client.until(lambda: client.messages)
    assert client.messages == [bytes([STDOUT])], "the sign that the connection works"
    client.send(STDIN, b"hello")
    await command.stdin.changed.wait()
    assert command.stdin.received == b"hello"
    command.stdout.put(b"out")
    command.stderr.put(b"err")
    command.end(42)
    await client.wait_closed()
    assert client.received[STDOUT] == b"out"
    assert client.received[STDERR] == b"err"
    status = json.loads(client.received[ERROR])
    assert status["details"]["causes"][0]["message"] == "42"
    assert client.code == 1000
    await client.close()
    await until_idle(server)


async def test_half_close_in_v5(server, sessions):
    client, command = await exec_websocket(server, sessions)
    client.send(STDIN, b"all of it")
    client.finish(STDIN)
    await command.stdin.finished.wait()
    assert command.stdin.received == b"all of it"
    command.end()
    await client.wait_closed()
    await client.close()


async def test_a_terminal_over_websocket(server, sessions):
    client, command = await exec_websocket(server, sessions, TTY)
    client.send(RESIZE, b'{"Width":80,"Heig')
    client.send(RESIZE, b'ht":24}')
    await command.resized.wait()
    assert command.sizes == [(80, 24)]
    command.end()
    await client.wait_closed()
    await client.close()


async def test_base64_over_websocket(server, sessions):
    client, command = await exec_websocket(server, sessions, protocol="v4.base64.channel.k8s.io")
    client.send_text("0aGk=")
    await command.stdin.changed.wait()
    assert command.stdin.received == b"hi"
    command.stdout.put(b"\n")
    command.end()
    await client.wait_closed()
    assert client.received[ord("1")] == b"Cg=="
    await client.close()


async def test_no_protocol_at_all_is_the_oldest(server, sessions):
    client = await WebSocketClient.connect(server.exec_url(EXEC))
    command = await sessions.started.get()
    assert client.protocol == ""
    command.end(1)
    await client.wait_closed()
    assert client.received[ERROR] == b"command terminated with exit code 1"
    await client.close()


async def test_pings_are_answered(server, sessions):
    client, command = await exec_websocket(server, sessions)
    client.ping(b"are you there")
    await client.until(lambda: client.pongs)
    assert client.pongs == [b"are you there"]
    command.end()
    await client.wait_closed()
    await client.close()


async def test_spdy_pings_are_answered(server, sessions):
    from cri.streaming import spdy_frames as frames

    client, _, command = await exec_spdy(server, sessions)
    client.write(frames.ping(11))
    await client.until(lambda: client.pongs)
    assert client.pongs == [11]
    command.end()
    await client.wait_closed()
    await client.close()


# Who may come.


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/healthz", 404),
        ("GET", "/exec/nosuchtoken", 400),
        ("PUT", "/exec/x", 405),
        ("OPTIONS", "/exec/x", 405),
        ("GET", "/../exec/x", 404),
    ],
)
async def test_everything_else_is_refused(server, method, path, status):
    answer = await raw_request(server.base_url + path, method=method)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"ocation:" not in answer


async def test_a_token_is_good_once(server, sessions):
    url = server.exec_url(EXEC)
    client = await SpdyClient.connect(url, V4)
    with pytest.raises(Refused) as refused:
        await SpdyClient.connect(url, V4)
    assert refused.value.status == 404
    await client.close()


async def test_a_token_is_good_for_what_it_was_issued_for(server, sessions):
    url = server.exec_url(EXEC)
    with pytest.raises(Refused) as refused:
        await SpdyClient.connect(url.replace("/exec/", "/attach/"), V4)
    assert refused.value.status == 404
    # Shown, so spent.
    with pytest.raises(Refused) as refused:
        await SpdyClient.connect(url, V4)
    assert refused.value.status == 404


async def test_a_token_expires(sessions):
    clock = HeldClock()
    async with serving(sessions, clock=clock) as server:
        url = server.exec_url(EXEC)
        clock.advance(61)
        with pytest.raises(Refused) as refused:
            await SpdyClient.connect(url, V4)
        assert refused.value.status == 404


async def test_a_protocol_nobody_speaks_does_not_spend_the_token(server, sessions):
    url = server.exec_url(EXEC)
    with pytest.raises(Refused) as refused:
        await WebSocketClient.connect(url, "v9.channel.k8s.io")
    assert refused.value.status == 403
    client = await SpdyClient.connect(url, V4, method="GET")
    await client.close()


async def test_urls_are_only_given_for_what_exists(server):
    with pytest.raises(NotFound):
        server.exec_url(ExecTarget(container_id="nope", command=("sh",), stdout=True))
    with pytest.raises(NotFound):
        server.portforward_url(PortForwardTarget(pod_id="nope"))


async def test_no_urls_before_the_start_and_after_the_end(sessions):
    server = StreamingServer(StreamingSettings(), sessions, clock=SystemClock())
    with pytest.raises(Unavailable):
        server.exec_url(EXEC)
    async with serving(sessions) as server:
        assert server.exec_url(EXEC).startswith("http://127.0.0.1:")
    with pytest.raises(Unavailable):
        server.exec_url(EXEC)


async def test_an_address_in_use_is_named(server, sessions):
    from sandbox.host.errors import PodwrightError

    address = server.base_url.removeprefix("http://")
    other = StreamingServer(StreamingSettings(address=address), sessions, clock=SystemClock())
    async with asyncio.TaskGroup() as group:
        with pytest.raises(PodwrightError, match="listen"):
            await other.start(group)


async def test_a_wildcard_address_is_not_put_into_urls(sessions):
    async with serving(sessions, address="0.0.0.0:0") as server:
        assert server.exec_url(EXEC).startswith("http://127.0.0.1:")


# Clients that behave badly.


@pytest.mark.parametrize("farewell", ["die", "close"])
async def test_a_client_that_vanishes_takes_its_command_along(server, sessions, farewell):
    for connect in (exec_spdy, exec_websocket):
        client, *_, command = await connect(server, sessions)
        await getattr(client, farewell)()
        await command.closed.wait()
        await client.close()
    await until_idle(server)


async def test_a_client_that_says_goodbye_takes_its_command_along(server, sessions):
    client, command = await exec_websocket(server, sessions)
    client.say_goodbye()
    await command.closed.wait()
    await client.wait_closed()
    assert client.code == 1000
    await client.close()


async def test_a_client_that_breaks_the_protocol_is_dropped(server, sessions):
    client, _, command = await exec_spdy(server, sessions)
    client.write(b"\x80\x02\x00\x01\x00\x00\x00\x00")
    await client.wait_closed()
    await command.closed.wait()
    await client.close()


async def test_input_that_nobody_takes_stops_its_client(server, sessions):
    client, streams, command = await exec_spdy(server, sessions)
    command.stdin.flowing.clear()
    (wire,) = server._tasks.values()
    sent, stopped, most = 0, False, 32 * 1024 * 1024
    while not stopped and sent < most:
        client.send(streams["stdin"], b"x" * 64 * 1024)
        sent += 64 * 1024
        try:
            async with asyncio.timeout(0.2):
                await client.drain()
        except TimeoutError:
            stopped = bool(wire._holders)  # otherwise the machine was slow, and nobody was held
    # Kernel buffers of loopback take some megabytes; what matters is that it ends.
    assert sent < most
    assert wire._holders
    command.stdin.flowing.set()
    client.finish(streams["stdin"])
    await command.stdin.finished.wait()
    assert len(command.stdin.received) == sent, "not a byte was lost"
    command.end()
    await client.wait_closed()
    await client.close()


async def test_a_client_that_dies_while_it_is_held_is_noticed(server, sessions, monkeypatch):
    monkeypatch.setattr(wire_module, "LOOK_S", 0.01)
    for farewell in ("die", "close"):
        client, streams, command = await exec_spdy(server, sessions)
        command.stdin.flowing.clear()
        client.send(streams["stdin"], b"x" * (2 * UNREAD_LIMIT_BYTES))
        (wire,) = server._tasks.values()
        while not wire._holders:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await getattr(client, farewell)()
        await command.closed.wait()
        await client.close()
        await until_idle(server)


async def test_output_that_nobody_reads_stops_the_reading(server, sessions):
    client, streams, command = await exec_spdy(server, sessions)
    await client.stop_reading()
    pieces = 600
    for _ in range(pieces):
        command.stdout.put(b"x" * 64 * 1024)
    (wire,) = server._tasks.values()
    while not wire.congested:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    await settle()
    assert command.stdout.reads < pieces, "the rest is left with the command"
    command.end()
    client.start_reading()
    assert len(await client.read_all(streams["stdout"])) == pieces * 64 * 1024
    assert json.loads(await client.read_all(streams["error"]))["status"] == "Success"
    await client.close()


async def test_a_client_that_never_reads_is_dropped_after_the_end(server, sessions, monkeypatch):
    monkeypatch.setattr(wire_module, "FLUSH_S", 0.05)
    client, _, command = await exec_spdy(server, sessions)
    await client.stop_reading()
    for _ in range(600):
        command.stdout.put(b"x" * 64 * 1024)
    command.end()
    await command.closed.wait()
    await until_idle(server)
    await client.close()


async def test_a_command_that_takes_no_more_input_does_not_hold_its_client(server, sessions):
    client, streams, command = await exec_spdy(server, sessions)
    command.stdin.broken = True
    for _ in range(100):
        client.send(streams["stdin"], b"x" * 64 * 1024)
        await client.drain()
    command.end()
    assert json.loads(await client.read_all(streams["error"]))["status"] == "Success"
    await client.close()


async def test_a_ping_flood_that_nobody_reads_is_bounded(server, sessions):
    from cri.streaming import spdy_frames as frames

    client, _, command = await exec_spdy(server, sessions)
    await client.stop_reading()
    for _ in range(600):
        command.stdout.put(b"x" * 64 * 1024)
    (wire,) = server._tasks.values()
    while not wire.congested:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    await settle()
    queued = wire._transport.get_write_buffer_size()
    for _ in range(200):
        client.write(frames.ping(1) * 1000)
        await client.drain()
    while wire.last_ns == 0:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    await settle()
    # Their answers are 2.4 MB; what the command or a first read brought late is far less.
    assert wire._transport.get_write_buffer_size() < queued + 200_000
    await client.die()
    await command.closed.wait()


async def test_an_idle_session_is_closed(sessions):
    clock = HeldClock()
    async with serving(sessions, clock=clock, idle_timeout_s=100.0) as server:
        client, _, command = await exec_spdy(server, sessions)
        await clock.advance_s(80)
        client.send(1, b"")
        (wire,) = server._tasks.values()
        before = wire.last_ns
        while wire.last_ns == before:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await clock.advance_s(80)
        assert not command.closed.is_set()
        await clock.advance_s(50)
        await command.closed.wait()
        await client.wait_closed()
        await client.close()


async def test_strangers_cannot_keep_others_out(server, sessions, monkeypatch):
    monkeypatch.setattr(server_module, "STRANGERS_LIMIT", 4)
    host, port = server.base_url.removeprefix("http://").split(":")
    silent = [await asyncio.open_connection(host, port) for _ in range(10)]
    client, _, command = await exec_spdy(server, sessions)
    assert server.active <= 5
    command.end()
    await client.wait_closed()
    await client.close()
    for _, writer in silent:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    await until_idle(server)


async def test_a_client_that_sends_no_request(sessions, monkeypatch):
    monkeypatch.setattr(server_module, "REQUEST_S", 0.05)
    async with serving(sessions) as server:
        host, port = server.base_url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET /exec/")
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_stopping_ends_every_session(sessions):
    async with serving(sessions) as server:
        clients = [await exec_spdy(server, sessions) for _ in range(5)]
        assert server.active == 5
    for client, _, command in clients:
        assert command.closed.is_set()
        await client.wait_closed()
        await client.close()


async def test_a_fault_of_ours_ends_one_session_only(server, sessions, caplog):
    client, _, command = await exec_spdy(server, sessions)
    command.fail(ZeroDivisionError("a fault"))  # no PodwrightError
    await client.wait_closed()
    await client.close()
    assert "streaming session failed" in caplog.text
    client, streams, command = await exec_spdy(server, sessions)
    command.end()
    assert json.loads(await client.read_all(streams["error"]))["status"] == "Success"
    await client.close()


async def test_hundreds_of_sessions_leave_nothing(server, sessions):
    tasks = len(asyncio.all_tasks())

    async def one(number):
        connect = exec_spdy if number % 2 else exec_websocket
        client, *_, command = await connect(server, sessions)
        if number % 3:
            command.end()
            await client.wait_closed()
        else:
            await client.die()
        await client.close()

    for start in range(0, 300, 30):
        await asyncio.gather(*(one(number) for number in range(start, start + 30)))
        while not sessions.started.empty():
            sessions.started.get_nowait().end()
    await until_idle(server)
    assert len(asyncio.all_tasks()) == tasks
    assert not server._strangers


# Flow control.


async def test_a_client_with_windows_is_held_to_them(server, sessions):
    from cri.streaming import spdy_frames as frames

    client = await SpdyClient.connect(server.exec_url(EXEC), V4)
    client.write(frames.settings({frames.INITIAL_WINDOW_SIZE: 1000}))
    streams = await client.open_all("error", "stdin", "stdout", "stderr")
    command = await sessions.started.get()
    command.stdout.put(b"x" * 5000)
    await client.until(lambda: len(client.received[streams["stdout"]]) == 1000)
    for size in (1500, 2500):
        client.write(frames.window_update(streams["stdout"], 500 if size == 1500 else 1000))
        await client.until(lambda size=size: len(client.received[streams["stdout"]]) == size)
    client.send(streams["stdin"], b"y" * 40_000)
    await client.until(lambda: (streams["stdin"], 40_000) in client.windows)
    client.write(frames.window_update(streams["stdout"], 10_000))
    command.end()
    assert json.loads(await client.read_all(streams["error"]))["status"] == "Success"
    assert len(client.received[streams["stdout"]]) == 5000
    await client.close()


# TLS.


def trusting(pem_path):
    context = ssl.create_default_context(cafile=pem_path)
    context.check_hostname = True
    return context


async def test_tls_with_a_certificate_of_our_own(sessions, monkeypatch):
    monkeypatch.setattr(wire_module, "LINGER_S", 0.05)  # asyncio's client cannot close first
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    async with serving(sessions, tls="self-made") as server:
        assert server.base_url.startswith("https://")
        client, streams, command = await exec_spdy(server, sessions, context=context)
        command.stdout.put(b"secret")
        command.end()
        assert await client.read_all(streams["stdout"]) == b"secret"
        assert json.loads(await client.read_all(streams["error"]))["status"] == "Success"
        await client.wait_closed()
        await client.close()
        await until_idle(server)


@pytest.fixture
def pair(tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=x"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


async def test_tls_with_a_pair_of_files(sessions, pair, monkeypatch):
    monkeypatch.setattr(wire_module, "LINGER_S", 0.05)
    cert, key = pair
    async with serving(sessions, tls="pair", tls_cert=cert, tls_key=key) as server:
        client, _, command = await exec_spdy(server, sessions, context=trusting(cert))
        assert client.writer.get_extra_info("ssl_object").version() in {"TLSv1.2", "TLSv1.3"}
        command.end()
        await client.wait_closed()
        await client.close()


async def test_tls_below_1_2_is_refused(sessions):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    async with serving(sessions, tls="self-made") as server:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await SpdyClient.connect(server.exec_url(EXEC), V4, context=context)


async def test_a_certificate_that_cannot_be_used_is_named(sessions, tmp_path):
    bad = tmp_path / "bad.pem"
    bad.write_text("nothing")
    settings = StreamingSettings(tls="pair", tls_cert=bad, tls_key=bad)
    async with asyncio.TaskGroup() as group:
        with pytest.raises(InvalidArgument, match=r"certificate.*bad\.pem"):
            await StreamingServer(settings, sessions, clock=SystemClock()).start(group)


async def test_a_self_made_certificate_names_this_node_and_its_addresses():
    from cryptography import x509

    from cri.streaming.tls import self_made_pem

    pem = self_made_pem("10.0.0.7", SystemClock().wall_ns())
    certificate = x509.load_pem_x509_certificate(pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(a) for a in names.get_values_for_type(x509.IPAddress)} == {
        "10.0.0.7",
        "127.0.0.1",
        "::1",
    }
    assert "localhost" in names.get_values_for_type(x509.DNSName)


async def test_a_websocket_key_is_needed(server):
    answer = await raw_request(
        server.exec_url(EXEC),
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
    )
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert websocket_key() != websocket_key()
