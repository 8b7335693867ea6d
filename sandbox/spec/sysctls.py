"""Which sysctls a pod may set, and those every pod with its own network gets.

They are written by the namespace worker from inside the pod's fresh namespaces, never by the OCI
runtime and never through anything that splits a text at `+` or `=` (CVE-2022-0811). Only sysctls
that belong to a network or IPC namespace are accepted, and only where the pod has that namespace
of its own: anything else would change the host.
"""

from __future__ import annotations

import re
from typing import Final

from sandbox.host.errors import InvalidArgument
from sandbox.model import NamespaceMode, PodConfig

#: Unprivileged ping and low ports: harmless in a network namespace of one's own, and what images
#: made on Docker and containerd expect. The upper end is 2^31-1 because of groups of unmapped
#: users.
DEFAULT_SYSCTLS: Final = {
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv4.ping_group_range": "0 2147483647",
}

#: Longest value; /proc/sys writes are one page.
VALUE_LIMIT_BYTES: Final = 4095

# sysctl(8) form: dots between names; a slash stands for a dot inside a name (eth0/100 is the
# interface eth0.100). Each side of a separator has at least one letter, so no ".." can arise.
_WORD: Final = r"[A-Za-z0-9_-]+"
_KEY: Final = re.compile(rf"{_WORD}(/{_WORD})*(\.{_WORD}(/{_WORD})*)+", re.ASCII)
_KEY_LIMIT: Final = 255

# namespaces(7), ipc_namespaces(7).
_IPC_PREFIXES: Final = ("kernel.shm", "kernel.msg", "fs.mqueue.")
_IPC_NAMES: Final = ("kernel.sem",)


def check_sysctls(config: PodConfig) -> None:
    """Refuse what is malformed, not namespaced, or would reach the host.

    Raises:
        InvalidArgument: naming the sysctl.
    """
    namespaces = config.security.namespaces
    for key, value in config.sysctls.items():
        if len(key) > _KEY_LIMIT or not _KEY.fullmatch(key):
            raise InvalidArgument(f"not the name of a sysctl: {key[:128]!a}")
        if (
            not value
            or not value.isascii()
            or not value.replace("\t", " ").isprintable()
            or len(value) > VALUE_LIMIT_BYTES
        ):
            raise InvalidArgument(f"the value of sysctl {key} is empty, not printable or too long")
        if key.startswith("net."):
            if namespaces.network is NamespaceMode.NODE:
                raise InvalidArgument(
                    f"sysctl {key} cannot be set in a pod on the host network",
                    hint="it would change the node; set it there, or give the pod its own network",
                )
        elif key.startswith(_IPC_PREFIXES) or key in _IPC_NAMES:
            if namespaces.ipc is NamespaceMode.NODE:
                raise InvalidArgument(
                    f"sysctl {key} cannot be set in a pod with host ipc",
                    hint="it would change the node; set it there, or give the pod its own ipc",
                )
        else:
            raise InvalidArgument(
                f"sysctl {key} is not namespaced",
                hint="a pod may set net.*, kernel.shm*, kernel.msg*, kernel.sem and fs.mqueue.*",
            )


def pod_sysctls(config: PodConfig) -> dict[str, str]:
    """All sysctls for the pod's namespaces: the defaults, and over them the request's.

    Raises:
        InvalidArgument: see `check_sysctls`.
    """
    check_sysctls(config)
    own_network = config.security.namespaces.network is not NamespaceMode.NODE
    return {**(DEFAULT_SYSCTLS if own_network else {}), **config.sysctls}


def sysctl_path(key: str) -> str:
    """Where a checked key lies below /proc/sys: dots and slashes change places."""
    return key.translate(str.maketrans("./", "/."))
