"""Who is shown which secret: challenges, tokens, redirects, mirrors, TLS; over a real wire."""

from __future__ import annotations

import asyncio
import base64
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from imageservice.credentials import Credential
from imageservice.errors import (
    CredentialHelperFailed,
    HostsConfigInvalid,
    RegistryProtocolError,
    RegistryUnauthenticated,
    RegistryUnavailable,
    RegistryUntrusted,
)
from imageservice.manifest import Descriptor
from imageservice.reference import parse_reference
from imageservice.registry.client import RegistryClient
from imageservice.registry.transfer import MemorySink
from imageservice.settings import ImageSettings, RetryPolicy
from tests.fakes.clock import FakeClock
from tests.fakes.registry import (
    FOREVER,
    Alter,
    Cut,
    FakeRegistry,
    Stall,
    Status,
    make_certificate,
)

ALICE = Credential(username="alice", password="wonder:land")
USERS = {"alice": "wonder:land"}


@asynccontextmanager
async def open_client(certs: Path | None = None, clock: FakeClock | None = None, **changes):
    settings = ImageSettings(
        registry_config_dirs=() if certs is None else (certs,),
        retry=RetryPolicy(attempts=2, jitter=0.0),
        **changes,
    )
    client = RegistryClient(settings, clock=clock or FakeClock(), random_unit=lambda: 0.0)
    try:
        yield client
    finally:
        await client.close()


def hosts_toml(certs: Path, domain: str, text: str) -> None:
    directory = certs / domain
    directory.mkdir(parents=True)
    (directory / "hosts.toml").write_text(text)


def authorizations(registry: FakeRegistry) -> list[str | None]:
    return [request.header("Authorization") for request in registry.requests]


async def test_basic_is_sent_only_after_it_was_asked_for_and_then_ahead():
    async with FakeRegistry(challenge="Basic", users=USERS) as registry, open_client() as client:
        registry.add_image("a", "1")
        reference = parse_reference(registry.reference("a:1"))
        await client.resolve(reference, ALICE)
        await client.resolve(reference, ALICE)
        basic = "Basic " + base64.b64encode(b"alice:wonder:land").decode()
        assert authorizations(registry) == [None, basic, basic]


async def test_wrong_basic_credentials_are_tried_once():
    async with FakeRegistry(challenge="Basic", users={"alice": "x"}) as registry:
        async with open_client() as client:
            reference = parse_reference(registry.reference("a:1"))
            with pytest.raises(RegistryUnauthenticated):
                await client.resolve(reference, ALICE)
        assert len(registry.requests) == 2


async def test_a_registry_that_wants_a_password_and_gets_none_says_so():
    async with FakeRegistry(challenge="Basic", users=USERS) as registry, open_client() as client:
        with pytest.raises(RegistryUnauthenticated, match="user name and password"):
            await client.resolve(parse_reference(registry.reference("a:1")), None)


async def test_an_anonymous_token_is_fetched_once_for_all_of_a_pull():
    async with FakeRegistry(challenge="Bearer") as registry, open_client() as client:
        registry.add_image("team/a", "1")
        reference = parse_reference(registry.reference("team/a:1"))
        await client.resolve(reference, None)
        await asyncio.gather(*(client.resolve(reference, None) for _ in range(5)))
        tokens = registry.seen("/token")
        assert len(tokens) == 1
        assert tokens[0].query == {"service": ["fake"], "scope": ["repository:team/a:pull"]}
        assert tokens[0].header("Authorization") is None


async def test_callers_at_the_same_time_share_one_token_request():
    async with FakeRegistry(challenge="Bearer") as registry, open_client() as client:
        registry.add_image("a", "1")
        reference = parse_reference(registry.reference("a:1"))
        await asyncio.gather(*(client.resolve(reference, None) for _ in range(8)))
        assert len(registry.seen("/token")) == 1


