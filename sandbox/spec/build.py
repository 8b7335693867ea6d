"""The two documents: `pause_spec` and `container_spec`; all else in this folder serves them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox import oci
from sandbox.host.errors import InvalidArgument
from sandbox.model import NamespaceMode, SELinuxOptions
from sandbox.security.capabilities import container_capabilities
from sandbox.security.labels import apparmor_profile, selinux_labels
from sandbox.security.seccomp import resolve_seccomp
from sandbox.spec import linux, mounts, process, resources
from sandbox.spec.annotations import (
    container_annotations,
    sandbox_annotations,
    scope_annotations,
)
from sandbox.spec.edits import edited
from sandbox.spec.paths import clean_path, is_at_or_below
from sandbox.users import ResolvedUser, resolve_pod_user

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox.model import ContainerConfig, NamespaceOptions, PodConfig
    from sandbox.spec.inputs import ContainerInputs, HostFacts, PodInputs

#: The pause process: least CPU weight (it never runs), last to be chosen by the OOM killer of
#: what a pod has, since its end is the end of the pod. The same numbers as in containerd and
#: CRI-O.
PAUSE_CPU_SHARES = 2
PAUSE_OOM_SCORE_ADJ = -998


def pause_spec(inputs: PodInputs) -> oci.Spec:
    """The document of a pod's pause process.

    It has no capabilities, cannot gain any, and its root is read-only: a container that shares the
    pid namespace can look into it, so it must hold nothing that the container lacks.

    Raises:
        InvalidArgument, Unsupported, FailedPrecondition: see the functions used.
    """
    config, host = inputs.config, inputs.host
    security = config.security
    user = resolve_pod_user(security)
    process_label, mount_label = pod_labels(config, host, inputs.selinux_level)
    process.check_strings(inputs.argv, "an argument of the pause process")
    _, rules = linux.devices((), (), privileged=False)
    uids, gids = linux.user_mappings(security.namespaces)
    return oci.Spec(
        oci_version=oci.OCI_VERSION,
        process=oci.Process(
            user=_user(user),
            args=inputs.argv,
            env=(f"PATH={process.DEFAULT_PATH}",),
            cwd="/",
            capabilities=oci.ProcessCapabilities(),
            no_new_privileges=True,
            apparmor_profile=apparmor_profile(
                security.apparmor, host=host.apparmor, privileged=security.privileged
            ),
            oom_score_adj=max(PAUSE_OOM_SCORE_ADJ, host.oom_score_adj_floor),
            selinux_label=process_label,
        ),
        root=oci.Root(path=clean_path(str(inputs.rootfs), "the pause root"), readonly=True),
        hostname="" if linux.shares_host_uts(config) else inputs.hostname,
        mounts=(
            oci.Mount(
                destination="/proc",
                type="proc",
                source="proc",
                options=("nosuid", "noexec", "nodev"),
            ),
            # Even though pause needs no device: the runtime makes the standard nodes in any case,
            # and without this in the one root that all pods share.
            mounts.dev_mount(),
        ),
        annotations=sandbox_annotations(
            config, pod_id=inputs.id, patterns=inputs.annotation_patterns
        ),
        linux=oci.Linux(
            namespaces=linux.pause_namespaces(
                config, inputs.pins, cgroup_version=host.cgroup_version
            ),
            uid_mappings=uids,
            gid_mappings=gids,
            cgroups_path=inputs.cgroups_path,
            resources=oci.Resources(
                devices=rules,
                cpu=oci.Cpu(shares=PAUSE_CPU_SHARES) if "cpu" in host.controllers else None,
            ),
            seccomp=resolve_seccomp(
                security.seccomp,
                privileged=security.privileged,
                content=inputs.seccomp_content,
                bounding=(),
                host=host.seccomp,
            ),
            masked_paths=linux.PAUSE_MASKED_PATHS,
            readonly_paths=linux.PAUSE_READONLY_PATHS,
            mount_label=mount_label,
        ),
    )


def container_spec(inputs: ContainerInputs) -> oci.Spec:
    """The document of a container.

    Raises:
        InvalidArgument: among other things, a privileged container in a pod that is not.
        Unsupported, FailedPrecondition: see the functions used.
    """
    config, host = inputs.config, inputs.host
    security = config.security
    privileged = security.privileged
    if privileged and not inputs.pod.security.privileged:
        raise InvalidArgument(
            "a privileged container cannot run in a pod that is not privileged",
            hint="make the pod privileged as well",
        )
    capabilities = container_capabilities(
        security.capabilities, held=host.capabilities, privileged=privileged
    )
    process_label, mount_label = container_labels(config, inputs.pod, host, inputs.selinux_level)
    pod_namespaces = inputs.pod.security.namespaces
    uids, gids = linux.user_mappings(pod_namespaces)
    all_mounts, propagation = mounts.container_mounts(
        privileged=privileged,
        namespaces=pod_namespaces,
        readonly_rootfs=security.readonly_rootfs,
        files=inputs.files,
        volumes=_volumes(inputs),
        mounts=inputs.mounts,
        recursive_read_only=host.recursive_read_only,
    )
    given, rules = linux.devices(
        (*inputs.devices, *inputs.edits.devices), inputs.host_devices, privileged=privileged
    )
    nodes = tuple(node for node in given if isinstance(node, oci.Device))
    # After all others, as the runtimes make nodes when everything is mounted.
    bound = tuple(node for node in given if isinstance(node, oci.Mount))
    if any(mount.destination == "/dev" and mount.type == "bind" for mount in all_mounts):
        # The client's /dev is bound: making nodes there would make them on the host.
        nodes = tuple(node for node in nodes if not is_at_or_below(node.path, "/dev"))
        bound = tuple(node for node in bound if not is_at_or_below(node.destination, "/dev"))
    spec = oci.Spec(
        oci_version=oci.OCI_VERSION,
        process=oci.Process(
            terminal=config.tty,
            user=_user(inputs.user),
            args=process.arguments(config, inputs.image),
            env=process.environment(config, inputs.image, hostname=inputs.hostname),
            cwd=process.working_directory(config, inputs.image),
            capabilities=capabilities,
            rlimits=process.check_rlimits(inputs.rlimits),
            no_new_privileges=security.no_new_privs,
            apparmor_profile=apparmor_profile(
                security.apparmor, host=host.apparmor, privileged=privileged
            ),
            oom_score_adj=process.oom_score_adj(config.resources, floor=host.oom_score_adj_floor),
            selinux_label=process_label,
        ),
        root=oci.Root(
            path=clean_path(str(inputs.rootfs), "the root file system"),
            readonly=security.readonly_rootfs,
        ),
        mounts=(*all_mounts, *bound),
        annotations={
            **scope_annotations(inputs.cgroups_path, inputs.pids_limit),
            **container_annotations(
                config,
                pod=inputs.pod,
                pod_id=inputs.pod_id,
                image_name=inputs.image_name,
                patterns=inputs.annotation_patterns,
            ),
        },
        linux=oci.Linux(
            namespaces=linux.container_namespaces(
                inputs.pod,
                security.namespaces,
                inputs.pins,
                target_pid=inputs.target_pid,
                privileged=privileged,
                cgroup_version=host.cgroup_version,
            ),
            uid_mappings=uids,
            gid_mappings=gids,
            devices=nodes,
            cgroups_path=inputs.cgroups_path,
            resources=_resources(inputs, host, rules),
            seccomp=resolve_seccomp(
                security.seccomp,
                privileged=privileged,
                content=inputs.seccomp_content,
                bounding=capabilities.bounding,
                host=host.seccomp,
            ),
            rootfs_propagation=propagation,
            masked_paths=linux.masked_paths(security.masked_paths, privileged=privileged),
            readonly_paths=linux.guarded_paths(
                security.readonly_paths, "a read-only path", privileged=privileged
            ),
            mount_label=mount_label,
        ),
    )
    return edited(spec, inputs.edits)


def pod_labels(config: PodConfig, host: HostFacts, level: str) -> tuple[str, str]:
    """SELinux labels of a pod's pause process and of the pod's own files.

    Raises:
        InvalidArgument, FailedPrecondition: see `selinux_labels`.
    """
    return selinux_labels(
        config.security.selinux,
        host=host.selinux,
        privileged=config.security.privileged,
        level=level,
        host_network=config.security.namespaces.network is NamespaceMode.NODE,
        host_processes=_sees_node(config.security.namespaces),
    )


def container_labels(
    config: ContainerConfig, pod: PodConfig, host: HostFacts, level: str
) -> tuple[str, str]:
    """SELinux labels of a container and of its root; without options of its own, the pod's.

    Raises:
        InvalidArgument, FailedPrecondition: see `selinux_labels`.
    """
    asked = config.security.selinux
    if asked is None or asked == SELinuxOptions():
        asked = pod.security.selinux
    return selinux_labels(
        asked,
        host=host.selinux,
        privileged=config.security.privileged,
        level=level,
        host_network=pod.security.namespaces.network is NamespaceMode.NODE,
        host_processes=_sees_node(pod.security.namespaces)
        or config.security.namespaces.pid is NamespaceMode.NODE,
    )


def _sees_node(namespaces: NamespaceOptions) -> bool:
    return NamespaceMode.NODE in (namespaces.pid, namespaces.ipc)


def _user(user: ResolvedUser) -> oci.User:
    return oci.User(uid=user.uid, gid=user.gid, additional_gids=user.additional_gids)


def _resources(
    inputs: ContainerInputs, host: HostFacts, rules: tuple[oci.DeviceRule, ...]
) -> oci.Resources:
    limits = resources.to_oci(
        inputs.config.resources,
        cgroup_version=host.cgroup_version,
        controllers=host.controllers,
        swap_limit=host.swap_limit,
        pids_limit=inputs.pids_limit,
    )
    return oci.Resources(
        devices=rules,
        memory=limits.memory,
        cpu=limits.cpu,
        pids=limits.pids,
        hugepage_limits=limits.hugepage_limits,
        unified=limits.unified,
    )


def _volumes(inputs: ContainerInputs) -> dict[str, Path]:
    """The image's volumes with their directories.

    A directory that is missing is an error: without it the container would write what is meant to
    be a volume into its root.
    """
    wanted = mounts.image_volume_paths(inputs.image, inputs.config.mounts)
    missing = [path for path in wanted if path not in inputs.image_volumes]
    if missing:
        raise InvalidArgument(f"no directory was made for the image's volume {missing[0]}")
    return {path: inputs.image_volumes[path] for path in wanted}
