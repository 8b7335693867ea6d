"""TLS within a tunnel fails and ends as it does without, also where asyncio slips."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from contextlib import asynccontextmanager

import pytest

from imageservice.errors import RegistryUnavailable, RegistryUntrusted
from imageservice.proxies import Proxies, parse_proxy
from imageservice.registry import connections
from imageservice.registry.transport import Request
from imageservice.registry.wire import FULL_BYTES
from tests.fakes.proxy import FakeProxy
from tests.fakes.registry import Certificate, make_certificate
from tests.fakes.wires import DEAF, GARBLE, HOLD, RawServer, memory_wire
from tests.unit.imageservice.test_http import OK, fetch, opened, refusing, until

URL = "https://registry.test/"


@pytest.fixture
def certificate(tmp_path, monkeypatch) -> Certificate:
    """The registry's and the proxy's, trusted by the system."""
    made = make_certificate(tmp_path, subject_names="DNS:registry.test,IP:127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(made.certificate))
    return made


@pytest.fixture(params=["http", "https"])
def proxy_tls(request, certificate) -> ssl.SSLContext | None:
    return certificate.server_context() if request.param == "https" else None


@asynccontextmanager
async def tunnelled(port: int, tls: ssl.SSLContext | None):
    """A proxy that leads to that port, and a transport through it."""
    async with (
        FakeProxy(port, tls=tls) as proxy,
        opened(Proxies(https=parse_proxy(proxy.url))) as transport,
    ):
        yield proxy, transport


async def test_a_server_that_wants_a_certificate_is_told_from_one_that_breaks(
    certificate, proxy_tls
):
    context = certificate.server_context(client_authority=certificate.certificate)
    async with refusing(context) as url:
        port = int(url.rpartition(":")[2])
        async with tunnelled(port, proxy_tls) as (_, transport):
            with pytest.raises(RegistryUntrusted, match=r"TLS with .* failed"):
                await fetch(transport, URL)


async def test_what_does_not_decrypt_ends_an_answer_too_early(certificate, proxy_tls):
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"
    async with (
        RawServer([head, GARBLE, HOLD], tls=certificate.server_context()) as server,
        tunnelled(server.port, proxy_tls) as (_, transport),
        transport.open(Request("GET", URL)) as response,
    ):
        assert await response.read_chunk() == b"hello"
        [wire] = transport._connections._open
        wire.write(b"GET / HTTP/1.1\r\n\r\n")  # the server goes on to its next word
        with pytest.raises(RegistryUnavailable, match="ended the answer too early") as caught:
            await response.read_chunk()
        assert isinstance(caught.value.__cause__, ssl.SSLError)


async def test_a_407_behind_the_tunnel_is_the_registrys_own(certificate, proxy_tls):
    answer = b"HTTP/1.1 407 No\r\nContent-Length: 2\r\n\r\nno"
    async with (
        RawServer([answer, HOLD], tls=certificate.server_context()) as server,
        tunnelled(server.port, proxy_tls) as (_, transport),
    ):
        assert await fetch(transport, URL) == (407, b"no")


async def test_closing_ends_a_handshake_within_the_tunnel(proxy_tls):
    async with (
        RawServer([HOLD]) as server,
        tunnelled(server.port, proxy_tls) as (_, transport),
    ):
        asking = asyncio.ensure_future(fetch(transport, URL))

        def is_shaking_hands() -> bool:
            wires = [wire for wire in transport._connections._open if wire._transport is not None]
            return bool(
                server.accepted and wires and wires[0]._transport.get_protocol() != wires[0]
            )

        await until(is_shaking_hands)
        await transport.close()
        with pytest.raises(RegistryUnavailable, match="the other side ended it"):
            await asking
        await until(lambda: server.ended)


async def test_an_idle_connection_is_closed_though_nobody_answers_the_farewell(
    certificate, proxy_tls, monkeypatch
):
    monkeypatch.setattr(connections, "KEEP_S", 0.01)
    async with (
        RawServer([OK, DEAF], tls=certificate.server_context()) as server,
        tunnelled(server.port, proxy_tls) as (proxy, transport),
    ):
        await fetch(transport, URL)
        await until(lambda: not proxy._tasks)
        assert not transport._connections._open


async def test_a_server_that_closes_before_its_answer_is_read_loses_nothing(certificate, proxy_tls):
    """It does not wait for our farewell, which a reader that is slow is late with."""
    body = bytes(900 * 1024)

    def serve(listener: socket.socket) -> None:
        accepted, _ = listener.accept()
        with certificate.server_context().wrap_socket(accepted, server_side=True) as tls:
            tls.recv(1 << 16)
            tls.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + body)
            tls.settimeout(0.001)
            with contextlib.suppress(OSError):
                tls.unwrap()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.ensure_future(asyncio.to_thread(serve, listener))
        port = listener.getsockname()[1]
        async with (
            tunnelled(port, proxy_tls) as (_, transport),
            transport.open(Request("GET", URL)) as response,
        ):
            [wire] = transport._connections._open
            await until(lambda: wire._is_paused)
            received = b""
            while chunk := await response.read_chunk():
                await asyncio.sleep(0.02)
                received += chunk
        await serving
    assert received == body


def shaken(certificate: Certificate) -> tuple[ssl.SSLObject, ssl.SSLObject, ssl.MemoryBIO]:
    """A client and a server of TLS after their handshake, and what the client will read."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(
        to_client, to_server, server_hostname="registry.test"
    )
    server = certificate.server_context().wrap_bio(to_server, to_client, server_side=True)
    for one in (client, server, client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            one.do_handshake()
    return client, server, to_client


@pytest.mark.parametrize("with_farewell", [True, False])
async def test_what_tls_still_holds_when_the_connection_is_gone_is_read(certificate, with_farewell):
    client, server, _ = shaken(certificate)
    wire, transport = memory_wire(client)
    wire.data_received(bytes(FULL_BYTES))
    assert not transport.reads
    server.write(b"x" * 100_000)
    if with_farewell:
        with contextlib.suppress(ssl.SSLWantReadError):
            server.unwrap()
    wire.connection_lost(None)
    received = b""
    while len(received) < FULL_BYTES + 100_000:
        received += await wire.read(1 << 20)
    assert received == bytes(FULL_BYTES) + b"x" * 100_000
    if with_farewell:
        assert await wire.read(1) == b""
    else:
        with pytest.raises(ConnectionResetError):
            await wire.read(1)


async def test_a_connection_that_is_lost_with_a_record_that_does_not_decrypt_was_cut_off(
    certificate,
):
    client, _, to_client = shaken(certificate)
    to_client.write(b"\x17\x03\x03\x00\x40" + bytes(64))
    wire, _ = memory_wire(client)
    wire.connection_lost(None)
    with pytest.raises(ConnectionResetError):
        await wire.read(1)
