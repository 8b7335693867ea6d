"""Which sysctls belong to which namespace, and where they are written (pure).

A pod's sysctls are written by a thread that is inside the pod's namespaces. A key that belongs to
no namespace made for the pod would change the host, so it is refused before anything is written
(CVE-2022-0811, CVE-2022-0532 of other runtimes).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal

from sandbox.host.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["net", "ipc", "uts"]

#: ipc_namespaces(7): what /proc/sys/kernel shows for the reader's IPC namespace.
_IPC_KEYS: Final = frozenset(
    f"kernel/{name}"
    for name in (
        "msgmax",
        "msgmnb",
        "msgmni",
        "msg_next_id",
        "sem",
        "sem_next_id",
        "shm_next_id",
        "shm_rmid_forced",
        "shmall",
        "shmmax",
        "shmmni",
    )
)
#: uts_namespaces(7). The host name has a parameter of its own where namespaces are made.
_UTS_KEYS: Final = frozenset({"kernel/domainname"})
#: Interface names may hold more, but nothing a configuration needs; "..", blanks, "+", "=" and
#: control characters are what attacks are made of.
_KEY: Final = re.compile(r"[A-Za-z0-9_@:-][A-Za-z0-9_.@:-]*(/[A-Za-z0-9_@:-][A-Za-z0-9_.@:-]*)+")
_KEY_LIMIT: Final = 255
#: A write(2) to /proc/sys takes at most a page.
_VALUE_LIMIT: Final = 4095
_SWAP: Final = str.maketrans("./", "/.")


def sysctl_path(key: str) -> str:
    """`key` as a path below /proc/sys.

    As in sysctl(8) the first separator decides: "net.ipv4.conf.eth0/1.forwarding" and
    "net/ipv4/conf/eth0.1/forwarding" are the same.

    Raises:
        InvalidArgument: not a key.
    """
    dot, slash = key.find("."), key.find("/")
    dotted = dot >= 0 and (slash < 0 or dot < slash)
    path = key.translate(_SWAP) if dotted else key
    if len(path) > _KEY_LIMIT or not _KEY.fullmatch(path) or ".." in path.split("/"):
        raise InvalidArgument(f"sysctl {key[:80]!r} is not a valid key")
    return path


def sysctl_kind(path: str) -> Kind | None:
    """The namespace that `path` (of `sysctl_path`) belongs to, None for the whole machine."""
    if path.startswith("net/"):
        return "net"
    if path in _IPC_KEYS or path.startswith("fs/mqueue/"):
        return "ipc"
    if path in _UTS_KEYS:
        return "uts"
    return None


def plan_sysctls(sysctls: Mapping[str, str], kinds: frozenset[Kind]) -> list[tuple[str, str, str]]:
    """(key, path below /proc/sys, value) of each, in the order given.

    Raises:
        InvalidArgument: a key is not one, or belongs to a namespace that is not in `kinds`.
    """
    return [(key, _allowed_path(key, kinds), _value(key, value)) for key, value in sysctls.items()]


def _allowed_path(key: str, kinds: frozenset[Kind]) -> str:
    path = sysctl_path(key)
    kind = sysctl_kind(path)
    if kind is None:
        raise InvalidArgument(
            f"sysctl {key} is not namespaced", hint="set it on the node, a pod cannot have its own"
        )
    if kind not in kinds:
        raise InvalidArgument(f"sysctl {key} needs a {kind} namespace of the pod's own")
    return path


def _value(key: str, value: str) -> str:
    if len(value.encode(errors="surrogatepass")) > _VALUE_LIMIT:
        raise InvalidArgument(f"sysctl {key} has a value longer than {_VALUE_LIMIT} bytes")
    if not value.isprintable() and not all(c.isprintable() or c == "\t" for c in value):
        raise InvalidArgument(f"sysctl {key} has a value with control characters")
    return value
