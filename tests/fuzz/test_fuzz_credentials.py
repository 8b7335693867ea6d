"""Files of credentials and addresses of proxies: anything in, a value or an error of ours out."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from imageservice.auth_files import parse_auth_file
from imageservice.credentials import Credential
from imageservice.errors import AuthFileInvalid
from imageservice.proxies import Proxies, ProxyServer, parse_proxy, split_exceptions
from sandbox.host.errors import InvalidArgument, PodwrightError
from tests.kit.fuzzing import assert_tellable, fuzzed

#: Long enough that it does not come about by chance, and looked for in every message.
CANARY = "canary-0123456789"

FIELDS = ("auth", "username", "password", "identitytoken", "registrytoken", "email")

texts = st.text(max_size=20)
secrets = texts | st.just(CANARY) | st.just("dXNlcjpjYW5hcnktMDEyMzQ1Njc4OQ==")
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | secrets,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
hosts = st.sampled_from(["reg.example", "docker.io", "*.example", "[::1]:5000", "", "https://"])
keys = st.builds(lambda host, path: host + path, hosts, st.sampled_from(["", "/", "/a", "/v1/"]))
entries = anything | st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(FIELDS, secrets),
)
documents = st.fixed_dictionaries(
    {},
    optional={
        "auths": st.dictionaries(keys | texts, entries, max_size=4) | anything,
        "credHelpers": st.dictionaries(keys | texts, texts, max_size=2) | anything,
        "credsStore": texts | anything,
    },
)
bodies = st.binary(max_size=60) | (anything | documents).map(lambda d: json.dumps(d).encode())


@fuzzed()
@given(bodies, hosts, st.sampled_from(["library/busybox", "a", "a/b"]))
def test_a_file_of_credentials(body, host, path):
    try:
        file = parse_auth_file(body, where="/etc/podwright/auth.json")
        found = file.find({host}, path)
    except AuthFileInvalid as error:
        _assert_tells_no_secret(error)
        return
    for one in found:
        if isinstance(one, Credential):
            assert CANARY not in repr(one)
            assert one.password or one.identity_token or one.registry_token or one.username


labels = st.sampled_from(
    ["a", "reg", "example", "*", "", "10", "0", "1", "fd00", ":", "::1", "[", "]"]
)
names = st.lists(labels, max_size=5).map(".".join) | texts
ports = st.integers(1, 65535)
pieces = st.sampled_from(
    ["http://", "https://", "socks5://", "", "user:", CANARY, "@", ":", "/", "?"]
)
addresses = texts | st.lists(pieces | names | ports.map(str), max_size=6).map("".join)


@fuzzed()
@given(addresses)
def test_the_address_of_a_proxy(text):
    try:
        proxy = parse_proxy(text)
    except InvalidArgument as error:
        _assert_tells_no_secret(error)
        return
    assert parse_proxy(proxy.secret_url) == proxy
    if CANARY in proxy.user + proxy.password and CANARY not in proxy.host:
        assert CANARY not in f"{proxy} {proxy!r} {proxy.url}"


@fuzzed()
@given(st.lists(names | names.map(lambda n: n + "/8") | texts, max_size=4), names, ports)
def test_exceptions_of_a_proxy(exceptions, host, port):
    proxy = ProxyServer("http", "p.example", 3128)
    proxies = Proxies(proxy, proxy, tuple(exceptions))
    for scheme in ("http", "https"):
        assert proxies.towards(scheme, host, port) in (proxy, None)
    assert proxies.towards("https", "127.0.0.1", port) is None
    split_exceptions(",".join(exceptions))
    if "*" in (entry.strip() for entry in exceptions):
        assert proxies.towards("https", host, port) is None


def _assert_tells_no_secret(error: PodwrightError) -> None:
    assert_tellable(error)
    assert CANARY not in str(error)
