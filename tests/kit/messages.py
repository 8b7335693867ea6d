"""CRI requests as short calls: what a test does not mention has a sensible value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from protos import api_pb2 as api

BUSYBOX: Final = "registry.localhost/busybox:latest"
WEB_SERVER: Final = "registry.k8s.io/e2e-test-images/nginx:1.14-2"
PREDEFINED_GROUP: Final = "registry.k8s.io/k8s-staging-cri-tools/test-image-predefined-group:latest"


def namespaces(
    *,
    network: str = "POD",
    pid: str = "CONTAINER",
    ipc: str = "POD",
    target: str = "",
    user: api.UserNamespace | None = None,
) -> api.NamespaceOption:
    """Namespace modes by name; `target` is the container of pid mode TARGET."""
    return api.NamespaceOption(
        network=network,
        pid=pid,
        ipc=ipc,
        target_id=target,
        userns_options=user,
    )


def user_namespace(
    first: int, length: int = 65536, *, gids: int | None = None, inside: int = 0
) -> api.UserNamespace:
    """A user namespace of its own: ids from `inside` on are those from `first` on outside."""

    def line(host_id: int) -> api.IDMapping:
        return api.IDMapping(host_id=host_id, container_id=inside, length=length)

    return api.UserNamespace(
        mode=api.POD, uids=[line(first)], gids=[line(first if gids is None else gids)]
    )


def mapped_mount(
    container_path: str,
    host_path: str,
    user: api.UserNamespace,
    *,
    readonly: bool = False,
    propagation: api.MountPropagation = api.PROPAGATION_PRIVATE,
) -> api.Mount:
    """A mount as a kubelet sends it for a pod with a user namespace."""
    return api.Mount(
        container_path=container_path,
        host_path=host_path,
        readonly=readonly,
        propagation=propagation,
        uidMappings=user.uids,
        gidMappings=user.gids,
    )


def pod_config(
    name: str,
    *,
    cgroup_parent: str,
    attempt: int = 0,
    spaces: api.NamespaceOption | None = None,
    ports: Sequence[api.PortMapping] = (),
    sysctls: Mapping[str, str] | None = None,
    dns: api.DNSConfig | None = None,
    hostname: str = "",
    log_directory: str = "",
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    privileged: bool = False,
) -> api.PodSandboxConfig:
    """A pod sandbox's configuration."""
    return api.PodSandboxConfig(
        metadata=api.PodSandboxMetadata(
            name=name, uid=f"uid-{name}", namespace="integration", attempt=attempt
        ),
        hostname=hostname or ("" if spaces and spaces.network == api.NODE else name),
        log_directory=log_directory,
        dns_config=dns,
        port_mappings=ports,
        labels={"app": name, **(labels or {})},
        annotations={"note": f"  {name}\n", **(annotations or {})},
        linux=api.LinuxPodSandboxConfig(
            cgroup_parent=cgroup_parent,
            sysctls=sysctls or {},
            security_context=api.LinuxSandboxSecurityContext(
                namespace_options=spaces or namespaces(), privileged=privileged
            ),
        ),
    )


def container_config(
    name: str,
    command: Sequence[str],
    *,
    attempt: int = 0,
    image: str = BUSYBOX,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    mounts: Sequence[api.Mount] = (),
    spaces: api.NamespaceOption | None = None,
    resources: api.LinuxContainerResources | None = None,
    read_only: bool = False,
    privileged: bool = False,
    user: int | None = None,
    group: int | None = None,
    username: str = "",
    groups: Sequence[int] = (),
    strict_groups: bool = False,
    stop_signal: str = "",
    log: bool = True,
    tty: bool = False,
) -> api.ContainerConfig:
    """A container's configuration."""
    security = api.LinuxContainerSecurityContext(
        namespace_options=spaces or namespaces(),
        readonly_rootfs=read_only,
        privileged=privileged,
        run_as_user=None if user is None else api.Int64Value(value=user),
        run_as_group=None if group is None else api.Int64Value(value=group),
        run_as_username=username,
        supplemental_groups=groups,
        supplemental_groups_policy=api.Strict if strict_groups else api.Merge,
    )
    return api.ContainerConfig(
        metadata=api.ContainerMetadata(name=name, attempt=attempt),
        image=api.ImageSpec(image=image, user_specified_image=image),
        command=command,
        args=args,
        envs=[api.KeyValue(key=k, value=v.encode()) for k, v in (env or {}).items()],
        mounts=mounts,
        labels={"name": name},
        annotations={"note": name},
        log_path=f"{name}_{attempt}.log" if log else "",
        tty=tty,
        stop_signal=stop_signal or None,
        linux=api.LinuxContainerConfig(security_context=security, resources=resources),
    )
