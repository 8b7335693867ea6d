"""Results of plugins: parsed, checked, converted between the versions of the specification.

Three shapes exist: 0.1.0 and 0.2.0 (`ip4`, `ip6`), 0.3.0 to 0.4.0 (`interfaces`, `ips` with their
IP version) and 1.0.0 onwards (without that version; 1.1.0 adds keys). One value stands for all
of them. A result is passed on as its plugin printed it whenever the version is already the wanted
one, so that keys nobody specified survive; only a conversion writes it anew.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from cni.config import VERSIONS, version_at_least
from cni.document import JsonObject, MalformedDocument, decode_object, view
from cni.errors import ResultInvalid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni.document import JsonValue
    from cni.settings import IpPreference

#: More addresses than this for one pod are a plugin gone wild, and would go into every answer.
ADDRESS_LIMIT: Final = 256

T = TypeVar("T")


class Interface(msgspec.Struct, frozen=True):
    """A network interface; `sandbox` is empty for those on the host."""

    name: str = ""
    mac: str | None = None
    mtu: int | None = None
    sandbox: str | None = None
    socketPath: str | None = None
    pciID: str | None = None


class Ip(msgspec.Struct, frozen=True):
    """An address in CIDR form; `interface` indexes the result's interfaces."""

    address: str
    gateway: str | None = None
    interface: int | None = None


class Route(msgspec.Struct, frozen=True):
    """A route; the keys after `gw` came with 1.1.0."""

    dst: str
    gw: str | None = None
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


class ResolverKeys(msgspec.Struct, frozen=True):
    """What a plugin says about name resolution; kept, not used: the kubelet decides."""

    nameservers: list[str] | None = None
    domain: str | None = None
    search: list[str] | None = None
    options: list[str] | None = None


class _Rich(msgspec.Struct):
    interfaces: tuple[Interface, ...] | None = None
    ips: tuple[Ip, ...] | None = None
    routes: tuple[Route, ...] | None = None
    dns: ResolverKeys | None = None


class _Family(msgspec.Struct):
    ip: str
    gateway: str | None = None
    routes: tuple[Route, ...] | None = None


class _Plain(msgspec.Struct):
    ip4: _Family | None = None
    ip6: _Family | None = None
    dns: ResolverKeys | None = None


