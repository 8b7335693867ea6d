"""The system calls we need and Python does not have, as one protocol, with the kernel's numbers.

Why a protocol: every step that changes the machine can then be recorded and told to fail in a test
(`tests/fakes/syscalls.py` derives its methods from this class). Every method raises the
`PodwrightError` its errno stands for, with the `OSError` as cause; `errno_of` gets the number back
where the exact one matters (EINVAL of umount2 means "not a mount").
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox.host.errors import PodwrightError

# sys/mount.h (glibc 2.36), linux/mount.h: flags of mount(2).
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_SYNCHRONOUS: Final = 16
MS_REMOUNT: Final = 32
MS_MANDLOCK: Final = 64
MS_DIRSYNC: Final = 128
MS_NOSYMFOLLOW: Final = 256
MS_NOATIME: Final = 1024
MS_NODIRATIME: Final = 2048
MS_BIND: Final = 4096
MS_MOVE: Final = 8192
MS_REC: Final = 16384
MS_SILENT: Final = 32768
MS_UNBINDABLE: Final = 1 << 17
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20
MS_RELATIME: Final = 1 << 21
MS_STRICTATIME: Final = 1 << 24
MS_LAZYTIME: Final = 1 << 25

# umount(2).
MNT_FORCE: Final = 1
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8

# linux/mount.h: attributes of fsmount(2) and mount_setattr(2).
MOUNT_ATTR_RDONLY: Final = 0x01
MOUNT_ATTR_NOSUID: Final = 0x02
MOUNT_ATTR_NODEV: Final = 0x04
MOUNT_ATTR_NOEXEC: Final = 0x08
MOUNT_ATTR_ATIME_MASK: Final = 0x70  # "_ATIME" in the header: the field, not a value
MOUNT_ATTR_RELATIME: Final = 0x00
MOUNT_ATTR_NOATIME: Final = 0x10
MOUNT_ATTR_STRICTATIME: Final = 0x20
MOUNT_ATTR_NODIRATIME: Final = 0x80
MOUNT_ATTR_IDMAP: Final = 0x100000
MOUNT_ATTR_NOSYMFOLLOW: Final = 0x200000
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x04
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
FSOPEN_CLOEXEC: Final = 1
FSMOUNT_CLOEXEC: Final = 1
FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_SET_FD: Final = 5
FSCONFIG_CMD_CREATE: Final = 6
OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC

# linux/fcntl.h.
AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

# linux/sched.h: namespaces of unshare(2) and setns(2).
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

# linux/openat2.h.
RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

# linux/magic.h: f_type of statfs(2).
NSFS_MAGIC: Final = 0x6E736673
TMPFS_MAGIC: Final = 0x01021994
OVERLAYFS_MAGIC: Final = 0x794C7630
EROFS_MAGIC: Final = 0xE0F5E1E2
CGROUP_MAGIC: Final = 0x27E0EB
CGROUP2_MAGIC: Final = 0x63677270

# sys/inotify.h.
IN_MODIFY: Final = 0x002
IN_ATTRIB: Final = 0x004
IN_CLOSE_WRITE: Final = 0x008
IN_MOVED_FROM: Final = 0x040
IN_MOVED_TO: Final = 0x080
IN_CREATE: Final = 0x100
IN_DELETE: Final = 0x200
IN_DELETE_SELF: Final = 0x400
IN_MOVE_SELF: Final = 0x800
IN_UNMOUNT: Final = 0x2000
IN_Q_OVERFLOW: Final = 0x4000
IN_IGNORED: Final = 0x8000
IN_ONLYDIR: Final = 0x01000000
IN_ISDIR: Final = 0x40000000

# linux/fs.h: inode flags of FS_IOC_GETFLAGS.
FS_IMMUTABLE_FL: Final = 0x10
FS_APPEND_FL: Final = 0x20


@dataclass(frozen=True, slots=True)
class FileSystemStat:
    """What statfs(2) says; sizes in bytes, `type` is the magic number."""

    type: int
    total_bytes: int
    free_bytes: int
    available_bytes: int
    inodes: int
    inodes_free: int


def errno_of(error: PodwrightError) -> int:
    """The errno behind `error`, or 0 when no OSError caused it."""
    cause = error.__cause__
    return cause.errno or 0 if isinstance(cause, OSError) else 0


class Syscalls(Protocol):
    """Thin typed system calls; the man page of each method's name in section 2 is its manual.

    Paths are given to the kernel as they are; who wants no symlinks followed says so by a flag or
    a descriptor. Descriptors returned are plain numbers, close-on-exec, owned by the caller.
    """

    def mount(
        self, source: str, target: str | Path, fstype: str, flags: int = 0, data: str = ""
    ) -> None:
        """Section 2, mount; an empty `data` is passed as NULL."""
        ...

    def umount2(self, target: str | Path, flags: int = 0) -> None:
        """Section 2, umount2."""
        ...

    def unshare(self, flags: int) -> None:
        """Section 2, unshare, for the calling thread."""
        ...

    def setns(self, fd: int, kind: int) -> None:
        """Section 2, setns, for the calling thread; `kind` is the CLONE_NEW flag or 0."""
        ...

    def sethostname(self, name: str) -> None:
        """Section 2, sethostname, in the calling thread's UTS namespace."""
        ...

    def set_link_up(self, name: str) -> None:
        """netdevice(7) SIOCSIFFLAGS: IFF_UP on, in the calling thread's network namespace."""
        ...

    def mknodat(self, dirfd: int, path: str, mode: int, device: int) -> None:
        """Section 2, mknodat; `mode` with the file type, `device` as from os.makedev."""
        ...

    def lsetxattr(self, path: str | Path, name: str, value: bytes, flags: int = 0) -> None:
        """Section 2, lsetxattr: a symlink itself, not what it points to."""
        ...

    def fsetxattr(self, fd: int, name: str, value: bytes, flags: int = 0) -> None:
        """Section 2, fsetxattr."""
        ...

    def statfs(self, path: str | Path) -> FileSystemStat:
        """Section 2, statfs."""
        ...

    def fstatfs(self, fd: int) -> FileSystemStat:
        """Section 2, fstatfs; an O_PATH descriptor is enough."""
        ...

    def openat2(
        self, dirfd: int, path: str | Path, flags: int, mode: int = 0, resolve: int = 0
    ) -> int:
        """Section 2, openat2, Linux 5.6; O_CLOEXEC is always added."""
        ...

    def pidfd_open(self, pid: int) -> int:
        """Section 2, pidfd_open."""
        ...

    def pidfd_send_signal(self, pidfd: int, signal: int) -> None:
        """Section 2, pidfd_send_signal."""
        ...

    def set_child_subreaper(self, enabled: bool) -> None:
        """Section 2, prctl PR_SET_CHILD_SUBREAPER of this process."""
        ...

    def fsopen(self, fstype: str) -> int:
        """Section 2, fsopen, Linux 5.2."""
        ...

    def fsconfig_flag(self, fd: int, key: str) -> None:
        """Section 2, fsconfig FSCONFIG_SET_FLAG."""
        ...

    def fsconfig_string(self, fd: int, key: str, value: str) -> None:
        """Section 2, fsconfig FSCONFIG_SET_STRING; the kernel takes at most 255 bytes of value."""
        ...

    def fsconfig_fd(self, fd: int, key: str, value: int) -> None:
        """Section 2, fsconfig FSCONFIG_SET_FD."""
        ...

    def fsconfig_create(self, fd: int) -> None:
        """Section 2, fsconfig FSCONFIG_CMD_CREATE."""
        ...

    def fsmount(self, fd: int, attributes: int = 0) -> int:
        """Section 2, fsmount."""
        ...

    def move_mount(
        self, from_fd: int, from_path: str, to_fd: int, to_path: str | Path, flags: int
    ) -> None:
        """Section 2, move_mount."""
        ...

    def open_tree(self, dirfd: int, path: str | Path, flags: int) -> int:
        """Section 2, open_tree."""
        ...

    def mount_setattr(
        self,
        dirfd: int,
        path: str | Path,
        flags: int,
        *,
        attr_set: int = 0,
        attr_clr: int = 0,
        propagation: int = 0,
        userns_fd: int = 0,
    ) -> None:
        """Section 2, mount_setattr, Linux 5.12."""
        ...

    def syncfs(self, fd: int) -> None:
        """Section 2, syncfs."""
        ...

    def renameat2(
        self, from_fd: int, from_path: str | Path, to_fd: int, to_path: str | Path, flags: int = 0
    ) -> None:
        """Section 2, renameat2."""
        ...

    def inotify_init1(self) -> int:
        """Section 2, inotify_init1, non-blocking."""
        ...

    def inotify_add_watch(self, fd: int, path: str | Path, mask: int) -> int:
        """Section 2, inotify_add_watch; the watch descriptor."""
        ...

    def inotify_rm_watch(self, fd: int, watch: int) -> None:
        """Section 2, inotify_rm_watch."""
        ...

    def get_inode_flags(self, fd: int) -> int:
        """Section 2, ioctl_iflags FS_IOC_GETFLAGS."""
        ...

    def set_inode_flags(self, fd: int, flags: int) -> None:
        """Section 2, ioctl_iflags FS_IOC_SETFLAGS."""
        ...
