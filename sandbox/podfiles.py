"""The small files and the shared memory that all containers of a pod see.

resolv.conf, hostname and hosts are written by us into the pod's run directory and bind-mounted into
its containers; nothing is ever written into a container's own root file system, so a link planted
in an image cannot lead a write of ours anywhere.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandbox.host import files, mounts
from sandbox.host.errors import NotFound, map_os_errors
from sandbox.host.lsm_files import set_selinux_label
from sandbox.mapping import id_map
from sandbox.model import NamespaceMode

if TYPE_CHECKING:
    from sandbox.host.idmap import IdMap
    from sandbox.host.syscalls import Syscalls
    from sandbox.model import DnsConfig, PodSandbox
    from sandbox.paths import Paths

#: /dev/shm of a pod, 64 MiB as containerd and CRI-O give it (bytes).
SHM_SIZE_BYTES: Final = 64 * 1024 * 1024
#: resolv.conf and hosts of the node are copied when the pod brings none; more is not a text file.
HOST_FILE_LIMIT_BYTES: Final = 1024 * 1024

_HOSTS_HEAD: Final = (
    "127.0.0.1\tlocalhost\n"
    "::1\tlocalhost ip6-localhost ip6-loopback\n"
    "fe00::0\tip6-localnet\n"
    "fe00::0\tip6-mcastprefix\n"
    "fe00::1\tip6-allnodes\n"
    "fe00::2\tip6-allrouters\n"
)


def hostname_of(pod: PodSandbox) -> str:
    """The node's name on the host network, else the one asked for, else 12 digits of the id."""
    if pod.config.security.namespaces.network is NamespaceMode.NODE:
        return socket.gethostname()
    return pod.config.hostname or pod.id[:12]


def resolv_conf(dns: DnsConfig) -> str:
    """The text of resolv.conf(5) for a DNSConfig; its strings were checked at the border."""
    lines = []
    if dns.searches:
        lines.append("search " + " ".join(dns.searches))
    lines += [f"nameserver {server}" for server in dns.servers]
    if dns.options:
        lines.append("options " + " ".join(dns.options))
    return "".join(line + "\n" for line in lines)


def write_pod_files(pod: PodSandbox, paths: Paths, hostname: str) -> None:
    """Make the pod's run directory with resolv.conf and hostname; blocking.

    Raises:
        ResourceExhausted: the disk is full.
    """
    directory = paths.pod(pod.id)
    files.make_private_dir(directory, mode=0o711)
    dns = pod.config.dns
    if dns is not None and (dns.servers or dns.searches or dns.options):
        text = resolv_conf(dns)
    else:
        text = _host_text(Path("/etc/resolv.conf"))
    ids = id_map(pod, paths)
    # 0644: programs inside a container run as any user and must be able to read them.
    _write(directory / "resolv.conf", text, ids)
    _write(directory / "hostname", hostname + "\n", ids)


def write_hosts(pod: PodSandbox, paths: Paths, hostname: str) -> None:
    """Write the pod's /etc/hosts once its addresses are known; blocking.

    The kubelet brings an /etc/hosts of its own; this one serves every other client.
    """
    if pod.config.security.namespaces.network is NamespaceMode.NODE:
        text = _host_text(Path("/etc/hosts"))
    else:
        text = _HOSTS_HEAD + "".join(f"{ip}\t{hostname}\n" for ip in pod.ips)
    _write(paths.pod(pod.id) / "hosts", text, id_map(pod, paths))


def label_pod_files(pod: PodSandbox, paths: Paths, label: str, *, syscalls: Syscalls) -> None:
    """Give the pod's small files its SELinux label, where it has one; blocking."""
    if label:
        for name in ("resolv.conf", "hostname", "hosts"):
            file = paths.pod(pod.id) / name
            if file.exists():
                set_selinux_label(file, label, syscalls=syscalls)


def mount_shm(pod: PodSandbox, paths: Paths, label: str, *, syscalls: Syscalls) -> None:
    """Mount the pod's /dev/shm, labelled where it has a label, unless it shares the node's.

    Blocking.
    """
    if pod.config.security.namespaces.ipc is NamespaceMode.NODE:
        return
    target = paths.shm(pod.id)
    files.make_private_dir(target, mode=0o711)
    options = ["nosuid", "noexec", "nodev", "mode=1777", f"size={SHM_SIZE_BYTES}"]
    if label:
        options.append(f'context="{label}"')
    ids = id_map(pod, paths)
    if ids is not None:
        options += [f"uid={ids.root[0]}", f"gid={ids.root[1]}"]
    mounts.mount_one(
        mounts.Mount(type="tmpfs", source="shm", target=target, options=tuple(options)),
        syscalls=syscalls,
    )


def unmount_all(pod: PodSandbox, paths: Paths, *, syscalls: Syscalls) -> None:
    """Take away what `mount_shm` and `place_pause` have mounted; idempotent, blocking.

    By name, for these two places are all that there is. To look for mounts in the kernel's list
    took up to 4 ms on a node with one pod, and grows with their number: it is only done at the
    removal, and only if the directory does not go (`mounts.clear_away`).

    Raises:
        PodwrightError: as `mounts.unmount`.
    """
    for target in (paths.shm(pod.id), paths.pod(pod.id) / "rootfs"):
        mounts.unmount(target, syscalls=syscalls)


def _host_text(path: Path) -> str:
    try:
        return files.read_limited(path, HOST_FILE_LIMIT_BYTES).decode("utf-8", "replace")
    except NotFound:
        return ""


def _write(path: Path, text: str, ids: IdMap | None) -> None:
    """In a user namespace root there is the owner: root in a container may edit its /etc/hosts."""
    files.write_atomic(path, text.encode(), mode=0o644, durable=False)
    if ids is not None:
        with map_os_errors("cannot give file to the pod's root", path=str(path)):
            os.chown(path, *ids.root, follow_symlinks=False)


def pause_root(pod: PodSandbox, paths: Paths) -> Path:
    """The root of the pod's pause process.

    The one that all share, but in a user namespace: its root could not reach a place that only the
    node's root may pass through, so there it is bound into the pod's directory.
    """
    mapped = id_map(pod, paths) is not None
    return paths.pod(pod.id) / "rootfs" if mapped else paths.pause_rootfs


def place_pause(pod: PodSandbox, paths: Paths, *, syscalls: Syscalls) -> None:
    """Have the root of the pause process where `pause_root` says; blocking."""
    target = pause_root(pod, paths)
    if target == paths.pause_rootfs:
        return
    files.make_private_dir(paths.pod(pod.id), mode=0o711)
    files.make_private_dir(target, mode=0o755)
    mounts.mount_one(
        mounts.Mount("bind", str(paths.pause_rootfs), target, ("bind", "ro", "nosuid", "nodev")),
        syscalls=syscalls,
    )


def install_pause(program: Path, rootfs: Path) -> None:
    """Make the root that pause processes share: the program and empty mount points; blocking.

    Raises:
        PodwrightError: the program cannot be read, or the root cannot be made.
    """
    # Passable for anybody: in a user namespace even its root is nobody here.
    files.make_private_dir(rootfs, mode=0o755)
    for name in ("proc", "dev", "sys", "etc"):
        files.make_private_dir(rootfs / name, mode=0o755)
    with map_os_errors(
        "cannot read the pause program",
        hint="install catatonit, or set runtime.pause_path",
        path=str(program),
    ):
        content = program.read_bytes()
    files.remove_temporaries(rootfs)
    target = rootfs / "catatonit"
    if not target.exists() or target.read_bytes() != content:
        files.write_atomic(target, content, mode=0o755)