async def test_a_token_serves_neither_another_repository_nor_another_user():
    users = {**USERS, "bob": "b"}
    async with FakeRegistry(challenge="Bearer", users=users) as registry, open_client() as client:
        registry.add_image("a", "1")
        registry.add_image("b", "1")
        for name in ("a:1", "b:1"):
            await client.resolve(parse_reference(registry.reference(name)), ALICE)
        bob = Credential(username="bob", password="b")
        await client.resolve(parse_reference(registry.reference("a:1")), bob)
        assert len(registry.seen("/token")) == 3
        first = [registry.seen("/v2/b/")[0], registry.seen("/v2/a/")[2]]
        assert [request.header("Authorization") for request in first] == [None, None]


async def test_an_identity_token_goes_as_a_form_and_never_in_a_url():
    registry = FakeRegistry(challenge="Bearer", identity_tokens=["refresh-me"])
    async with registry, open_client() as client:
        registry.add_image("a", "1")
        credential = Credential(identity_token="refresh-me")
        await client.resolve(parse_reference(registry.reference("a:1")), credential)
        [asked] = registry.seen("/token")
        assert asked.method == "POST"
        assert asked.target == "/token"
        assert asked.form == {
            "grant_type": "refresh_token",
            "client_id": "podwright",
            "service": "fake",
            "scope": "repository:a:pull",
            "refresh_token": "refresh-me",
        }


async def test_a_registry_token_goes_as_bearer_and_is_not_exchanged():
    async with FakeRegistry(challenge="Bearer") as registry, open_client() as client:
        registry.add_image("a", "1")
        registry.tokens["given"] = ("repository:a:pull",)
        reference = parse_reference(registry.reference("a:1"))
        await client.resolve(reference, Credential(registry_token="given"))
        assert authorizations(registry) == ["Bearer given"]
        with pytest.raises(RegistryUnauthenticated):
            await client.resolve(reference, Credential(registry_token="stale"))
        assert registry.seen("/token") == []


async def test_a_token_is_renewed_when_its_time_is_over():
    clock = FakeClock()
    registry = FakeRegistry(challenge="Bearer", token_life_s=100)
    async with registry, open_client(clock=clock) as client:
        registry.add_image("a", "1")
        reference = parse_reference(registry.reference("a:1"))
        await client.resolve(reference, None)
        clock.advance(89)
        await client.resolve(reference, None)
        assert len(registry.seen("/token")) == 1
        clock.advance(2)
        await client.resolve(reference, None)
        assert len(registry.seen("/token")) == 2


async def test_a_token_revoked_in_the_middle_is_renewed_once():
    async with FakeRegistry(challenge="Bearer") as registry, open_client() as client:
        registry.add_image("a", "1")
        reference = parse_reference(registry.reference("a:1"))
        await client.resolve(reference, None)
        registry.tokens.clear()
        await client.resolve(reference, None)
        assert len(registry.seen("/token")) == 2


async def test_a_registry_that_always_says_401_is_asked_twice_not_for_ever():
    async with FakeRegistry(challenge="Bearer") as registry, open_client() as client:
        wanted = f'Bearer realm="{registry.url}/token",service="fake"'
        registry.on(
            "/manifests/",
            Status(status=401, headers=[("WWW-Authenticate", wanted)], times=FOREVER),
        )
        with pytest.raises(RegistryUnauthenticated):
            await client.resolve(parse_reference(registry.reference("a:1")), None)
        assert len(registry.seen("/manifests/")) == 2


async def test_rights_beyond_reading_are_not_asked_for():
    async with FakeRegistry(challenge="Bearer") as registry, open_client() as client:
        registry.add_image("a", "1")
        wanted = f'Bearer realm="{registry.url}/token",scope="repository:a:pull,push,delete"'
        registry.on("/manifests/", Status(status=401, headers=[("WWW-Authenticate", wanted)]))
        await client.resolve(parse_reference(registry.reference("a:1")), None)
        assert registry.seen("/token")[0].query["scope"] == ["repository:a:pull"]


