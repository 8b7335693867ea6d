"""The Linux part of a document: namespaces, devices, masked and read-only paths.

Namespaces. User, network, IPC and UTS are the *pod's* decision: every container of a pod joins the
pod's pins, or the host's where the pod is on the host. The pid namespace is the container's own
decision. A namespace is joined only by a pinned path, never through /proc/PID: that number can
belong to another process by the time the runtime opens it (CVE-2019-14891).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from sandbox import oci
from sandbox.host.errors import FailedPrecondition, InvalidArgument, Unsupported
from sandbox.mapping import own_user_namespace
from sandbox.model import NamespaceMode
from sandbox.spec.paths import clean_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from sandbox.model import IdMapping, NamespaceOptions, PodConfig
    from sandbox.spec.inputs import DeviceNode, HostFacts, PinKind

#: What the pause process must not see through its /proc, since a container of a shared pid
#: namespace can reach the pause's root by /proc/1/root: it has no more rights than they do.
PAUSE_MASKED_PATHS: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
)
#: Masked in every container that has masked paths at all, though older kubelets do not send them.
#: Power meters tell what other programs compute (CVE-2020-8694, GHSA-7ww5-4wqc-m92c).
ALWAYS_MASKED_PATHS: Final = ("/sys/devices/virtual/powercap",)
PAUSE_READONLY_PATHS: Final = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)

#: Linux Documentation/admin-guide/devices.txt: (major, minor, access). The nodes themselves are
#: made by the OCI runtime (config-linux.md, "Default Devices"); it also adds rules like these on
#: its own, but only these are then independent of which runtime it is. mknod of anything is
#: allowed because opening it is not.
_STANDARD_RULES: Final = (
    oci.DeviceRule(allow=True, type="c", access="m"),
    oci.DeviceRule(allow=True, type="b", access="m"),
    *(
        oci.DeviceRule(allow=True, type="c", major=major, minor=minor, access="rwm")
        for major, minor in (
            (1, 3),  # null
            (1, 5),  # zero
            (1, 7),  # full
            (1, 8),  # random
            (1, 9),  # urandom
            (5, 0),  # tty
            (5, 1),  # console
            (5, 2),  # ptmx
            (136, None),  # pts/*
        )
    ),
)

_JOINED: Final[tuple[tuple[oci.NamespaceType, PinKind], ...]] = (
    ("user", "user"),
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
)


def check_pod(config: PodConfig, host: HostFacts, runtime: str) -> None:
    """Refuse what the pod's namespaces cannot be on this node, before anything is made.

    Raises:
        InvalidArgument: no pod can have them.
        Unsupported: this node, or this runtime, has no user namespaces.
    """
    check_namespaces(config)
    reason = host.no_user_namespaces
    if reason and own_user_namespace(config.security.namespaces) is not None:
        raise Unsupported(
            f"pods of runtime {runtime} cannot have a user namespace: {reason}",
            hint="see podwright check; or set hostUsers to true, or leave it unset",
        )


def check_namespaces(config: PodConfig) -> None:
    """Refuse combinations of namespaces that CRI does not have, before anything is made.

    Raises:
        InvalidArgument: a mode that means nothing for a pod, or beside a user namespace.
    """
    options = config.security.namespaces
    for what, mode in (("network", options.network), ("ipc", options.ipc)):
        if mode not in (NamespaceMode.POD, NamespaceMode.NODE):
            raise InvalidArgument(f"{what} namespace mode {mode.name} means nothing for a pod")
    if options.pid is NamespaceMode.TARGET:
        raise InvalidArgument("pid namespace mode TARGET means nothing for a pod")
    if own_user_namespace(options) is None:
        return
    for what, mode in (("pid", options.pid), ("ipc", options.ipc)):
        # Root inside owns nothing of the node's; Kubernetes refuses both at its border as well.
        if mode is NamespaceMode.NODE:
            raise InvalidArgument(
                f"a pod with a user namespace cannot share the node's {what} namespace",
                hint="set hostUsers to true, or let the pod have its own",
            )


def check_same_user_namespace(pod: NamespaceOptions, own: NamespaceOptions) -> None:
    """A container is in its pod's user namespace; one that names none goes there too.

    Raises:
        InvalidArgument: it asks for another, or for another mapping.
    """
    if own.user is None:
        return
    if own_user_namespace(own) != own_user_namespace(pod):
        raise InvalidArgument(
            "the container's user namespace is not the pod's",
            hint="send the pod's userns_options with each of its containers",
        )


def user_mappings(
    options: NamespaceOptions,
) -> tuple[tuple[oci.IdMapping, ...], tuple[oci.IdMapping, ...]]:
    """Of users and of groups, for the document; empty in the node's user namespace.

    The namespace is joined by its pin and has them already; runtimes want them all the same, to
    know who root is outside.
    """
    user = own_user_namespace(options)
    if user is None:
        return (), ()
    return tuple(map(_mapping, user.uids)), tuple(map(_mapping, user.gids))


def _mapping(line: IdMapping) -> oci.IdMapping:
    return oci.IdMapping(container_id=line.container_id, host_id=line.host_id, size=line.length)


def pause_namespaces(
    config: PodConfig, pins: Mapping[PinKind, Path], *, cgroup_version: Literal[1, 2]
) -> tuple[oci.Namespace, ...]:
    """For the pause process: a pid namespace of its own unless the pod uses the host's.

    Raises:
        FailedPrecondition: a pin that the configuration asks for is missing.
    """
    check_namespaces(config)
    security = config.security
    namespaces = [oci.Namespace(type="mount"), *_joined(config, pins)]
    if security.namespaces.pid is not NamespaceMode.NODE:
        namespaces.append(oci.Namespace(type="pid"))
    if cgroup_version == 2 and not security.privileged:
        namespaces.append(oci.Namespace(type="cgroup"))
    return tuple(namespaces)


def container_namespaces(
    config: PodConfig,
    own: NamespaceOptions,
    pins: Mapping[PinKind, Path],
    *,
    target_pid: Path | None,
    privileged: bool,
    cgroup_version: Literal[1, 2],
) -> tuple[oci.Namespace, ...]:
    """For a container; see the module text for who decides what.

    Raises:
        FailedPrecondition: a pin that the configuration asks for is missing.
        InvalidArgument: pid mode TARGET without a target, pid mode NODE or another user namespace
            in a pod with a user namespace.
    """
    check_same_user_namespace(config.security.namespaces, own)
    namespaces = [oci.Namespace(type="mount"), *_joined(config, pins)]
    match own.pid:
        case NamespaceMode.CONTAINER:
            namespaces.append(oci.Namespace(type="pid"))
        case NamespaceMode.TARGET:
            if target_pid is None:
                raise InvalidArgument("pid namespace mode TARGET needs a running target container")
            namespaces.append(_at("pid", target_pid))
        case NamespaceMode.POD:
            # A pod whose pid namespace is the host's has none to share.
            if config.security.namespaces.pid is not NamespaceMode.NODE:
                namespaces.append(_pinned("pid", "pid", pins))
        case NamespaceMode.NODE:
            if own_user_namespace(config.security.namespaces) is not None:
                raise InvalidArgument(
                    "a container in a user namespace cannot share the node's pid namespace"
                )
    if cgroup_version == 2 and not privileged:
        namespaces.append(oci.Namespace(type="cgroup"))
    return tuple(namespaces)


def shares_host_uts(config: PodConfig) -> bool:
    """A pod on the host network has the host's name, too, as every runtime of the field does it."""
    return config.security.namespaces.network is NamespaceMode.NODE


