"""Findings about rights, the kernel, and where state is kept."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING, Final

from google.protobuf.internal import api_implementation

from cri.check.finding import Finding, Level
from imageservice.snapshots.indexed import probe_indexed
from sandbox.host.errors import PodwrightError
from sandbox.host.mounts import mount_of
from sandbox.host.project_quota import QuotaState, quota_state
from sandbox.layer_limits import REMEDY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from imageservice.forms import LayerChoice
    from sandbox.host.host_facts import HostFacts
    from sandbox.host.syscalls import Syscalls

RIGHTS: Final = "rights"
KERNEL: Final = "kernel"
STORAGE: Final = "storage"

#: Without any of these no pod can be made.
NEEDED: Final = (
    "CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID",
    "CAP_KILL", "CAP_MKNOD", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETFCAP",
    "CAP_SYS_CHROOT", "CAP_SYS_PTRACE",
)  # fmt: skip
#: mount_setattr(2), the newest call that is relied upon where it exists; openat2(2) and
#: pidfd_open(2), which are needed everywhere, came with 5.6 and 5.3.
NEWEST_USED: Final = (5, 12)
OLDEST: Final = (5, 6)
#: One watch per pod directory and a few for the daemon; the kernel's default is 128.
INOTIFY_INSTANCES: Final = 128
#: Each container needs about six descriptors of the daemon.
OPEN_FILES: Final = 65_536
FREE_BYTES: Final = 2 * 1024**3
FREE_INODES: Final = 50_000
_NAMESPACES: Final = ("net", "ipc", "uts", "pid", "mnt", "cgroup")


def rights(host: HostFacts) -> list[Finding]:
    """What this process may do."""
    missing = [name for name in NEEDED if name not in host.capabilities_effective]
    findings = [
        Finding(
            RIGHTS,
            "capabilities",
            Level.ERROR if missing else Level.OK,
            f"missing: {', '.join(missing)}" if missing else "all that are needed",
            "run as root, and do not take capabilities away from the service",
        )
    ]
    lowest = host.oom_score_adj_floor
    findings.append(
        Finding(
            RIGHTS,
            "OOM scores",
            Level.OK if host.can_lower_oom_score else Level.WARNING,
            "any value"
            if host.can_lower_oom_score
            else f"none below {lowest}: CAP_SYS_RESOURCE is missing, lower ones are clamped",
            "give the service CAP_SYS_RESOURCE",
        )
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = hard == resource.RLIM_INFINITY or hard >= OPEN_FILES
    findings.append(
        Finding(
            RIGHTS,
            "open files",
            Level.OK if enough else Level.WARNING,
            f"{soft} (at most {hard})",
            f"set LimitNOFILE={OPEN_FILES} or more",
        )
    )
    return findings


def kernel(host: HostFacts, syscalls: Syscalls, proc: Path) -> list[Finding]:
    """What the kernel can do."""
    release = host.kernel_release
    level = Level.OK
    detail = release
    if host.kernel_version < OLDEST:
        level = Level.ERROR
        detail = f"{release} is too old: openat2 and pidfds are missing"
    elif host.kernel_version < NEWEST_USED:
        level = Level.WARNING
        detail = f"{release}: recursively read-only mounts are missing"
    newest = ".".join(map(str, NEWEST_USED))
    findings = [Finding(KERNEL, "Linux", level, detail, f"use Linux {newest} or later")]
    findings += [_call("openat2", lambda: _openat2(syscalls, proc))]
    findings += [_call("pidfd", lambda: _pidfd(syscalls))]
    absent = [name for name in _NAMESPACES if not (proc / "self/ns" / name).exists()]
    findings.append(
        Finding(
            KERNEL,
            "namespaces",
            Level.ERROR if absent else Level.OK,
            f"missing: {', '.join(absent)}" if absent else ", ".join(_NAMESPACES),
            "use a kernel built with them (CONFIG_*_NS)",
        )
    )
    findings.append(
        Finding(
            KERNEL,
            "seccomp",
            Level.OK if host.seccomp else Level.WARNING,
            "filters" if host.seccomp else "not available: RuntimeDefault profiles are refused",
            "use a kernel built with CONFIG_SECCOMP_FILTER",
        )
    )
    instances = _number(proc / "sys/fs/inotify/max_user_instances")
    findings.append(
        Finding(
            KERNEL,
            "inotify instances",
            Level.OK if instances >= INOTIFY_INSTANCES else Level.WARNING,
            str(instances),
            f"sysctl fs.inotify.max_user_instances={INOTIFY_INSTANCES} or more",
        )
    )
    return findings


def _call(name: str, work: Callable[[], None]) -> Finding:
    try:
        work()
    except PodwrightError as error:
        return Finding(
            KERNEL, name, Level.ERROR, str(error), "use a newer kernel, or allow the call"
        )
    return Finding(KERNEL, name, Level.OK, "works")


def _openat2(syscalls: Syscalls, proc: Path) -> None:
    root = os.open(proc, os.O_PATH | os.O_CLOEXEC)
    try:
        os.close(syscalls.openat2(root, "self/status", os.O_RDONLY | os.O_CLOEXEC, 0, 0))
    finally:
        os.close(root)


def _pidfd(syscalls: Syscalls) -> None:
    os.close(syscalls.pidfd_open(os.getpid()))


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def storage(
    state_root: Path,
    run_root: Path,
    image_root: Path,
    syscalls: Syscalls,
    *,
    privileged: bool,
    writable_layer_bytes: int = 0,
    layer_form: LayerChoice = "auto",
) -> list[Finding]:
    """Where state, images and run files lie."""
    return [
        _space("state", state_root),
        _space("images", image_root),
        _run_root(run_root),
        _executable(state_root),
        _layers(image_root, layer_form, syscalls, privileged=privileged),
        _layer_limits(state_root, writable_layer_bytes),
    ]


def existing(path: Path) -> Path:
    """`path`, or the nearest directory above that exists: both are on the same file system."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _space(name: str, path: Path) -> Finding:
    facts = os.statvfs(existing(path))
    free_bytes = facts.f_bavail * facts.f_frsize
    # Some file systems (btrfs) have no number of inodes at all.
    inodes_low = facts.f_files > 0 and facts.f_favail < FREE_INODES
    inodes = f", {facts.f_favail} inodes" if facts.f_files else ""
    return Finding(
        STORAGE,
        f"space for {name}",
        Level.WARNING if free_bytes < FREE_BYTES or inodes_low else Level.OK,
        f"{free_bytes / 1024**3:.1f} GiB{inodes} free at {path}",
        "free some space, or put it elsewhere (daemon.state_root, image.root)",
    )