@pytest.mark.parametrize(
    "realm",
    [
        "http://auth.example.com/token",
        "https://10.0.0.7/token",
        "https://169.254.169.254/token",
        "https://[fe80::1]/token",
        "https://0/token",
        "https://127.1/token",
        "https://2130706433/token",
        "https://user@auth.example.com/token",
        "https://alice:x@127.0.0.1/token",
        "file:///etc/shadow",
        "/token",
        "https://",
        "https://h/" + "a" * 9000,
    ],
)
async def test_a_realm_that_must_not_see_a_secret_is_not_asked(realm):
    registry = FakeRegistry(challenge="Bearer", users=USERS, realm=realm)
    async with registry, open_client() as client:
        with pytest.raises(RegistryProtocolError, match="token server"):
            await client.resolve(parse_reference(registry.reference("a:1")), ALICE)
        assert authorizations(registry) == [None]


async def test_a_token_server_that_redirects_or_is_none_is_refused():
    async with (
        FakeRegistry() as elsewhere,
        FakeRegistry(challenge="Bearer", users=USERS) as registry,
        open_client() as client,
    ):
        where = [("Location", f"{elsewhere.url}/token")]
        registry.on("/token", Status(status=307, headers=where), Status(status=404))
        for _ in range(2):
            with pytest.raises(RegistryProtocolError, match="not a token"):
                await client.resolve(parse_reference(registry.reference("a:1")), ALICE)
        assert elsewhere.requests == []


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"token": ""}', b'{"token": "a\\nb"}', b'{"token": 7}', b"{}", b"\xff\xfe"],
)
async def test_a_token_document_without_a_usable_token_is_refused(body):
    async with FakeRegistry(challenge="Bearer") as registry, open_client() as client:
        registry.on("/token", Alter(body=body))
        with pytest.raises(RegistryProtocolError, match="token"):
            await client.resolve(parse_reference(registry.reference("a:1")), None)


@pytest.mark.parametrize(
    "header", ["", "Bearer", 'Bearer realm="', "Negotiate abc=", "Digest realm=x", "a" * 8000]
)
async def test_a_challenge_that_cannot_be_answered_ends_the_pull(header):
    async with FakeRegistry() as registry, open_client() as client:
        registry.on("/", Status(status=401, headers=[("WWW-Authenticate", header)]))
        with pytest.raises(RegistryUnauthenticated):
            await client.resolve(parse_reference(registry.reference("a:1")), ALICE)


# -- redirects ------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("name", ["Location", "lOcAtIoN"])
async def test_a_redirect_to_another_origin_carries_no_secret(status, name, tmp_path):
    async with (
        FakeRegistry() as storage,
        FakeRegistry(challenge="Basic", users=USERS) as registry,
        open_client(tmp_path) as client,
    ):
        header = f'[host."{registry.url}".header]\nx-node-secret = "s3"\n'
        hosts_toml(tmp_path, registry.domain, header)
        image = registry.add_image("a", "1")
        storage.manifests = dict(registry.manifests)
        registry.on("/manifests/", Status(status=401, headers=[("WWW-Authenticate", "Basic")]))
        location = f"{storage.url}/v2/a/manifests/1?X-Sig=%2Babc%20d%7E%2f"
        registry.on("manifests/1", Status(status=status, headers=[(name, location)]))

        resolved = await client.resolve(parse_reference(registry.reference("a:1")), ALICE)

        assert resolved.descriptor.digest == image.manifest.digest
        assert authorizations(registry)[-1] is not None
        assert registry.requests[-1].header("x-node-secret") == "s3"
        [there] = storage.requests
        assert there.header("Authorization") is None
        assert there.header("x-node-secret") is None
        assert there.target.endswith("?X-Sig=%2Babc%20d%7E%2f")


async def test_the_challenge_of_a_host_we_were_sent_to_is_not_answered():
    async with (
        FakeRegistry(challenge="Bearer") as storage,
        FakeRegistry() as registry,
        open_client() as client,
    ):
        where = [("Location", f"{storage.url}/v2/a/manifests/1")]
        registry.on("/manifests/", Status(status=307, headers=where, times=FOREVER))
        with pytest.raises(RegistryUnauthenticated):
            await client.resolve(parse_reference(registry.reference("a:1")), ALICE)
        assert storage.seen("/token") == []
        assert authorizations(registry) == [None]


