"""What the OCI runtime is told about pod and container beside the specification.

Kata, gVisor and NRI plugins find pod and container by containerd's keys (`io.kubernetes.cri.*`),
so these are written. The client's own annotations are *not* passed on: several runtimes act on
them (`run.oci.*` of crun can add handlers and mounts, `org.systemd.property.*` becomes a unit
property), so a pod author would steer the host. An administrator may let some through by pattern;
those that steer a runtime pass only when the pattern itself begins with their prefix, so `*` does
not open them. What is let through of the pod's reaches its containers too, since a kubelet gives
pod authors no other annotations; the container's own win. Labels of an image never get here at all.

Annotations that are meant for this daemon (`podwright.io/`) are allowed by the same lists and never
passed on.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from sandbox.model import ContainerConfig, LinuxResources, PodConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_PREFIX: Final = "io.kubernetes.cri."

#: Prefixes with a meaning to a runtime, a shim or a device plugin.
_STEERING: Final = (
    "run.oci.",
    "org.systemd.property.",
    "io.containerd.",
    "io.katacontainers.",
    "io.kubernetes.cri-o.",
    "io.podman.",
    "dev.gvisor.",
    "cdi.k8s.io/",
    "org.opencontainers.",
    "org.criu.",
    "module.wasm.",
    "podwright.io/",
    "rlimits.podwright.io/",
)

#: Property of a scope (systemd.resource-control(5)), as crun and runc take it, and its "infinity".
_TASKS_MAX: Final = "org.systemd.property.TasksMax"
_INFINITY: Final = (1 << 64) - 1

#: What is for the daemon itself.
_OURS: Final = ("podwright.io/", "rlimits.podwright.io/")


def sandbox_annotations(
    config: PodConfig, *, pod_id: str, patterns: Iterable[str] = ()
) -> dict[str, str]:
    """For the pause process's document."""
    resources = config.resources or LinuxResources()
    return {
        **_allowed(config.annotations, patterns),
        **_pod_keys(config, pod_id),
        _PREFIX + "container-type": "sandbox",
        _PREFIX + "sandbox-log-directory": config.log_directory,
        # The pod's size, for runtimes that must size a virtual machine before its containers.
        _PREFIX + "sandbox-cpu-period": str(resources.cpu_period_usec),
        _PREFIX + "sandbox-cpu-quota": str(resources.cpu_quota_usec),
        _PREFIX + "sandbox-cpu-shares": str(resources.cpu_shares),
        _PREFIX + "sandbox-memory": str(resources.memory_limit_bytes),
    }


def container_annotations(
    config: ContainerConfig,
    *,
    pod: PodConfig,
    pod_id: str,
    image_name: str,
    patterns: Iterable[str] = (),
) -> dict[str, str]:
    """For a container's document."""
    listed = tuple(patterns)
    return {
        **_allowed(pod.annotations, listed),
        **_allowed(config.annotations, listed),
        **_pod_keys(pod, pod_id),
        _PREFIX + "container-type": "container",
        _PREFIX + "container-name": config.name,
        _PREFIX + "image-name": image_name,
    }


def scope_annotations(cgroups_path: str, pids_limit: int | None) -> dict[str, str]:
    """Properties of the scope that systemd makes for a container; none with the other driver.

    systemd gives a unit of which nobody says otherwise 15 % of the tasks that the machine can have
    (systemd-system.conf(5), DefaultTasksMax=). crun 1.8 puts the limit of the document on the
    cgroup below the scope only, "no limit" (-1) included.
    """
    if ":" not in cgroups_path:
        return {}
    limit = _INFINITY if pids_limit is None or pids_limit < 0 else pids_limit
    return {_TASKS_MAX: f"uint64 {limit}"}


def _pod_keys(config: PodConfig, pod_id: str) -> dict[str, str]:
    return {
        _PREFIX + "sandbox-id": pod_id,
        _PREFIX + "sandbox-name": config.metadata.name,
        _PREFIX + "sandbox-namespace": config.metadata.namespace,
        _PREFIX + "sandbox-uid": config.metadata.uid,
    }


def _allowed(annotations: Mapping[str, str], patterns: Iterable[str]) -> dict[str, str]:
    return {
        key: value
        for key, value in allowed_annotations(annotations, patterns).items()
        if not key.startswith(_OURS)
    }


def allowed_annotations(annotations: Mapping[str, str], patterns: Iterable[str]) -> dict[str, str]:
    """Those that an administrator's patterns let count."""
    listed = tuple(patterns)
    return {
        key: value
        for key, value in annotations.items()
        if not key.startswith(_PREFIX) and any(_matches(key, pattern) for pattern in listed)
    }


def _matches(key: str, pattern: str) -> bool:
    steering = next((prefix for prefix in _STEERING if key.startswith(prefix)), "")
    return pattern.startswith(steering) and fnmatchcase(key, pattern)