def _joined(config: PodConfig, pins: Mapping[PinKind, Path]) -> list[oci.Namespace]:
    options = config.security.namespaces
    host: set[PinKind] = set()
    if own_user_namespace(options) is None:
        host.add("user")
    if options.network is NamespaceMode.NODE:
        host |= {"net", "uts"}
    if options.ipc is NamespaceMode.NODE:
        host.add("ipc")
    return [_pinned(kind, pin, pins) for kind, pin in _JOINED if pin not in host]


def _pinned(kind: oci.NamespaceType, pin: PinKind, pins: Mapping[PinKind, Path]) -> oci.Namespace:
    path = pins.get(pin)
    if path is None:
        raise FailedPrecondition(
            f"the pod has no pinned {pin} namespace", hint="stop the pod and let it be made again"
        )
    return _at(kind, path)


def _at(kind: oci.NamespaceType, path: Path) -> oci.Namespace:
    text = clean_path(str(path), f"the pin of a {kind} namespace")
    if text.startswith("/proc/"):
        raise InvalidArgument(f"a {kind} namespace is joined by its pin, not by {text}")
    return oci.Namespace(type=kind, path=text)


def devices(
    asked: Iterable[DeviceNode], host: Iterable[DeviceNode], *, privileged: bool
) -> tuple[tuple[oci.Device | oci.Mount, ...], tuple[oci.DeviceRule, ...]]:
    """Nodes to make or to bind, and rules of the device cgroup, everything denied first.

    A privileged container gets every device of the host and may use any; nodes that were asked for
    come over the host's at the same place.

    In a user namespace the runtimes cannot make nodes. They bind the host's node of the *same path*
    instead, which for a node that was asked for under another name is none, or the wrong one. So
    nodes that have a `place` are bound from there.

    Raises:
        InvalidArgument: a path, a number or permissions that are not usable.
    """
    nodes: dict[str, oci.Device | oci.Mount] = {}
    rules = [oci.DeviceRule(allow=False, type="a", access="rwm")]
    if privileged:
        rules.append(oci.DeviceRule(allow=True, type="a", access="rwm"))
        for node in host:
            device = _device(node)
            nodes[device.path] = device
    else:
        rules += _STANDARD_RULES
    for node in asked:
        device = _device(node)
        nodes[device.path] = device if node.place is None else _bound(device.path, node.place)
        if node.kind != "p" and not privileged:
            rules.append(
                oci.DeviceRule(
                    allow=True,
                    type=node.kind,
                    major=node.major,
                    minor=node.minor,
                    access=device_permissions(node.permissions),
                )
            )
    return tuple(nodes.values()), tuple(rules)


