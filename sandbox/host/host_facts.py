"""What this machine can do, found by looking once: for `podwright check` and the spec builder.

Nothing here tries things out; a missing file means "no". Paths are parameters, so a test shows it
any machine.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandbox.host.cgroupfs import CgroupLayout
from sandbox.host.errors import Unsupported
from sandbox.host.mountinfo import list_mounts

#: linux/capability.h, by bit number.
CAPABILITIES: Final = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
OOM_SCORE_ADJ_MIN: Final = -1000


@dataclass(frozen=True, slots=True)
class HostFacts:
    """The machine and this process on it.

    Attributes:
        architecture: as uname(2) says, such as "x86_64".
        capabilities_effective: names of what this process may do now.
        capabilities_bounding: names of what its children could ever have.
        oom_score_adj: of this process.
        oom_score_adj_floor: the lowest value it may give to a child; without CAP_SYS_RESOURCE its
            own, because the kernel lets nobody else go lower (proc(5)).
        seccomp_actions: actions the kernel offers; empty without seccomp.
        cgroup: the layout, or None when no hierarchy is mounted.
        file_systems: types the kernel can mount now (a module not loaded yet is not listed).
    """

    kernel_release: str
    architecture: str
    capabilities_effective: frozenset[str]
    capabilities_bounding: frozenset[str]
    oom_score_adj: int
    oom_score_adj_floor: int
    apparmor: bool
    selinux: bool
    seccomp_actions: tuple[str, ...]
    cgroup: CgroupLayout | None
    file_systems: frozenset[str]

    @property
    def kernel_version(self) -> tuple[int, int]:
        """Major and minor, (0, 0) when the release cannot be read."""
        major, _, rest = self.kernel_release.partition(".")
        minor = rest.partition(".")[0].partition("-")[0]
        return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else (0, 0)

    @property
    def seccomp(self) -> bool:
        """Whether filters can be used."""
        return bool(self.seccomp_actions)

    @property
    def overlayfs(self) -> bool:
        """Whether overlay mounts can be made."""
        return "overlay" in self.file_systems

    @property
    def can_lower_oom_score(self) -> bool:
        """Whether a child may be given any value down to -1000."""
        return self.oom_score_adj_floor == OOM_SCORE_ADJ_MIN

    @classmethod
    def detect(cls, *, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> HostFacts:
        """Look at the machine. Blocking, about a millisecond."""
        status = _status(proc / "self/status")
        effective = capability_names(int(status.get("CapEff", "0"), 16))
        own = int(_text(proc / "self/oom_score_adj") or "0")
        floor = OOM_SCORE_ADJ_MIN if "CAP_SYS_RESOURCE" in effective else own
        listed = (line.split()[-1] for line in _text(proc / "filesystems").splitlines() if line)
        return cls(
            kernel_release=_text(proc / "sys/kernel/osrelease") or os.uname().release,
            architecture=platform.machine(),
            capabilities_effective=effective,
            capabilities_bounding=capability_names(int(status.get("CapBnd", "0"), 16)),
            oom_score_adj=own,
            oom_score_adj_floor=floor,
            apparmor=_text(sys / "module/apparmor/parameters/enabled") == "Y",
            selinux=(sys / "fs/selinux/enforce").exists(),
            seccomp_actions=tuple(_text(proc / "sys/kernel/seccomp/actions_avail").split()),
            cgroup=_cgroup_layout(),
            file_systems=frozenset(listed),
        )


def capability_names(mask: int) -> frozenset[str]:
    """Names of the set bits; those of kernels to come are left out."""
    return frozenset(name for bit, name in enumerate(CAPABILITIES) if mask >> bit & 1)


def _cgroup_layout() -> CgroupLayout | None:
    try:
        return CgroupLayout.detect(list_mounts())
    except Unsupported:
        return None


def _status(path: Path) -> dict[str, str]:
    pairs = (line.partition(":") for line in _text(path).splitlines())
    return {name: value.strip() for name, _, value in pairs}


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
