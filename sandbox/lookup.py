"""What a request names on the host, looked up: mount sources, devices, profiles, user files.

The spec builder is pure; everything it must know of the machine is found here, in calls that block
and therefore run in a thread, one container each, with no lock held: a hung network file system
blocks only the container that names it. Files of an image or a container are opened beneath the
root's descriptor only.
"""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from sandbox import errors
from sandbox.host import files
from sandbox.host.beneath import make_dirs_beneath
from sandbox.host.errors import InvalidArgument, NotFound, map_os_errors
from sandbox.host.mountinfo import mount_of
from sandbox.security.seccomp import localhost_path
from sandbox.spec.inputs import DeviceNode, ResolvedMount
from sandbox.spec.mounts import check_mount
from sandbox.users import FILE_LIMIT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from sandbox.host.idmap import IdMap
    from sandbox.model import CriDevice, CriMount, SecurityProfile, UserNamespace

#: A seccomp profile is a few dozen KiB; a document over this is not one (bytes).
PROFILE_LIMIT_BYTES: Final = 1024 * 1024
#: Below /dev, but not devices to hand to a privileged container: the container has its own.
_DEV_OWN: Final = frozenset({"pts", "shm", "fd", "mqueue", "console", "ptmx", ".lxc", ".udev"})
#: Top directories of a root that are not the image's in a container.
_MOUNTED_OVER: Final = frozenset({"proc", "sys", "dev"})
#: Flags of a mount that a remount must repeat; bits of statvfs(3).
_FLAGS: Final = {"nosuid": os.ST_NOSUID, "nodev": os.ST_NODEV, "noexec": os.ST_NOEXEC}


def resolve_mounts(
    wanted: Iterable[CriMount],
    images: Mapping[int, Path],
    *,
    recursive_read_only: bool,
    pod_user: UserNamespace | None = None,
) -> tuple[ResolvedMount, ...]:
    """Find the sources of the mounts; a missing one is made as a directory (0755), as pods rely on.

    A symbolic link in a host path is followed, once, here; the runtime gets the real path. Which
    paths of the host a container may have is the client's decision and not ours: the CRI says that
    links are followed, so whoever can change directories on the way of a path that a pod is given
    decides where it leads, before it was resolved as well as after. The kubelet knows that and
    gives, for sub paths of volumes, places that nobody else can change.

    Args:
        wanted: the request's.
        images: by place in `wanted`, where the image of an image volume is mounted.
        recursive_read_only: whether this node and runtime can do it.
        pod_user: the user namespace of the pod, None on the node's.

    Raises:
        InvalidArgument: a mount that `spec.mounts.check_mount` refuses.
        Denied, NotFound: the source cannot be reached or made.
    """
    mounts = tuple(wanted)
    for mount in mounts:  # all are checked before anything is made for one of them
        check_mount(mount, recursive_read_only=recursive_read_only, pod_user=pod_user)
    return tuple(
        _resolve_mount(mount) if mount.image is None else _resolve_image(mount, images[place])
        for place, mount in enumerate(mounts)
    )


def _resolve_image(mount: CriMount, root: Path) -> ResolvedMount:
    """The directory that an image volume shows.

    Every component is resolved inside the image, links included. The answer is a path without
    links, below a mount point of ours, in a file system that is read-only for everybody: nothing
    can make it lead elsewhere until the runtime binds it.

    Only a directory: single files are outside of the feature (KEP-4639, non-goals), and containerd
    refuses them too.
    """
    assert mount.image is not None
    with errors.image_volume(mount.image.image, mount.container_path):
        try:
            flags = os.O_PATH | os.O_DIRECTORY
            place = files.open_beneath(root, mount.image_sub_path or ".", flags)
        except NotFound as error:
            raise NotFound(
                "the image has no such sub path", sub_path=mount.image_sub_path
            ) from error
        except InvalidArgument as error:
            raise InvalidArgument(
                "the sub path is not a directory of the image", sub_path=mount.image_sub_path
            ) from error
        with place:
            source = Path(f"/proc/self/fd/{place.fileno()}").readlink()
        return ResolvedMount(
            mount=mount,
            source=source,
            source_flags=mount_flags(source),
        )


def _resolve_mount(mount: CriMount) -> ResolvedMount:
    source = Path(os.path.realpath(mount.host_path))
    with map_os_errors("mount source cannot be used", path=mount.host_path):
        if not source.exists():
            source.mkdir(mode=0o755, parents=True, exist_ok=True)
    holder = mount_of(source)
    propagation: Literal["private", "slave", "shared"] = "private"
    if "shared" in holder.propagation:
        propagation = "shared"
    elif "master" in holder.propagation:
        propagation = "slave"
    return ResolvedMount(
        mount=mount,
        source=source,
        source_propagation=propagation,
        source_flags=mount_flags(source),
    )


def mount_flags(path: Path) -> frozenset[str]:
    """Which of nosuid, nodev and noexec the mount has that holds `path`.

    Raises:
        NotFound, Denied: as the kernel says.
    """
    with map_os_errors("cannot look up the flags of a mount", path=str(path)):
        bits = os.statvfs(path).f_flag
    return frozenset(word for word, bit in _FLAGS.items() if bits & bit)


