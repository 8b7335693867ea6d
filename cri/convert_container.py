"""protobuf ↔ container values: requests checked on the way in, statuses on the way out."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Final

from cri import convert_shared as shared
from cri import validate
from cri.signals import parse_signal, signal_name
from protos import api_pb2 as pb
from sandbox.model import (
    Capabilities,
    Container,
    ContainerConfig,
    ContainerSecurity,
    CriDevice,
    CriMount,
    MountPropagation,
    SupplementalGroupsPolicy,
)
from sandbox.states import ContainerState

if TYPE_CHECKING:
    from collections.abc import Sequence

#: mount(8) words a client may add to a bind mount (CRI 0.37). They are about what may be done with
#: the files; read-only and propagation have fields of their own and must not be contradicted here.
MOUNT_OPTIONS: Final = frozenset(
    {
        "noexec", "exec", "nodev", "dev", "nosuid", "suid",
        "noatime", "atime", "nodiratime", "diratime", "relatime", "strictatime",
    }
)  # fmt: skip
_CAPABILITY_NAME_LIMIT: Final = 64
_SIGNAL_PREFIX: Final = "SIGNAL_"

_STATES: Final = {
    ContainerState.CREATED: pb.CONTAINER_CREATED,
    ContainerState.CREATING: pb.CONTAINER_CREATED,
    ContainerState.RUNNING: pb.CONTAINER_RUNNING,
    ContainerState.EXITED: pb.CONTAINER_EXITED,
    ContainerState.REMOVING: pb.CONTAINER_EXITED,
    ContainerState.UNKNOWN: pb.CONTAINER_UNKNOWN,
}
_PROPAGATIONS: Final = {
    MountPropagation.PRIVATE: pb.PROPAGATION_PRIVATE,
    MountPropagation.HOST_TO_CONTAINER: pb.PROPAGATION_HOST_TO_CONTAINER,
    MountPropagation.BIDIRECTIONAL: pb.PROPAGATION_BIDIRECTIONAL,
}


def container_config(message: pb.ContainerConfig, field: str = "config") -> ContainerConfig:
    """A ContainerConfig as a value.

    Raises:
        InvalidArgument: a required part is missing or a part is not allowed; the field is named.
    """
    if not message.HasField("metadata"):
        validate.refuse(f"{field}.metadata", "is missing")
    if not message.HasField("image"):
        validate.refuse(f"{field}.image", "is missing")
    command = validate.arguments(message.command, f"{field}.command")
    args = validate.arguments(message.args, f"{field}.args")
    envs = _envs(message.envs, f"{field}.envs")
    _bounded_in_all(command, args, envs, field)
    log_path = message.log_path
    if log_path:
        validate.relative_path(log_path, f"{field}.log_path")
    linux = message.linux
    devices = message.CDI_devices
    validate.count(devices, f"{field}.CDI_devices")
    return ContainerConfig(
        name=validate.name(message.metadata.name, f"{field}.metadata.name"),
        attempt=message.metadata.attempt,
        image=shared.image_spec(message.image, f"{field}.image"),
        command=command,
        args=args,
        working_dir=validate.working_dir(message.working_dir, f"{field}.working_dir"),
        envs=envs,
        mounts=_mounts(message.mounts, f"{field}.mounts"),
        devices=_devices(message.devices, f"{field}.devices"),
        labels=validate.string_map(message.labels, f"{field}.labels"),
        annotations=validate.string_map(message.annotations, f"{field}.annotations"),
        log_path=log_path,
        stdin=message.stdin,
        stdin_once=message.stdin_once,
        tty=message.tty,
        resources=shared.resources(linux.resources, f"{field}.linux.resources")
        if linux.HasField("resources")
        else None,
        security=_security(linux.security_context, f"{field}.linux.security_context"),
        cdi_devices=tuple(
            validate.required(device.name, f"{field}.CDI_devices[{i}].name")
            for i, device in enumerate(devices)
        ),
        stop_signal=_stop_signal(message.stop_signal, f"{field}.stop_signal"),
    )


def _bounded_in_all(
    command: tuple[str, ...],
    args: tuple[str, ...],
    envs: tuple[tuple[str, str], ...],
    field: str,
) -> None:
    words = sum(len(word.encode()) + 1 for word in (*command, *args))
    total_bytes = words + sum(len(key.encode()) + len(value.encode()) + 2 for key, value in envs)
    if total_bytes > validate.ARGUMENTS_TOTAL_LIMIT_BYTES:
        validate.refuse(
            field,
            f"command, args and envs have {total_bytes} bytes in all,"
            f" the kernel takes at most {validate.ARGUMENTS_TOTAL_LIMIT_BYTES}",
        )


def _envs(messages: Sequence[pb.KeyValue], field: str) -> tuple[tuple[str, str], ...]:
    validate.count(messages, field)
    return tuple(
        validate.variable(message.key, message.value, f"{field}[{i}]")
        for i, message in enumerate(messages)
    )


def _mounts(messages: Sequence[pb.Mount], field: str) -> tuple[CriMount, ...]:
    validate.count(messages, field)
    return tuple(_mount(message, f"{field}[{i}]") for i, message in enumerate(messages))


def _mount(message: pb.Mount, field: str) -> CriMount:
    """One mount: where to, from a path of the node or from an image, and how."""
    validate.absolute_path(message.container_path, f"{field}.container_path")
    if posixpath.normpath(message.container_path).strip("/") == "":
        validate.refuse(f"{field}.container_path", "must not be the root directory")
    has_image = message.HasField("image") and bool(message.image.image)
    if has_image == bool(message.host_path):
        validate.refuse(field, "needs host_path or image, and not both")
    if message.host_path:
        validate.absolute_path(message.host_path, f"{field}.host_path")
    if message.image_sub_path:
        validate.relative_path(message.image_sub_path, f"{field}.image_sub_path")
        if not has_image:
            validate.refuse(f"{field}.image_sub_path", "needs image")
    propagation = validate.enum(MountPropagation, message.propagation, f"{field}.propagation")
    if message.recursive_read_only:
        # The kubelet promises both (KEP-3857); without them "recursively read-only" would be a lie.
        if not message.readonly:
            validate.refuse(f"{field}.recursive_read_only", "needs readonly (RROUnsupported)")
        if propagation is not MountPropagation.PRIVATE:
            validate.refuse(
                f"{field}.recursive_read_only",
                "needs propagation PROPAGATION_PRIVATE (RROUnsupported)",
            )
    validate.count(message.mount_options, f"{field}.mount_options", len(MOUNT_OPTIONS))
    for option in message.mount_options:
        if option not in MOUNT_OPTIONS:
            allowed = ", ".join(sorted(MOUNT_OPTIONS))
            validate.refuse(f"{field}.mount_options", f"{option[:64]!r} is not one of {allowed}")
    return CriMount(
        container_path=message.container_path,
        host_path=message.host_path,
        readonly=message.readonly,
        selinux_relabel=message.selinux_relabel,
        propagation=propagation,
        uid_mappings=shared.id_mappings(message.uidMappings, f"{field}.uidMappings"),
        gid_mappings=shared.id_mappings(message.gidMappings, f"{field}.gidMappings"),
        recursive_read_only=message.recursive_read_only,
        image=shared.image_spec(message.image, f"{field}.image") if has_image else None,
        image_sub_path=message.image_sub_path,
        mount_options=tuple(message.mount_options),
    )


def _devices(messages: Sequence[pb.Device], field: str) -> tuple[CriDevice, ...]:
    validate.count(messages, field)
    result = []
    for index, message in enumerate(messages):
        where = f"{field}[{index}]"
        permissions = message.permissions or "rwm"
        if not set(permissions) <= set("rwm") or len(permissions) > len("rwm"):
            validate.refuse(f"{where}.permissions", "may have the letters r, w and m only")
        result.append(
            CriDevice(
                container_path=validate.absolute_path(
                    message.container_path, f"{where}.container_path"
                ),
                host_path=validate.absolute_path(message.host_path, f"{where}.host_path"),
                permissions=permissions,
            )
        )
    return tuple(result)


def _security(message: pb.LinuxContainerSecurityContext, field: str) -> ContainerSecurity:
    user = group = None
    if message.HasField("run_as_user"):
        user = shared.user_id(message.run_as_user.value, f"{field}.run_as_user")
    username = validate.text(
        message.run_as_username, f"{field}.run_as_username", limit=validate.NAME_LIMIT
    )
    if username and user is not None:
        validate.refuse(f"{field}.run_as_username", "and run_as_user exclude each other")
    if message.HasField("run_as_group"):
        group = shared.user_id(message.run_as_group.value, f"{field}.run_as_group")
        if user is None and not username:
            validate.refuse(f"{field}.run_as_group", "needs run_as_user or run_as_username")
    return ContainerSecurity(
        capabilities=Capabilities(
            add=_names(message.capabilities.add_capabilities, f"{field}.add_capabilities"),
            drop=_names(message.capabilities.drop_capabilities, f"{field}.drop_capabilities"),
            add_ambient=_names(
                message.capabilities.add_ambient_capabilities, f"{field}.add_ambient_capabilities"
            ),
        ),
        privileged=message.privileged,
        namespaces=shared.namespaces(message.namespace_options, f"{field}.namespace_options"),
        selinux=shared.selinux(message.selinux_options, f"{field}.selinux_options")
        if message.HasField("selinux_options")
        else None,
        run_as_user=user,
        run_as_group=group,
        run_as_username=username,
        readonly_rootfs=message.readonly_rootfs,
        supplemental_groups=shared.group_ids(
            message.supplemental_groups, f"{field}.supplemental_groups"
        ),
        supplemental_groups_policy=validate.enum(
            SupplementalGroupsPolicy,
            message.supplemental_groups_policy,
            f"{field}.supplemental_groups_policy",
        ),
        no_new_privs=message.no_new_privs,
        masked_paths=_paths(message.masked_paths, f"{field}.masked_paths"),
        readonly_paths=_paths(message.readonly_paths, f"{field}.readonly_paths"),
        seccomp=shared.seccomp(
            message.seccomp if message.HasField("seccomp") else None,
            message.seccomp_profile_path,
            f"{field}.seccomp",
        ),
        apparmor=shared.apparmor(
            message.apparmor if message.HasField("apparmor") else None,
            message.apparmor_profile,
            f"{field}.apparmor",
        ),
    )


def _names(values: Sequence[str], field: str) -> tuple[str, ...]:
    validate.count(values, field)
    return tuple(validate.required(value, field, limit=_CAPABILITY_NAME_LIMIT) for value in values)


def _paths(values: Sequence[str], field: str) -> tuple[str, ...]:
    validate.count(values, field)
    return tuple(validate.absolute_path(value, f"{field}[{i}]") for i, value in enumerate(values))


def _stop_signal(number: int, field: str) -> str:
    """The signal's name as `cri.signals` reads it; empty for the image's or the default."""
    if number == pb.SIGNAL_RUNTIME_DEFAULT:
        return ""
    if number not in pb.Signal.values():
        validate.refuse(field, f"{number} is not a signal of CRI")
    word = pb.Signal.Name(pb.Signal.ValueType(number)).removeprefix(_SIGNAL_PREFIX)
    return word.replace("PLUS", "+").replace("MINUS", "-")


# To the wire.


def stop_signal_name(container: Container) -> str:
    """The enum name of the signal a stop sends first; an alias comes back as the client gave it."""
    name = container.config.stop_signal
    if not name or parse_signal(name) != container.stop_signal:
        name = signal_name(container.stop_signal) or "RUNTIME_DEFAULT"
    return _SIGNAL_PREFIX + name.replace("+", "PLUS").replace("-", "MINUS")


def container_state(container: Container) -> pb.ContainerState:
    """The state as clients know it."""
    return _STATES[container.state]


def mount_message(value: CriMount) -> pb.Mount:
    """The reverse of `_mount`."""
    return pb.Mount(
        container_path=value.container_path,
        host_path=value.host_path,
        readonly=value.readonly,
        selinux_relabel=value.selinux_relabel,
        propagation=_PROPAGATIONS[value.propagation],
        uidMappings=shared.id_mapping_messages(value.uid_mappings),
        gidMappings=shared.id_mapping_messages(value.gid_mappings),
        recursive_read_only=value.recursive_read_only,
        image=None if value.image is None else shared.image_spec_message(value.image),
        image_sub_path=value.image_sub_path,
        mount_options=value.mount_options,
    )


def _mount_messages(container: Container) -> list[pb.Mount]:
    """The mounts of a container as they came to be.

    For an image volume that is the image's id, with which the kubelet's collector finds out that
    the image is in use, and its digest, which ends in the pod's status.
    """
    messages = [mount_message(mount) for mount in container.config.mounts]
    for volume in container.image_volumes:
        message = messages[volume.mount]
        message.readonly = True
        image = message.image
        if image.image != volume.image_id:
            image.user_specified_image = image.user_specified_image or image.image
        image.image, image.image_ref = volume.image_id, volume.image_ref
    return messages


def container_item(container: Container) -> pb.Container:
    """The entry of a container in a list; the kubelet's image collector reads its image ids."""
    return pb.Container(
        id=container.id,
        pod_sandbox_id=container.pod_id,
        metadata=_metadata(container),
        image=shared.image_spec_message(container.config.image),
        image_ref=container.image_id,
        image_id=container.image_id,
        state=container_state(container),
        created_at=container.created_at_ns,
        labels=container.config.labels,
        annotations=container.config.annotations,
    )


