"""The transport against a server that says bytes as they are told: connections and their reuse."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import warnings
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from imageservice.errors import (
    RegistryProtocolError,
    RegistryUnavailable,
    RegistryUntrusted,
)
from imageservice.proxies import Proxies, parse_proxy
from imageservice.registry import connections, dial
from imageservice.registry.http import WireTransport, _make_context
from imageservice.registry.transport import Request, Tls
from tests.fakes.registry import make_certificate
from tests.fakes.wires import CLOSE, CUT, HOLD, RESET, RawServer

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
UNTIL_THE_END = b"HTTP/1.1 200 OK\r\n\r\nhello"


@asynccontextmanager
async def opened(proxies: Proxies | None = None):
    transport = WireTransport(max_connections_per_host=4, proxies=proxies)
    try:
        yield transport
    finally:
        await transport.close()


async def fetch(transport, url: str, method: str = "GET", **more) -> tuple[int, bytes]:
    async with transport.open(Request(method, url, **more)) as response:
        return response.status, await response.read(limit_bytes=1 << 20)


async def until(condition) -> None:
    """Wait for something another task does; the test run's own limit ends it."""
    for _ in range(20_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("never happened")


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_requests_follow_each_other_over_one_connection():
    no_body = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
    async with RawServer([OK, no_body, OK, HOLD]) as server, opened() as transport:
        assert await fetch(transport, server.url + "/a") == (200, b"ok")
        assert await fetch(transport, server.url + "/a", "HEAD") == (200, b"")
        assert await fetch(transport, server.url + "/b") == (200, b"ok")
        assert server.accepted == 1


async def test_a_request_has_what_it_needs_and_the_url_as_it_was_given():
    signed = "/v2/%7Ea/../b//c?X-Sig=a%2Fb%2fc+d~&e=%41&f"
    async with RawServer([OK, OK, OK, HOLD]) as server, opened() as transport:
        url = server.url.upper().replace("HTTP://", "http://")
        await fetch(transport, url + signed, headers=(("X", "y"),))
        await fetch(transport, server.url, headers=(("User-Agent", "other"),))
        await fetch(transport, server.url + "?x#")
    rest = b"Accept: */*\r\nAccept-Encoding: identity\r\n\r\n"
    host = f"Host: 127.0.0.1:{server.port}\r\n".encode()
    assert server.requests == [
        f"GET {signed} HTTP/1.1\r\n".encode() + host + b"X: y\r\nUser-Agent: podwright\r\n" + rest,
        b"GET / HTTP/1.1\r\n" + host + b"User-Agent: other\r\n" + rest,
        b"GET /?x HTTP/1.1\r\n" + host + b"User-Agent: podwright\r\n" + rest,
    ]


async def test_an_ipv6_address_stands_in_brackets():
    try:
        server = await RawServer([OK, HOLD], host="::1").__aenter__()
    except OSError as error:
        pytest.skip(f"no IPv6 on loopback: {error}")
    try:
        async with opened() as transport:
            assert await fetch(transport, server.url) == (200, b"ok")
        assert f"Host: [::1]:{server.port}\r\n".encode() in server.requests[0]
    finally:
        await server.__aexit__()


async def test_one_that_was_closed_while_idle_is_replaced():
    async with RawServer([OK], [OK, HOLD]) as server, opened() as transport:
        await fetch(transport, server.url)
        await until(lambda: server.ended)
        assert await fetch(transport, server.url) == (200, b"ok")
        assert len(server.requests) == 2


@pytest.mark.parametrize("end", [CLOSE, RESET])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_one_that_is_closed_as_it_is_used_again_is_replaced_once(end, method):
    async with RawServer([OK, end], [OK, HOLD]) as server, opened() as transport:
        await fetch(transport, server.url)
        status, _ = await fetch(transport, server.url, method)
        assert status == 200
        assert len(server.requests) == 3
    async with RawServer([OK, end], [end], [OK, HOLD]) as server, opened() as transport:
        await fetch(transport, server.url)
        with pytest.raises(RegistryUnavailable, match="broke"):
            await fetch(transport, server.url, method)
        assert len(server.requests) == 3


async def test_what_has_begun_to_be_answered_is_not_asked_again():
    async with RawServer([OK, b"HTTP/1.1 200"], [OK, HOLD]) as server, opened() as transport:
        await fetch(transport, server.url)
        with pytest.raises(RegistryUnavailable, match=r"connection to .* broke") as caught:
            await fetch(transport, server.url)
        assert caught.value.is_transient
        assert caught.value.is_unreachable
        assert len(server.requests) == 2


async def test_a_post_never_goes_where_it_might_have_to_be_sent_twice():
    async with RawServer([OK, HOLD], [CLOSE], [OK, HOLD]) as server, opened() as transport:
        await fetch(transport, server.url)
        with pytest.raises(RegistryUnavailable, match="broke"):
            await fetch(transport, server.url + "/token", "POST", body=b"a=b")
        posts = [request for request in server.requests if request.startswith(b"POST")]
        assert len(posts) == 1
        assert b"Content-Length: 3\r\n" in posts[0]
        assert posts[0].endswith(b"\r\n\r\na=b")


async def test_bytes_after_an_answer_are_no_answer_to_the_next_request():
    smuggled = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    async with RawServer([OK + smuggled, HOLD], [OK, HOLD]) as server, opened() as transport:
        assert await fetch(transport, server.url) == (200, b"ok")
        assert await fetch(transport, server.url) == (200, b"ok")
        assert server.accepted == 2


async def test_bytes_that_come_while_it_is_idle_are_no_answer_either():
    late = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"
    async with RawServer([OK, HOLD], [OK, HOLD]) as server, opened() as transport:
        await fetch(transport, server.url)
        [wire] = transport._connections._open
        wire.data_received(late)
        assert await fetch(transport, server.url) == (200, b"ok")
        assert server.accepted == 2


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\nConnection: close\r\n", b"HTTP/1.0 200 OK\r\n"],
)
async def test_a_server_that_closes_is_believed(head):
    async with (
        RawServer([head + b"Content-Length: 0\r\n\r\n", HOLD], [OK, HOLD]) as server,
        opened() as transport,
    ):
        await fetch(transport, server.url)
        await until(lambda: server.ended)
        assert await fetch(transport, server.url) == (200, b"ok")