async def test_a_secret_does_not_come_back_with_the_redirect():
    async with (
        FakeRegistry() as storage,
        FakeRegistry(challenge="Basic", users=USERS) as registry,
        open_client() as client,
    ):
        registry.add_image("a", "1")
        reference = parse_reference(registry.reference("a:1"))
        await client.resolve(reference, ALICE)
        back = f"{registry.url}/v2/a/manifests/back"
        registry.on(
            "manifests/1",
            Status(status=307, headers=[("Location", f"{storage.url}/x")]),
        )
        storage.on("/x", Status(status=307, headers=[("Location", back)]))
        with pytest.raises(RegistryUnauthenticated):
            await client.resolve(reference, ALICE)
        assert registry.requests[-1].path.endswith("/back")
        assert registry.requests[-1].header("Authorization") is None


async def test_a_redirect_within_the_origin_keeps_the_secret():
    async with FakeRegistry(challenge="Basic", users=USERS) as registry, open_client() as client:
        image = registry.add_image("a", "1")
        reference = parse_reference(registry.reference("a:1"))
        await client.resolve(reference, ALICE)
        where = f"/v2/a/manifests/{image.manifest.digest}"
        registry.on("manifests/1", Status(status=307, headers=[("Location", where)]))
        await client.resolve(reference, ALICE)
        assert registry.requests[-1].path == where


async def test_a_redirect_loop_ends():
    async with FakeRegistry() as registry, open_client() as client:
        where = [("Location", "/v2/a/manifests/1")]
        registry.on("manifests/1", Status(status=302, headers=where, times=FOREVER))
        with pytest.raises(RegistryProtocolError, match="redirects"):
            await client.resolve(parse_reference(registry.reference("a:1")), None)
        assert len(registry.requests) == 7


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "unix:///run/x.sock",
        "http+unix://%2Frun",
        "http://user:pass@127.0.0.1/",
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/",
        "http://storage.example.com/",
        "//storage.example.com/",
        "https://0.0.0.0/",
        "http://[::ffff:169.254.169.254]/",
        "https://",
        "http://[::1",
    ],
)
async def test_a_redirect_to_where_we_must_not_go_is_refused(location):
    async with FakeRegistry() as registry, open_client() as client:
        registry.on("manifests/1", Status(status=307, headers=[("Location", location)]))
        with pytest.raises(RegistryProtocolError, match="redirect target"):
            await client.resolve(parse_reference(registry.reference("a:1")), None)


# -- mirrors --------------------------------------------------------------------------------


async def test_a_mirror_is_asked_first_without_the_registrys_secret(tmp_path):
    async with (
        FakeRegistry() as mirror,
        FakeRegistry(challenge="Basic", users=USERS) as registry,
        open_client(tmp_path) as client,
    ):
        hosts_toml(tmp_path, registry.domain, f'[host."{mirror.url}"]\n')
        mirror.add_image("a", "1")
        await client.resolve(parse_reference(registry.reference("a:1")), ALICE)
        [asked] = mirror.requests
        assert asked.header("Authorization") is None
        assert asked.query == {"ns": [registry.domain]}
        assert registry.requests == []


async def test_a_mirror_that_wants_a_password_does_not_get_the_registrys(tmp_path):
    async with (
        FakeRegistry(challenge="Basic", users=USERS) as mirror,
        FakeRegistry(challenge="Basic", users=USERS) as registry,
        open_client(tmp_path) as client,
    ):
        hosts_toml(tmp_path, registry.domain, f'[host."{mirror.url}"]\n')
        registry.add_image("a", "1")
        await client.resolve(parse_reference(registry.reference("a:1")), ALICE)
        assert authorizations(mirror) == [None]


async def test_a_secret_that_names_the_mirror_is_for_the_mirror(tmp_path):
    async with (
        FakeRegistry(challenge="Basic", users=USERS) as mirror,
        FakeRegistry(challenge="Basic", users=USERS) as registry,
        open_client(tmp_path) as client,
    ):
        hosts_toml(tmp_path, registry.domain, f'[host."{mirror.url}"]\n')
        mirror.add_image("a", "1")
        named = Credential(username="alice", password="wonder:land", server=mirror.domain)
        reference = parse_reference(registry.reference("a:1"))
        await client.resolve(reference, named)
        assert authorizations(mirror)[-1] is not None
        with pytest.raises(RegistryUnauthenticated):
            await client.resolve(parse_reference(registry.reference("b:1")), named)
        assert authorizations(registry) == [None]