def _run_root(path: Path) -> Finding:
    kind = mount_of(existing(path)).type
    return Finding(
        STORAGE,
        "run directory",
        Level.OK if kind in {"tmpfs", "ramfs"} else Level.WARNING,
        f"{path} on {kind}",
        "put daemon.run_root on a tmpfs: what is in it must not outlive a boot",
    )


def _executable(path: Path) -> Finding:
    options = mount_of(existing(path)).options
    return Finding(
        STORAGE,
        "programs may run there",
        Level.ERROR if "noexec" in options else Level.OK,
        f"{path} is mounted noexec" if "noexec" in options else "yes",
        "remount without noexec: the pause program runs from there",
    )


def _layers(
    image_root: Path, wanted: LayerChoice, syscalls: Syscalls, *, privileged: bool
) -> Finding:
    name = "form of layers"
    if wanted == "tree":
        return Finding(STORAGE, name, Level.OK, "unpacked, as image.layer_form says")
    if not privileged:
        return Finding(STORAGE, name, Level.WARNING, "not tried", "run the check as root")
    at = existing(image_root)
    reason = probe_indexed(at / f".podwright-check-{os.getpid()}", syscalls)
    if not reason:
        return Finding(STORAGE, name, Level.OK, "indexed: the plain tar, mounted by an EROFS index")
    if wanted == "auto":
        return Finding(
            STORAGE,
            name,
            Level.WARNING,
            f"unpacked into files: {reason}",
            "pulls are several times faster on Linux 6.12 with EROFS and EROFS_FS_BACKED_BY_FILE",
        )
    return Finding(
        STORAGE,
        name,
        Level.ERROR,
        f"the daemon will not start: {reason}",
        "set image.layer_form to auto or tree, or use Linux 6.12 with EROFS",
    )


def _layer_limits(state_root: Path, asked_bytes: int) -> Finding:
    name = "limits of writable layers"
    state = quota_state(existing(state_root))
    if state is QuotaState.ENFORCED:
        shown = f"{asked_bytes} bytes for each container" if asked_bytes else "possible, none set"
        return Finding(STORAGE, name, Level.OK, shown)
    without = "counted but not enforced:" if state is QuotaState.COUNTED else "no"
    return Finding(
        STORAGE,
        name,
        Level.ERROR if asked_bytes else Level.OK,
        f"{without} project quota on {mount_of(existing(state_root)).type}:"
        + (" the daemon will not start" if asked_bytes else " pods that ask for one are refused"),
        REMEDY if asked_bytes else "",
    )


def python() -> list[Finding]:
    """What the daemon itself runs on."""
    backend = api_implementation.Type()
    return [
        Finding(
            "daemon",
            "protobuf",
            Level.OK if backend == "upb" else Level.ERROR,
            backend,
            "install the protobuf wheel with its C library (upb)",
        )
    ]
