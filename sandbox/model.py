"""The vocabulary of pods and containers: frozen values; `sandbox.states` has their states.

`*Config` values are what the client asked for (one to one with CRI runtime.v1, units in the names);
`PodSandbox` and `Container` are what is known about an object, stored as one JSON document each.
A changed object is a new value (`msgspec.structs.replace`), so whoever holds an old one can tell by
identity (`is`) that something changed; list answers are cached on that.

"""

from __future__ import annotations

import enum

import msgspec

# At run time, because msgspec reads the annotations of the structs.
from sandbox.states import ContainerState, PodState  # noqa: TC001


class NamespaceMode(enum.IntEnum):
    """CRI NamespaceMode; the numbers are the wire's."""

    POD = 0
    CONTAINER = 1
    NODE = 2
    TARGET = 3


class MountPropagation(enum.IntEnum):
    """CRI MountPropagation; rprivate, rslave, rshared."""

    PRIVATE = 0
    HOST_TO_CONTAINER = 1
    BIDIRECTIONAL = 2


class SupplementalGroupsPolicy(enum.IntEnum):
    """Whether groups of the image's /etc/group are added (MERGE) or not (STRICT)."""

    MERGE = 0
    STRICT = 1


class ProfileType(enum.IntEnum):
    """CRI SecurityProfile.ProfileType."""

    RUNTIME_DEFAULT = 0
    UNCONFINED = 1
    LOCALHOST = 2


class Protocol(enum.IntEnum):
    """CRI port mapping protocol."""

    TCP = 0
    UDP = 1
    SCTP = 2