class Rings:
    """A keyring of a password for each host; None stands for a helper that fails."""

    fingerprint = "rings"

    def __init__(self, **passwords: str | None) -> None:
        self.passwords = passwords
        self.asked: list[tuple[frozenset[str], str, bool]] = []

    async def shown_to(self, hosts, path, *, is_origin):
        self.asked.append((frozenset(hosts), path, is_origin))
        for host in hosts:
            if host in self.passwords:
                password = self.passwords[host]
                if password is None:
                    raise CredentialHelperFailed("credential helper failed")
                return Credential(username="alice", password=password)
        return None


async def test_each_host_is_shown_what_the_keyring_has_for_it(tmp_path):
    async with (
        FakeRegistry(challenge="Basic", users={"alice": "of-mirror"}) as mirror,
        FakeRegistry(challenge="Basic", users={"alice": "of-registry"}) as registry,
        open_client(tmp_path) as client,
    ):
        hosts_toml(tmp_path, registry.domain, f'[host."{mirror.url}"]\n')
        registry.add_image("a", "1")
        ring = Rings(**{mirror.domain: "of-mirror", registry.domain: "of-registry"})
        await client.resolve(parse_reference(registry.reference("a:1")), ring)
        basic = [Credential("alice", password).basic for password in ring.passwords.values()]
        assert authorizations(mirror) == [None, basic[0]]
        assert authorizations(registry) == [None, basic[1]]
        assert ring.asked == [
            (frozenset({mirror.domain}), "a", False),
            (frozenset({registry.domain}), "a", True),
        ]


async def test_a_helper_that_fails_for_a_mirror_costs_that_mirror_only(tmp_path):
    async with (
        FakeRegistry() as mirror,
        FakeRegistry() as registry,
        open_client(tmp_path) as client,
    ):
        hosts_toml(tmp_path, registry.domain, f'[host."{mirror.url}"]\n')
        registry.add_image("a", "1")
        reference = parse_reference(registry.reference("a:1"))
        await client.resolve(reference, Rings(**{mirror.domain: None}))
        assert mirror.requests == []
        with pytest.raises(CredentialHelperFailed):
            await client.resolve(reference, Rings(**{registry.domain: None}))


async def test_a_secret_for_another_server_is_not_used():
    async with FakeRegistry(challenge="Basic", users=USERS) as registry, open_client() as client:
        other = Credential(username="alice", password="wonder:land", server="ghcr.io")
        with pytest.raises(RegistryUnauthenticated):
            await client.resolve(parse_reference(registry.reference("a:1")), other)
        assert authorizations(registry) == [None]


async def test_a_dead_mirror_costs_one_try_and_rests_afterwards(tmp_path):
    clock = FakeClock()
    async with FakeRegistry() as mirror:
        dead = mirror.url
    async with FakeRegistry() as registry, open_client(tmp_path, clock) as client:
        hosts_toml(tmp_path, registry.domain, f'[host."{dead}"]\n')
        registry.add_image("a", "1")
        reference = parse_reference(registry.reference("a:1"))
        await client.resolve(reference, None)
        assert clock.slept_s == []
        assert list(client._order._resting_until_ns) == [
            client.hosts.endpoints(registry.domain)[0].origin
        ]


async def test_a_silent_mirror_is_left_for_the_next_host_and_rests_for_a_while(tmp_path):
    clock = FakeClock()
    async with (
        FakeRegistry() as mirror,
        FakeRegistry() as registry,
        open_client(tmp_path, clock, response_timeout_s=0.1) as client,
    ):
        hosts_toml(tmp_path, registry.domain, f'[host."{mirror.url}"]\n')
        registry.add_image("a", "1")
        mirror.on("/manifests/", Stall())
        reference = parse_reference(registry.reference("a:1"))
        await client.resolve(reference, None)
        await client.resolve(reference, None)
        assert len(mirror.requests) == 1
        clock.advance(31)
        await client.resolve(reference, None)
        assert len(mirror.requests) == 2


