"""Who may be talked to and who may see a secret, decided from scheme, host and port alone (pure).

A registry answers with addresses of its own choosing: where to fetch a token, where a blob really
lies. Each is a chance to make this daemon, which runs as root inside the cluster's network, ask
something internal (SSRF) or hand over a secret (CVE-2026-33540, GHSA-vh4v-2xq2-g5cg). The rules:

* Only `http` and `https`, no userinfo, no fragment, printable ASCII, at most 8 KiB.
* Plain HTTP only to an origin that the operator configured so, or on loopback from a registry that
  is itself on loopback; never from an HTTPS page.
* Loopback, link-local and other special addresses only from a registry that is itself addressed in
  the same way. For a token server this covers private and public address literals too.
* A DNS name is taken as it is. That it may resolve to a private address is how company registries
  work, so it is no reason to refuse.

What we did not do: compare registrable domains of registry and token server. Docker Hub's are
`registry-1.docker.io` and `auth.docker.io`, but others use unrelated names, and a registry that is
hostile could ask for Basic authorization itself: HTTPS to a named host is all that can be demanded.
"""

from __future__ import annotations

import enum
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urljoin, urlsplit

from imageservice.errors import RegistryProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_URL_CHARS: Final = 8192
DEFAULT_PORTS: Final = {"https": 443, "http": 80}


class AddressKind(enum.Enum):
    """What a host part tells without asking DNS."""

    NAME = "name"
    PUBLIC = "public address"
    PRIVATE = "private address"
    LOOPBACK = "loopback"
    SPECIAL = "special address"


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host (lower case, IPv6 without brackets) and port: what an authority belongs to."""

    scheme: str
    host: str
    port: int

    @property
    def netloc(self) -> str:
        """`name[:port]`, the default port left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def kind(self) -> AddressKind:
        """See `address_kind`."""
        return address_kind(self.host)

    def __str__(self) -> str:
        """`https://name[:port]`."""
        return f"{self.scheme}://{self.netloc}"


def address_kind(host: str) -> AddressKind:
    """Classify a host part; odd spellings of addresses (`127.1`, `0x7f000001`) are SPECIAL.

    The resolver of the C library takes those for addresses, so they must not pass as names.
    """
    text = host.rstrip(".").lower()
    if text == "localhost" or text.endswith(".localhost"):
        return AddressKind.LOOPBACK
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        last = text.rpartition(".")[2]
        is_number = last.isdigit() or last.startswith("0x") or not last or ":" in text
        return AddressKind.SPECIAL if is_number else AddressKind.NAME
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback:
        return AddressKind.LOOPBACK
    # An unspecified address connects to this machine; link-local holds the cloud metadata services.
    if address.is_unspecified or address.is_link_local or address.is_multicast:
        return AddressKind.SPECIAL
    if address.is_reserved:
        return AddressKind.SPECIAL
    return AddressKind.PUBLIC if address.is_global else AddressKind.PRIVATE


def parse_url(text: str, *, what: str) -> tuple[SplitResult, Origin]:
    """Split an absolute URL and say whose it is.

    Raises:
        RegistryProtocolError: `what` is not a plain http(s) URL. The text is not quoted.
    """
    if len(text) > MAX_URL_CHARS:
        raise RegistryProtocolError(f"{what} is longer than {MAX_URL_CHARS} characters")
    if not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        raise RegistryProtocolError(f"{what} has characters that no URL has")
    try:
        split = urlsplit(text)
        host, port = split.hostname, split.port
    except ValueError as error:
        raise RegistryProtocolError(f"{what} is malformed") from error
    if split.scheme not in DEFAULT_PORTS:
        raise RegistryProtocolError(
            f"{what} is refused: scheme {split.scheme[:20]!a} is not http or https"
        )
    if "@" in split.netloc:
        raise RegistryProtocolError(f"{what} is refused: it holds a user name")
    if not host or port == 0:
        raise RegistryProtocolError(f"{what} names no host")
    if split.fragment:
        raise RegistryProtocolError(f"{what} is refused: it has a fragment")
    actual_port = DEFAULT_PORTS[split.scheme] if port is None else port
    return split, Origin(split.scheme, host.lower(), actual_port)


def origin_of(url: str) -> Origin:
    """The origin of a URL that was made here."""
    return parse_url(url, what="URL")[1]


def redirect_target(
    current: str,
    location: str,
    *,
    registry: Origin,
    is_plain_http_configured: Callable[[Origin], bool],
) -> str:
    """Where a redirect leads, if it may.

    Args:
        current: the URL that answered with a redirect.
        location: its Location header, absolute or relative.
        registry: the endpoint that was asked first.
        is_plain_http_configured: whether the operator allows plain HTTP to an origin.

    Raises:
        RegistryProtocolError: the target breaks a rule; names its host at most.
    """
    what = "redirect target"
    parse_ready = location if len(location) <= MAX_URL_CHARS else location[: MAX_URL_CHARS + 1]
    try:
        joined = urljoin(current, parse_ready)
    except ValueError as error:
        raise RegistryProtocolError(f"{what} is malformed") from error
    target = parse_url(joined.partition("#")[0], what=what)[1]
    source = origin_of(current)
    _check_scheme(what, source, target, registry, is_plain_http_configured)
    guarded = {AddressKind.LOOPBACK, AddressKind.SPECIAL}
    if target.kind in guarded and target.host != registry.host and target.kind != registry.kind:
        raise RegistryProtocolError(f"{what} {target} is refused: {target.kind.value}")
    return joined.partition("#")[0]


def check_realm(
    realm: str, *, registry: Origin, is_plain_http_configured: Callable[[Origin], bool]
) -> Origin:
    """Refuse a token server that must not see a secret, nor be asked at all.

    Raises:
        RegistryProtocolError: the realm breaks a rule; names its host at most.
    """
    what = "token server"
    target = parse_url(realm, what=what)[1]
    _check_scheme(what, registry, target, registry, is_plain_http_configured)
    is_literal = target.kind is not AddressKind.NAME
    if is_literal and target.host != registry.host and target.kind != registry.kind:
        raise RegistryProtocolError(f"{what} {target} is refused: {target.kind.value}")
    return target


def _check_scheme(
    what: str,
    source: Origin,
    target: Origin,
    registry: Origin,
    is_plain_http_configured: Callable[[Origin], bool],
) -> None:
    if target.scheme == "https":
        return
    if source.scheme == "https":
        raise RegistryProtocolError(f"{what} {target} is refused: from https down to plain http")
    both_local = target.kind is AddressKind.LOOPBACK and registry.kind is AddressKind.LOOPBACK
    if target != registry and not both_local and not is_plain_http_configured(target):
        raise RegistryProtocolError(
            f"{what} {target} is refused: plain http",
            hint="name that host with http:// in a hosts.toml of its own to allow it",
        )
