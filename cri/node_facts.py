"""What Status, RuntimeConfig and Version tell of the node, as one value the daemon fills in.

Below `cri.rpc` and the lifecycles, so that both know it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Condition types that every CRI client asks for.
RUNTIME_READY: Final = "RuntimeReady"
NETWORK_READY: Final = "NetworkReady"


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition; `reason` is one CamelCase word, `message` a sentence, empty when it holds."""

    type: str
    status: bool
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Handler:
    """A runtime handler and what it can do on this node; the default one is listed as "" too."""

    name: str
    recursive_read_only_mounts: bool = False
    user_namespaces: bool = False


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """The node as of now.

    Attributes:
        conditions: at least RuntimeReady and NetworkReady.
        handlers: the default one under the name "" first, then each by its name.
        cgroup_driver: the driver that the kubelet must use as well.
        supplemental_groups_policy: MERGE and STRICT are both honoured.
        mount_options: `Mount.mount_options` is honoured.
        info: verbose facts, one JSON document per key.
    """

    conditions: tuple[Condition, ...]
    handlers: tuple[Handler, ...]
    cgroup_driver: Literal["cgroupfs", "systemd"]
    supplemental_groups_policy: bool = True
    user_namespaces_host_network: bool = False
    mount_options: bool = False
    info: Mapping[str, object] = field(default_factory=dict)