async def test_a_blob_begun_at_a_mirror_is_finished_at_the_registry(tmp_path):
    async with (
        FakeRegistry() as mirror,
        FakeRegistry() as registry,
        open_client(tmp_path) as client,
    ):
        hosts_toml(tmp_path, registry.domain, f'[host."{mirror.url}"]\n')
        data = bytes(range(256)) * 4096
        blob = registry.add_blob(data)
        mirror.add_blob(data)
        mirror.on("/blobs/", Cut(after_bytes=300_000))
        sink = MemorySink()
        reference = parse_reference(registry.reference("a:1"))
        await client.fetch_blob(
            reference, Descriptor(digest=blob.digest, size_bytes=blob.size), None, sink
        )
        assert sink.data == data
        assert registry.requests[0].header("Range") == "bytes=300000-"


async def test_when_all_fail_the_registrys_answer_is_the_error_and_the_others_are_told(tmp_path):
    async with (
        FakeRegistry() as mirror,
        FakeRegistry() as registry,
        open_client(tmp_path) as client,
    ):
        hosts_toml(tmp_path, registry.domain, f'[host."{mirror.url}"]\n')
        registry.on("/", Status(status=403, times=FOREVER))
        mirror.on("/", Status(status=503, times=FOREVER))
        with pytest.raises(Exception, match="refuses access") as caught:
            await client.resolve(parse_reference(registry.reference("a:1")), None)
        assert f"{mirror.url}: " in str(caught.value)
        assert "503" in str(caught.value)


async def test_a_mirror_without_the_capability_is_not_believed_about_tags(tmp_path):
    async with (
        FakeRegistry() as mirror,
        FakeRegistry() as registry,
        open_client(tmp_path) as client,
    ):
        hosts_toml(tmp_path, registry.domain, f'[host."{mirror.url}"]\ncapabilities = ["pull"]\n')
        image = registry.add_image("a", "1")
        mirror.add_image("a", "1", config={"User": "evil"})
        mirror.manifests |= registry.manifests
        resolved = await client.resolve(parse_reference(registry.reference("a:1")), None)
        assert resolved.descriptor.digest == image.manifest.digest
        assert mirror.requests == []
        text = registry.reference(f"a@{image.manifest.digest}")
        await client.resolve(parse_reference(text), None)
        assert len(mirror.requests) == 1


async def test_rot_at_a_mirror_can_be_stepped_around(tmp_path):
    async with (
        FakeRegistry() as mirror,
        FakeRegistry() as registry,
        open_client(tmp_path) as client,
    ):
        hosts_toml(tmp_path, registry.domain, f'[host."{mirror.url}"]\n')
        blob = registry.add_blob(b"good")
        mirror.blobs[blob.digest] = b"evil"
        reference = parse_reference(registry.reference("a:1"))
        body = await client.fetch_small_blob(
            reference, Descriptor(digest=blob.digest, size_bytes=blob.size), None, limit_bytes=9
        )
        assert body == b"good"


# -- TLS ------------------------------------------------------------------------------------


async def test_tls_with_the_operators_authority(tmp_path):
    pem = make_certificate(tmp_path)
    tls = pem.server_context()
    certs = tmp_path / "certs.d"
    async with FakeRegistry(tls=tls, host="localhost") as registry, open_client(certs) as client:
        registry.add_image("a", "1")
        text = f'server = "{registry.url}"\nca = "../../server.pem"\n'
        hosts_toml(certs, registry.domain, text)
        await client.resolve(parse_reference(registry.reference("a:1")), None)
        assert len(registry.requests) == 1


