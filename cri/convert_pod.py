"""protobuf ↔ pod values: requests checked on the way in, statuses and list items on the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri import convert_shared as shared
from cri import validate
from protos import api_pb2 as pb
from sandbox.model import (
    DnsConfig,
    LinuxResources,
    NamespaceMode,
    PodConfig,
    PodMetadata,
    PodSandbox,
    PodSecurity,
    PortMapping,
    Protocol,
    SupplementalGroupsPolicy,
)
from sandbox.states import PodState

if TYPE_CHECKING:
    from collections.abc import Sequence


def pod_config(message: pb.PodSandboxConfig, field: str = "config") -> PodConfig:
    """A PodSandboxConfig as a value.

    Raises:
        InvalidArgument: a required part is missing or a part is not allowed; the field is named.
    """
    if not message.HasField("metadata"):
        validate.refuse(f"{field}.metadata", "is missing")
    linux = message.linux
    security = _security(linux.security_context, f"{field}.linux.security_context")
    log_directory = message.log_directory
    if log_directory:
        validate.absolute_path(log_directory, f"{field}.log_directory")
    return PodConfig(
        metadata=metadata(message.metadata, f"{field}.metadata"),
        hostname=validate.hostname(message.hostname, f"{field}.hostname"),
        log_directory=log_directory,
        dns=_dns(message.dns_config, f"{field}.dns_config")
        if message.HasField("dns_config")
        else None,
        port_mappings=_ports(message.port_mappings, f"{field}.port_mappings"),
        labels=validate.string_map(message.labels, f"{field}.labels"),
        annotations=validate.string_map(message.annotations, f"{field}.annotations"),
        cgroup_parent=validate.cgroup_parent(linux.cgroup_parent, f"{field}.linux.cgroup_parent"),
        security=security,
        sysctls=validate.sysctls(linux.sysctls, f"{field}.linux.sysctls"),
        overhead=_resources(linux, "overhead", field),
        resources=_resources(linux, "resources", field),
    )


def metadata(message: pb.PodSandboxMetadata, field: str) -> PodMetadata:
    """Name, uid and namespace, all of which the kubelet's client insists on seeing again."""
    return PodMetadata(
        name=validate.name(message.name, f"{field}.name"),
        uid=validate.name(message.uid, f"{field}.uid"),
        namespace=validate.name(message.namespace, f"{field}.namespace"),
        attempt=message.attempt,
    )


def _resources(linux: pb.LinuxPodSandboxConfig, part: str, field: str) -> LinuxResources | None:
    if part == "overhead":
        present, message = linux.HasField("overhead"), linux.overhead
    else:
        present, message = linux.HasField("resources"), linux.resources
    return shared.resources(message, f"{field}.linux.{part}") if present else None


def _dns(message: pb.DNSConfig, field: str) -> DnsConfig:
    return DnsConfig(
        servers=validate.dns_servers(message.servers, f"{field}.servers"),
        searches=validate.dns_entries(message.searches, f"{field}.searches"),
        options=validate.dns_entries(message.options, f"{field}.options"),
    )


def _ports(messages: Sequence[pb.PortMapping], field: str) -> tuple[PortMapping, ...]:
    """Port mappings; host port 0 means none (CRI 0.37), any other may be taken once."""
    validate.count(messages, field)
    taken: set[tuple[Protocol, int, str]] = set()
    result = []
    for index, message in enumerate(messages):
        where = f"{field}[{index}]"
        host_port = validate.whole(message.host_port, f"{where}.host_port", 0, validate.PORT_LIMIT)
        lowest = 1 if host_port else 0
        port = PortMapping(
            protocol=validate.enum(Protocol, message.protocol, f"{where}.protocol"),
            container_port=validate.whole(
                message.container_port, f"{where}.container_port", lowest, validate.PORT_LIMIT
            ),
            host_port=host_port,
            host_ip=message.host_ip and validate.ip_address(message.host_ip, f"{where}.host_ip"),
        )
        key = (port.protocol, host_port, port.host_ip)
        if host_port and key in taken:
            validate.refuse(f"{where}.host_port", f"{host_port} is asked for twice")
        taken.add(key)
        result.append(port)
    return tuple(result)


def _security(message: pb.LinuxSandboxSecurityContext, field: str) -> PodSecurity:
    namespaces = shared.namespaces(message.namespace_options, f"{field}.namespace_options")
    if namespaces.pid is NamespaceMode.TARGET:
        validate.refuse(f"{field}.namespace_options.pid", "TARGET is for containers only")
    user = group = None
    if message.HasField("run_as_user"):
        user = shared.user_id(message.run_as_user.value, f"{field}.run_as_user")
    if message.HasField("run_as_group"):
        group = shared.user_id(message.run_as_group.value, f"{field}.run_as_group")
        if user is None:
            validate.refuse(f"{field}.run_as_group", "needs run_as_user")
    return PodSecurity(
        namespaces=namespaces,
        selinux=shared.selinux(message.selinux_options, f"{field}.selinux_options")
        if message.HasField("selinux_options")
        else None,
        run_as_user=user,
        run_as_group=group,
        readonly_rootfs=message.readonly_rootfs,
        supplemental_groups=shared.group_ids(
            message.supplemental_groups, f"{field}.supplemental_groups"
        ),
        supplemental_groups_policy=validate.enum(
            SupplementalGroupsPolicy,
            message.supplemental_groups_policy,
            f"{field}.supplemental_groups_policy",
        ),
        privileged=message.privileged,
        seccomp=shared.seccomp(
            message.seccomp if message.HasField("seccomp") else None,
            message.seccomp_profile_path,
            f"{field}.seccomp",
        ),
        apparmor=shared.apparmor(
            message.apparmor if message.HasField("apparmor") else None, "", f"{field}.apparmor"
        ),
    )


# To the wire.


def pod_state(pod: PodSandbox) -> pb.PodSandboxState:
    """READY as READY; whatever else is ours to finish is NOTREADY."""
    return pb.SANDBOX_READY if pod.state is PodState.READY else pb.SANDBOX_NOTREADY


def metadata_message(value: PodMetadata) -> pb.PodSandboxMetadata:
    """The reverse of `metadata`."""
    return pb.PodSandboxMetadata(
        name=value.name, uid=value.uid, namespace=value.namespace, attempt=value.attempt
    )


def pod_item(pod: PodSandbox) -> pb.PodSandbox:
    """The entry of a pod in a list."""
    return pb.PodSandbox(
        id=pod.id,
        metadata=metadata_message(pod.config.metadata),
        state=pod_state(pod),
        created_at=pod.created_at_ns,
        labels=pod.config.labels,
        annotations=pod.config.annotations,
        runtime_handler=pod.handler,
    )


def pod_status(pod: PodSandbox) -> pb.PodSandboxStatus:
    """The status of a pod; a pod in the node's network has no address of its own."""
    first, *others = pod.ips or ("",)
    return pb.PodSandboxStatus(
        id=pod.id,
        metadata=metadata_message(pod.config.metadata),
        state=pod_state(pod),
        created_at=pod.created_at_ns,
        network=pb.PodSandboxNetworkStatus(
            ip=first, additional_ips=[pb.PodIP(ip=ip) for ip in others]
        ),
        linux=pb.LinuxPodSandboxStatus(
            namespaces=pb.Namespace(
                options=shared.namespaces_message(pod.config.security.namespaces)
            )
        ),
        labels=pod.config.labels,
        annotations=pod.config.annotations,
        runtime_handler=pod.handler,
    )
