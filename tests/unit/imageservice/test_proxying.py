"""Pulls through a real proxy on loopback: what it sees, what it must not, and how failures end."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from imageservice.credentials import Credential
from imageservice.errors import RegistryUnavailable, RegistryUntrusted
from imageservice.manifest import Descriptor
from imageservice.proxies import Proxies, parse_proxy
from imageservice.reference import parse_reference
from imageservice.registry.client import RegistryClient
from imageservice.settings import ImageSettings, RetryPolicy
from tests.fakes.clock import FakeClock
from tests.fakes.proxy import FakeProxy
from tests.fakes.registry import FOREVER, FakeRegistry, Status, make_certificate

HOST = "registry.test"
ALICE = Credential(username="alice", password="canary-of-the-registry")
USERS = {"alice": "canary-of-the-registry"}


def through(url: str, *exceptions: str, user: str = "") -> Proxies:
    proxy = parse_proxy(url.replace("://", f"://{user}@") if user else url)
    return Proxies(proxy, proxy, exceptions)


@asynccontextmanager
async def open_client(certs: Path, proxies: Proxies):
    settings = ImageSettings(
        registry_config_dirs=(certs,),
        retry=RetryPolicy(attempts=2, jitter=0.0),
        proxies=proxies,
    )
    client = RegistryClient(settings, clock=FakeClock(), random_unit=lambda: 0.0)
    try:
        yield client
    finally:
        await client.close()


def configure(certs: Path, registry: FakeRegistry, more: str = "") -> None:
    (certs / registry.domain).mkdir(exist_ok=True)
    text = f'server = "{registry.url}"\n[host."{registry.url}"]\n{more}'
    (certs / registry.domain / "hosts.toml").write_text(text)


async def test_plain_http_goes_to_the_proxy_by_its_whole_address(tmp_path):
    async with (
        FakeRegistry(host=HOST, challenge="Basic", users=USERS) as registry,
        FakeProxy(registry.port, authorization="Basic Ym9iOnA=") as proxy,
        open_client(tmp_path, through(proxy.url, user="bob:p")) as client,
    ):
        configure(tmp_path, registry)
        image = registry.add_image("a", "1")
        resolved = await client.resolve(parse_reference(registry.reference("a:1")), ALICE)
        assert resolved.descriptor.digest == image.manifest.digest
        assert proxy.requests[0].first == f"GET {registry.url}/v2/a/manifests/1 HTTP/1.1"
        assert all(r.header("Proxy-Authorization") is None for r in registry.requests)


async def test_https_goes_through_a_tunnel_that_sees_the_name_only(tmp_path):
    certificate = make_certificate(tmp_path, subject_names=f"DNS:{HOST}")
    async with (
        FakeRegistry(
            host=HOST, challenge="Bearer", users=USERS, tls=certificate.server_context()
        ) as registry,
        FakeProxy(registry.port, authorization="Basic Ym9iOnA=") as proxy,
        open_client(tmp_path, through(proxy.url, user="bob:p")) as client,
    ):
        configure(tmp_path, registry, f'ca = "{certificate.certificate}"\n')
        image = registry.add_image("a", "1", layers=[b"layer" * 1000])
        reference = parse_reference(registry.reference("a:1"))
        await client.resolve(reference, ALICE)
        blob = image.config
        descriptor = Descriptor(
            media_type=blob.media_type, digest=blob.digest, size_bytes=blob.size
        )
        await client.fetch_small_blob(reference, descriptor, ALICE, limit_bytes=1 << 20)
        assert {asked.first for asked in proxy.requests} == {f"CONNECT {registry.domain} HTTP/1.1"}
        for asked in proxy.requests:
            names = {name.lower() for name, _ in asked.headers}
            assert names <= {"host", "user-agent", "proxy-authorization", "accept",
                             "accept-encoding", "proxy-connection", "connection"}  # fmt: skip
            assert "canary" not in str(asked.headers)
        assert all(r.header("Proxy-Authorization") is None for r in registry.requests)
        assert registry.seen("/token")


async def test_an_exception_and_loopback_are_asked_directly(tmp_path):
    async with (
        FakeRegistry() as registry,
        FakeProxy(registry.port) as proxy,
        open_client(tmp_path, through(proxy.url, ".test")) as client,
    ):
        registry.add_image("a", "1")
        await client.resolve(parse_reference(registry.reference("a:1")), None)
        with pytest.raises(RegistryUnavailable, match=r"nowhere\.test cannot be resolved"):
            await client.resolve(parse_reference("nowhere.test/a:1"), None)
        assert proxy.requests == []


async def test_a_redirect_is_judged_anew(tmp_path):
    """A blob on a host that is an exception does not go through the proxy."""
    async with (
        FakeRegistry(host=HOST) as registry,
        FakeProxy(registry.port) as proxy,
        open_client(tmp_path, through(proxy.url, "storage.test")) as client,
    ):
        configure(tmp_path, registry)
        where = "https://storage.test/signed?canary"
        registry.on("/manifests/", Status(status=307, headers=[("Location", where)], times=FOREVER))
        with pytest.raises(RegistryUnavailable) as caught:
            await client.resolve(parse_reference(registry.reference("a:1")), None)
        assert "canary" not in str(caught.value)
        assert [asked.first.split()[0] for asked in proxy.requests][:1] == ["GET"]
        assert not any("storage.test" in asked.first for asked in proxy.requests)


@pytest.mark.parametrize("tls", [False, True])
async def test_a_proxy_that_wants_another_password_is_named_and_asked_once(tmp_path, tls):
    certificate = make_certificate(tmp_path, subject_names=f"DNS:{HOST}")
    context = certificate.server_context() if tls else None
    async with (
        FakeRegistry(host=HOST, tls=context) as registry,
        FakeProxy(registry.port, authorization="Basic other") as proxy,
        open_client(tmp_path, through(proxy.url, user="canary:canary")) as client,
    ):
        configure(tmp_path, registry, f'ca = "{certificate.certificate}"\n' if tls else "")
        with pytest.raises(RegistryUnavailable, match=r"does not accept its user") as caught:
            await client.resolve(parse_reference(registry.reference("a:1")), None)
        assert proxy.url in str(caught.value)
        assert "canary" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert len(proxy.requests) == 1
        assert registry.requests == []


@pytest.mark.parametrize(("status", "tries"), [(403, 1), (502, 2)])
async def test_a_proxy_that_does_not_connect_is_named(tmp_path, status, tries):
    async with (
        FakeProxy(1, status=status) as proxy,
        open_client(tmp_path, through(proxy.url, user="canary:canary")) as client,
    ):
        with pytest.raises(RegistryUnavailable, match=rf"status {status}") as caught:
            await client.resolve(parse_reference("registry.test/a:1"), None)
        assert str(caught.value).startswith("RegistryUnavailable: proxy http://127.0.0.1:")
        assert "registry.test" in str(caught.value)
        assert "canary" not in str(caught.value)
        assert len(proxy.requests) == tries


async def test_a_proxy_that_is_not_there_is_named(tmp_path):
    async with FakeProxy(1) as gone:
        url = gone.url
    for reference in ("registry.test/a:1", "plain.test/a:1"):
        (tmp_path / "plain.test").mkdir(exist_ok=True)
        (tmp_path / "plain.test/hosts.toml").write_text('[host."http://plain.test"]\n')
        async with open_client(tmp_path, through(url, user="canary:canary")) as client:
            with pytest.raises(RegistryUnavailable, match="cannot connect to proxy") as caught:
                await client.resolve(parse_reference(reference), None)
        assert url in str(caught.value)
        assert "canary" not in str(caught.value)


async def test_a_proxy_whose_name_does_not_resolve_is_named(tmp_path):
    async with open_client(tmp_path, through("http://no-such-proxy.test:3128")) as client:
        with pytest.raises(RegistryUnavailable, match=r"no-such-proxy\.test.*cannot be resolved"):
            await client.resolve(parse_reference("registry.test/a:1"), None)


async def test_a_registrys_own_bad_certificate_behind_a_proxy_is_the_registrys(tmp_path):
    certificate = make_certificate(tmp_path, subject_names="DNS:other.test")
    async with (
        FakeRegistry(host=HOST, tls=certificate.server_context()) as registry,
        FakeProxy(registry.port) as proxy,
        open_client(tmp_path, through(proxy.url)) as client,
    ):
        with pytest.raises(RegistryUntrusted, match=r"certificate of https://registry\.test"):
            await client.resolve(parse_reference(registry.reference("a:1")), ALICE)


async def test_an_https_proxy_is_a_tunnel_in_a_tunnel(tmp_path, monkeypatch):
    inner = make_certificate(tmp_path, "inner", subject_names=f"DNS:{HOST}")
    outer = make_certificate(tmp_path, "outer", subject_names="IP:127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(outer.certificate))
    async with (
        FakeRegistry(host=HOST, tls=inner.server_context()) as registry,
        FakeProxy(registry.port, tls=outer.server_context()) as proxy,
        open_client(tmp_path, through(proxy.url)) as client,
    ):
        configure(tmp_path, registry, f'ca = "{inner.certificate}"\n')
        image = registry.add_image("a", "1")
        for _ in range(2):
            resolved = await client.resolve(parse_reference(registry.reference("a:1")), None)
            assert resolved.descriptor.digest == image.manifest.digest
        assert proxy.requests[0].first == f"CONNECT {registry.domain} HTTP/1.1"


async def test_a_registrys_own_bad_certificate_behind_an_https_proxy_is_the_registrys(
    tmp_path, monkeypatch
):
    inner = make_certificate(tmp_path, "inner", subject_names="DNS:other.test")
    outer = make_certificate(tmp_path, "outer", subject_names="IP:127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(outer.certificate))
    async with (
        FakeRegistry(host=HOST, tls=inner.server_context()) as registry,
        FakeProxy(registry.port, tls=outer.server_context()) as proxy,
        open_client(tmp_path, through(proxy.url)) as client,
    ):
        with pytest.raises(RegistryUntrusted, match=r"certificate of https://registry\.test"):
            await client.resolve(parse_reference(registry.reference("a:1")), ALICE)


async def test_an_https_proxy_is_not_trusted_by_the_laxness_of_a_registry(tmp_path):
    """skip_verify is for the registry; the proxy would get our password to it."""
    certificate = make_certificate(tmp_path, subject_names=f"DNS:{HOST},IP:127.0.0.1")
    async with (
        FakeRegistry(host=HOST, tls=certificate.server_context()) as registry,
        FakeProxy(registry.port, tls=certificate.server_context()) as proxy,
        open_client(tmp_path, through(proxy.url, user="bob:p")) as client,
    ):
        configure(tmp_path, registry, f'skip_verify = true\nca = "{certificate.certificate}"\n')
        with pytest.raises(RegistryUntrusted, match="certificate of proxy https://127"):
            await client.resolve(parse_reference(registry.reference("a:1")), None)
        assert proxy.requests == []


async def test_a_proxy_with_a_name_beyond_ascii_is_not_trusted_by_a_registrys_laxness(
    tmp_path, monkeypatch
):
    """It has two names: as it stands in its address, and as people write it."""
    name = "xn--bcher-kva.test"

    def to_loopback(_host, port, *_, **__):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", to_loopback)
    certificate = make_certificate(tmp_path, subject_names=f"DNS:{HOST},DNS:{name}")
    async with (
        FakeRegistry(host=HOST, tls=certificate.server_context()) as registry,
        FakeProxy(registry.port, tls=certificate.server_context()) as proxy,
        open_client(
            tmp_path, through(proxy.url.replace("127.0.0.1", name), user="bob:p")
        ) as client,
    ):
        configure(tmp_path, registry, f'skip_verify = true\nca = "{certificate.certificate}"\n')
        with pytest.raises(RegistryUntrusted, match="certificate of proxy https://"):
            await client.resolve(parse_reference(registry.reference("a:1")), None)
        assert proxy.requests == []


async def test_nothing_of_the_environment_is_read(tmp_path, monkeypatch):
    async with FakeRegistry(host=HOST) as registry, FakeProxy(registry.port) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        async with open_client(tmp_path, Proxies()) as client:
            configure(tmp_path, registry)
            with pytest.raises(RegistryUnavailable, match="cannot be resolved"):
                await client.resolve(parse_reference(registry.reference("a:1")), None)
        assert proxy.requests == []
