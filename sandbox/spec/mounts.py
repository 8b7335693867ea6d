"""The mounts of a container: defaults, the pod's files, image volumes, the client's own.

Order matters, because a mount covers what was mounted below it. The defaults come first; then the
pod's files, image volumes and CRI mounts together, shallow before deep (stable, so equals keep
the client's order). A default at or below a CRI mount's place is left out: the client replaces
that part of the tree (a CRI mount of /dev replaces /dev/pts too, as Docker and containerd do).
The pod's files are left out only where a CRI mount takes exactly their place. Of two CRI mounts
on one place the last one wins.

Nothing is given another owner here or anywhere else: a mount source belongs to the host. Its
SELinux label is changed by `sandbox.relabel` alone, where the client asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sandbox import oci
from sandbox.errors import IMAGE_VOLUME_PREFIX
from sandbox.host.errors import FailedPrecondition, InvalidArgument, Unsupported
from sandbox.mapping import own_user_namespace
from sandbox.model import (
    CriMount,
    ImageDefaults,
    MountPropagation,
    NamespaceMode,
    NamespaceOptions,
)
from sandbox.spec.paths import clean_path, depth, is_at_or_below

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from sandbox.model import UserNamespace
    from sandbox.spec.inputs import PodFiles, ResolvedMount

#: Most mounts a container may ask for; the kernel's own limit is 100 000 in a mount namespace.
MOUNTS_LIMIT: Final = 10_000

#: Words of CRI mount_options (mount(8)), in groups of which a mount may have one.
_OPTION_GROUPS: Final[tuple[frozenset[str], ...]] = (
    frozenset({"exec", "noexec"}),
    frozenset({"dev", "nodev"}),
    frozenset({"suid", "nosuid"}),
    frozenset({"atime", "noatime", "relatime", "strictatime"}),
    frozenset({"diratime", "nodiratime"}),
)
_ALLOWED_OPTIONS: Final = frozenset().union(*_OPTION_GROUPS)

_DEFAULT_NAMESPACES: Final = NamespaceOptions()
#: Group tty, see `default_mounts`.
_TTY_GROUP: Final = 5

_PROPAGATION: Final = {
    MountPropagation.PRIVATE: "rprivate",
    MountPropagation.HOST_TO_CONTAINER: "rslave",
    MountPropagation.BIDIRECTIONAL: "rshared",
}

#: Where a volume of an image is left out: kernel file systems, whose content is not the image's.
_NO_VOLUMES: Final = ("/proc", "/sys", "/dev")


def default_mounts(
    *, privileged: bool, namespaces: NamespaceOptions = _DEFAULT_NAMESPACES
) -> tuple[oci.Mount, ...]:
    """Kernel file systems of a container in a pod with these `namespaces`.

    The size of /dev and the group of its terminals (5 is tty in Debian, Fedora and Alpine) are what
    Docker and containerd use; where the pod's user namespace has no such group, root's is taken. A
    privileged container may write /sys and the cgroups.
    """
    access = "rw" if privileged else "ro"
    quiet = ("nosuid", "noexec", "nodev")
    user = own_user_namespace(namespaces)
    terminals = ("gid=5",) if user is None or user.gids[0].length > _TTY_GROUP else ()
    sysfs = oci.Mount(destination="/sys", type="sysfs", source="sysfs", options=(*quiet, access))
    if user is not None and namespaces.network is NamespaceMode.NODE:
        # sysfs shows a network namespace, and only who owns that may mount one. Recursively read-
        # only, because what is mounted below the host's (debugfs, bpf) comes along.
        sysfs = oci.Mount(
            destination="/sys",
            type="bind",
            source="/sys",
            options=("rbind", "rprivate", *quiet, "rro"),
        )
    return (
        oci.Mount(destination="/proc", type="proc", source="proc", options=quiet),
        dev_mount(),
        oci.Mount(
            destination="/dev/pts",
            type="devpts",
            source="devpts",
            options=(
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                *terminals,
            ),
        ),
        oci.Mount(destination="/dev/mqueue", type="mqueue", source="mqueue", options=quiet),
        sysfs,
        oci.Mount(
            destination="/sys/fs/cgroup",
            type="cgroup",
            source="cgroup",
            options=(*quiet, "relatime", access),
        ),
    )


def dev_mount() -> oci.Mount:
    """An empty /dev of 64 MiB; the runtime makes the nodes."""
    return oci.Mount(
        destination="/dev",
        type="tmpfs",
        source="tmpfs",
        options=("nosuid", "strictatime", "mode=755", "size=65536k"),
    )


def check_mount(
    mount: CriMount, *, recursive_read_only: bool, pod_user: UserNamespace | None = None
) -> str:
    """Check a request before anything of it is looked up; gives the cleaned container path.

    Args:
        mount: the request.
        recursive_read_only: whether this node and runtime can do it.
        pod_user: the user namespace of the pod, None on the node's.

    Raises:
        InvalidArgument: paths, options, or a combination that CRI forbids.
        Unsupported: recursive read-only where it cannot be had, or ids mapped as the pod's are not.
    """
    path = clean_path(mount.container_path, "the container path of a mount")
    if path == "/":
        raise InvalidArgument("a mount cannot replace the container's root", path=path)
    if bool(mount.host_path) == (mount.image is not None):
        raise InvalidArgument("a mount needs a host path or an image, not both", path=path)
    if mount.host_path:
        clean_path(mount.host_path, "the host path of a mount")
    _check_mapping(path, mount, pod_user)
    if mount.image is not None and mount.propagation is not MountPropagation.PRIVATE:
        raise InvalidArgument(
            f"{IMAGE_VOLUME_PREFIX}: an image volume needs private propagation", path=path
        )
    if mount.recursive_read_only:
        if not mount.readonly:
            raise InvalidArgument(
                "recursive_read_only needs readonly (RROUnsupported)",
                hint="set readonly on the mount as well",
                path=path,
            )
        if mount.propagation is not MountPropagation.PRIVATE:
            raise InvalidArgument(
                "recursive_read_only needs private propagation (RROUnsupported)", path=path
            )
        if not recursive_read_only:
            raise Unsupported(
                "RROUnsupported: this node cannot make mounts recursively read-only",
                hint="use Linux 5.12 and crun 1.4 or runc 1.1, or newer",
                path=path,
            )
    for option in mount.mount_options:
        if option not in _ALLOWED_OPTIONS:
            raise InvalidArgument(
                f"mount option is not allowed: {option[:32]!a}",
                hint=f"allowed: {', '.join(sorted(_ALLOWED_OPTIONS))}",
                path=path,
            )
    for group in _OPTION_GROUPS:
        if len(group.intersection(mount.mount_options)) > 1:
            both = " and ".join(sorted(group.intersection(mount.mount_options)))
            raise InvalidArgument(f"mount options contradict each other: {both}", path=path)
    return path


def _check_mapping(path: str, mount: CriMount, pod_user: UserNamespace | None) -> None:
    if mount.uid_mappings or mount.gid_mappings:
        have = (pod_user.uids, pod_user.gids) if pod_user is not None else ((), ())
        if (mount.uid_mappings, mount.gid_mappings) != have:
            raise Unsupported(
                "a mount's owners can be mapped only as the pod's user namespace maps them",
                hint="send the pod's own uids and gids with the mount",
                path=path,
            )
    if pod_user is not None and mount.propagation is MountPropagation.BIDIRECTIONAL:
        # The kernel makes every mount of a mount namespace with another owner a slave.
        raise InvalidArgument(
            "mounts made inside a user namespace never reach the node: bidirectional propagation"
            " needs a pod on the node's user namespace",
            hint="set hostUsers to true, or leave it unset",
            path=path,
        )


def image_volume_paths(image: ImageDefaults, mounts: Iterable[CriMount]) -> tuple[str, ...]:
    """For which of the image's volumes the caller must provide a directory.

    Those that no CRI mount takes the place of, and not those in kernel file systems (images made
    for systemd declare /sys/fs/cgroup; it is mounted anyway). The path comes from the image and
    must not steer the host: whoever copies the image's content into the directory opens it
    beneath the root file system.

    Raises:
        InvalidArgument: a volume that is relative, climbs with `..`, or is the root.
    """
    taken = {clean_path(item.container_path, "the container path of a mount") for item in mounts}
    wanted: list[str] = []
    for volume in image.volumes:
        path = clean_path(volume, "a volume of the image")
        if path == "/" or ".." in volume.split("/"):
            raise InvalidArgument(f"the image declares an unusable volume: {volume[:128]!a}")
        kernel = any(is_at_or_below(path, top) for top in _NO_VOLUMES)
        if not kernel and path not in taken and path not in wanted:
            wanted.append(path)
    return tuple(wanted)


def container_mounts(
    *,
    privileged: bool,
    readonly_rootfs: bool,
    files: PodFiles,
    volumes: Mapping[str, Path],
    mounts: Iterable[ResolvedMount],
    recursive_read_only: bool,
    namespaces: NamespaceOptions = _DEFAULT_NAMESPACES,
) -> tuple[tuple[oci.Mount, ...], str]:
    """All mounts in their order, and the root's propagation (empty for the runtime's default).

    Raises:
        InvalidArgument, Unsupported: see `check_mount`.
        FailedPrecondition: a source lies on a mount without the propagation that was asked for.
    """
    user = own_user_namespace(namespaces)
    asked: dict[str, ResolvedMount] = {}
    for item in mounts:
        path = check_mount(item.mount, recursive_read_only=recursive_read_only, pod_user=user)
        asked.pop(path, None)  # the last one wins, and takes its own turn in the order
        asked[path] = item
        if len(asked) > MOUNTS_LIMIT:
            raise InvalidArgument(f"a container has more than {MOUNTS_LIMIT} mounts")

    later = [
        *_file_mounts(files, readonly=readonly_rootfs),
        *(_bind(path, source, ("rprivate",)) for path, source in volumes.items()),
    ]
    later = [mount for mount in later if mount.destination not in asked]
    later += [_cri_bind(path, item) for path, item in asked.items()]
    later.sort(key=lambda mount: depth(mount.destination))

    first = [
        mount
        for mount in default_mounts(privileged=privileged, namespaces=namespaces)
        if not any(is_at_or_below(mount.destination, path) for path in asked)
    ]
    return (*first, *later), _root_propagation(asked.values())


def _file_mounts(files: PodFiles, *, readonly: bool) -> list[oci.Mount]:
    access = ("rprivate", "ro", *sorted(files.flags)) if readonly else ("rprivate",)
    named = (
        ("/etc/hosts", files.hosts, access),
        ("/etc/hostname", files.hostname, access),
        ("/etc/resolv.conf", files.resolv_conf, access),
        ("/dev/shm", files.shm, ("rprivate", "nosuid", "noexec", "nodev")),  # noqa: S108
    )
    return [_bind(path, source, options) for path, source, options in named if source is not None]


def _bind(destination: str, source: Path, options: Iterable[str]) -> oci.Mount:
    return oci.Mount(
        destination=destination,
        type="bind",
        source=clean_path(str(source), "the source of a mount"),
        options=("rbind", *options),
    )


def _cri_bind(path: str, item: ResolvedMount) -> oci.Mount:
    mount = item.mount
    _check_propagation(path, item)
    options = [_PROPAGATION[mount.propagation]]
    if mount.recursive_read_only:
        options.append("rro")
    elif mount.readonly or mount.image is not None:
        options.append("ro")
    # "rw" is never written: it makes newer runtimes remount, and so lose the source's own flags.
    for group in _OPTION_GROUPS:
        chosen = group.intersection(mount.mount_options)
        options += sorted(chosen or group & item.source_flags)
    return _bind(path, item.source, options)


def _check_propagation(path: str, item: ResolvedMount) -> None:
    asked, have = item.mount.propagation, item.source_propagation
    if asked is MountPropagation.BIDIRECTIONAL and have != "shared":
        raise FailedPrecondition(
            f"{item.source} lies on a mount that is {have}, not shared",
            hint="make the mount shared on the host (mount --make-rshared)",
            path=path,
        )
    if asked is MountPropagation.HOST_TO_CONTAINER and have == "private":
        raise FailedPrecondition(
            f"{item.source} lies on a mount that is private, not shared or slave",
            hint="make the mount shared on the host (mount --make-rshared)",
            path=path,
        )


def _root_propagation(mounts: Iterable[ResolvedMount]) -> str:
    """The runtime's default root is private to the container; a bind below it can be no more."""
    asked = {item.mount.propagation for item in mounts}
    if MountPropagation.BIDIRECTIONAL in asked:
        return "rshared"
    return "rslave" if MountPropagation.HOST_TO_CONTAINER in asked else ""
