"""The cases whose documents are kept under tests/golden/specs, by file name.

Each is one decision that a reader can look up in its file; `hack/regolden` writes them anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from msgspec.structs import replace as changed

from sandbox import oci
from sandbox.model import (
    Capabilities,
    CriMount,
    HugepageLimit,
    IdMapping,
    LinuxResources,
    MountPropagation,
    NamespaceMode,
    NamespaceOptions,
    PodConfig,
    PodSecurity,
    ProfileType,
    SecurityProfile,
    UserNamespace,
)
from sandbox.security.seccomp import SeccompHost
from sandbox.spec.build import container_spec, pause_spec
from sandbox.spec.inputs import ContainerInputs, DeviceNode, HostFacts, ResolvedMount
from sandbox.users import ResolvedUser
from tests.kit.spec_inputs import (
    CONTAINER,
    HOST_V1,
    HOST_V2,
    IMAGE,
    POD,
    container_inputs,
    pod_inputs,
)

#: Without the filter, which has files of its own and would drown the rest.
_PLAIN: Final = changed(CONTAINER, security=changed(CONTAINER.security, seccomp=None))


def _limits() -> LinuxResources:
    return LinuxResources(
        cpu_period_usec=100_000,
        cpu_quota_usec=50_000,
        cpu_shares=512,
        memory_limit_bytes=128 << 20,
        oom_score_adj=990,
        cpuset_cpus="0-1",
        hugepage_limits=(HugepageLimit(page_size="2MB", limit_bytes=0),),
    )


def _mapped_pod(network: NamespaceMode = NamespaceMode.POD) -> PodConfig:
    line = (IdMapping(host_id=131_072, container_id=0, length=65_536),)
    user = UserNamespace(mode=NamespaceMode.POD, uids=line, gids=line)
    return changed(
        POD, security=PodSecurity(namespaces=NamespaceOptions(network=network, user=user))
    )


def _container(host: HostFacts) -> ContainerInputs:
    config = changed(_PLAIN, resources=_limits())
    return replace(container_inputs(config, host=host), pids_limit=1024)


def _mounted() -> ContainerInputs:
    image = changed(IMAGE, volumes=("/var/lib/data", "/cache/"))
    asked = (
        CriMount(container_path="/srv/deep/er", host_path="/mnt/deeper", readonly=True),
        CriMount(container_path="/srv/deep", host_path="/mnt/link"),
        CriMount(
            container_path="/shared",
            host_path="/mnt/shared",
            propagation=MountPropagation.BIDIRECTIONAL,
        ),
        CriMount(
            container_path="/rro", host_path="/mnt/rro", readonly=True, recursive_read_only=True
        ),
        CriMount(
            container_path="/tmp/scratch", host_path="/mnt/scratch", mount_options=("noexec",)
        ),
        CriMount(container_path="/etc/hosts", host_path="/var/lib/kubelet/hosts"),
        CriMount(container_path="/cache", host_path="/mnt/cache"),
    )
    resolved = tuple(
        ResolvedMount(
            mount=mount,
            source=Path("/mnt/real" if mount.host_path == "/mnt/link" else mount.host_path),
            source_propagation="shared",
            source_flags=frozenset({"nosuid", "nodev"} if "scratch" in mount.host_path else ()),
        )
        for mount in asked
    )
    inputs = container_inputs(changed(_PLAIN, mounts=asked), image=image)
    return replace(
        inputs,
        mounts=resolved,
        image_volumes={"/var/lib/data": Path("/var/lib/podwright/containers/c/volumes/0")},
    )


def _device() -> ContainerInputs:
    node = DeviceNode(
        container_path="/dev/fuse", kind="c", major=10, minor=229, mode=0o20666, permissions="wr"
    )
    return replace(container_inputs(_PLAIN), devices=(node,))


def _privileged(host: HostFacts) -> ContainerInputs:
    pod = changed(POD, security=PodSecurity(privileged=True))
    config = changed(_PLAIN, security=changed(CONTAINER.security, privileged=True))
    loop = DeviceNode(container_path="/dev/loop0", kind="b", major=7, minor=0, mode=0o660, gid=6)
    return replace(container_inputs(config, pod=pod, host=host), host_devices=(loop,))


def _host_pod() -> NamespaceOptions:
    node = NamespaceMode.NODE
    return NamespaceOptions(network=node, pid=node, ipc=node)


def _host_container() -> ContainerInputs:
    pod = changed(POD, security=PodSecurity(namespaces=_host_pod()))
    config = changed(_PLAIN, security=changed(_PLAIN.security, namespaces=_host_pod()))
    return replace(container_inputs(config, pod=pod), pins={}, hostname="node-1")


def _user() -> ContainerInputs:
    config = changed(
        _PLAIN,
        tty=True,
        security=changed(
            _PLAIN.security,
            no_new_privs=True,
            readonly_rootfs=True,
            namespaces=NamespaceOptions(pid=NamespaceMode.POD),
            capabilities=Capabilities(
                add=("net_admin",), drop=("ALL",), add_ambient=("CAP_NET_BIND_SERVICE",)
            ),
        ),
    )
    user = ResolvedUser(uid=1000, gid=1001, additional_gids=(1001, 50), home="/home/www")
    return container_inputs(config, user=user)


def _arguments() -> ContainerInputs:
    config = changed(
        _PLAIN,
        args=("nginx", "-V"),
        working_dir="/a//b/../c/",
        envs=(("PATH", "/bin"), ("EMPTY", ""), ("NGINX_VERSION", "2")),
    )
    image = changed(IMAGE, env=(*IMAGE.env, "NO_EQUALS", "=x", "", "*", "MULTI=a\nb"))
    return replace(
        container_inputs(config, image=image), annotation_patterns=("example.com/*", "*")
    )


def _filter(machine: str, *capabilities: str) -> oci.Spec:
    security = changed(CONTAINER.security, capabilities=Capabilities(add=capabilities))
    host = replace(HOST_V2, seccomp=SeccompHost(machine=machine))
    return container_spec(container_inputs(changed(CONTAINER, security=security), host=host))


CASES: Final[dict[str, Callable[[], oci.Document]]] = {
    "pause-v1": lambda: pause_spec(pod_inputs()),
    "pause-v2": lambda: pause_spec(pod_inputs(host=HOST_V2)),
    "pause-host-namespaces": lambda: pause_spec(
        replace(
            pod_inputs(
                changed(
                    POD,
                    security=PodSecurity(
                        namespaces=_host_pod(), run_as_user=65535, supplemental_groups=(7,)
                    ),
                    resources=LinuxResources(cpu_shares=256, memory_limit_bytes=1 << 30),
                )
            ),
            pins={},
        )
    ),
    "container-limits-v1": lambda: container_spec(_container(HOST_V1)),
    "container-limits-v2": lambda: container_spec(_container(HOST_V2)),
    "container-mounts": lambda: container_spec(_mounted()),
    "container-device": lambda: container_spec(_device()),
    "container-privileged-v1": lambda: container_spec(_privileged(HOST_V1)),
    "container-privileged-v2": lambda: container_spec(_privileged(HOST_V2)),
    "container-host-namespaces": lambda: container_spec(_host_container()),
    "pause-user-namespace": lambda: pause_spec(pod_inputs(_mapped_pod())),
    "container-user-namespace": lambda: container_spec(container_inputs(_PLAIN, pod=_mapped_pod())),
    "container-user-namespace-host-network": lambda: container_spec(
        container_inputs(_PLAIN, pod=_mapped_pod(network=NamespaceMode.NODE))
    ),
    "container-user": lambda: container_spec(_user()),
    "container-arguments": lambda: container_spec(_arguments()),
    "seccomp-x86_64": lambda: _seccomp(_filter("x86_64")),
    "seccomp-aarch64": lambda: _seccomp(_filter("aarch64")),
    "seccomp-x86_64-sys-admin": lambda: _seccomp(_filter("x86_64", "SYS_ADMIN")),
    "seccomp-localhost": lambda: _seccomp(_localhost()),
}


def _seccomp(spec: oci.Spec) -> oci.Seccomp:
    assert spec.linux.seccomp is not None
    return spec.linux.seccomp


def _localhost() -> oci.Spec:
    profile = SecurityProfile(
        profile_type=ProfileType.LOCALHOST, localhost_ref="/var/lib/kubelet/seccomp/audit.json"
    )
    content = """{
      "defaultAction": "SCMP_ACT_LOG",
      "architectures": ["SCMP_ARCH_X86_64"],
      "syscalls": [
        {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95, "args": null},
        {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_BPF"]}},
        {"name": "chroot", "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_CHROOT"]}}
      ]
    }"""
    security = changed(CONTAINER.security, seccomp=profile)
    inputs = container_inputs(changed(CONTAINER, security=security))
    return container_spec(replace(inputs, seccomp_content=content.encode()))


def rendered(name: str) -> str:
    """The text of a golden file: the document as written to a bundle, indented for the reader."""
    return json.dumps(json.loads(oci.encode(CASES[name]())), indent=1, ensure_ascii=False) + "\n"