async def test_an_answer_that_is_not_read_to_its_end_closes_its_connection():
    long = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"
    async with RawServer([long, HOLD]) as server, opened() as transport:
        async with transport.open(Request("GET", server.url)) as response:
            assert await response.read_chunk() == b"hello"
        await until(lambda: server.ended)
        assert not transport._connections._open


@pytest.mark.parametrize("moment", ["answer", "body"])
async def test_a_request_that_is_called_off_closes_its_connection(moment):
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"
    script = [head, HOLD] if moment == "body" else [b"HTTP/1.1", HOLD]
    async with RawServer(script) as server, opened() as transport:
        asking = asyncio.ensure_future(fetch(transport, server.url))
        await until(lambda: server.requests)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until(lambda: server.ended)
        assert not transport._connections._open


async def test_a_handshake_that_is_called_off_closes_its_connection():
    """The server listens and says nothing."""
    async with RawServer([HOLD]) as server, opened() as transport:
        url = server.url.replace("http://", "https://")
        asking = asyncio.ensure_future(fetch(transport, url))
        await until(lambda: server.accepted)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until(lambda: server.ended)


async def test_an_idle_connection_is_closed_after_a_while(monkeypatch):
    monkeypatch.setattr(connections, "KEEP_S", 0.01)
    async with RawServer([OK, HOLD], [OK, HOLD]) as server, opened() as transport:
        await fetch(transport, server.url)
        await until(lambda: server.ended == 1)
        await until(lambda: not transport._connections._idle)
        assert await fetch(transport, server.url) == (200, b"ok")


async def test_closing_ends_what_is_idle_and_what_is_read():
    long = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"
    async with RawServer([OK, HOLD], [long, HOLD]) as server, opened() as transport:
        await fetch(transport, server.url)
        async with transport.open(Request("POST", server.url)) as response:  # never an idle one
            await response.read_chunk()
            await transport.close()
            with pytest.raises(RegistryUnavailable, match="too early"):
                await response.read_chunk()
        await until(lambda: server.ended == 2)


@pytest.mark.parametrize("with_tls", [True, False])
async def test_closing_ends_what_is_still_dialling(tmp_path, monkeypatch, with_tls):
    certificate = make_certificate(tmp_path)
    dialling, go = asyncio.Event(), asyncio.Event()

    async def slow(host, port):
        dialling.set()
        await go.wait()
        return await dial.dial(host, port)

    monkeypatch.setattr(connections, "dial", slow)
    context = certificate.server_context() if with_tls else None
    async with RawServer([OK, HOLD], tls=context) as server, opened() as transport:
        tls = trusting(certificate.certificate)
        asking = asyncio.ensure_future(fetch(transport, server.url, tls=tls))
        await dialling.wait()
        await transport.close()
        go.set()
        with pytest.raises(RegistryUnavailable, match=r"connection to .* broke"):
            await asking
        await until(lambda: server.ended == server.accepted)
        assert server.requests == []
        assert not transport._connections._open


