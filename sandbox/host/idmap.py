"""Ids inside a user namespace and outside, and mounts whose owners are seen through such a mapping.

An idmapped mount (mount_setattr(2), MOUNT_ATTR_IDMAP) shows a file that belongs to user 5 on the
disk as belonging to user 5 *of a user namespace*, whatever number that is outside. Nothing on the
disk is changed or copied, so one layer, one volume serve pods of any mapping at once.

The mount word is the one of mount(8): `X-mount.idmap=/path/to/a/user/namespace`.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sandbox.host import syscalls as sc
from sandbox.host.errors import PodwrightError, Unsupported, map_os_errors
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from pathlib import Path

#: mount(8), "X-mount.idmap=id-type:id-mount:id-host:id-range [id-type:...] | file".
WORD: Final = "X-mount.idmap"

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class IdRange:
    """One line of a mapping (user_namespaces(7)): `length` ids from `inside` on are `outside` on.

    For owners on a disk "inside" is the number on the disk.
    """

    inside: int
    outside: int
    length: int

    def to_outside(self, number: int) -> int | None:
        """The id outside that stands for `number` inside; None where it is not mapped."""
        offset = number - self.inside
        return self.outside + offset if 0 <= offset < self.length else None

    @property
    def line(self) -> str:
        """As /proc/PID/uid_map takes it."""
        return f"{self.inside} {self.outside} {self.length}\n"


@dataclass(frozen=True, slots=True)
class IdMap:
    """Both mappings of a user namespace.

    Attributes:
        uids: of users.
        gids: of groups.
        namespace: where the user namespace with just these mappings is pinned.
    """

    uids: IdRange
    gids: IdRange
    namespace: Path

    @property
    def root(self) -> tuple[int, int]:
        """User and group outside that are root inside; a pod's mapping always has them."""
        return self.owner(0, 0)

    def owner(self, uid: int, gid: int) -> tuple[int, int]:
        """Owners outside of a file that belongs to these inside.

        An owner that is not mapped becomes the first of the range: nobody inside could see the
        difference between such a file and one of nobody's, and no file may get an owner of the
        node's.
        """
        outside_uid, outside_gid = self.uids.to_outside(uid), self.gids.to_outside(gid)
        return (
            self.uids.outside if outside_uid is None else outside_uid,
            self.gids.outside if outside_gid is None else outside_gid,
        )

    @property
    def word(self) -> str:
        """The mount word for a mount with this mapping."""
        return f"{WORD}={self.namespace}"


def mount_idmapped(
    source: str, target: Path, namespace: str, *, recursive: bool, syscalls: sc.Syscalls
) -> None:
    """Bind `source` to `target` with owners as in the user namespace pinned at `namespace`.

    With `recursive` the mounts below are taken along, and mapped as well where all of them can be.
    Otherwise (a proc or a network file system is among them) they are not: the owners of their
    files are then nobody's inside.

    Raises:
        NotFound: source or target is missing.
        Unsupported: the kernel, or the file system of `source`, cannot do it.
    """
    below = sc.AT_RECURSIVE if recursive else 0
    with map_os_errors("cannot open user namespace", path=namespace):
        userns = os.open(namespace, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        tree = syscalls.open_tree(sc.AT_FDCWD, source, sc.OPEN_TREE_CLONE | below)
        try:
            try:
                _map(tree, userns, below, syscalls)
            except Unsupported as error:
                if not recursive:
                    raise
                # All or none is what the kernel did, so the first mount can still be mapped.
                _map(tree, userns, 0, syscalls)
                _log.info("owners below a mount are not mapped", path=source, reason=str(error))
            syscalls.move_mount(tree, "", sc.AT_FDCWD, target, sc.MOVE_MOUNT_F_EMPTY_PATH)
        finally:
            os.close(tree)
    finally:
        os.close(userns)


def _map(tree: int, userns: int, below: int, syscalls: sc.Syscalls) -> None:
    try:
        syscalls.mount_setattr(
            tree,
            "",
            sc.AT_EMPTY_PATH | below,
            attr_set=sc.MOUNT_ATTR_IDMAP,
            userns_fd=userns,
        )
    except PodwrightError as error:
        raise _cannot(error) from error


def _cannot(error: PodwrightError) -> PodwrightError:
    """What mount_setattr(2) means by its numbers."""
    match sc.errno_of(error):
        case errno.EINVAL:
            reason = "its file system cannot map owners"
        case errno.EPERM:
            reason = "its owners are mapped already"
        case errno.ENOSYS:
            reason = "the kernel is older than Linux 5.12"
        case _:
            return error
    return Unsupported(
        f"owners of files cannot be mapped: {reason}",
        hint="use ext4, XFS, btrfs or tmpfs of a recent kernel, or a pod with hostUsers: true",
    )
