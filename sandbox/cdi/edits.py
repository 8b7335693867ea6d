"""From CDI's words to the document's: what is said, completed by what the node has. Blocking."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from sandbox import oci
from sandbox.host.errors import FailedPrecondition, Unsupported
from sandbox.spec.inputs import DeviceNode, Edits
from sandbox.spec.paths import clean_path

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sandbox.cdi import document as cdi
    from sandbox.cdi.library import Part
    from sandbox.users import ResolvedUser

#: Where resctrl is mounted (Documentation/arch/x86/resctrl.rst).
RESCTRL: Final = Path("/sys/fs/resctrl")
#: Moving network interfaces and resctrl's schemata came with this runtime-spec.
NEWER: Final = (1, 3)
_KINDS: Final[dict[int, Literal["c", "b", "p"]]] = {
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
    stat.S_IFIFO: "p",
}


def container_edits(
    parts: Iterable[Part],
    *,
    user: ResolvedUser,
    runtime_spec: tuple[int, int],
    resctrl: Path = RESCTRL,
) -> Edits:
    """All parts as one, later ones winning.

    Args:
        parts: in their order.
        user: whom the container runs as; owns the nodes whose owner is not said, as with the
            reference implementation, so that a container need not run as root for its device.
        runtime_spec: what the OCI runtime knows.
        resctrl: where resctrl is mounted, if it is.

    Raises:
        FailedPrecondition: a node or a mount's source is not on this machine.
        Unsupported: something that this machine or runtime cannot give.
    """
    env: list[str] = []
    devices: list[DeviceNode] = []
    mounts: list[oci.Mount] = []
    hooks: dict[str, list[oci.Hook]] = {}
    gids: dict[int, None] = {}
    moved: dict[str, str] = {}
    rdt: oci.IntelRdt | None = None
    for part in parts:
        edits = part.edits
        env += edits.env
        devices += [_node(node, part.origin, user) for node in edits.device_nodes]
        mounts += [_mount(mount, part.origin) for mount in edits.mounts]
        for hook in edits.hooks:
            hooks.setdefault(hook.hook_name, []).append(_hook(hook))
        gids |= dict.fromkeys(gid for gid in edits.additional_gids if gid)
        for device in edits.net_devices:
            _need(NEWER, runtime_spec, "moves a network interface", part.origin)
            moved[device.host_interface_name] = device.name
        if edits.intel_rdt is not None:
            rdt = _rdt(edits.intel_rdt, part.origin, runtime_spec, resctrl)
    return Edits(
        env=tuple(env),
        devices=tuple(devices),
        mounts=tuple(mounts),
        hooks=hooks,
        additional_gids=tuple(gids),
        intel_rdt=rdt,
        net_devices=moved,
    )


def _node(node: cdi.DeviceNode, origin: str, user: ResolvedUser) -> DeviceNode:
    kind: Literal["c", "b", "p"] | None = None
    match node.type:
        case "b" | "p":
            kind = node.type
        case "c" | "u":  # u is an unbuffered character device, the same as c on Linux
            kind = "c"
    said = kind == "p" or (kind is not None and node.major > 0)
    source = Path(os.path.realpath(node.host_path or node.path))
    mode, major, minor = node.file_mode, node.major, node.minor
    try:
        status = source.stat()
    except OSError as error:
        if not said:
            raise FailedPrecondition(
                f"{origin} needs the device node {source}, which is not on this node",
                hint="is its driver loaded?",
            ) from error
    else:
        there = _KINDS.get(stat.S_IFMT(status.st_mode))
        if mode is None and there is not None:
            mode = stat.S_IMODE(status.st_mode)
        if not said:
            if there is None or kind not in (None, there):
                raise FailedPrecondition(
                    f"{origin} needs the device node {source}, which is another kind of file"
                )
            kind, major, minor = there, os.major(status.st_rdev), os.minor(status.st_rdev)
    assert kind is not None, "said or looked up"
    return DeviceNode(
        container_path=node.path,
        kind=kind,
        major=-1 if kind == "p" else major,
        minor=-1 if kind == "p" else minor,
        mode=0o666 if mode is None else mode,
        uid=user.uid if node.uid is None else node.uid,
        gid=user.gid if node.gid is None else node.gid,
        permissions=node.permissions or "rwm",
    )


def _mount(mount: cdi.Mount, origin: str) -> oci.Mount:
    kind, options = mount.type or "bind", mount.options
    destination = clean_path(mount.container_path, f"{origin}: a mount")
    if kind != "bind":
        return oci.Mount(
            destination=destination, type=kind, source=mount.host_path, options=options
        )
    if not Path(mount.host_path).exists():
        raise FailedPrecondition(
            f"{origin} mounts {mount.host_path}, which is not on this node",
            hint="install what the device needs, or have its CDI file made anew",
        )
    if not {"bind", "rbind"}.intersection(options):
        options = ("rbind", *options)
    return oci.Mount(destination=destination, type="bind", source=mount.host_path, options=options)


def _hook(hook: cdi.Hook) -> oci.Hook:
    return oci.Hook(path=hook.path, args=hook.args, env=hook.env, timeout=hook.timeout)


def _rdt(
    rdt: cdi.IntelRdt, origin: str, runtime_spec: tuple[int, int], resctrl: Path
) -> oci.IntelRdt:
    if not (resctrl / "schemata").exists():
        raise Unsupported(
            f"{origin} asks for cache or memory bandwidth, and resctrl is not mounted",
            hint=f"mount -t resctrl resctrl {resctrl}, on a processor that has it",
        )
    monitors = rdt.enable_monitoring or rdt.enable_cmt or rdt.enable_mbm
    if rdt.schemata or monitors:
        _need(NEWER, runtime_spec, "uses schemata or monitoring of resctrl", origin)
    return oci.IntelRdt(
        clos_id=rdt.clos_id,
        l3_cache_schema=rdt.l3_cache_schema,
        mem_bw_schema=rdt.mem_bw_schema,
        schemata=rdt.schemata,
        enable_monitoring=monitors,
    )


def _need(wanted: tuple[int, int], have: tuple[int, int], what: str, origin: str) -> None:
    if have < wanted:
        raise Unsupported(
            f"{origin} {what}, which the OCI runtime cannot do: it knows runtime-spec "
            f"{have[0]}.{have[1]}, {wanted[0]}.{wanted[1]} is needed",
            hint="use a newer OCI runtime for this pod",
        )
