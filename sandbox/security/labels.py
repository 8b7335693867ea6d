"""AppArmor profile and SELinux labels: what was asked for against what the host has.

AppArmor. `RuntimeDefault` on a kernel without AppArmor means no profile (every runtime of the field
does so, and the kubelet counts on it); a named profile there is an error, because whoever names one
relies on it. On a kernel with AppArmor a profile that is not loaded is an error too.

SELinux. Kubernetes passes seLinuxOptions on every node, also where there is no SELinux (well-known
charts set `spc_t` everywhere), so on such a host they are checked for form and then have no effect.
A pod has one level for all its containers, so that they share files and no other pod does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from sandbox.host.errors import FailedPrecondition, InvalidArgument, Unsupported
from sandbox.model import ProfileType, SecurityProfile, SELinuxOptions

_PROFILE_NAME: Final = re.compile(r"[A-Za-z0-9_/.:@+*{},\[\]&=~^-]{1,255}", re.ASCII)
_LABEL_PART: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}", re.ASCII)
# mls_level: s0, s0-s1, s0:c1,c2, s0-s15:c0.c1023 (SELinux notebook, "MLS range").
_LEVEL: Final = re.compile(
    r"s[0-9]{1,2}(-s[0-9]{1,2})?(:c[0-9]{1,4}([.,]c[0-9]{1,4})*)?"
    r"(-s[0-9]{1,2}:c[0-9]{1,4}([.,]c[0-9]{1,4})*)?",
    re.ASCII,
)
#: Of processes that a policy for containers does not hold ("super privileged container").
UNCONFINED_TYPE: Final = "spc_t"


@dataclass(frozen=True, slots=True)
class AppArmorHost:
    """AppArmor on this host.

    Attributes:
        loaded: names of /sys/kernel/security/apparmor/profiles, None where that cannot be read.
        default_profile: name of the runtime's own profile once it is loaded, else empty.
        trouble: why the own profile is not loaded.
    """

    loaded: frozenset[str] | None = None
    default_profile: str = ""
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class SELinuxHost:
    """SELinux on this host: the default labels as user:role:type:level.

    Attributes:
        process_label: for processes, such as system_u:system_r:container_t:s0.
        mount_label: for the root file system, such as system_u:object_r:container_file_t:s0.
        shared_label: for files that every pod may read and run, none may write.
        unconfined_label: for processes that are not held, such as system_u:system_r:spc_t:s0;
            empty where the policy has no such type. They then have the daemon's own label, or
            what the policy makes of that when the container's program is executed.
        trouble: why there are none (all are then empty).
        host_network: pods on the host's network have labels too.
    """

    process_label: str
    mount_label: str
    shared_label: str = ""
    unconfined_label: str = ""
    trouble: str = ""
    host_network: bool = True


def apparmor_profile(
    requested: SecurityProfile | None, *, host: AppArmorHost | None, privileged: bool
) -> str:
    """The profile name for the OCI process, empty for none.

    Args:
        requested: None is the runtime's default.
        host: None where the kernel has no AppArmor.
        privileged: no default profile then; a profile asked for by name still holds.

    Raises:
        InvalidArgument: a Localhost profile without a usable name.
        Unsupported: a Localhost profile on a host without AppArmor.
        FailedPrecondition: the profile is not loaded.
    """
    kind = ProfileType.RUNTIME_DEFAULT if requested is None else requested.profile_type
    if kind is ProfileType.UNCONFINED:
        # With AppArmor the word itself: an empty name would keep the daemon's own profile.
        return "" if host is None else "unconfined"
    if kind is ProfileType.LOCALHOST:
        name = "" if requested is None else requested.localhost_ref.removeprefix("localhost/")
        if not _PROFILE_NAME.fullmatch(name) or name == "unconfined":
            raise InvalidArgument(
                f"the localhost apparmor profile has no usable name: {name[:64]!a}"
            )
        if host is None:
            raise Unsupported(
                f"apparmor profile {name} was asked for, but this host has no apparmor",
                hint="use a node with AppArmor (and runtime.apparmor not off),"
                " or drop the profile from the pod",
            )
        if host.loaded is not None and name not in host.loaded:
            raise FailedPrecondition(
                f"apparmor profile {name} is not loaded on this host",
                hint="load it with apparmor_parser, then create the container again",
            )
        return name
    if host is None or privileged:
        return ""
    if not host.default_profile and requested is not None:
        raise FailedPrecondition(
            "the runtime's default apparmor profile is not loaded on this host"
            + (f": {host.trouble}" if host.trouble else ""),
            hint="see podwright check, and the daemon's log",
        )
    return host.default_profile


def check_selinux(requested: SELinuxOptions | None) -> None:
    """Check the form of what was asked for; raises InvalidArgument naming the part."""
    if requested is None:
        return
    for what, part in (
        ("user", requested.user),
        ("role", requested.role),
        ("type", requested.type),
    ):
        if part and not _LABEL_PART.fullmatch(part):
            raise InvalidArgument(f"selinux {what} is not usable: {part[:64]!a}")
    if requested.level and not _LEVEL.fullmatch(requested.level):
        raise InvalidArgument(f"selinux level is not usable: {requested.level[:64]!a}")


def selinux_labels(
    requested: SELinuxOptions | None,
    *,
    host: SELinuxHost | None,
    privileged: bool,
    level: str = "",
    host_network: bool = False,
    host_processes: bool = False,
) -> tuple[str, str]:
    """The process label and the mount label, both empty where there are none.

    Parts that were asked for replace those of the host's default. What is privileged, or sees the
    node's processes or its IPC objects, is unconfined unless a type was asked for: to separate it
    would take from it what it was given (CRI-O does the same). Its files are labelled as those of
    the rest of the pod, with which it shares volumes; without a label they would have that of the
    image's layers, which is none at all.

    Args:
        requested: the container's options, or its pod's.
        host: None where there is no SELinux.
        privileged: of the container.
        level: the pod's. Empty for a pod made while there was no SELinux: nothing of it is
            labelled, and a container with labels could not share its files.
        host_network: the pod uses the host's network.
        host_processes: it uses the host's pid or ipc namespace.

    Raises:
        InvalidArgument: a part with characters that no label has.
        FailedPrecondition: labels were asked for, and the host's policy names none to begin with.
    """
    check_selinux(requested)
    if host is None:
        return "", ""
    asked = requested is not None and requested != SELinuxOptions()
    if not asked and (not level or host.trouble):
        return "", ""
    if host.trouble:
        raise FailedPrecondition(
            f"selinux labels were asked for, but the node's policy has none: {host.trouble}",
            hint="install container-selinux, or set runtime.selinux to off",
        )
    options = requested or SELinuxOptions()
    free = privileged or host_processes
    free = free or (host_network and not host.host_network and not asked)
    begin = host.unconfined_label if free and not options.type else host.process_label
    level = options.level or level
    process = ""
    if begin:
        process = _overridden(begin, (options.user, options.role, options.type, level))
    # Files keep the default's role and type; user and level must agree with the process.
    mount = _overridden(host.mount_label, (options.user, "", "", level))
    return process, mount


def with_type(label: str, type_: str) -> str:
    """The label with another type."""
    return _overridden(label, ("", "", type_, ""))


def _overridden(label: str, parts: tuple[str, str, str, str]) -> str:
    defaults = label.split(":", 3)
    defaults += [""] * (4 - len(defaults))
    return ":".join(part or default for part, default in zip(parts, defaults, strict=True))