@pytest.mark.parametrize("limit", ["connect_timeout_s", "response_timeout_s"])
async def test_a_server_that_is_silent_does_not_answer_in_time(limit):
    async with RawServer([HOLD]) as server, opened() as transport:
        url = server.url.replace("http://", "https://")  # silence already in the handshake
        with pytest.raises(RegistryUnavailable, match="did not answer in time"):
            await fetch(transport, url, **{limit: 0.05})
        await until(lambda: server.ended)


async def test_a_body_that_stands_still_is_told():
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"
    async with RawServer([head, HOLD]) as server, opened() as transport:
        with pytest.raises(RegistryUnavailable, match="stopped in the middle"):
            await fetch(transport, server.url, response_timeout_s=0.05)


async def test_a_reset_within_a_body_ends_it_too_early():
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"
    async with (
        RawServer([head, RESET]) as server,
        opened() as transport,
        transport.open(Request("GET", server.url)) as response,
    ):
        assert await response.read_chunk() == b"hello"
        [wire] = transport._connections._open
        wire.write(b"GET / HTTP/1.1\r\n\r\n")  # the server goes on to its reset
        with pytest.raises(RegistryUnavailable, match="ended the answer too early"):
            await response.read_chunk()


@pytest.mark.parametrize("value", ["a\r\nX-Canary: y", "canary\n", "\ud800canary"])
async def test_a_header_that_cannot_be_sent_is_refused_without_quoting_it(value):
    async with RawServer([OK, HOLD]) as server, opened() as transport:
        with pytest.raises(RegistryProtocolError, match="header that HTTP does not have") as caught:
            await fetch(transport, server.url, headers=(("Authorization", value),))
        assert caught.value.__cause__ is None
        assert "anary" not in str(caught.value)
        assert server.requests == []
        assert not transport._connections._open


@pytest.mark.parametrize("path", ["/a b", "/a\r\nX: y", "/a\0", "/é"])
async def test_a_url_that_is_none_is_not_asked(path):
    async with RawServer([OK, HOLD]) as server, opened() as transport:
        with pytest.raises(RegistryProtocolError):
            await fetch(transport, server.url + path)
        assert server.requests == []


# -- names and addresses -----------------------------------------------------------------------


def resolve_to(monkeypatch, *addresses: tuple[socket.AddressFamily, tuple[object, ...]]) -> None:
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda *_, **__: [(family, socket.SOCK_STREAM, 6, "", to) for family, to in addresses],
    )


async def test_the_next_address_is_tried_when_one_refuses(monkeypatch):
    async with RawServer([OK, HOLD]) as server, opened() as transport:
        resolve_to(
            monkeypatch,
            (socket.AF_INET, ("127.0.0.2", server.port)),
            (socket.AF_INET, ("127.0.0.1", server.port)),
        )
        assert await fetch(transport, f"http://registry.test:{server.port}") == (200, b"ok")


async def test_an_address_of_the_other_family_is_tried_beside_a_silent_one(monkeypatch):
    """Without waiting for the first one's fate, and without leaving it behind."""
    hung: list[asyncio.Task[None]] = []
    tried: list[socket.AddressFamily] = []
    real = dial._connect

    async def connect(family, address):
        tried.append(family)
        if family == socket.AF_INET6:
            hung.append(asyncio.current_task())
            await asyncio.Event().wait()
        return await real(family, address)

    monkeypatch.setattr(dial, "_connect", connect)
    monkeypatch.setattr(dial, "NEXT_AFTER_S", 0.01)
    async with RawServer([OK, HOLD]) as server, opened() as transport:
        resolve_to(
            monkeypatch,
            (socket.AF_INET6, ("::1", server.port, 0, 0)),
            (socket.AF_INET6, ("::1", server.port, 0, 0)),
            (socket.AF_INET, ("127.0.0.1", server.port)),
        )
        assert await fetch(transport, f"http://registry.test:{server.port}") == (200, b"ok")
        assert tried == [socket.AF_INET6, socket.AF_INET]
        await until(lambda: hung[0].cancelled())