class Frozen(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of the values: immutable, keyword-only, stored without the fields left at default."""


class PodMetadata(Frozen, frozen=True):
    """Identity of a pod as the kubelet names it; (name, uid, namespace, attempt) is unique."""

    name: str
    uid: str
    namespace: str
    attempt: int = 0


class DnsConfig(Frozen, frozen=True):
    """What resolv.conf must say."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class PortMapping(Frozen, frozen=True):
    """One host port; `host_port` 0 means none (CRI 0.37)."""

    protocol: Protocol = Protocol.TCP
    container_port: int = 0
    host_port: int = 0
    host_ip: str = ""


class IdMapping(Frozen, frozen=True):
    """One line of a user namespace mapping; `length` ids."""

    host_id: int
    container_id: int
    length: int


class UserNamespace(Frozen, frozen=True):
    """User namespace asked for; mode NODE is the host's."""

    mode: NamespaceMode = NamespaceMode.NODE
    uids: tuple[IdMapping, ...] = ()
    gids: tuple[IdMapping, ...] = ()


class NamespaceOptions(Frozen, frozen=True):
    """Which namespaces are the pod's, the container's own, or the node's."""

    network: NamespaceMode = NamespaceMode.POD
    pid: NamespaceMode = NamespaceMode.POD
    ipc: NamespaceMode = NamespaceMode.POD
    target_id: str = ""
    user: UserNamespace | None = None


class SecurityProfile(Frozen, frozen=True):
    """Seccomp or AppArmor profile; `localhost_ref` is an absolute path or a profile name."""

    profile_type: ProfileType = ProfileType.RUNTIME_DEFAULT
    localhost_ref: str = ""


class SELinuxOptions(Frozen, frozen=True):
    """SELinux label parts; empty ones come from the policy."""

    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""


class HugepageLimit(Frozen, frozen=True):
    """`page_size` as in the cgroup file name, such as 2MB; limit in bytes."""

    page_size: str
    limit_bytes: int


class LinuxResources(Frozen, frozen=True):
    """CRI LinuxContainerResources; 0 or empty means not asked for.

    `cpu_period_usec` and `cpu_quota_usec` in microseconds, `cpu_shares` in cgroup v1 shares.
    """

    cpu_period_usec: int = 0
    cpu_quota_usec: int = 0
    cpu_shares: int = 0
    memory_limit_bytes: int = 0
    memory_swap_limit_bytes: int = 0
    oom_score_adj: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    hugepage_limits: tuple[HugepageLimit, ...] = ()
    unified: dict[str, str] = {}


class PodSecurity(Frozen, frozen=True):
    """LinuxSandboxSecurityContext."""

    namespaces: NamespaceOptions = NamespaceOptions()
    selinux: SELinuxOptions | None = None
    run_as_user: int | None = None
    run_as_group: int | None = None
    readonly_rootfs: bool = False
    supplemental_groups: tuple[int, ...] = ()
    supplemental_groups_policy: SupplementalGroupsPolicy = SupplementalGroupsPolicy.MERGE
    privileged: bool = False
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None


class PodConfig(Frozen, frozen=True):
    """PodSandboxConfig: what the client asked for, annotations and labels byte-identical."""

    metadata: PodMetadata
    hostname: str = ""
    log_directory: str = ""
    dns: DnsConfig | None = None
    port_mappings: tuple[PortMapping, ...] = ()
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    cgroup_parent: str = ""
    security: PodSecurity = PodSecurity()
    sysctls: dict[str, str] = {}
    overhead: LinuxResources | None = None
    resources: LinuxResources | None = None


class ImageSpec(Frozen, frozen=True):
    """CRI ImageSpec."""

    image: str = ""
    annotations: dict[str, str] = {}
    user_specified_image: str = ""
    runtime_handler: str = ""
    image_ref: str = ""


class CriMount(Frozen, frozen=True):
    """CRI Mount; exactly one of `host_path` and `image` is set."""

    container_path: str
    host_path: str = ""
    readonly: bool = False
    selinux_relabel: bool = False
    propagation: MountPropagation = MountPropagation.PRIVATE
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    recursive_read_only: bool = False
    image: ImageSpec | None = None
    image_sub_path: str = ""
    mount_options: tuple[str, ...] = ()


class ImageVolume(Frozen, frozen=True):
    """What an image mount came to when the container was made.

    `mount` is its place in `ContainerConfig.mounts`; the other two are as in `Container`.
    """

    mount: int
    image_id: str
    image_ref: str


class CriDevice(Frozen, frozen=True):
    """CRI Device; `permissions` is a choice of the letters r, w, m."""

    container_path: str
    host_path: str
    permissions: str = "rwm"


class Capabilities(Frozen, frozen=True):
    """Capability names as asked for (with or without CAP_, any case, ALL allowed)."""

    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    add_ambient: tuple[str, ...] = ()


class ContainerSecurity(Frozen, frozen=True):
    """LinuxContainerSecurityContext."""

    capabilities: Capabilities = Capabilities()
    privileged: bool = False
    namespaces: NamespaceOptions = NamespaceOptions()
    selinux: SELinuxOptions | None = None
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_username: str = ""
    readonly_rootfs: bool = False
    supplemental_groups: tuple[int, ...] = ()
    supplemental_groups_policy: SupplementalGroupsPolicy = SupplementalGroupsPolicy.MERGE
    no_new_privs: bool = False
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None


class ContainerConfig(Frozen, frozen=True):
    """ContainerConfig: what the client asked for."""

    name: str
    attempt: int = 0
    image: ImageSpec = ImageSpec()
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    envs: tuple[tuple[str, str], ...] = ()
    mounts: tuple[CriMount, ...] = ()
    devices: tuple[CriDevice, ...] = ()
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    log_path: str = ""
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    resources: LinuxResources | None = None
    security: ContainerSecurity = ContainerSecurity()
    cdi_devices: tuple[str, ...] = ()
    stop_signal: str = ""


class ProcessRef(Frozen, frozen=True):
    """A process that cannot be mistaken for a later one of the same number.

    `start_ticks` is field 22 of /proc/PID/stat (proc(5)), `boot_id` the kernel's random boot id.
    """

    pid: int
    start_ticks: int
    boot_id: str


class ImageDefaults(Frozen, frozen=True):
    """What an image's config says about running it (OCI image-spec config.md), already bounded."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()


class ContainerUser(Frozen, frozen=True):
    """The user a container runs as."""

    uid: int
    gid: int
    supplemental_groups: tuple[int, ...] = ()


class PodSandbox(Frozen, frozen=True):
    """All that is known about a pod; stored as one document."""

    id: str
    config: PodConfig
    state: PodState
    created_at_ns: int
    #: Handler as the client named it; `runtime` is the one it stood for when the pod was made.
    handler: str = ""
    runtime: str = ""
    pause: ProcessRef | None = None
    cgroup_path: str = ""
    ips: tuple[str, ...] = ()
    #: CNI result and configuration used, as JSON text, so that DEL works without the files.
    cni_result: str = ""
    cni_config: str = ""
    #: ADD was begun (set before the plugin runs) and no DEL has succeeded since.
    network_attached: bool = False
    #: SELinux level of all its containers; empty where there is no SELinux.
    selinux_level: str = ""
    #: Creation failed and its undo did too; the object stays listed until a teardown succeeds.
    failed: bool = False
    #: What the last failed teardown step said; shown in verbose status.
    trouble: str = ""


class Container(Frozen, frozen=True):
    """All that is known about a container; stored as one document."""

    id: str
    pod_id: str
    config: ContainerConfig
    state: ContainerState
    created_at_ns: int
    image_id: str = ""
    #: First repository digest, or the id for an image without one.
    image_ref: str = ""
    #: First repository tag, or the id; what ContainerStatus.image.image says.
    image_name: str = ""
    image_volumes: tuple[ImageVolume, ...] = ()
    #: How its root file system and image volumes were made: overlay, fuse-overlayfs, native.
    storage_driver: str = "overlay"
    #: Name of the OCI runtime that holds the container (the pod's `runtime`).
    runtime: str = ""
    log_path: str = ""
    cgroup_path: str = ""
    init: ProcessRef | None = None
    monitor: ProcessRef | None = None
    #: Set before the runtime is told to start: a crash in between is told apart by its state.
    start_begun_ns: int = 0
    started_at_ns: int = 0
    finished_at_ns: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    user: ContainerUser | None = None
    resources: LinuxResources | None = None
    #: Signal number sent first by StopContainer: request, else image, else SIGTERM.
    stop_signal: int = 15
    #: Grace period for the current stop ended by a KILL of ours; tells OOM from stop at code 137.
    kill_sent: bool = False
    #: Creation failed and its undo did too; the object stays listed until a teardown succeeds.
    failed: bool = False
    tty: bool = False


def pod_name_key(metadata: PodMetadata) -> str:
    """The unique name of a pod: one sandbox per (namespace, name, uid, attempt)."""
    return f"{metadata.namespace}/{metadata.name}/{metadata.uid}/{metadata.attempt}"


def container_name_key(pod_id: str, name: str, attempt: int) -> str:
    """The unique name of a container: one per (sandbox, name, attempt)."""
    return f"{pod_id}/{name}/{attempt}"