def device_permissions(text: str) -> str:
    """The letters in the order r, w, m.

    Raises:
        InvalidArgument: empty, repeated or other letters.
    """
    if not text or len(set(text)) != len(text) or not set(text) <= set("rwm"):
        raise InvalidArgument(
            f"device permissions are not a choice of r, w and m: {text[:16]!a}",
            hint="such as rwm or r",
        )
    return "".join(letter for letter in "rwm" if letter in text)


def _device(node: DeviceNode) -> oci.Device:
    path = clean_path(node.container_path, "the container path of a device")
    if node.kind not in ("c", "b", "p") or (node.kind != "p" and min(node.major, node.minor) < 0):
        raise InvalidArgument(f"not a device: {path}")
    return oci.Device(
        path=path,
        type=node.kind,
        major=node.major,
        minor=node.minor,
        file_mode=node.mode & 0o7777,
        uid=node.uid,
        gid=node.gid,
    )


def _bound(path: str, place: Path) -> oci.Mount:
    return oci.Mount(
        destination=path,
        type="bind",
        source=clean_path(str(place), "the place of a device"),
        # No further words: a remount inside a user namespace must repeat each of the source's.
        options=("bind", "rprivate"),
    )


def masked_paths(paths: Iterable[str], *, privileged: bool) -> tuple[str, ...]:
    """Masked paths: the client's, and what no list of them may forget; see `guarded_paths`.

    An empty list stays empty: it is how a client asks for an unmasked /proc, inside which a user
    namespace can mount its own; the kernel lets it only where nothing is covered.
    """
    masked = guarded_paths(paths, "a masked path", privileged=privileged)
    if not masked:
        return masked
    return (*masked, *(path for path in ALWAYS_MASKED_PATHS if path not in masked))


def guarded_paths(paths: Iterable[str], what: str, *, privileged: bool) -> tuple[str, ...]:
    """Masked or read-only paths: exactly the client's, none for a privileged container.

    Raises:
        InvalidArgument: a path that the runtime could not find, and would so leave open.
    """
    if privileged:
        return ()
    return tuple(clean_path(path, what) for path in paths)
