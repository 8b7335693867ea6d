"""What plugins are told about a pod: identities in CNI_ARGS, wishes in capability arguments.

Everything here is pure. The value is stored with the attachment, because the specification wants
DEL to get the arguments that ADD got.

Capability names and shapes are those of the CNI conventions document ("Dynamic Plugin specific
fields"), and containerd's for the pod's annotations, which plugins have come to read.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final

import msgspec

from sandbox.host.errors import InvalidArgument

if TYPE_CHECKING:
    from cni.document import JsonObject, JsonValue

#: Name of the pod's interface in its namespace; kubelet and probes expect it.
DEFAULT_INTERFACE: Final = "eth0"

#: Specification, "Parameters": what a container id may look like.
_CONTAINER_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")

#: Specification, "Parameters", and IFNAMSIZ: 15 characters without "/", ":" and white space.
_INTERFACE: Final = re.compile(r"[^/:\s\x00-\x1f\x7f]{1,15}")
_MAC: Final = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
_PROTOCOLS: Final = frozenset({"tcp", "udp", "sctp"})

#: The largest burst the bandwidth plugin takes, in bits. It refuses a rate without a burst, CRI has
#: no word for bursts, and the kubelet's own shaping never limited them: so the largest.
UNLIMITED_BURST_BITS: Final = 2**32 - 1


class _Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Immutable, keyword-only, stored without the fields left at their default."""


class PortMapping(_Value, frozen=True):
    """A host port; `host_port` 0 says that none is wanted."""

    container_port: int
    host_port: int = 0
    protocol: str = "tcp"
    host_ip: str = ""


class Bandwidth(_Value, frozen=True):
    """Limits seen from the pod; a rate of 0 means no limit."""

    ingress_bits_per_s: int = 0
    ingress_burst_bits: int = UNLIMITED_BURST_BITS
    egress_bits_per_s: int = 0
    egress_burst_bits: int = UNLIMITED_BURST_BITS


