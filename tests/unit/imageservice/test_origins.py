"""Address rules as a table: who may be talked to, who may see a secret."""

from __future__ import annotations

import pytest

from imageservice.errors import RegistryProtocolError
from imageservice.registry.origins import (
    AddressKind,
    Origin,
    address_kind,
    check_realm,
    origin_of,
    parse_url,
    redirect_target,
)

PUBLIC = Origin("https", "registry.example.com", 443)
LOCAL = Origin("http", "127.0.0.1", 5000)
PRIVATE = Origin("https", "10.1.2.3", 443)
NAMED_HTTP = Origin("http", "plain.example.com", 80)


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("registry.example.com", AddressKind.NAME),
        ("registry", AddressKind.NAME),
        ("10.example.com", AddressKind.NAME),
        ("localhost", AddressKind.LOOPBACK),
        ("LOCALHOST.", AddressKind.LOOPBACK),
        ("x.localhost", AddressKind.LOOPBACK),
        ("127.0.0.1", AddressKind.LOOPBACK),
        ("127.255.0.1", AddressKind.LOOPBACK),
        ("::1", AddressKind.LOOPBACK),
        ("::ffff:127.0.0.1", AddressKind.LOOPBACK),
        ("10.0.0.1", AddressKind.PRIVATE),
        ("192.168.0.1", AddressKind.PRIVATE),
        ("fd00::1", AddressKind.PRIVATE),
        ("100.64.0.1", AddressKind.PRIVATE),
        ("8.8.8.8", AddressKind.PUBLIC),
        ("2606:4700::1111", AddressKind.PUBLIC),
        ("169.254.169.254", AddressKind.SPECIAL),
        ("fe80::1%eth0", AddressKind.SPECIAL),
        ("::ffff:169.254.169.254", AddressKind.SPECIAL),
        ("0.0.0.0", AddressKind.SPECIAL),
        ("::", AddressKind.SPECIAL),
        ("224.0.0.1", AddressKind.SPECIAL),
        ("255.255.255.255", AddressKind.SPECIAL),
        ("127.1", AddressKind.SPECIAL),
        ("0", AddressKind.SPECIAL),
        ("2130706433", AddressKind.SPECIAL),
        ("0x7f000001", AddressKind.SPECIAL),
        ("0177.0.0.1", AddressKind.SPECIAL),
        ("1.2.3.4.5", AddressKind.SPECIAL),
        ("127.0.0.1.", AddressKind.LOOPBACK),
    ],
)
def test_address_kind(host, kind):
    assert address_kind(host) is kind


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://H.Example/x", "https://h.example"),
        ("https://h.example:443/x", "https://h.example"),
        ("http://h.example:80", "http://h.example"),
        ("http://h.example:443", "http://h.example:443"),
        ("http://[::1]:5000/", "http://[::1]:5000"),
    ],
)
def test_an_origin_is_written_one_way(url, origin):
    assert str(origin_of(url)) == origin


@pytest.mark.parametrize(
    "url",
    ["", "h", "//h/", "ftp://h/", "https://", "https:///x", "https://h:0/", "https://h:99999/",
     "https://u@h/", "https://@h/", "https://h/#f", "https://h/a b", "https://h/\n", "https://ü/",
     "https://h\\@g/", "https://h/" + "a" * 9000],
)  # fmt: skip
def test_what_is_no_plain_url_is_refused(url):
    with pytest.raises(RegistryProtocolError):
        parse_url(url, what="URL")


def configured(*origins: Origin):
    return lambda origin: origin in origins