@pytest.mark.parametrize(
    ("names", "days", "why"),
    [
        ("DNS:localhost", -1, "expired"),
        ("DNS:other.example", 2, "mismatch"),
        ("DNS:localhost", 2, "self-signed"),
    ],
)
async def test_tls_that_cannot_be_trusted_says_why(tmp_path, names, days, why):
    pem = make_certificate(tmp_path, subject_names=names, days=days)
    certs = tmp_path / "certs.d"
    registry = FakeRegistry(tls=pem.server_context(), host="localhost")
    async with registry, open_client(certs) as client:
        trust = "" if why == "self-signed" else f'ca = "{pem.certificate}"\n'
        hosts_toml(certs, registry.domain, f'server = "{registry.url}"\n{trust}')
        with pytest.raises(RegistryUntrusted) as caught:
            await client.resolve(parse_reference(registry.reference("a:1")), ALICE)
        assert why in str(caught.value)
        assert registry.requests == []


async def test_skip_verify_holds_for_its_host_and_not_for_the_token_server(tmp_path):
    pem = make_certificate(tmp_path)
    certs = tmp_path / "certs.d"
    async with (
        FakeRegistry(tls=pem.server_context(), host="127.0.0.1") as token_server,
        FakeRegistry(
            tls=pem.server_context(),
            host="localhost",
            challenge="Bearer",
            users=USERS,
            realm=f"{token_server.url}/token",
        ) as registry,
        open_client(certs) as client,
    ):
        hosts_toml(certs, registry.domain, f'server = "{registry.url}"\nskip_verify = true\n')
        with pytest.raises(RegistryUntrusted):
            await client.resolve(parse_reference(registry.reference("a:1")), ALICE)
        assert token_server.requests == []
        assert len(registry.requests) == 1


async def test_skip_verify_does_not_hold_along_a_redirect(tmp_path):
    pem = make_certificate(tmp_path)
    certs = tmp_path / "certs.d"
    async with (
        FakeRegistry(tls=pem.server_context(), host="127.0.0.1") as storage,
        FakeRegistry(tls=pem.server_context(), host="localhost") as registry,
        open_client(certs) as client,
    ):
        hosts_toml(certs, registry.domain, f'server = "{registry.url}"\nskip_verify = true\n')
        where = [("Location", f"{storage.url}/x")]
        registry.on("/manifests/", Status(status=307, headers=where))
        with pytest.raises(RegistryUntrusted, match="127"):
            await client.resolve(parse_reference(registry.reference("a:1")), None)
        assert storage.requests == []


async def test_a_client_certificate_is_shown_where_it_is_configured(tmp_path):
    server = make_certificate(tmp_path)
    client_pem = make_certificate(tmp_path, "node")
    certs = tmp_path / "certs.d"
    tls = server.server_context(client_authority=client_pem.certificate)
    async with FakeRegistry(tls=tls, host="localhost") as registry, open_client(certs) as client:
        registry.add_image("a", "1")
        base = f'server = "{registry.url}"\nca = "{server.certificate}"\n'
        pair = f'client = [["{client_pem.certificate}", "{client_pem.key}"]]\n'
        hosts_toml(certs, registry.domain, base + pair)
        reference = parse_reference(registry.reference("a:1"))
        await client.resolve(reference, None)
        (certs / registry.domain / "hosts.toml").write_text(base)
        with pytest.raises(RegistryUnavailable):
            await client.resolve(reference, None)


async def test_a_registry_that_speaks_http_where_https_is_meant_gets_a_hint(tmp_path):
    certs = tmp_path / "certs.d"
    async with FakeRegistry(host="localhost") as registry, open_client(certs) as client:
        hosts_toml(certs, registry.domain, f'server = "https://{registry.domain}"\n')
        with pytest.raises(RegistryUnavailable, match="TLS") as caught:
            await client.resolve(parse_reference(registry.reference("a:1")), ALICE)
        assert "hosts.toml" in caught.value.hint


async def test_a_certificate_file_that_does_not_load_is_named(tmp_path):
    certs = tmp_path / "certs.d"
    (tmp_path / "bad.pem").write_text("no certificate")
    async with FakeRegistry(host="localhost") as registry, open_client(certs) as client:
        text = f'server = "https://{registry.domain}"\nca = "{tmp_path}/bad.pem"\n'
        hosts_toml(certs, registry.domain, text)
        with pytest.raises(HostsConfigInvalid, match=r"bad\.pem"):
            await client.resolve(parse_reference(registry.reference("a:1")), None)