async def test_every_reason_is_told_when_no_address_can_be_reached(monkeypatch):
    async with RawServer() as gone:
        pass
    resolve_to(
        monkeypatch,
        (socket.AF_INET, ("127.0.0.1", gone.port)),
        (socket.AF_INET, ("127.0.0.2", gone.port)),
        (socket.AF_INET, ("255.255.255.255", gone.port)),
    )
    async with opened() as transport:
        with pytest.raises(RegistryUnavailable) as caught:
            await fetch(transport, f"http://registry.test:{gone.port}")
    assert str(caught.value).endswith(": connection refused, permission denied") or str(
        caught.value
    ).endswith(": connection refused, network is unreachable")


@pytest.mark.parametrize("name", ["nowhere.test", "a" * 64 + ".test", "a..test"])
async def test_a_name_that_is_not_there_is_told(name):
    async with opened() as transport:
        with pytest.raises(RegistryUnavailable, match=f"name {name} cannot be resolved") as caught:
            await fetch(transport, f"http://{name}/")
        assert caught.value.is_unreachable


async def test_whoever_is_called_off_between_two_addresses_leaves_no_socket(monkeypatch):
    before = descriptors()
    for turns in range(12):
        async with RawServer(*[[HOLD]] * 2) as server:
            address = (socket.AF_INET, ("127.0.0.1", server.port))
            with monkeypatch.context() as patched:
                resolve_to(patched, address, address)
                dialling = asyncio.ensure_future(dial.dial("registry.test", server.port))
                for _ in range(turns):
                    await asyncio.sleep(0)
                dialling.cancel()
                for made in await asyncio.gather(dialling, return_exceptions=True):
                    if isinstance(made, socket.socket):
                        made.close()
            await asyncio.sleep(0)
    await until(lambda: descriptors() <= before)


# -- TLS ---------------------------------------------------------------------------------------


def trusting(path: Path) -> Tls:
    return Tls(ca_files=(str(path),))


async def test_a_body_until_the_end_needs_tls_own_farewell(tmp_path):
    certificate = make_certificate(tmp_path)
    tls = trusting(certificate.certificate)
    async with (
        RawServer([UNTIL_THE_END], tls=certificate.server_context()) as server,
        opened() as transport,
    ):
        assert await fetch(transport, server.url, tls=tls) == (200, b"hello")
    async with (
        RawServer([UNTIL_THE_END, CUT], tls=certificate.server_context()) as server,
        opened() as transport,
    ):
        with pytest.raises(RegistryUnavailable, match="ended the answer too early"):
            await fetch(transport, server.url, tls=tls)


async def test_a_body_with_a_length_does_not_need_it(tmp_path):
    certificate = make_certificate(tmp_path)
    async with (
        RawServer([OK, CUT], tls=certificate.server_context()) as server,
        opened() as transport,
    ):
        tls = trusting(certificate.certificate)
        assert await fetch(transport, server.url, tls=tls) == (200, b"ok")


@pytest.mark.parametrize("with_length", [True, False])
@pytest.mark.parametrize("with_tls", [True, False])
async def test_a_server_that_closes_before_its_answer_is_read_loses_nothing(
    tmp_path, with_tls, with_length
):
    """Most of it waits in the kernel and in TLS when the end comes."""
    certificate = make_certificate(tmp_path)
    body = b"0123456789abcdef" * (3 << 16)
    length = b"Content-Length: %d\r\n" % len(body) if with_length else b""
    script = b"HTTP/1.1 200 OK\r\n" + length + b"\r\n" + body
    context = certificate.server_context() if with_tls else None
    async with RawServer([script], tls=context) as server, opened() as transport:
        tls = trusting(certificate.certificate)
        async with transport.open(Request("GET", server.url, tls=tls)) as response:
            [wire] = transport._connections._open
            await until(lambda: wire._is_paused)
            received = b""
            while chunk := await response.read_chunk():
                await asyncio.sleep(0.001)
                received += chunk
    assert received == body


async def test_what_one_set_of_rules_opened_serves_no_other(tmp_path):
    certificate = make_certificate(tmp_path, subject_names="DNS:other.test")
    async with (
        RawServer([OK, HOLD], [OK, HOLD], tls=certificate.server_context()) as server,
        opened() as transport,
    ):
        lax = Tls(verify=False)
        assert await fetch(transport, server.url, tls=lax) == (200, b"ok")
        with pytest.raises(RegistryUntrusted, match="is not trusted"):
            await fetch(transport, server.url, tls=trusting(certificate.certificate))
        assert server.requests[1:] == []


@asynccontextmanager
async def refusing(context: ssl.SSLContext):
    """A server that says why the handshake failed, which asyncio's does not; yields its URL."""

    def refuse(listener: socket.socket) -> None:
        accepted, _ = listener.accept()
        with accepted.dup() as kept:  # closed with something unread it would be a reset
            with accepted, contextlib.suppress(ssl.SSLError):
                context.wrap_socket(accepted, server_side=True)
            with contextlib.suppress(OSError):
                while kept.recv(1 << 16):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.ensure_future(asyncio.to_thread(refuse, listener))
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        await serving


