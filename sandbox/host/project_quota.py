"""Project quota: a tree of files that may take only so much of its file system.

A directory is given a project's number and the mark that all made below it inherits the number;
the file system adds up what belongs to the project, and refuses more than the limit with EDQUOT.
ext4 can do it since Linux 4.5, XFS longer, both when mounted with `prjquota`. Who has
CAP_SYS_RESOURCE on the host is not held by limits (fs/quota/dquot.c, ignore_hardlimit).

quotactl_fd(2) (Linux 5.14) is used, which needs a directory and not the name of a device: the name
in mountinfo may not exist here at all. Numbers and layouts: linux/quota.h, linux/dqblk_xfs.h and
linux/fs.h. All functions block, briefly.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import from_os_error, map_os_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SYS_QUOTACTL_FD: Final = 443  # asm-generic/unistd.h
_PRJQUOTA: Final = 2  # linux/quota.h
_Q_GETQUOTA: Final = 0x800007
_Q_SETQUOTA: Final = 0x800008
_Q_GETNEXTQUOTA: Final = 0x800009
_QIF_BLIMITS: Final = 1
#: struct if_nextdqblk: hard and soft limit in blocks, bytes used, the same for inodes, two times,
#: what is valid; then the id. if_dqblk is the same without it.
_DQBLK: Final = struct.Struct("8Q2I")
#: QIF_DQBLKSIZE: limits are in blocks of 1 KiB.
_BLOCK_BYTES: Final = 1024
_Q_XGETQSTATV: Final = (ord("X") << 8) + 8  # linux/dqblk_xfs.h
#: struct fs_quota_statv begins with version, padding, flags; 256 bytes hold all of it.
_STATV: Final = struct.Struct("b x H 252x")
_FS_QSTATV_VERSION1: Final = 1
_FS_QUOTA_PDQ_ACCT: Final = 1 << 4
_FS_QUOTA_PDQ_ENFD: Final = 1 << 5
_FS_IOC_FSGETXATTR: Final = 0x801C581F  # linux/fs.h
_FS_IOC_FSSETXATTR: Final = 0x401C5820
#: struct fsxattr: xflags, extsize, nextents, projid, cowextsize.
_FSXATTR: Final = struct.Struct("5I 8x")
_FS_XFLAG_PROJINHERIT: Final = 0x200

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class QuotaState(Enum):
    """What a file system does for projects."""

    #: No accounts are kept: it cannot, or was not mounted for it.
    OFF = "off"
    #: Use is added up, limits are not kept (ext4 with the feature but without the mount option).
    COUNTED = "counted"
    ENFORCED = "enforced"


@dataclass(frozen=True, slots=True)
class ProjectUse:
    """What a project takes, and its hard limit (0: none)."""

    project: int
    used_bytes: int
    inodes: int
    limit_bytes: int


def quota_state(directory: Path) -> QuotaState:
    """What the file system of `directory` does. Raises NotFound; never because it cannot."""
    with _opened(directory) as fd:
        buffer = ctypes.create_string_buffer(_STATV.pack(_FS_QSTATV_VERSION1, 0), _STATV.size)
        try:
            _quotactl(fd, _Q_XGETQSTATV, 0, buffer)
        except OSError:
            return QuotaState.OFF  # ENOSYS and its like: no quota at all
        _, flags = _STATV.unpack(buffer.raw)
        if flags & _FS_QUOTA_PDQ_ENFD:
            return QuotaState.ENFORCED
        return QuotaState.COUNTED if flags & _FS_QUOTA_PDQ_ACCT else QuotaState.OFF


def project_of(directory: Path) -> int:
    """The project of a directory; 0 is that of everything that was given none.

    Raises:
        NotFound: it is gone.
        Unsupported: its file system knows no projects.
    """
    with _opened(directory) as fd, _reported("cannot read the project of a directory", directory):
        return int(_FSXATTR.unpack(_attributes(fd))[3])


def join_project(directory: Path, project: int) -> None:
    """Give an empty directory to a project, with all that will be made in it.

    Raises:
        Unsupported: its file system knows no projects.
    """
    with _opened(directory) as fd, _reported("cannot set the project of a directory", directory):
        flags, extent, extents, _, cow = _FSXATTR.unpack(_attributes(fd))
        wanted = _FSXATTR.pack(flags | _FS_XFLAG_PROJINHERIT, extent, extents, project, cow)
        fcntl.ioctl(fd, _FS_IOC_FSSETXATTR, wanted)


def use_of(directory: Path, project: int) -> ProjectUse:
    """What a project takes on the file system of `directory`.

    Raises:
        NotFound: no accounts are kept there (ESRCH).
    """
    with _opened(directory) as fd, _reported("cannot read project quota", directory):
        buffer = ctypes.create_string_buffer(_DQBLK.size)
        try:
            _quotactl(fd, _Q_GETQUOTA, project, buffer)
        except FileNotFoundError:  # XFS: nothing belongs to the project yet
            return ProjectUse(project, 0, 0, 0)
        return _use(project, buffer)


def limit_project(directory: Path, project: int, limit_bytes: int) -> None:
    """Set the hard limit of a project, rounded up to KiB; 0 takes it away.

    Raises:
        NotFound: no accounts are kept there (ESRCH).
    """
    blocks = -(-limit_bytes // _BLOCK_BYTES)
    with _opened(directory) as fd, _reported("cannot set project quota", directory):
        packed = _DQBLK.pack(blocks, 0, 0, 0, 0, 0, 0, 0, _QIF_BLIMITS, 0)
        _quotactl(fd, _Q_SETQUOTA, project, ctypes.create_string_buffer(packed, _DQBLK.size))


def projects_from(directory: Path, first: int) -> Iterator[ProjectUse]:
    """Projects that have limits or files, numbers from `first` on, in order."""
    wanted = first
    with _opened(directory) as fd:
        while True:
            buffer = ctypes.create_string_buffer(_DQBLK.size)
            try:
                _quotactl(fd, _Q_GETNEXTQUOTA, wanted, buffer)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ESRCH):
                    return
                raise from_os_error(error, "cannot list project quota") from error
            use = _use(_DQBLK.unpack(buffer.raw)[9], buffer)
            yield use
            wanted = use.project + 1


def _use(project: int, buffer: ctypes.Array[ctypes.c_char]) -> ProjectUse:
    hard, _, space, _, _, inodes, *_ = _DQBLK.unpack(buffer.raw)
    return ProjectUse(project, space, inodes, hard * _BLOCK_BYTES)


def _quotactl(fd: int, command: int, project: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
    result = _libc.syscall(
        ctypes.c_long(_SYS_QUOTACTL_FD),
        ctypes.c_int(fd),
        ctypes.c_uint(command << 8 | _PRJQUOTA),
        ctypes.c_uint(project),
        buffer,
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _attributes(fd: int) -> bytes:
    try:
        return fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, bytes(_FSXATTR.size))
    except OSError as error:
        if error.errno == errno.ENOTTY:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP)) from error
        raise


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    with map_os_errors("cannot open directory", path=str(directory)):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _reported(what: str, directory: Path) -> Iterator[None]:
    with map_os_errors(what, path=str(directory)):
        yield
