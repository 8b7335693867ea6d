"""One CDI specification file: read, checked, as a value. Pure; the bytes come from elsewhere.

Follows SPEC.md of CDI 0.3 to 1.1. Strict, since what is misread here is missing or wrong in a
container: an unknown field, a feature younger than the version that the file states, an empty
device, a name given twice are refused, as the reference implementation refuses them.

YAML comes as JSON does (`yaml_text`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from sandbox import oci
from sandbox.cdi.names import is_device, is_kind
from sandbox.host.errors import InvalidArgument
from sandbox.spec.linux import device_permissions
from sandbox.spec.paths import clean_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: A file for eight GPUs cut into slices has some hundred KiB; this is far more (bytes).
FILE_LIMIT_BYTES: Final = 2 * 1024 * 1024
SUFFIXES: Final = (".json", ".yaml")
#: SPEC.md, "Released versions"; what comes after is not known here.
VERSIONS: Final = ("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")
_TYPES: Final = frozenset({"", "b", "c", "u", "p"})
#: IFNAMSIZ of <linux/if.h>, less the zero.
_INTERFACE_LIMIT: Final = 15

Id = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 2)]
Number = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]


class Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Base of every part: camelCase in the file, nothing unknown."""


class DeviceNode(Part, frozen=True, kw_only=True):
    """A node in the container; what is not said comes from the node at `host_path`, else `path`."""

    path: str
    host_path: str = ""
    type: str = ""
    major: Number = 0
    minor: Number = 0
    file_mode: Number | None = None
    permissions: str = ""
    uid: Id | None = None
    gid: Id | None = None


class NetDevice(Part, frozen=True, kw_only=True):
    """An interface of the host and its name in the container."""

    host_interface_name: str
    name: str


class Hook(Part, frozen=True, kw_only=True):
    """An OCI hook and its stage."""

    hook_name: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: Number | None = None


class Mount(Part, frozen=True, kw_only=True):
    """A mount; a bind mount unless it says otherwise."""

    host_path: str
    container_path: str
    options: tuple[str, ...] = ()
    type: str = ""


class IntelRdt(Part, frozen=True, kw_only=True):
    """Cache and memory bandwidth; enableCMT and enableMBM are of the versions before 1.1."""

    clos_id: str = msgspec.field(name="closID", default="")
    l3_cache_schema: str = ""
    mem_bw_schema: str = ""
    schemata: tuple[str, ...] = ()
    enable_monitoring: bool = False
    enable_cmt: bool = msgspec.field(name="enableCMT", default=False)
    enable_mbm: bool = msgspec.field(name="enableMBM", default=False)


class ContainerEdits(Part, frozen=True, kw_only=True):
    """What changes in a container."""

    env: tuple[str, ...] = ()
    device_nodes: tuple[DeviceNode, ...] = ()
    net_devices: tuple[NetDevice, ...] = ()
    hooks: tuple[Hook, ...] = ()
    mounts: tuple[Mount, ...] = ()
    intel_rdt: IntelRdt | None = None
    additional_gids: tuple[Id, ...] = ()


NO_EDITS: Final = ContainerEdits()


class Device(Part, frozen=True, kw_only=True):
    """A device and what is changed for it alone."""

    name: str
    annotations: dict[str, str] = {}
    container_edits: ContainerEdits


class Specification(Part, frozen=True, kw_only=True):
    """A file: devices of one kind, and what is changed for any of them."""

    cdi_version: str
    kind: str
    annotations: dict[str, str] = {}
    devices: tuple[Device, ...]
    container_edits: ContainerEdits = NO_EDITS


def parse(data: bytes, path: Path) -> Specification:
    """The specification in a file, YAML when its name says so.

    Raises:
        InvalidArgument: saying what is wrong with it; the path is the caller's to name.
    """
    try:
        if path.suffix == ".yaml":
            from sandbox.cdi import yaml_text  # a MiB that a node with JSON files does not need

            document = msgspec.convert(yaml_text.read(data), Specification, strict=False)
        else:
            document = msgspec.json.decode(data, type=Specification)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
        raise InvalidArgument(f"not a CDI specification: {error}") from error
    check(document)
    return document