class Dns(_Value, frozen=True):
    """The pod's resolver, for plugins that hand it on (to a virtual machine, to Windows)."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class IpRange(_Value, frozen=True):
    """One range for an address manager; only `subnet` is needed."""

    subnet: str
    range_start: str = ""
    range_end: str = ""
    gateway: str = ""


class Attachment(_Value, frozen=True):
    """One pod in one network.

    Attributes:
        pod_id: the sandbox id; the key under which plugins keep what they reserve.
        netns_path: the pinned network namespace.
        port_mappings, bandwidth, dns, ip_ranges, mac, cgroup_path, aliases, annotations: passed to
            the plugins that declare the capability, to no others.
        ip_ranges: one inner tuple per address wanted, each a set of ranges to choose from.
    """

    pod_id: str
    netns_path: str
    pod_name: str
    pod_namespace: str
    pod_uid: str
    interface: str = DEFAULT_INTERFACE
    port_mappings: tuple[PortMapping, ...] = ()
    bandwidth: Bandwidth | None = None
    dns: Dns | None = None
    cgroup_path: str = ""
    aliases: tuple[str, ...] = ()
    mac: str = ""
    ip_ranges: tuple[tuple[IpRange, ...], ...] = ()
    annotations: dict[str, str] = {}


def check_attachment(attachment: Attachment) -> None:
    """Refuse what would be misread by a plugin.

    Raises:
        InvalidArgument: naming the value; nothing has been run then.
    """
    check_key(attachment.pod_id, attachment.interface)
    cni_args(attachment)
    capability_arguments(attachment)


def check_key(pod_id: str, interface: str) -> None:
    """Refuse identities that the specification does not allow; they also name files of ours.

    Raises:
        InvalidArgument: the id or the interface name is not a plain word.
    """
    if not _CONTAINER_ID.fullmatch(pod_id):
        raise InvalidArgument("pod id is not a word that network plugins accept", pod=pod_id[:140])
    if not _INTERFACE.fullmatch(interface) or interface in {".", ".."}:
        raise InvalidArgument("interface name is not valid", interface=interface[:40])


def cni_args(attachment: Attachment) -> str:
    """CNI_ARGS for a pod.

    Raises:
        InvalidArgument: a value holds ";" or "=", which separate pairs and have no escape: a pod
            named "a;K8S_POD_NAMESPACE=kube-system" could pass for another pod.
    """
    pairs = (
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", attachment.pod_namespace),
        ("K8S_POD_NAME", attachment.pod_name),
        ("K8S_POD_INFRA_CONTAINER_ID", attachment.pod_id),
        ("K8S_POD_UID", attachment.pod_uid),
    )
    for key, value in pairs:
        if not value.isprintable() or ";" in value or "=" in value:
            raise InvalidArgument(
                'value cannot be told to network plugins: it holds ";", "=" or a control character',
                argument=key,
                value=ascii(value[:80]),
            )
    return ";".join(f"{key}={value}" for key, value in pairs)


def capability_arguments(attachment: Attachment) -> JsonObject:
    """Every capability argument the pod has a value for, by capability name.

    Raises:
        InvalidArgument: a port, an address or a hardware address is not one.
    """
    found: JsonObject = {}
    if ports := _port_mappings(attachment.port_mappings):
        found["portMappings"] = ports
    if attachment.bandwidth is not None and (limits := _bandwidth(attachment.bandwidth)):
        found["bandwidth"] = limits
    if (dns := attachment.dns) is not None and (dns.servers or dns.searches or dns.options):
        found["dns"] = {
            "servers": list(dns.servers),
            "searches": list(dns.searches),
            "options": list(dns.options),
        }
    if attachment.ip_ranges:
        found["ipRanges"] = [
            [_ip_range(one) for one in several] for several in attachment.ip_ranges
        ]
    if attachment.mac:
        if not _MAC.fullmatch(attachment.mac):
            raise InvalidArgument("not a hardware address", mac=attachment.mac[:40])
        found["mac"] = attachment.mac
    if attachment.cgroup_path:
        found["cgroupPath"] = attachment.cgroup_path
    if attachment.aliases:
        found["aliases"] = list(attachment.aliases)
    if attachment.annotations:
        found["io.kubernetes.cri.pod-annotations"] = dict(attachment.annotations)
    return found


def _port_mappings(mappings: tuple[PortMapping, ...]) -> list[JsonValue]:
    taken: dict[tuple[str, str, int], int] = {}
    found: list[JsonValue] = []
    for mapping in mappings:
        if mapping.host_port == 0:
            continue
        protocol = mapping.protocol.lower()
        if protocol not in _PROTOCOLS:
            raise InvalidArgument("protocol of a host port is unknown", protocol=protocol[:20])
        for name, port in (("host", mapping.host_port), ("container", mapping.container_port)):
            if not 0 < port < 65536:
                raise InvalidArgument(f"{name} port is out of range", port=port)
        if mapping.host_ip:
            _check_address(mapping.host_ip, "host address of a port")
        key = (protocol, mapping.host_ip, mapping.host_port)
        if key in taken:
            if taken[key] != mapping.container_port:
                raise InvalidArgument("host port is asked for twice", port=mapping.host_port)
            continue
        taken[key] = mapping.container_port
        entry: JsonObject = {
            "hostPort": mapping.host_port,
            "containerPort": mapping.container_port,
            "protocol": protocol,
        }
        if mapping.host_ip:
            entry["hostIP"] = mapping.host_ip
        found.append(entry)
    return found


def _bandwidth(bandwidth: Bandwidth) -> JsonObject:
    found: JsonObject = {}
    for name, rate, burst in (
        ("ingress", bandwidth.ingress_bits_per_s, bandwidth.ingress_burst_bits),
        ("egress", bandwidth.egress_bits_per_s, bandwidth.egress_burst_bits),
    ):
        if rate < 0 or burst < 0:
            raise InvalidArgument(f"{name} bandwidth is negative", bits_per_s=rate)
        if rate:
            found[f"{name}Rate"] = rate
            found[f"{name}Burst"] = burst or UNLIMITED_BURST_BITS
    return found


def _ip_range(wanted: IpRange) -> JsonObject:
    try:
        ipaddress.ip_network(wanted.subnet, strict=False)
    except ValueError as error:
        raise InvalidArgument("not a subnet", subnet=wanted.subnet[:60]) from error
    found: JsonObject = {"subnet": wanted.subnet}
    for key, address in (
        ("rangeStart", wanted.range_start),
        ("rangeEnd", wanted.range_end),
        ("gateway", wanted.gateway),
    ):
        if address:
            _check_address(address, f"{key} of an address range")
            found[key] = address
    return found


def _check_address(text: str, what: str) -> None:
    try:
        ipaddress.ip_address(text)
    except ValueError as error:
        raise InvalidArgument(f"{what} is not an IP address", address=text[:60]) from error