class _Versioned(msgspec.Struct):
    cniVersion: str | None = None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a plugin answered to ADD.

    Attributes:
        version: of the specification, as the result says or else as the network speaks.
        document: the result as printed.
    """

    version: str
    document: JsonObject
    interfaces: tuple[Interface, ...] = ()
    ips: tuple[Ip, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: ResolverKeys | None = None


def parse_result(text: bytes | str, *, version: str) -> Result:
    """The result that `text` holds.

    Args:
        text: what a plugin printed, or what was saved of it.
        version: the network's; a result without a version of its own is taken to be of it.

    Raises:
        ResultInvalid: not JSON, of an unknown version, of wrong types, or with an address, a route
            or an interface number that means nothing.
    """
    try:
        document = decode_object(text)
        own = view(document, _Versioned).cniVersion or version
        if own not in VERSIONS:
            raise ResultInvalid(f"result is of unknown CNI version {own[:40]!a}")
        result = _rich(document, own) if version_at_least(own, "0.3.0") else _plain(document, own)
    except MalformedDocument as error:
        raise ResultInvalid(f"result cannot be read: {error.message}") from error
    _check(result)
    return result


def as_version(result: Result, version: str) -> JsonObject:
    """The result as a document of another version; what that version cannot say is left out."""
    if result.version == version:
        return {**result.document, "cniVersion": version}
    if version_at_least(version, "0.3.0"):
        return _rich_document(result, version)
    return _plain_document(result, version)


def pod_addresses(result: Result, *, interface: str, preference: IpPreference) -> tuple[str, ...]:
    """The pod's addresses, without prefix lengths and repetitions, the primary one first.

    They are those of the pod's interface, and those that name no interface (address managers in a
    chain, plugins of the first versions). A plugin that names its interface otherwise is still
    understood as long as it says that the interface is in the sandbox.

    Raises:
        ResultInvalid: there is none; Kubernetes has no use for a pod without an address.
    """
    chosen = [ip for ip in result.ips if _on(result, ip, interface)]
    if not chosen:
        chosen = [ip for ip in result.ips if _in_sandbox(result, ip)]
    found = dict.fromkeys(str(ipaddress.ip_interface(ip.address).ip) for ip in chosen)
    if not found:
        raise ResultInvalid(f"result has no address for interface {interface}")
    addresses = list(found)
    if preference != "cni":
        wanted = 4 if preference == "ipv4" else 6
        first = next((a for a in addresses if ipaddress.ip_address(a).version == wanted), None)
        if first is not None:
            addresses.remove(first)
            addresses.insert(0, first)
    return tuple(addresses)


def _rich(document: JsonObject, version: str) -> Result:
    keys = view(document, _Rich)
    return Result(
        version=version,
        document=document,
        interfaces=keys.interfaces or (),
        ips=keys.ips or (),
        routes=keys.routes or (),
        dns=keys.dns,
    )


def _plain(document: JsonObject, version: str) -> Result:
    keys = view(document, _Plain)
    families = [family for family in (keys.ip4, keys.ip6) if family is not None]
    return Result(
        version=version,
        document=document,
        ips=tuple(Ip(address=f.ip, gateway=f.gateway) for f in families),
        routes=tuple(route for f in families for route in f.routes or ()),
        dns=keys.dns,
    )


def _check(result: Result) -> None:
    if len(result.ips) > ADDRESS_LIMIT:
        raise ResultInvalid(f"result has more than {ADDRESS_LIMIT} addresses")
    for ip in result.ips:
        address = _parsed(ip.address, "an address").ip
        if address.is_unspecified or address.is_multicast or address.is_loopback:
            raise ResultInvalid(f"result has an address no pod can have: {address}")
        if ip.gateway:
            _check_gateway(ip.gateway)
        if ip.interface is not None and not 0 <= ip.interface < len(result.interfaces):
            raise ResultInvalid(f"result has an address on interface {ip.interface}, not listed")
    for route in result.routes:
        _parsed(route.dst, "a route")
        if route.gw:
            _check_gateway(route.gw)


def _parsed(text: str, what: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    # A prefix length is asked for because the specification does; a zone ("%eth0") is an index of
    # this host's interfaces and means nothing to whoever reads the pod's status.
    try:
        if "/" in text and "%" not in text:
            return ipaddress.ip_interface(text)
    except ValueError:
        pass
    raise ResultInvalid(f"result has {what} that is not in CIDR form: {text[:60]!a}")


def _check_gateway(text: str) -> None:
    try:
        ipaddress.ip_address(text)
    except ValueError as error:
        raise ResultInvalid(f"result has a gateway that is no address: {text[:60]!a}") from error


def _on(result: Result, ip: Ip, name: str) -> bool:
    if ip.interface is None:
        return True
    interface = result.interfaces[ip.interface]
    # Bridges and host ends may be named eth0 as well: those have no sandbox. Plugins that leave
    # `sandbox` out everywhere are believed by the name alone.
    nowhere = not any(i.sandbox for i in result.interfaces)
    return interface.name == name and (bool(interface.sandbox) or nowhere)


def _in_sandbox(result: Result, ip: Ip) -> bool:
    return ip.interface is not None and bool(result.interfaces[ip.interface].sandbox)


#: Keys of 1.1.0 in interfaces and routes, unknown to the versions before.
_NEW_KEYS: Final = frozenset({"mtu", "socketPath", "pciID", "advmss", "priority", "table", "scope"})


def _rich_document(result: Result, version: str) -> JsonObject:
    without = frozenset[str]() if version_at_least(version, "1.1.0") else _NEW_KEYS
    document: JsonObject = {"cniVersion": version}
    if result.interfaces:
        document["interfaces"] = _documents(result.interfaces, without)
    ips: list[JsonValue] = []
    for ip in result.ips:
        entry = _present(ip)
        if not version_at_least(version, "1.0.0"):
            entry = {"version": str(ipaddress.ip_interface(ip.address).version), **entry}
        ips.append(entry)
    if ips:
        document["ips"] = ips
    if result.routes:
        document["routes"] = _documents(result.routes, without)
    document["dns"] = _present(result.dns) if result.dns is not None else {}
    return document


def _plain_document(result: Result, version: str) -> JsonObject:
    document: JsonObject = {"cniVersion": version}
    for key, family in (("ip4", 4), ("ip6", 6)):
        ip = next((i for i in result.ips if _family(i.address) == family), None)
        if ip is None:
            continue
        entry: JsonObject = {"ip": ip.address}
        if ip.gateway:
            entry["gateway"] = ip.gateway
        routes = [route for route in result.routes if _family(route.dst) == family]
        if routes:
            entry["routes"] = _documents(routes, _NEW_KEYS)
        document[key] = entry
    document["dns"] = _present(result.dns) if result.dns is not None else {}
    return document


def _family(text: str) -> int:
    return ipaddress.ip_interface(text).version


def _documents(
    values: Sequence[Interface] | Sequence[Route], without: frozenset[str]
) -> list[JsonValue]:
    found: list[JsonValue] = []
    for value in values:
        entry = _present(value)
        found.append({key: item for key, item in entry.items() if key not in without})
    return found


def _present(value: msgspec.Struct) -> JsonObject:
    document: JsonObject = msgspec.to_builtins(value)
    return {key: item for key, item in document.items() if item is not None}
