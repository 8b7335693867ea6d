"""Everything a document is made from; what the caller must have looked up, field by field.

The caller (the container engine) fills these from its store, from the kernel and from the image;
the spec functions only read them. Nothing here is checked at construction: the functions that use
a field check it, so that an error names the field in the client's words.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sandbox.security.seccomp import SeccompHost

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sandbox import oci
    from sandbox.model import ContainerConfig, CriMount, ImageDefaults, PodConfig
    from sandbox.security.labels import AppArmorHost, SELinuxHost
    from sandbox.users import ResolvedUser

#: Kinds of pinned namespaces, as they are called in the pins' directory.
PinKind = Literal["user", "net", "ipc", "uts", "pid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What this node has, found out once at start.

    Attributes:
        cgroup_version: 2 for the unified hierarchy, 1 for v1 and hybrid.
        controllers: cgroup controllers that can be used: cpu, cpuset, memory, pids, hugetlb, ...
        swap_limit: memory.memsw.limit_in_bytes (v1) or memory.swap.max (v2) exists.
        capabilities: what the daemon itself holds, names with CAP_.
        oom_score_adj_floor: lowest value the daemon may set; its own oom_score_adj without
            CAP_SYS_RESOURCE, else -1000.
        recursive_read_only: kernel >= 5.12 (mount_setattr) and the OCI runtime knows `rro`.
        no_user_namespaces: why no pod can have a user namespace of its own; empty when it can.
        binds_top_only: in a user namespace the OCI runtime binds a source without the mounts below.
        seccomp: machine, kernel version, filter support.
        runtime_spec: version (major, minor) of the OCI runtime-spec that the runtime knows.
        apparmor: None without AppArmor.
        selinux: None without SELinux.
    """

    cgroup_version: Literal[1, 2]
    controllers: frozenset[str]
    swap_limit: bool
    capabilities: frozenset[str]
    oom_score_adj_floor: int = -1000
    recursive_read_only: bool = False
    runtime_spec: tuple[int, int] = (1, 0)
    no_user_namespaces: str = "not tried"
    binds_top_only: bool = False
    seccomp: SeccompHost = field(default_factory=SeccompHost)
    apparmor: AppArmorHost | None = None
    selinux: SELinuxHost | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFiles:
    """The pod's own files on the host, bound into each of its containers; None is not bound.

    Attributes:
        shm: the tmpfs directory made for the pod; the host's /dev/shm for host IPC.
        resolv_conf: written from the DNS configuration.
        hostname: one line.
        hosts: None when the kubelet provides /etc/hosts as a mount, as it usually does.
        flags: which of nosuid, nodev, noexec the mount has that the files lie on; see
            `ResolvedMount.source_flags`. In a user namespace the kernel refuses (EPERM) a remount
            without them, and runc before 1.2 does not repeat them by itself.
    """

    shm: Path | None = None
    resolv_conf: Path | None = None
    hostname: Path | None = None
    hosts: Path | None = None
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedMount:
    """A CRI mount with its source looked up on the host.

    Attributes:
        mount: the request, unchanged; already through `mounts.check_mount`.
        source: real path (no symbolic links) that exists now; for an image volume, the directory
            where the image is mounted, with its sub-path resolved inside it.
        source_propagation: propagation of the mount that holds `source`, from mountinfo: `shared`
            when it has a shared tag, else `slave` when it has a master tag, else `private`.
        source_flags: which of nosuid, nodev, noexec that mount has. A bind mount that is remounted
            read-only loses the flags that are not repeated, so these are.
    """

    mount: CriMount
    source: Path
    source_propagation: Literal["private", "slave", "shared"] = "private"
    source_flags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceNode:
    """A device for the container, from stat(2) of the host's node.

    Attributes:
        container_path: where it appears.
        kind: c, b, or p (a FIFO has no numbers).
        mode: permission bits.
        permissions: of r, w, m; what the device cgroup allows.
        place: a finished node on the host, to be bound instead of made: in a user namespace nobody
            can make one. None where the OCI runtime makes it.
    """

    container_path: str
    kind: Literal["c", "b", "p"]
    major: int = -1
    minor: int = -1
    mode: int = 0o666
    uid: int = 0
    gid: int = 0
    permissions: str = "rwm"
    place: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """What comes into a container beyond request and image: by CDI devices, by the node's hooks.

    Attributes:
        env: entries NAME=value; they win over what the container has.
        devices: nodes; a later one takes the place of an earlier one at the same path.
        mounts: finished; each takes the place of what is mounted there otherwise.
        hooks: by stage (the keys of `oci.HOOK_STAGES`), in their order.
        additional_gids: groups of the process.
        intel_rdt: None for none.
        net_devices: name on the host to name inside.
    """

    env: tuple[str, ...] = ()
    devices: tuple[DeviceNode, ...] = ()
    mounts: tuple[oci.Mount, ...] = ()
    hooks: Mapping[str, Sequence[oci.Hook]] = field(default_factory=dict)
    additional_gids: tuple[int, ...] = ()
    intel_rdt: oci.IntelRdt | None = None
    net_devices: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodInputs:
    """What a pause document is made from.

    Attributes:
        id: pod id.
        config: the request.
        hostname: the pod's, checked; the UTS pin has it already, so this is for runtimes that make
            a machine of their own.
        pins: namespaces pinned before the pause process starts: user, net, ipc, uts; a kind that is
            the host's is absent.
        rootfs: directory with catatonit and the empty directories proc and dev.
        argv: what the pause process runs, as seen inside rootfs.
        cgroups_path: the OCI text, in the form of the cgroup driver.
        host: facts.
        seccomp_content: bytes of the Localhost profile of the pod, where there is one.
        annotation_patterns: which of the pod's annotations the runtime may see.
        selinux_level: the pod's; empty where there is no SELinux.
    """

    id: str
    config: PodConfig
    hostname: str
    pins: Mapping[PinKind, Path]
    rootfs: Path
    argv: tuple[str, ...]
    cgroups_path: str
    host: HostFacts
    seccomp_content: bytes | None = None
    annotation_patterns: tuple[str, ...] = ()
    selinux_level: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerInputs:
    """What a container's document is made from.

    Attributes:
        id: container id.
        pod_id: its pod.
        config: the request.
        pod: the pod's configuration as it was when the pod was made.
        image: the image's defaults.
        image_name: for the runtime's annotations.
        user: from `sandbox.users.resolve_user`.
        rootfs: where the root file system is mounted.
        pins: the pod's pinned namespaces: user, net, ipc, uts, and pid where the pod shares one.
        target_pid: for pid mode TARGET, a pin of the target container's pid namespace.
        hostname: of the pod, or the node's for a pod on the host network.
        files: the pod's files.
        mounts: the CRI mounts of `config`, in their order, resolved.
        image_volumes: for each path that `mounts.image_volume_paths` names, the directory that
            holds it (made by the caller, with what the image has there copied in).
        devices: the CRI devices of `config`, directories already expanded.
        host_devices: every device of the host; used by privileged containers only.
        edits: of CDI devices and the node's hooks.
        cgroups_path: the OCI text, in the form of the cgroup driver.
        host: facts.
        rlimits: the node's configured defaults; what is not named is inherited from the daemon.
        pids_limit: the node's default for the pids controller, None for none.
        seccomp_content: bytes of the Localhost profile, where there is one.
        annotation_patterns: which of the container's annotations the runtime may see.
        selinux_level: the pod's; empty where there is no SELinux.
    """

    id: str
    pod_id: str
    config: ContainerConfig
    pod: PodConfig
    image: ImageDefaults
    image_name: str
    user: ResolvedUser
    rootfs: Path
    pins: Mapping[PinKind, Path]
    target_pid: Path | None = None
    hostname: str
    files: PodFiles
    mounts: tuple[ResolvedMount, ...] = ()
    image_volumes: Mapping[str, Path] = field(default_factory=dict)
    devices: tuple[DeviceNode, ...] = ()
    host_devices: tuple[DeviceNode, ...] = ()
    edits: Edits = field(default_factory=Edits)
    cgroups_path: str
    host: HostFacts
    rlimits: tuple[oci.Rlimit, ...] = ()
    pids_limit: int | None = None
    seccomp_content: bytes | None = None
    annotation_patterns: tuple[str, ...] = ()
    selinux_level: str = ""