async def test_a_server_that_wants_a_certificate_is_told_from_one_that_breaks(tmp_path):
    """With TLS 1.3 its refusal comes after the handshake."""
    certificate = make_certificate(tmp_path)
    context = certificate.server_context(client_authority=certificate.certificate)
    async with refusing(context) as url, opened() as transport:
        with pytest.raises(RegistryUntrusted, match=r"TLS with .* failed"):
            await fetch(transport, url, tls=trusting(certificate.certificate))


async def test_nothing_older_than_tls_1_2_is_spoken(tmp_path):
    assert _make_context(Tls()).minimum_version == ssl.TLSVersion.TLSv1_2
    certificate = make_certificate(tmp_path)
    context = certificate.server_context()
    with warnings.catch_warnings(action="ignore"):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    async with refusing(context) as url, opened() as transport:
        with pytest.raises(RegistryUntrusted, match=r"TLS with .* failed"):
            await fetch(transport, url, tls=trusting(certificate.certificate))


# -- proxies -----------------------------------------------------------------------------------


def through(url: str) -> Proxies:
    proxy = parse_proxy(url.replace("://", "://bob:canary@"))
    return Proxies(proxy, proxy)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n\x16\x03", "does not answer in HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "does not answer in HTTP"),
        (b"SSH-2.0\r\n", "does not answer in HTTP"),
        (b"HTTP/1.1 200", "broke the connection"),
        (CLOSE, "broke the connection"),
        (b"HTTP/1.1 302 No\r\nLocation: http://other.test/\r\n\r\n", "status 302"),
        (b"HTTP/1.1 407 No\r\n\r\n", "does not accept its user"),
    ],
)
async def test_a_proxy_that_does_not_connect_is_named(answer, words):
    async with RawServer([answer]) as proxy, opened(through(proxy.url)) as transport:
        with pytest.raises(RegistryUnavailable, match=words) as caught:
            await fetch(transport, "https://registry.test/")
        assert proxy.url in str(caught.value)
        assert "canary" not in str(caught.value)
        assert not transport._connections._open


async def test_a_proxy_is_asked_for_the_way_with_its_port_and_its_own_password():
    async with RawServer([CLOSE], [CLOSE]) as proxy, opened(through(proxy.url)) as transport:
        for host in ("registry.test", "[2001:db8::1]"):
            with pytest.raises(RegistryUnavailable):
                await fetch(transport, f"https://{host}/", headers=(("Authorization", "secret"),))
    assert proxy.requests == [
        f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\nUser-Agent: podwright\r\n"
        "Proxy-Authorization: Basic Ym9iOmNhbmFyeQ==\r\n\r\n".encode()
        for host in ("registry.test", "[2001:db8::1]")
    ]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("url", ["https://registry.test/", "http://registry.test/"])
async def test_a_proxy_that_is_silent_is_named(scheme, url):
    async with RawServer([HOLD]) as proxy:
        address = proxy.url.replace("http://", f"{scheme}://")
        async with opened(through(address)) as transport:
            if (scheme, url[:5]) == ("http", "http:"):
                words = "http://registry.test did not answer in time"  # it is asked like any server
            else:
                words = f"proxy {address} did not answer in time"
            with pytest.raises(RegistryUnavailable, match=words) as caught:
                await fetch(transport, url, connect_timeout_s=0.05, response_timeout_s=0.2)
            assert caught.value.is_unreachable


async def test_a_registry_that_is_silent_behind_a_proxy_is_named():
    async with (
        RawServer([b"HTTP/1.1 200 OK\r\n\r\n", HOLD]) as proxy,
        opened(through(proxy.url)) as transport,
    ):
        with pytest.raises(RegistryUnavailable, match=r"https://registry\.test did not answer"):
            await fetch(transport, "https://registry.test/", connect_timeout_s=0.05)


async def test_a_name_that_no_certificate_can_have_is_told_as_such():
    """The proxy would have resolved it; TLS wants it as DNS writes it."""
    name = "a" * 64 + ".test"
    async with (
        RawServer([b"HTTP/1.1 200 OK\r\n\r\n", HOLD]) as proxy,
        opened(through(proxy.url)) as transport,
    ):
        with pytest.raises(RegistryUnavailable, match=f"name {name} cannot be resolved"):
            await fetch(transport, f"https://{name}/")
