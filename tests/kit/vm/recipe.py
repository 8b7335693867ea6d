"""What the virtual machine of `hack/vm` is made of: packages, kernels, flags, units left out.

Pure data, hashed together with the modules that act on it: a change of any of them makes a machine
anew, beside the old one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent

#: Name as on the command line -> suite of Debian that has it. 6.12 is the first with file-backed
#: mounts of EROFS and has idmapped tmpfs (6.3); 6.1 is Debian 12's own.
KERNELS: Final = {"6.12": "bookworm-backports", "6.1": "bookworm"}
KERNEL_PACKAGE: Final = "linux-image-cloud-amd64"
#: Of the package that it depends on, which holds the kernel.
KERNEL_PREFIX: Final = "linux-image-6"

#: QEMU 10 forks and executes twice as fast as Debian 12's 7.2 under emulation. Unpacked, never
#: installed; its libraries are those of the 7.2 that is.
QEMU_SUITE: Final = "bookworm-backports"
QEMU_PACKAGES: Final = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios")

SOURCES: Final = (
    ("http://deb.debian.org/debian", "bookworm"),
    ("http://deb.debian.org/debian", "bookworm-updates"),
    ("http://deb.debian.org/debian", "bookworm-backports"),
    ("http://deb.debian.org/debian-security", "bookworm-security"),
)
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"

#: Everything a node has, and what the tests call.
PACKAGES: Final = (
    *("systemd", "systemd-sysv", "dbus", "libpam-systemd", "kmod", "procps", "util-linux"),
    *("python3", "python3-venv", "busybox-static", "curl", "strace", "ca-certificates"),
    *("crun", "runc", "conmon", "catatonit", "containernetworking-plugins", "docker-registry"),
    *("iptables", "nftables", "iproute2", "apparmor", "uidmap", "libseccomp2", "libcap2-bin"),
    *("e2fsprogs", "xfsprogs", "quota", "openssl", "gcc", "libc6-dev", "sudo"),
)

#: Never read inside, and half of the bytes.
LEFT_OUT: Final = (
    *("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"),
    *("/usr/share/i18n/*", "/usr/lib/udev/hwdb.d/*", "/usr/lib/x86_64-linux-gnu/gconv/*"),
)

#: Units that only cost time in a machine that lives for minutes and has no devices to wait for.
MASKED: Final = (
    *("systemd-udevd.service", "systemd-udev-trigger.service", "systemd-udev-settle.service"),
    *("systemd-udevd-control.socket", "systemd-udevd-kernel.socket", "systemd-hwdb-update.service"),
    *("systemd-random-seed.service", "systemd-firstboot.service", "systemd-journal-flush.service"),
    *(
        "systemd-machine-id-commit.service",
        "systemd-update-utmp.service",
        "systemd-sysusers.service",
    ),
    *(
        "systemd-update-utmp-runlevel.service",
        "systemd-timesyncd.service",
        "systemd-pstore.service",
    ),
    *("systemd-networkd.service", "systemd-resolved.service", "systemd-boot-system-token.service"),
    *("systemd-remount-fs.service", "systemd-fsck-root.service", "e2scrub_reap.service"),
    *("getty@tty1.service", "serial-getty@ttyS0.service", "getty.target", "console-getty.service"),
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer"),
    *("e2scrub_all.timer", "systemd-tmpfiles-clean.timer", "xfs_scrub_all.timer"),
    *("docker-registry.service", "dm-event.service", "quota.service", "quotaon.service"),
    *("nftables.service", "dev-ttyS0.device", "dev-hugepages.mount", "sys-kernel-debug.mount"),
)

#: Directories of the kernel's modules that containers, their networks and file systems come from.
MODULE_FOLDERS: Final = (
    *("arch", "block", "crypto", "lib", "mm", "net"),
    *("drivers/net", "drivers/block", "drivers/virtio", "drivers/char", "drivers/md"),
    *(
        "fs/overlayfs",
        "fs/autofs",
        "fs/fuse",
        "fs/erofs",
        "fs/squashfs",
        "fs/ext4",
        "fs/jbd2",
        "fs/quota",
    ),
    *("fs/xfs", "fs/nls", "fs/binfmt_misc.ko"),
)
#: Before there is a root file system, in an order that satisfies each (their needs come along).
EARLY_MODULES: Final = (
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio_rng",
    "quota_v2",
    "ext4",
)
#: Loaded before the state is saved, so that no test waits for them.
WARM_MODULES: Final = (
    *("overlay", "erofs", "bridge", "veth", "loop", "fuse", "br_netfilter", "nf_tables"),
    *("nft_compat", "nft_chain_nat", "xt_nat", "xt_addrtype", "xt_comment", "xt_conntrack"),
    *("xt_MASQUERADE", "xt_mark", "xt_tcpudp", "xt_multiport", "dummy", "macvlan", "ipvlan"),
)

#: cgroup v2 only, AppArmor, PSI, swap accounting; the rest makes emulation quick and predictable.
KERNEL_LINE: Final = (
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check tsc=reliable "
    "rcupdate.rcu_expedited=1 random.trust_cpu=on cgroup_no_v1=all "
    "systemd.unified_cgroup_hierarchy=1 psi=1 swapaccount=1 apparmor=1 security=apparmor "
    "lsm=landlock,lockdown,yama,integrity,apparmor,bpf systemd.show_status=0"
)

#: QEMU 7.2 computes wrong flags for cmpxchg16b, on which Linux 6.12 crashes within seconds: off.
MACHINE: Final = (
    *("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off,cx16=off"),
    *("-smp", "2", "-m", "3G", "-nodefaults", "-no-reboot", "-display", "none"),
)

#: Sizes of the disks (bytes); sparse. Fixed, since a saved machine remembers them.
ROOT_BYTES: Final = 4 << 30
PACKAGES_BYTES: Final = 2 << 30
TREE_BYTES: Final = 512 << 20


def fingerprint(*modules: str, extra: str = "") -> str:
    """Twelve hex digits that change with the text of `modules` (of this folder) and `extra`."""
    state = hashlib.sha256(extra.encode())
    for name in modules:
        state.update((HERE / f"{name}.py").read_bytes())
    return state.hexdigest()[:12]