def _metadata(container: Container) -> pb.ContainerMetadata:
    return pb.ContainerMetadata(name=container.config.name, attempt=container.config.attempt)


def container_status(container: Container) -> pb.ContainerStatus:
    """The status of a container; times are 0 until the state has them."""
    state = container_state(container)
    exited = state == pb.CONTAINER_EXITED
    image = shared.image_spec_message(container.config.image)
    image.image = container.image_name or container.config.image.image
    resources = container.resources or container.config.resources
    user = container.user
    return pb.ContainerStatus(
        id=container.id,
        metadata=_metadata(container),
        state=state,
        created_at=container.created_at_ns,
        started_at=container.started_at_ns if exited or state == pb.CONTAINER_RUNNING else 0,
        finished_at=container.finished_at_ns if exited else 0,
        exit_code=container.exit_code if exited else 0,
        image=image,
        image_ref=container.image_ref or container.image_id,
        image_id=container.image_id,
        reason=container.reason,
        message=container.message,
        labels=container.config.labels,
        annotations=container.config.annotations,
        mounts=_mount_messages(container),
        log_path=container.log_path,
        resources=None
        if resources is None
        else pb.ContainerResources(linux=shared.resources_message(resources)),
        user=None
        if user is None
        else pb.ContainerUser(
            linux=pb.LinuxContainerUser(
                uid=user.uid, gid=user.gid, supplemental_groups=user.supplemental_groups
            )
        ),
        stop_signal=stop_signal_name(container),
    )