def resolve_devices(
    wanted: Iterable[CriDevice], *, owner: tuple[int | None, int | None] = (None, None)
) -> tuple[DeviceNode, ...]:
    """Look up the devices of a request; a directory stands for all devices below it.

    Args:
        wanted: the devices.
        owner: uid and gid of the nodes in the container; None for those of the host's node.

    Raises:
        NotFound: no such file on the host.
        InvalidArgument: it is not a device.
    """
    found: list[DeviceNode] = []
    for device in wanted:
        source = Path(os.path.realpath(device.host_path))
        with map_os_errors("device of the request", path=device.host_path):
            status = source.stat()
        if stat.S_ISDIR(status.st_mode):
            for below in sorted(source.rglob("*")):
                node = _device_node(
                    below,
                    f"{device.container_path}/{below.relative_to(source)}",
                    device.permissions,
                )
                if node is not None:
                    found.append(node)
            continue
        node = _device_node(source, device.container_path, device.permissions)
        if node is None:
            raise InvalidArgument(
                "the host path of a device is not a device", path=device.host_path
            )
        found.append(node)
    uid, gid = owner
    return tuple(
        replace(
            node,
            uid=node.uid if uid is None else uid,
            gid=node.gid if gid is None else gid,
        )
        for node in found
    )


def host_devices() -> tuple[DeviceNode, ...]:
    """Every device node of the host's /dev, for privileged containers."""
    return tuple(_walk_devices(Path("/dev")))


def _walk_devices(directory: Path) -> Iterator[DeviceNode]:
    for entry in sorted(os.scandir(directory), key=lambda item: item.name):
        if entry.name in _DEV_OWN or entry.is_symlink():
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk_devices(Path(entry.path))
            continue
        node = _device_node(Path(entry.path), entry.path, "rwm")
        if node is not None:
            yield node


def _device_node(path: Path, container_path: str, permissions: str) -> DeviceNode | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None  # it went while we looked
    kind: Literal["c", "b"]
    if stat.S_ISCHR(status.st_mode):
        kind = "c"
    elif stat.S_ISBLK(status.st_mode):
        kind = "b"
    else:
        return None
    return DeviceNode(
        container_path=container_path,
        kind=kind,
        major=os.major(status.st_rdev),
        minor=os.minor(status.st_rdev),
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        permissions=permissions or "rwm",
    )


def user_file(rootfs: Path, name: str) -> bytes | None:
    """The image's /etc/passwd or /etc/group, None when it has none.

    Resolved inside the root, regular files only, at most `users.FILE_LIMIT_BYTES`.

    Raises:
        ResourceExhausted: the file is larger.
        InvalidArgument: it is not a regular file, or leads somewhere else once the container runs.
    """
    path = f"etc/{name}"
    try:
        with files.open_beneath(rootfs, path, os.O_PATH) as place:
            real = Path(f"/proc/self/fd/{place.fileno()}").readlink()
    except NotFound:
        for prefix in ("etc", path):
            _refuse_link(rootfs, prefix)
        return None
    # The OCI runtimes open it once more, when these are mounted and no longer the image's.
    if real.relative_to(rootfs.resolve()).parts[0] in _MOUNTED_OVER:
        raise InvalidArgument(f"the image's /{path} leads into a file system of the kernel")
    return files.read_beneath(rootfs, path, limit_bytes=FILE_LIMIT_BYTES)


def _refuse_link(rootfs: Path, path: str) -> None:
    """Raise InvalidArgument if `path` is a link: one that leads to nothing, by now.

    The OCI runtimes follow it in the running container, where it may lead to a file that nobody
    should read for it: a read of /proc/kmsg waits for ever and takes the node's messages away.
    """
    try:
        with files.open_beneath(rootfs, path, os.O_PATH | os.O_NOFOLLOW) as place:
            if stat.S_ISLNK(os.fstat(place.fileno()).st_mode):
                raise InvalidArgument(f"the image's /{path} is a link that leads to nothing")
    except NotFound:
        return


def check_root(rootfs: Path) -> None:
    """Refuse an image that has a link where the kernel's file systems go.

    No image needs one, and not every OCI runtime looks: runc 1.1 mounts on what /dev leads to
    inside the root, but makes its links there (ptmx, fd, stdin) in what it leads to on the host
    (CVE-2026-41579).

    Raises:
        InvalidArgument: there is a link.
    """
    for name in sorted(_MOUNTED_OVER):
        if (rootfs / name).is_symlink():
            raise InvalidArgument(
                f"the image has a link at /{name}, where a container's own mount goes",
                hint="use an image with a directory there, or without it",
            )


def localhost_profile(profile: SecurityProfile | None, *, privileged: bool) -> bytes | None:
    """The bytes of a Localhost seccomp profile; None where another kind, or none, is asked for.

    Raises:
        InvalidArgument, ResourceExhausted: see `profile_file`.
    """
    path = localhost_path(profile, privileged=privileged)
    return profile_file(Path(path)) if path is not None else None


def profile_file(path: Path) -> bytes:
    """A localhost seccomp profile of the node; never an empty answer for a missing file.

    Raises:
        InvalidArgument: the file does not exist.
        ResourceExhausted: it is larger than any profile.
    """
    try:
        return files.read_limited(path, PROFILE_LIMIT_BYTES)
    except NotFound as error:
        raise InvalidArgument(
            "localhost seccomp profile does not exist",
            path=str(path),
            hint="put the profile there on this node, or correct localhostProfile",
        ) from error


def volume_directory(rootfs: Path, path: str, ids: IdMap | None = None) -> Path:
    """The directory of an image-declared volume inside the mounted root, made where missing.

    It lives in the container's writable layer, so what the image has there is seen without copying;
    bound over itself it stays writable under a read-only root. Every component is resolved inside
    the root, so no link of the image leads out (CVE-2022-23648). What is made belongs to root, in a
    user namespace with the mapping `ids` to root there.

    Raises:
        InvalidArgument: a component is not a directory.
    """
    return make_dirs_beneath(rootfs, path, owner=None if ids is None else ids.root)
