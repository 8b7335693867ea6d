"""Capabilities: the algebra of add, drop and ALL, and the five sets of the OCI process.

Three rules on top of the algebra. Nobody gets a capability that the daemon does not hold: the OCI
runtime would fail half way through with EPERM (so fail privileged containers on a host without
CAP_SYS_RESOURCE). The inheritable set stays empty unless ambient capabilities were asked for: a
filled one lets any program with inheritable file capabilities raise its rights. And an unknown name
is an error, because a misspelt *drop* would otherwise leave the right in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sandbox import oci
from sandbox.host.errors import InvalidArgument, Unsupported
from sandbox.host.host_facts import CAPABILITIES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sandbox.model import Capabilities

#: What an unprivileged container starts with: the 14 that Docker and containerd give, so that an
#: image that runs there runs here. CRI-O gives nine of them (no MKNOD, NET_RAW, SETFCAP,
#: SYS_CHROOT, AUDIT_WRITE), which breaks ping and chroot in images that count on them.
DEFAULT_CAPABILITIES: Final[frozenset[str]] = frozenset(
    "CAP_" + name
    for name in (
        *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID"),
        *("SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"),
    )
)

_KNOWN: Final = frozenset(CAPABILITIES)


def normalise(name: str) -> str:
    """`name` as CAP_UPPER_CASE, or ALL.

    Raises:
        InvalidArgument: no such capability.
    """
    upper = name.upper()
    if upper == "ALL":
        return upper
    full = upper if upper.startswith("CAP_") else f"CAP_{upper}"
    # isascii: some foreign letters have an ASCII letter as their upper case.
    if not name.isascii() or full not in _KNOWN:
        raise InvalidArgument(
            f"unknown capability {name[:64]!a}", hint="see capabilities(7) for the names"
        )
    return full


def container_capabilities(
    requested: Capabilities, *, held: frozenset[str], privileged: bool
) -> oci.ProcessCapabilities:
    """The sets for a container.

    ALL goes first and single names after it, drops last: `add ALL, drop X` is all but X,
    `drop ALL, add X` is X alone, and a name both added and dropped is dropped.

    Args:
        requested: names as the client wrote them.
        held: what the daemon itself has (bounding and permitted).
        privileged: everything the daemon holds, whatever was requested.

    Raises:
        InvalidArgument: unknown name, or an ambient capability that was dropped.
        Unsupported: a capability added by name that the daemon does not hold.
    """
    if privileged:
        return _sets(held, frozenset())
    add = [normalise(name) for name in requested.add]
    drop = [normalise(name) for name in requested.drop]
    ambient = [normalise(name) for name in requested.add_ambient]

    chosen = set(DEFAULT_CAPABILITIES & held)
    if "ALL" in add:
        chosen = set(held)
    if "ALL" in drop:
        chosen = set()
    single = _without_all(add)
    _require_held([*single, *_without_all(ambient)], held)
    chosen |= single
    chosen |= set(held) if "ALL" in ambient else _without_all(ambient)
    chosen -= _without_all(drop)

    raised = chosen if "ALL" in ambient else _without_all(ambient)
    if lost := sorted(raised - chosen):
        raise InvalidArgument(f"capability {lost[0]} is both dropped and asked for as ambient")
    return _sets(frozenset(chosen), frozenset(raised))


def _without_all(names: Iterable[str]) -> set[str]:
    return {name for name in names if name != "ALL"}


def _require_held(names: Iterable[str], held: frozenset[str]) -> None:
    if missing := [name for name in names if name not in held]:
        raise Unsupported(
            f"capability {missing[0]} was asked for, but the daemon does not hold it",
            hint="start the daemon with this capability, or do not add it to the container",
        )


def _sets(chosen: frozenset[str], ambient: frozenset[str]) -> oci.ProcessCapabilities:
    def ordered(names: frozenset[str]) -> tuple[str, ...]:
        return tuple(name for name in CAPABILITIES if name in names)

    return oci.ProcessCapabilities(
        bounding=ordered(chosen),
        effective=ordered(chosen),
        permitted=ordered(chosen),
        # The kernel lets a capability be ambient only while it is inheritable (capabilities(7)).
        inheritable=ordered(ambient),
        ambient=ordered(ambient),
    )
