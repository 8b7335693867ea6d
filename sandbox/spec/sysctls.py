"""Which sysctls a pod may set, and those every pod with its own network gets.

They are written by the namespace worker from inside the pod's fresh namespaces, never by the OCI
runtime and never through anything that splits a text at `+` or `=` (CVE-2022-0811). The grammar
of keys and values and the namespace of each key are `sandbox.host.sysctls`' knowledge, asked here
and asked again by the worker. This module knows pods: a key whose namespace the pod shares with
the node would change the node, so it is refused before anything is made (CVE-2022-0532).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sandbox.host.errors import InvalidArgument
from sandbox.host.sysctls import Kind, plan_sysctls, sysctl_kind, sysctl_path
from sandbox.mapping import own_user_namespace
from sandbox.model import NamespaceMode

if TYPE_CHECKING:
    from sandbox.model import PodConfig

#: The largest group id that Kubernetes knows.
LAST_GROUP: Final = 2**31 - 1
#: Unprivileged ping and low ports: harmless in a network namespace of one's own, and what images
#: made on Docker and containerd expect.
DEFAULT_SYSCTLS: Final = {
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv4.ping_group_range": f"0 {LAST_GROUP}",
}

#: For every network namespace of a node that has IPv6: interfaces made later take it over. Without
#: it a pod believes whoever sends it router advertisements, another pod on the same bridge, say
#: (CVE-2020-10749); plugins write it for the host's end only. A pod whose network is configured by
#: advertisements sets the same key to 1 itself, or its plugin does (`tuning`).
IPV6_SYSCTLS: Final = {"net.ipv6.conf.default.accept_ra": "0"}


def check_sysctls(config: PodConfig) -> None:
    """Refuse what is malformed, not namespaced, or would reach the host.

    Raises:
        InvalidArgument: naming the sysctl.
    """
    namespaces = config.security.namespaces
    own: set[Kind] = set()
    if namespaces.network is not NamespaceMode.NODE:
        own |= {"net", "uts"}
    if namespaces.ipc is not NamespaceMode.NODE:
        own.add("ipc")
    for key in config.sysctls:
        kind = sysctl_kind(sysctl_path(key))
        if kind is not None and kind not in own:
            where = "with host ipc" if kind == "ipc" else "on the host network"
            raise InvalidArgument(
                f"sysctl {key} cannot be set in a pod {where}",
                hint="it would change the node; set it there, or give the pod its own namespace",
            )
    plan_sysctls(config.sysctls, frozenset(own))


def _defaults(config: PodConfig) -> dict[str, str]:
    """The kernel takes only groups that the pod's user namespace has."""
    user = own_user_namespace(config.security.namespaces)
    if user is None:
        return DEFAULT_SYSCTLS
    last = min(user.gids[0].length - 1, LAST_GROUP)
    return {**DEFAULT_SYSCTLS, "net.ipv4.ping_group_range": f"0 {last}"}


def pod_sysctls(config: PodConfig) -> dict[str, str]:
    """All sysctls for the pod's namespaces: the defaults, and over them the request's.

    Raises:
        InvalidArgument: see `check_sysctls`.
    """
    check_sysctls(config)
    if config.security.namespaces.network is NamespaceMode.NODE:
        return dict(config.sysctls)
    # By path, because a key may be written with slashes, and two spellings must not both be set.
    asked = {sysctl_path(key) for key in config.sysctls}
    defaults = {
        key: value for key, value in _defaults(config).items() if sysctl_path(key) not in asked
    }
    return {**defaults, **config.sysctls}