def check(document: Specification) -> None:
    """Refuse what the types cannot express.

    Raises:
        InvalidArgument: the first thing that is wrong.
    """
    version = document.cdi_version.removeprefix("v")
    if version not in VERSIONS:
        raise InvalidArgument(
            f"cdiVersion {document.cdi_version[:32]!a} is not known here"
            f" (known are {VERSIONS[0]} to {VERSIONS[-1]})"
        )
    if not is_kind(document.kind):
        raise InvalidArgument(f"kind is not VENDOR/CLASS: {document.kind[:128]!a}")
    for feature, since in _features(document):
        if VERSIONS.index(since) > VERSIONS.index(version):
            raise InvalidArgument(f"{feature} needs cdiVersion {since}, the file says {version}")
    _check_edits(document.container_edits, "the file's own edits")
    seen: set[str] = set()
    for device in document.devices:
        if not is_device(device.name):
            raise InvalidArgument(f"not a device name: {device.name[:128]!a}")
        if device.name in seen:
            raise InvalidArgument(f"device {device.name} is there twice")
        seen.add(device.name)
        if device.container_edits == NO_EDITS:
            raise InvalidArgument(f"device {device.name} changes nothing")
        _check_edits(device.container_edits, f"device {device.name}")


def _features(document: Specification) -> Iterator[tuple[str, str]]:
    """What the document uses, with the version that brought it (SPEC.md, "Changes")."""
    if "." in document.kind.partition("/")[2]:
        yield "a dot in the class", "0.6.0"
    if document.annotations or any(device.annotations for device in document.devices):
        yield "annotations", "0.6.0"
    if any(device.name[:1].isdigit() for device in document.devices):
        yield "a device name that begins with a digit", "0.5.0"
    for edits in (document.container_edits, *(d.container_edits for d in document.devices)):
        if any(mount.type for mount in edits.mounts):
            yield "type of a mount", "0.4.0"
        if any(node.host_path for node in edits.device_nodes):
            yield "hostPath of a device node", "0.5.0"
        if edits.additional_gids:
            yield "additionalGids", "0.7.0"
        if (rdt := edits.intel_rdt) is not None:
            yield "intelRdt", "0.7.0"
            if rdt.schemata or rdt.enable_monitoring:
                yield "schemata or enableMonitoring of intelRdt", "1.1.0"
        if edits.net_devices:
            yield "netDevices", "1.1.0"


def _check_edits(edits: ContainerEdits, of: str) -> None:
    for entry in edits.env:
        _check_variable(entry, of)
    for node in edits.device_nodes:
        clean_path(node.path, f"{of}: a device node")
        if node.host_path:
            clean_path(node.host_path, f"{of}: hostPath of a device node")
        if node.type not in _TYPES:
            raise InvalidArgument(f"{of}: type of {node.path} is not b, c, u or p: {node.type!a}")
        if node.permissions:
            device_permissions(node.permissions)
    for mount in edits.mounts:
        if not mount.type or mount.type == "bind":
            clean_path(mount.host_path, f"{of}: hostPath of a mount")
        if clean_path(mount.container_path, f"{of}: containerPath of a mount") == "/":
            raise InvalidArgument(f"{of}: a mount cannot replace the container's root")
    for hook in edits.hooks:
        if hook.hook_name not in oci.HOOK_STAGES:
            raise InvalidArgument(f"{of}: no such hook: {hook.hook_name[:32]!a}")
        clean_path(hook.path, f"{of}: program of a hook")
        if hook.timeout == 0:
            raise InvalidArgument(f"{of}: timeout of a hook must be above 0")
        for entry in hook.env:
            _check_variable(entry, of)
    for device in edits.net_devices:
        for name in (device.host_interface_name, device.name):
            if not 0 < len(name) <= _INTERFACE_LIMIT or "/" in name or name.split() != [name]:
                raise InvalidArgument(f"{of}: not a name of an interface: {name[:32]!a}")
    if edits.intel_rdt is not None:
        group = edits.intel_rdt.clos_id
        wrong = "/" in group or "\n" in group or group in (".", "..") or len(group) > 255
        if wrong and group != "/":
            raise InvalidArgument(f"{of}: closID is not a name of a directory: {group[:64]!a}")


def _check_variable(entry: str, of: str) -> None:
    name, equals, _ = entry.partition("=")
    if not name or not equals or "\0" in entry:
        raise InvalidArgument(f"{of}: not NAME=value: {entry[:64]!a}")
