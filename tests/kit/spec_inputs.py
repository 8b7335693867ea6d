"""Inputs for the spec builders: one ordinary pod and container, to be changed by each test."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sandbox import oci
from sandbox.host.host_facts import CAPABILITIES
from sandbox.model import (
    ContainerConfig,
    ContainerSecurity,
    ImageDefaults,
    NamespaceMode,
    NamespaceOptions,
    PodConfig,
    PodMetadata,
    SecurityProfile,
)
from sandbox.spec.inputs import ContainerInputs, HostFacts, PodFiles, PodInputs
from sandbox.users import ResolvedUser

POD_ID: Final = "ab" * 32
CONTAINER_ID: Final = "cd" * 32
PINS: Final = {
    kind: Path(f"/run/podwright/namespaces/{POD_ID}/{kind}")
    for kind in ("user", "net", "ipc", "uts", "pid")
}

HOST_V1: Final = HostFacts(
    cgroup_version=1,
    controllers=frozenset(
        {"cpu", "cpuacct", "cpuset", "memory", "pids", "hugetlb", "devices", "freezer"}
    ),
    swap_limit=True,
    capabilities=frozenset(CAPABILITIES) - {"CAP_SYS_RESOURCE"},
    oom_score_adj_floor=0,
    recursive_read_only=True,
)
HOST_V2: Final = HostFacts(
    cgroup_version=2,
    controllers=frozenset({"cpu", "cpuset", "memory", "pids", "hugetlb", "io"}),
    swap_limit=True,
    capabilities=frozenset(CAPABILITIES),
    recursive_read_only=True,
)

#: What the kubelet sends for an ordinary container.
MASKED: Final = ("/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/sys/firmware")
READONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

POD: Final = PodConfig(
    metadata=PodMetadata(name="web", uid="uid-1", namespace="shop"),
    hostname="web-0",
    log_directory="/var/log/pods/shop_web_uid-1",
    annotations={"run.oci.hooks": "no", "example.com/team": "blue"},
    cgroup_parent="/kubepods/poduid-1",
)
CONTAINER: Final = ContainerConfig(
    name="nginx",
    envs=(("COLOUR", "blue"),),
    annotations={"io.containerd.x": "no", "example.com/tier": "front"},
    security=ContainerSecurity(
        # As the kubelet sends it for a pod with containers' own pid namespaces.
        namespaces=NamespaceOptions(pid=NamespaceMode.CONTAINER),
        seccomp=SecurityProfile(),
        masked_paths=MASKED,
        readonly_paths=READONLY,
    ),
)
IMAGE: Final = ImageDefaults(
    entrypoint=("/docker-entrypoint.sh",),
    cmd=("nginx", "-g", "daemon off;"),
    env=("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "NGINX_VERSION=1.27"),
    working_dir="/srv",
)


def pod_inputs(config: PodConfig = POD, *, host: HostFacts = HOST_V1) -> PodInputs:
    """A pause process for `config`."""
    return PodInputs(
        id=POD_ID,
        config=config,
        hostname="web-0",
        pins=PINS,
        rootfs=Path("/run/podwright/pause/rootfs"),
        argv=("/catatonit", "-P"),
        cgroups_path=f"{config.cgroup_parent}/{POD_ID}",
        host=host,
    )


def container_inputs(
    config: ContainerConfig = CONTAINER,
    *,
    pod: PodConfig = POD,
    image: ImageDefaults = IMAGE,
    host: HostFacts = HOST_V1,
    user: ResolvedUser | None = None,
) -> ContainerInputs:
    """A container of `config`; change more with dataclasses.replace."""
    files = Path(f"/run/podwright/pods/{POD_ID}")
    return ContainerInputs(
        id=CONTAINER_ID,
        pod_id=POD_ID,
        config=config,
        pod=pod,
        image=image,
        image_name="docker.io/library/nginx:1.27",
        user=user or ResolvedUser(uid=0, gid=0, additional_gids=(0,)),
        rootfs=Path(f"/run/podwright/containers/{CONTAINER_ID}/rootfs"),
        pins=PINS,
        hostname="web-0",
        files=PodFiles(
            shm=files / "shm", resolv_conf=files / "resolv.conf", hostname=files / "hostname"
        ),
        cgroups_path=f"{pod.cgroup_parent}/{CONTAINER_ID}",
        host=host,
        rlimits=(oci.Rlimit(type="RLIMIT_NOFILE", soft=1024, hard=524288),),
    )
