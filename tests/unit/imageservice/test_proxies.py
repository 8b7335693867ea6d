"""Which proxy an address is asked through, and that no text form of one shows its password."""

from __future__ import annotations

import base64

import pytest

from imageservice.proxies import Proxies, ProxyServer, parse_proxy, split_exceptions
from sandbox.host.errors import InvalidArgument

HTTPS = parse_proxy("http://secure.proxy:3128")
HTTP = parse_proxy("http://plain.proxy:3128")


def proxied(host: str, *exceptions: str, port: int = 443, scheme: str = "https") -> bool:
    return Proxies(HTTPS, HTTP, exceptions).towards(scheme, host, port) is not None


def test_the_scheme_of_the_address_decides():
    both = Proxies(HTTPS, HTTP)
    assert both.towards("https", "reg.example", 443) is HTTPS
    assert both.towards("http", "reg.example", 80) is HTTP
    assert Proxies(https=HTTPS).towards("http", "reg.example", 80) is None
    assert Proxies().towards("https", "reg.example", 443) is None


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "a.localhost", "127.0.0.1", "127.9.9.9", "::1", "localhost."]
)
def test_this_machine_is_never_asked_through_a_proxy(host):
    assert not proxied(host)


# The cases of Go's own test of the same rules, in our words (x/net/http/httpproxy).
@pytest.mark.parametrize(
    ("host", "exceptions"),
    [
        ("reg.example", ["reg.example"]),
        ("a.reg.example", ["reg.example"]),
        ("a.b.reg.example", ["reg.example"]),
        ("A.Reg.Example", ["reG.eXample"]),
        ("a.reg.example", [".reg.example"]),
        ("a.reg.example", ["*.reg.example"]),
        ("reg.example.", ["reg.example"]),
        ("reg.example", ["other", " reg.example "]),
        ("reg.example", ["reg.example:443"]),
        ("a.reg.example", [".reg.example:443"]),
        ("10.1.2.3", ["10.1.2.3"]),
        ("10.1.2.3", ["10.1.2.3:443"]),
        ("10.1.2.3", ["10.0.0.0/8"]),
        ("fd00::1", ["fd00::/8"]),
        ("fd00::1", ["fd00::1"]),
        ("fd00::1", ["[fd00::1]:443"]),
        ("fd00::1", ["[fd00::1]"]),
        ("fd00::1", ["FD00:0:0::1"]),
        ("::ffff:10.1.2.3", ["10.0.0.0/8"]),
        ("10.1.2.3", ["::ffff:10.0.0.0/104"]),
        ("fe80::1%25eth0", ["fe80::1"]),
        ("fe80::1", ["[fe80::1%25eth0]:443"]),
        ("fe80::1%eth0", ["fe80::/10"]),
        ("xn--bcher-kva.example", ["bücher.example"]),
        ("a.xn--bcher-kva.example", ["*.BÜCHER.example."]),
        ("a.xn--bcher-kva.example", [".bücher.example:443"]),
        ("xn--bcher-kva.example", ["xn--BCHER-kva.example"]),
        ("anything", ["*"]),
        ("10.1.2.3", ["*"]),
    ],
)
def test_an_exception_is_asked_directly(host, exceptions):
    assert not proxied(host, *exceptions)


@pytest.mark.parametrize(
    ("host", "exceptions"),
    [
        ("reg.example", []),
        ("reg.example", ["", "  ", ":443", "/", "10.0.0.0/99", "[", "[]", "."]),
        ("otherreg.example", ["reg.example"]),
        ("reg.example", [".reg.example"]),
        ("reg.example", ["*.reg.example"]),
        ("reg.example.evil", ["reg.example"]),
        ("reg.example", ["reg.example:80"]),
        ("10.1.2.3", ["10.1.2.4", "2.3", ".2.3", "11.0.0.0/8", "10.1.2.3:80"]),
        ("10.1.2.3", ["fd00::/8"]),
        ("reg.example", ["10.0.0.0/8"]),
        ("fd00::1", ["fd00::2"]),
        ("fd00::1", ["::ffff:10.0.0.0/104", "::ffff:0:0/95"]),
        ("xn--bcher-kva.example", ["bucher.example", ".bücher.example", "ü..example", "ü" * 80]),
        ("reg.example", ["re*.example", "*example"]),
    ],
)
def test_anything_else_is_not_an_exception(host, exceptions):
    assert proxied(host, *exceptions)


def test_a_port_of_an_exception_is_that_of_the_address():
    assert proxied("reg.example", "reg.example:5000")
    assert not proxied("reg.example", "reg.example:5000", port=5000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://p.example:3128", ("http", "p.example", 3128, "", "")),
        ("p.example:3128", ("http", "p.example", 3128, "", "")),
        ("p.example", ("http", "p.example", 80, "", "")),
        ("https://p.example/", ("https", "p.example", 443, "", "")),
        ("http://u:p@p.example:1", ("http", "p.example", 1, "u", "p")),
        ("u:p@p.example:1", ("http", "p.example", 1, "u", "p")),
        ("http://u%40d:p%3A%2F@p.example", ("http", "p.example", 80, "u@d", "p:/")),
        ("http://u@p.example", ("http", "p.example", 80, "u", "")),
        ("http://[fd00::1]:3128", ("http", "fd00::1", 3128, "", "")),
        ("http://[FD00:0:0::1]:3128", ("http", "fd00::1", 3128, "", "")),
        ("http://[fe80::1%25eth0]:3128", ("http", "fe80::1%eth0", 3128, "", "")),
        ("HTTP://P.Example:3128", ("http", "p.example", 3128, "", "")),
    ],
)
def test_addresses_of_proxies(text, expected):
    assert parse_proxy(text) == ProxyServer(*expected)


@pytest.mark.parametrize(
    "text",
    [
        "socks5://canary@p.example:1080",
        "ftp://p.example/canary",
        "http://",
        "http://canary:99999999",
        "http://canary:p@p.example:port",
        "http://p.example/canary",
        "http://p.example?canary",
        "http://p.example#canary",
        "http://[canary",
        "http://can ary",
        "http://canary\n:p@p.example",
        "http://canary%0A:p@p.example",
        "http://a%3Ab:canary@p.example",
        "http://canarié",
        "canary" * 2000,
    ],
)
def test_what_is_no_proxy_is_refused_and_not_quoted(text):
    with pytest.raises(InvalidArgument) as caught:
        parse_proxy(text)
    assert "canar" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_password_shows_in_what_is_for_the_proxy_only():
    proxy = parse_proxy("http://canary:p%40canary@p.example:3128")
    assert "canary" not in f"{proxy} {proxy!r} {proxy.url} {Proxies(proxy, proxy)!r}"
    assert str(proxy) == "http://[redacted]@p.example:3128"
    assert proxy.authorization == "Basic " + base64.b64encode(b"canary:p@canary").decode()
    assert proxy.secret_url == "http://canary:p%40canary@p.example:3128"
    assert parse_proxy(proxy.secret_url) == proxy
    assert parse_proxy("p.example").authorization == ""


def test_the_environment_of_programs():
    proxies = Proxies(parse_proxy("http://u:p@[fd00::1]:1"), None, ("a", ".b"))
    assert proxies.environment() == {
        "HTTPS_PROXY": "http://u:p@[fd00::1]:1",
        "NO_PROXY": "a,.b",
    }
    assert Proxies().environment() == {}


def test_exceptions_of_an_environment():
    assert split_exceptions(" a, .b ,,10.0.0.0/8,") == ("a", ".b", "10.0.0.0/8")
