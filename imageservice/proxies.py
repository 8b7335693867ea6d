"""Which HTTP proxy a registry is asked through, by the rules that Go's programs have taught nodes.

Other runtimes take HTTPS_PROXY, HTTP_PROXY and NO_PROXY as Go's `golang.org/x/net/http/httpproxy`
reads them, and so do the drop-ins of systemd that administrators have written for them. Here the
same values mean the same:

* The scheme of the address that is asked decides which proxy, not the scheme of the proxy.
* A proxy is a URL, or `host:port` for `http://host:port`. User and password in it are for the
  proxy alone. SOCKS is not spoken here.
* An entry of NO_PROXY is an address (`10.0.0.1`), a network (`10.0.0.0/8`), a domain with all below
  it (`example.com`), only what is below it (`.example.com`, `*.example.com`), any of them but a
  network with a port (`example.com:5000`), or `*` for everything. Names are compared as DNS has
  them (`bücher.example` is `xn--bcher-kva.example`), addresses as numbers whatever their spelling
  and zone; no name is resolved to see in which network it lies. What is none of these is ignored.
* This machine itself is never asked through a proxy.

Pure. A text form never shows user or password.
"""

from __future__ import annotations

import base64
import ipaddress
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, quote, unquote, urlsplit

from sandbox.host.errors import InvalidArgument

MAX_PROXY_CHARS: Final = 8192
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class ProxyServer:
    """One proxy; `scheme` says how it is itself spoken to."""

    scheme: str
    host: str
    port: int
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """Its address, without user and password."""
        return f"{self.scheme}://{self._netloc}"

    @property
    def secret_url(self) -> str:
        """Its address with user and password, for programs that go through it too."""
        if not self.user and not self.password:
            return self.url
        user = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        return f"{self.scheme}://{user}@{self._netloc}"

    @property
    def authorization(self) -> str:
        """The value of a Proxy-Authorization header; empty where it wants none."""
        if not self.user and not self.password:
            return ""
        pair = f"{self.user}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode("ascii")

    @property
    def _netloc(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        """For people: whether there is a user is told, not who."""
        if not self.user and not self.password:
            return self.url
        return f"{self.scheme}://[redacted]@{self._netloc}"


@dataclass(frozen=True, slots=True)
class Proxies:
    """See the module's text.

    Attributes:
        https: for addresses that begin with https.
        http: for those that begin with http.
        exceptions: entries of NO_PROXY.
    """

    https: ProxyServer | None = None
    http: ProxyServer | None = None
    exceptions: tuple[str, ...] = ()

    def towards(self, scheme: str, host: str, port: int) -> ProxyServer | None:
        """The proxy for an address, or None to go there directly.

        Args:
            scheme: `http` or `https`.
            host: a name, or an address without brackets.
            port: of the address; its default where the URL has none.
        """
        chosen = self.https if scheme == "https" else self.http
        if chosen is None:
            return None
        name = _as_in_dns(host.rstrip(".").lower())
        address = _address(name)
        if name == "localhost" or name.endswith(".localhost"):
            return None
        if address is not None and address.is_loopback:
            return None
        if any(_excepts(entry, name, address, port) for entry in self.exceptions):
            return None
        return chosen

    def environment(self) -> dict[str, str]:
        """The same for a program that reads its environment; holds secrets."""
        values = {
            "HTTPS_PROXY": "" if self.https is None else self.https.secret_url,
            "HTTP_PROXY": "" if self.http is None else self.http.secret_url,
            "NO_PROXY": ",".join(self.exceptions),
        }
        return {name: value for name, value in values.items() if value}


def parse_proxy(text: str) -> ProxyServer:
    """Read the address of a proxy.

    Raises:
        InvalidArgument: it is none, or of a kind that is not spoken here. Never quotes it.
    """
    malformed = InvalidArgument("expected the URL of a proxy, http://[user:password@]host:port")
    if len(text) > MAX_PROXY_CHARS or not text.isascii() or not text.isprintable() or " " in text:
        raise malformed
    try:
        split = urlsplit(text if "://" in text else f"http://{text}")
        return _server(split)
    except ValueError:
        # The cause would quote the address, and that may hold a password.
        raise InvalidArgument(
            "expected the URL of a proxy, http://[user:password@]host:port"
        ) from None


def _server(split: SplitResult) -> ProxyServer:
    if split.scheme not in _DEFAULT_PORTS:
        raise InvalidArgument("expected a proxy with http:// or https://, no other is spoken")
    host, port = split.hostname or "", split.port
    if not host or split.path.strip("/") or split.query or split.fragment:
        raise ValueError
    host = _as_resolved(host)
    user, password = unquote(split.username or ""), unquote(split.password or "")
    if ":" in user or not (user + password).isprintable():
        raise ValueError
    return ProxyServer(
        split.scheme, host, _DEFAULT_PORTS[split.scheme] if port is None else port, user, password
    )


def split_exceptions(text: str) -> tuple[str, ...]:
    """NO_PROXY as it stands in an environment: entries with commas between."""
    return tuple(entry for part in text.split(",") if (entry := part.strip()))


def _excepts(
    entry: str,
    name: str,
    address: ipaddress.IPv4Address | ipaddress.IPv6Address | None,
    port: int,
) -> bool:
    text = entry.strip().lower()
    if text == "*":
        return True
    if "/" in text:
        try:
            network = _network(text)
        except ValueError:
            return False
        return address is not None and address.version == network.version and address in network
    wanted, wanted_port = _split_port(text)
    if not wanted or (wanted_port and wanted_port != str(port)):
        return False
    literal = _address(wanted)
    if literal is not None:
        return address == literal
    if address is not None:
        return False  # the end of a number is no domain
    wanted = _as_in_dns((wanted[1:] if wanted.startswith("*.") else wanted).rstrip("."))
    if wanted.startswith("."):
        return len(wanted) > 1 and name.endswith(wanted)
    return name == wanted or name.endswith(f".{wanted}")


def _split_port(text: str) -> tuple[str, str]:
    """`host:port` and `[address]:port`; an IPv6 address without brackets has no port."""
    if text.startswith("["):
        inside, _, after = text[1:].partition("]")
        return inside, after.removeprefix(":")
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, port
    return text, ""


def _as_in_dns(name: str) -> str:
    """A name in lower case as DNS has it; one that DNS cannot have stays, and matches itself."""
    if name.isascii():
        return name
    bare = name.lstrip(".")
    try:
        return name[: len(name) - len(bare)] + bare.encode("idna").decode("ascii")
    except UnicodeError:
        return name


def _as_resolved(host: str) -> str:
    """An IPv6 address in its one spelling, the `%` before its zone plain; a name as it is."""
    number, percent, zone = host.partition("%")
    if ":" not in number:
        return host
    return f"{ipaddress.IPv6Address(number)}{percent}{zone.removeprefix('25')}"


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    network = ipaddress.ip_network(text, strict=False)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped  # addresses are compared without it as well
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
