"""Mounts of ours between what a container is given and the runtime that binds it: user namespaces.

In a pod with a user namespace the OCI runtime binds sources as the pod's root, who may not reach
them: the kubelet's directories are for the node's root alone. And who owns what in them is seen
through the mapping that CRI asks for. So each source is mounted first at a place that the pod's
root can reach, with mapped owners where asked, by us; the runtime then binds the place. No runtime
has to know about mapped mounts (runc 1.1 does not).

Devices are made at such places too, with owners of the pod's where those are chosen, since nobody
can make one inside.

The places lie in the container's run directory, so what takes that down takes them too.
"""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import msgspec

from sandbox.host import files, mounts
from sandbox.host.errors import InvalidArgument, map_os_errors
from sandbox.host.mountinfo import list_mounts
from sandbox.model import MountPropagation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from sandbox.host.idmap import IdMap
    from sandbox.host.syscalls import Syscalls
    from sandbox.spec.inputs import DeviceNode, Edits, HostFacts, ResolvedMount

_FORMATS: Final = {"c": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}


def open_to_pod(directory: Path, ids: IdMap) -> None:
    """Make a directory that the node's root owns and the pod's root may pass through; blocking.

    Its group is the pod's root group and others may not even pass (CVE-2021-41091: passable
    directories let users of the node run what a container had made set-user-id).
    """
    files.make_private_dir(directory, mode=0o700)
    with map_os_errors("cannot make directory", path=str(directory)):
        os.chown(directory, -1, ids.root[1])
        directory.chmod(0o710)


def place_sources(
    resolved: Iterable[ResolvedMount],
    directory: Path,
    ids: IdMap,
    host: HostFacts,
    *,
    syscalls: Syscalls,
) -> tuple[ResolvedMount, ...]:
    """Mount each source below `directory`, mapped where the request says so; blocking.

    Args:
        resolved: the mounts of a request.
        directory: for the places; made.
        ids: the pod's mapping; that the requests have the same was checked before.
        host: for a runtime that binds the top of a source only, what is mounted below the places is
            given as mounts of their own.
        syscalls: the kernel.

    Raises:
        Unsupported: the file system of a source cannot map owners.
    """
    wanted = tuple(resolved)
    if not wanted:
        return ()
    open_to_pod(directory, ids)
    placed = [
        _place(item, directory / str(number), ids, syscalls) for number, item in enumerate(wanted)
    ]
    if not host.binds_top_only:
        return tuple(placed)
    taken = {item.mount.container_path.rstrip("/") for item in wanted}
    tops = {item.source for item in placed}
    below = [m.target for m in list_mounts() if m.target not in tops]
    return tuple(
        given
        for item in placed
        for given in (item, *_named(item, below))
        if given is item or given.mount.container_path not in taken
    )


def _named(item: ResolvedMount, targets: Iterable[Path]) -> Iterator[ResolvedMount]:
    """What is mounted below the place of `item`, as mounts of their own, shallow first."""
    found = {target for target in targets if item.source in target.parents}
    for target in sorted(found, key=lambda path: (len(path.parts), path)):
        path = f"{item.mount.container_path.rstrip('/')}/{target.relative_to(item.source)}"
        mount = msgspec.structs.replace(
            item.mount,
            container_path=path,
            # "Read-only" is said of the first mount, "recursively" of all.
            readonly=item.mount.recursive_read_only,
        )
        yield replace(item, mount=mount, source=target)


def _place(item: ResolvedMount, place: Path, ids: IdMap, syscalls: Syscalls) -> ResolvedMount:
    with map_os_errors("cannot make a place for a mount", path=str(place)):
        if item.source.is_dir():
            place.mkdir(mode=0o755, exist_ok=True)
        else:
            place.touch(mode=0o600)
    # Never shared: what is taken down here must not be taken down at the source as well.
    private = item.mount.propagation is MountPropagation.PRIVATE
    # The owners in an image are mapped already: the overlay is made of mapped layers.
    mapping = (ids.word,) if item.mount.uid_mappings and item.mount.image is None else ()
    words = ("rbind", "rprivate" if private else "rslave", *mapping)
    mounts.mount_one(mounts.Mount("bind", str(item.source), place, words), syscalls=syscalls)
    return replace(item, source=place)


def place_devices(
    asked: Iterable[DeviceNode],
    edits: Edits,
    directory: Path,
    ids: IdMap,
    *,
    owner: tuple[int | None, int | None],
    syscalls: Syscalls,
) -> tuple[tuple[DeviceNode, ...], Edits]:
    """Make the nodes of a request and of CDI below `directory`; blocking.

    They are in a file system of their own, because the run directory may be on one with `nodev`.

    Whoever chose an owner (CDI, or the node's setting that takes it from the security context)
    chose one of the container. The owner of the host's node, which is what a device of a request
    has otherwise, stays the host's, and so is nobody inside, unless it is one of the pod's ids: a
    disk of root:disk with 0660 must not be opened up by that the pod has a root of its own.

    Args:
        asked: devices of the request.
        edits: with devices of CDI.
        directory: for the places; made.
        ids: the pod's mapping.
        owner: uid and gid that were chosen for the devices of the request; None for the host's.
        syscalls: the kernel.

    Returns:
        Both, with the places in.

    Raises:
        InvalidArgument: an owner that does not exist in the pod's user namespace.
    """
    wanted, own = tuple(asked), edits.devices
    if not wanted and not own:
        return wanted, edits
    open_to_pod(directory, ids)
    top = directory / "devices"
    with map_os_errors("cannot make a place for devices", path=str(top)):
        top.mkdir(mode=0o710, exist_ok=True)
    words = ("nosuid", "noexec", "mode=710", f"gid={ids.root[1]}", "size=1m")
    mounts.mount_one(mounts.Mount("tmpfs", "devices", top, words), syscalls=syscalls)
    chosen = (owner[0] is not None, owner[1] is not None)
    made = tuple(_make(node, top / f"r{n}", ids, chosen) for n, node in enumerate(wanted))
    others = tuple(_make(node, top / f"c{n}", ids, (True, True)) for n, node in enumerate(own))
    return made, replace(edits, devices=others)


def _make(node: DeviceNode, place: Path, ids: IdMap, chosen: tuple[bool, bool]) -> DeviceNode:
    """Make a node; `chosen` says of user and group whether they are meant inside."""
    uid = ids.uids.to_outside(node.uid) if chosen[0] else node.uid
    gid = ids.gids.to_outside(node.gid) if chosen[1] else node.gid
    if uid is None or gid is None:
        raise InvalidArgument(
            f"the owner {node.uid}:{node.gid} of device {node.container_path} does not exist in the"
            " pod's user namespace",
            hint="choose ids below the length of the pod's mapping",
        )
    number = 0 if node.kind == "p" else os.makedev(node.major, node.minor)
    with map_os_errors("cannot make a device for the container", path=node.container_path):
        os.mknod(place, _FORMATS[node.kind] | 0o600, number)
        os.chown(place, uid, gid)
        place.chmod(stat.S_IMODE(node.mode) & 0o777)
    return replace(node, place=place)
