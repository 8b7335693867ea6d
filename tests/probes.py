"""What this machine can do: reasons to skip a test, and nothing but the expected ones."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from imageservice.snapshots.indexed import probe_indexed
from sandbox.host.cgroupfs import CgroupLayout
from sandbox.host.errors import Denied, PodwrightError, Unsupported
from sandbox.host.libc import LibcSyscalls
from sandbox.host.mounts import Mount, mount_one
from sandbox.host.selinux_policy import SelinuxPolicy, container_labels
from sandbox.host.syscalls import MNT_DETACH

#: Of the kernel: (6, 12).
RELEASE = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])


@functools.cache
def no_root() -> str:
    """Why mounts cannot be made here; empty when they can."""
    return _try_mount(Mount("tmpfs", "probe", Path(), ("size=64k",)))


@functools.cache
def no_overlay() -> str:
    """Why overlays cannot be mounted on the temporary directory; empty when they can."""
    if reason := no_root():
        return reason
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        for part in ("lower", "upper", "work"):
            (base / part).mkdir()
        words = tuple(f"{p}dir={base / p}" for p in ("lower", "upper", "work"))
        return _try_mount(Mount("overlay", "overlay", Path(), words))


@functools.cache
def no_indexed_layers(directory: Path) -> str:
    """Why a layer's tar cannot be mounted by an index, below `directory`; empty when it can."""
    reason = no_root() or probe_indexed(directory / "probe-indexed", LibcSyscalls())
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    able = release >= (6, 12) and "erofs" in Path("/proc/filesystems").read_text().split()
    # Where the kernel can, a refusal is a fault of our index, not a reason to skip its tests.
    assert not (able and reason and not no_root()), reason
    return reason


def form_or_skip(form: str, directory: Path) -> str:
    """A form of layers, `tree` or `indexed`, if this kernel has it; else the test is left out."""
    if reason := no_overlay() or (no_indexed_layers(directory) if form == "indexed" else ""):
        pytest.skip(reason)
    return form


@functools.cache
def no_cgroup_write() -> str:
    """Why control groups cannot be made here; empty when they can."""
    try:
        layout = CgroupLayout.detect()
    except Unsupported as error:
        return str(error)
    path = f"/podwright-test-{os.getpid()}-probe"
    try:
        layout.create(path)
    except Denied as error:
        return str(error)
    layout.remove(path)
    return ""


@functools.cache
def no_apparmor() -> str:
    """Why AppArmor cannot confine anything here; empty when it can."""
    enabled = Path("/sys/module/apparmor/parameters/enabled")
    if not enabled.exists() or enabled.read_text().strip() != "Y":
        return "this kernel has no AppArmor, or has it switched off"
    if not Path("/sys/kernel/security/apparmor/profiles").exists():
        return "securityfs is not mounted on /sys/kernel/security"
    return "" if Path("/usr/sbin/apparmor_parser").exists() else "apparmor_parser is not installed"


@functools.cache
def no_selinux() -> str:
    """Why SELinux cannot hold any container here; empty when it can."""
    if not Path("/sys/fs/selinux/enforce").exists():
        return "this kernel has no SELinux, or has it switched off"
    policy = SelinuxPolicy()
    if not policy.enforces():
        return "SELinux is permissive here: what it would refuse is only logged"
    try:
        container_labels(policy)
    except PodwrightError as error:
        return f"the policy here has no containers: {error}"
    return ""


def no_fuse_overlayfs() -> str:
    """Why fuse-overlayfs cannot serve anything here; empty when it can."""
    if reason := no_root() or no_program("fuse-overlayfs"):
        return reason
    try:
        Path("/dev/fuse").open("rb").close()
    except OSError as error:
        # No such device, or a device whose module is not there (ENXIO, ENODEV).
        return f"/dev/fuse cannot be opened: {error.strerror}"
    return ""


def no_program(name: str) -> str:
    """Why the program cannot be run; empty when it is installed."""
    return "" if shutil.which(name) else f"{name} is not installed"


def has_version_2_and_systemd() -> bool:
    """Whether the controllers are in the one tree of version 2, and systemd is process 1."""
    return all(
        Path(place).exists()
        for place in ("/sys/fs/cgroup/cgroup.controllers", "/run/systemd/system")
    )


def no_vm() -> str:
    """Why hack/vm cannot run here; empty when all that it needs is installed."""
    if os.geteuid() != 0:
        return "hack/vm wants root"
    places = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    for name in ("qemu-system-x86_64", "mmdebstrap", "mkfs.ext4", "depmod"):
        if shutil.which(name, path=places) is None:
            return no_program(name)
    return ""


def _try_mount(mount: Mount) -> str:
    with tempfile.TemporaryDirectory() as name:
        try:
            mount_one(
                Mount(mount.type, mount.source, Path(name), mount.options), syscalls=LibcSyscalls()
            )
        except PodwrightError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in (errno.EPERM, errno.EACCES):
                return str(error)
            raise
        LibcSyscalls().umount2(name, MNT_DETACH)
        return ""
