"""One host port, one pod: who asks for a port that another pod has is refused.

The scheduler and the kubelet's admission keep such pods apart, but neither sees pods of static
manifests that changed, of a second kubelet, or of a person with crictl. The portmap plugin takes
both without a word; then the older rule wins, and the younger pod is silent for ever.

| pod                          | its ports                                                      |
|------------------------------|----------------------------------------------------------------|
| being made                   | taken, from the request on until it is ready or undone         |
| READY                        | taken                                                          |
| NOTREADY, stopped or removed | free: its client makes the next sandbox of the same pod as     |
|                              | soon as it has asked for the stop, and DEL takes the old rules |
| in the node's own network    | not counted: its programs bind them, and the kernel decides    |
"""

from __future__ import annotations

import ipaddress
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import FailedPrecondition
from sandbox.model import NamespaceMode, pod_name_key
from sandbox.states import PodState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.model import PodConfig, PortMapping
    from sandbox.store import StateStore

#: Of each family, the address that stands for every one; without an address both are meant.
_ANY: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound


class HostPorts:
    """The host ports of this node's pods; for the event loop's thread."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        #: Pods being made, by the key of their name.
        self._claims: dict[str, PodConfig] = {}

    @contextmanager
    def claimed(self, config: PodConfig) -> Iterator[None]:
        """Within it the pod's ports are its own; afterwards they are if its record says READY.

        Raises:
            FailedPrecondition: another pod has one of them; the message names both.
        """
        self._check(config)
        key = pod_name_key(config.metadata)
        self._claims[key] = config
        try:
            yield
        finally:
            del self._claims[key]

    def _check(self, config: PodConfig) -> None:
        wanted = _ports(config)
        if not wanted:
            return
        for holder, pod_id in self._holders():
            for mine in wanted:
                if any(_clash(mine, other) for other in _ports(holder)):
                    about = holder.metadata
                    raise FailedPrecondition(
                        f"host port {_told(mine)} is taken by pod {about.namespace}/{about.name}",
                        sandbox=pod_id,
                        hint="stop that pod, or ask for another host port",
                    )

    def _holders(self) -> Iterator[tuple[PodConfig, str]]:
        for pod in self._store.pods.values():
            if pod.state is PodState.READY:
                yield pod.config, pod.id
        for config in self._claims.values():
            yield config, "being made"


def _ports(config: PodConfig) -> list[PortMapping]:
    if config.security.namespaces.network is NamespaceMode.NODE:
        return []
    return [port for port in config.port_mappings if port.host_port]


def _clash(one: PortMapping, other: PortMapping) -> bool:
    return (one.host_port, one.protocol) == (other.host_port, other.protocol) and _overlap(
        one.host_ip, other.host_ip
    )


def _overlap(one: str, other: str) -> bool:
    """Whether two host addresses have one in common; what is no address has none."""
    if not one or not other or one == other:
        return True
    try:
        first, second = ipaddress.ip_address(one), ipaddress.ip_address(other)
    except ValueError:
        return False  # refused elsewhere, in better words
    return first.version == second.version and (
        first == second or not _ANY.isdisjoint({str(first), str(second)})
    )


def _told(port: PortMapping) -> str:
    where = f"{port.host_ip}:" if port.host_ip else ""
    return f"{where}{port.host_port}/{port.protocol.name.lower()}"