@pytest.mark.parametrize(
    ("registry", "current", "location", "target"),
    [
        (PUBLIC, "https://registry.example.com/v2/a", "https://cdn.example/x?s=%2B", None),
        (PUBLIC, "https://registry.example.com/v2/a", "/b", "https://registry.example.com/b"),
        (PUBLIC, "https://registry.example.com/v2/a", "//cdn.example/x", "https://cdn.example/x"),
        (PUBLIC, "https://registry.example.com/v2/a", "https://10.0.0.1/x", None),
        (LOCAL, "http://127.0.0.1:5000/v2/a", "http://127.0.0.1:5001/x", None),
        (LOCAL, "http://127.0.0.1:5000/v2/a", "http://localhost:5001/x", None),
        (LOCAL, "http://127.0.0.1:5000/v2/a", "https://127.0.0.1:5001/x", None),
        (LOCAL, "http://127.0.0.1:5000/v2/a", "http://plain.example.com/x", None),
        (NAMED_HTTP, "http://plain.example.com/v2/a", "http://plain.example.com/b", None),
    ],
)
def test_redirects_that_may_be_followed(registry, current, location, target):
    found = redirect_target(
        current, location, registry=registry, is_plain_http_configured=configured(NAMED_HTTP)
    )
    assert found == (target or location)


@pytest.mark.parametrize(
    ("registry", "current", "location"),
    [
        (PUBLIC, "https://registry.example.com/v2/a", "http://registry.example.com/x"),
        (PUBLIC, "https://registry.example.com/v2/a", "http://plain.example.com/x"),
        (PUBLIC, "https://registry.example.com/v2/a", "https://127.0.0.1/x"),
        (PUBLIC, "https://registry.example.com/v2/a", "https://localhost/x"),
        (PUBLIC, "https://registry.example.com/v2/a", "https://169.254.169.254/x"),
        (PUBLIC, "https://registry.example.com/v2/a", "https://0x7f.1/x"),
        (PUBLIC, "https://registry.example.com/v2/a", "https://u:p@cdn.example/x"),
        (PUBLIC, "https://registry.example.com/v2/a", "javascript:alert(1)"),
        (PRIVATE, "https://10.1.2.3/v2/a", "https://127.0.0.1/x"),
        (LOCAL, "http://127.0.0.1:5000/v2/a", "http://other.example.com/x"),
        (LOCAL, "http://127.0.0.1:5000/v2/a", "http://169.254.169.254/x"),
        # Down to plain http in the middle of a chain.
        (LOCAL, "https://cdn.example/x", "http://127.0.0.1:5000/x"),
        (NAMED_HTTP, "http://plain.example.com/v2/a", "http://127.0.0.1/x"),
    ],
)
def test_redirects_that_may_not(registry, current, location):
    with pytest.raises(RegistryProtocolError):
        redirect_target(
            current, location, registry=registry, is_plain_http_configured=configured(NAMED_HTTP)
        )


@pytest.mark.parametrize(
    ("registry", "realm"),
    [
        (PUBLIC, "https://auth.docker.io/token"),
        (PUBLIC, "https://registry.example.com:8443/token?x=1"),
        (PRIVATE, "https://10.1.2.3:5001/token"),
        (PRIVATE, "https://10.9.9.9/token"),
        (LOCAL, "http://127.0.0.1:5001/token"),
        (LOCAL, "http://localhost:5001/token"),
        (NAMED_HTTP, "http://plain.example.com/token"),
        (NAMED_HTTP, "https://auth.example.com/token"),
    ],
)
def test_realms_that_may_see_the_secret(registry, realm):
    check_realm(realm, registry=registry, is_plain_http_configured=configured())


@pytest.mark.parametrize(
    ("registry", "realm"),
    [
        (PUBLIC, "http://registry.example.com/token"),
        (PUBLIC, "https://8.8.8.8/token"),
        (PUBLIC, "https://10.1.2.3/token"),
        (PUBLIC, "https://localhost/token"),
        (PRIVATE, "https://8.8.8.8/token"),
        (PRIVATE, "https://169.254.169.254/token"),
        (LOCAL, "http://auth.example.com/token"),
        (LOCAL, "http://10.0.0.1/token"),
        (NAMED_HTTP, "http://auth.example.com/token"),
        (NAMED_HTTP, "http://127.0.0.1/token"),
        (NAMED_HTTP, "http://plain.example.com:8080/token"),
    ],
)
def test_realms_that_may_not(registry, realm):
    with pytest.raises(RegistryProtocolError):
        check_realm(realm, registry=registry, is_plain_http_configured=configured())
