"""`LibcSyscalls`: the protocol of syscalls.py on the real kernel, through ctypes.

Why ctypes: Python 3.11 has no mount, setns or openat2, and a compiled helper would tie the package
to an architecture. ctypes releases the interpreter lock during a call, so a slow mount in a thread
does not stop the daemon. Calls older than 2019 go through glibc's wrappers; for younger ones the
system call number is used, because it is the same on every architecture since 5.0 (424 and up,
asm-generic/unistd.h) and an older libc may lack the wrapper.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal as signals
import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import InvalidArgument, from_os_error
from sandbox.host.syscalls import (
    FSCONFIG_CMD_CREATE,
    FSCONFIG_SET_FD,
    FSCONFIG_SET_FLAG,
    FSCONFIG_SET_STRING,
    FSMOUNT_CLOEXEC,
    FSOPEN_CLOEXEC,
    FileSystemStat,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

# asm-generic/unistd.h.
_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_FSOPEN: Final = 430
_SYS_FSCONFIG: Final = 431
_SYS_FSMOUNT: Final = 432
_SYS_OPENAT2: Final = 437
_SYS_MOUNT_SETATTR: Final = 442

_PR_SET_CHILD_SUBREAPER: Final = 36  # linux/prctl.h
_SIOCGIFFLAGS: Final = 0x8913  # linux/sockios.h
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1  # net/if.h
_IFREQ: Final = struct.Struct("16sH22x")  # struct ifreq, 40 bytes on 64-bit
# linux/fs.h: _IOR('f', 1, long) and _IOW('f', 2, long) of a 64-bit kernel.
_FS_IOC_GETFLAGS: Final = 0x80086601
_FS_IOC_SETFLAGS: Final = 0x40086602
_IN_CLOEXEC: Final = 0o2000000
_IN_NONBLOCK: Final = 0o4000


_OPEN_HOW: Final = struct.Struct("3Q")  # linux/openat2.h: flags, mode, resolve
_MOUNT_ATTR: Final = struct.Struct("4Q")  # linux/mount.h: set, clr, propagation, userns_fd
# bits/statfs.h, 64-bit: type, bsize, blocks, bfree, bavail, files, ffree, fsid, namelen, frsize,
# flags, spare.
_STATFS: Final = struct.Struct("2q5Q2i3q4q")

for _name, _argtypes in {
    "mount": (
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_ulong,
        ctypes.c_char_p,
    ),
    "umount2": (ctypes.c_char_p, ctypes.c_int),
    "unshare": (ctypes.c_int,),
    "setns": (ctypes.c_int, ctypes.c_int),
    "statfs": (ctypes.c_char_p, ctypes.c_void_p),
    "fstatfs": (ctypes.c_int, ctypes.c_void_p),
    "prctl": (ctypes.c_int, *(ctypes.c_ulong,) * 4),
    "syncfs": (ctypes.c_int,),
    "renameat2": (
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_uint,
    ),
    "inotify_init1": (ctypes.c_int,),
    "inotify_add_watch": (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32),
    "inotify_rm_watch": (ctypes.c_int, ctypes.c_int),
}.items():
    _function = getattr(_libc, _name)
    _function.argtypes = _argtypes
    _function.restype = ctypes.c_int
_libc.syscall.restype = ctypes.c_long


def _bytes(text: str | Path, what: str) -> bytes:
    """`text` for the kernel; a NUL inside would cut it there, so it is refused."""
    raw = os.fsencode(text)
    if b"\0" in raw:
        raise InvalidArgument(f"{what}: text contains a NUL byte")
    return raw


def _checked(result: int, what: str, path: str | Path = "") -> int:
    if result >= 0:
        return result
    number = ctypes.get_errno()
    error = OSError(number, os.strerror(number))
    raise from_os_error(error, what, path=os.fspath(path) or None) from error


@contextmanager
def _mapped(what: str, path: str | Path = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise from_os_error(error, what, path=os.fspath(path) or None) from error


def _statfs_value(raw: bytes) -> FileSystemStat:
    kind, bsize, blocks, bfree, bavail, files, ffree, _, _, _, frsize, *_ = _STATFS.unpack(raw)
    unit = frsize or bsize
    return FileSystemStat(
        type=kind & 0xFFFFFFFF,
        total_bytes=blocks * unit,
        free_bytes=bfree * unit,
        available_bytes=bavail * unit,
        inodes=files,
        inodes_free=ffree,
    )


class LibcSyscalls:
    """The machine's kernel; without state, so one instance serves every thread. See `Syscalls`."""

    def mount(
        self, source: str, target: str | Path, fstype: str, flags: int = 0, data: str = ""
    ) -> None:
        """See `Syscalls`."""
        _checked(
            _libc.mount(
                _bytes(source, "mount"),
                _bytes(target, "mount"),
                _bytes(fstype, "mount"),
                flags,
                _bytes(data, "mount") if data else None,
            ),
            f"cannot mount {fstype or 'with flags'}",
            target,
        )

    def umount2(self, target: str | Path, flags: int = 0) -> None:
        """See `Syscalls`."""
        _checked(_libc.umount2(_bytes(target, "umount"), flags), "cannot unmount", target)

    def unshare(self, flags: int) -> None:
        """See `Syscalls`."""
        _checked(_libc.unshare(flags), f"cannot make namespaces {flags:#x}")

    def setns(self, fd: int, kind: int) -> None:
        """See `Syscalls`."""
        _checked(_libc.setns(fd, kind), "cannot enter namespace")

    def sethostname(self, name: str) -> None:
        """See `Syscalls`."""
        with _mapped("cannot set host name"):
            socket.sethostname(name)

    def set_link_up(self, name: str) -> None:
        """See `Syscalls`."""
        label = name.encode()
        if not 0 < len(label) < 16:
            raise InvalidArgument("interface name must have 1 to 15 bytes", interface=name)
        with (
            _mapped(f"cannot set link {name} up"),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe,
        ):
            reply = fcntl.ioctl(probe, _SIOCGIFFLAGS, _IFREQ.pack(label, 0))
            flags = int(_IFREQ.unpack(reply)[1])
            fcntl.ioctl(probe, _SIOCSIFFLAGS, _IFREQ.pack(label, flags | _IFF_UP))

    def mknodat(self, dirfd: int, path: str, mode: int, device: int) -> None:
        """See `Syscalls`."""
        with _mapped("cannot make node", path):
            os.mknod(path, mode, device, dir_fd=None if dirfd < 0 else dirfd)

    def lsetxattr(self, path: str | Path, name: str, value: bytes, flags: int = 0) -> None:
        """See `Syscalls`."""
        with _mapped(f"cannot set attribute {name}", path):
            os.setxattr(path, name, value, flags, follow_symlinks=False)

    def fsetxattr(self, fd: int, name: str, value: bytes, flags: int = 0) -> None:
        """See `Syscalls`."""
        with _mapped(f"cannot set attribute {name}"):
            os.setxattr(fd, name, value, flags)

    def statfs(self, path: str | Path) -> FileSystemStat:
        """See `Syscalls`."""
        raw = ctypes.create_string_buffer(_STATFS.size)
        _checked(_libc.statfs(_bytes(path, "statfs"), raw), "cannot stat file system", path)
        return _statfs_value(raw.raw)

    def fstatfs(self, fd: int) -> FileSystemStat:
        """See `Syscalls`."""
        raw = ctypes.create_string_buffer(_STATFS.size)
        _checked(_libc.fstatfs(fd, raw), "cannot stat file system")
        return _statfs_value(raw.raw)

    def openat2(
        self, dirfd: int, path: str | Path, flags: int, mode: int = 0, resolve: int = 0
    ) -> int:
        """See `Syscalls`."""
        how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, resolve)
        result = _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(dirfd),
            ctypes.c_char_p(_bytes(path, "open")),
            ctypes.c_char_p(how),
            ctypes.c_size_t(_OPEN_HOW.size),
        )
        return _checked(int(result), "cannot open", path)

    def pidfd_open(self, pid: int) -> int:
        """See `Syscalls`."""
        with _mapped(f"cannot open process {pid}"):
            return os.pidfd_open(pid)

    def pidfd_send_signal(self, pidfd: int, signal: int) -> None:
        """See `Syscalls`."""
        with _mapped(f"cannot send signal {signal}"):
            signals.pidfd_send_signal(pidfd, signal)

    def set_child_subreaper(self, enabled: bool) -> None:
        """See `Syscalls`."""
        _checked(
            _libc.prctl(_PR_SET_CHILD_SUBREAPER, int(enabled), 0, 0, 0), "cannot become subreaper"
        )

    def fsopen(self, fstype: str) -> int:
        """See `Syscalls`."""
        result = _libc.syscall(
            ctypes.c_long(_SYS_FSOPEN),
            ctypes.c_char_p(_bytes(fstype, "fsopen")),
            ctypes.c_uint(FSOPEN_CLOEXEC),
        )
        return _checked(int(result), f"cannot open file system type {fstype}")

    def _fsconfig(
        self, fd: int, command: int, key: str | None, value: str | None, aux: int
    ) -> None:
        result = _libc.syscall(
            ctypes.c_long(_SYS_FSCONFIG),
            ctypes.c_int(fd),
            ctypes.c_uint(command),
            ctypes.c_char_p(None if key is None else _bytes(key, "fsconfig")),
            ctypes.c_char_p(None if value is None else _bytes(value, "fsconfig")),
            ctypes.c_int(aux),
        )
        _checked(int(result), f"cannot set mount option {key}" if key else "cannot create mount")

    def fsconfig_flag(self, fd: int, key: str) -> None:
        """See `Syscalls`."""
        self._fsconfig(fd, FSCONFIG_SET_FLAG, key, None, 0)

    def fsconfig_string(self, fd: int, key: str, value: str) -> None:
        """See `Syscalls`."""
        self._fsconfig(fd, FSCONFIG_SET_STRING, key, value, 0)

    def fsconfig_fd(self, fd: int, key: str, value: int) -> None:
        """See `Syscalls`."""
        self._fsconfig(fd, FSCONFIG_SET_FD, key, None, value)

    def fsconfig_create(self, fd: int) -> None:
        """See `Syscalls`."""
        self._fsconfig(fd, FSCONFIG_CMD_CREATE, None, None, 0)

    def fsmount(self, fd: int, attributes: int = 0) -> int:
        """See `Syscalls`."""
        result = _libc.syscall(
            ctypes.c_long(_SYS_FSMOUNT),
            ctypes.c_int(fd),
            ctypes.c_uint(FSMOUNT_CLOEXEC),
            ctypes.c_uint(attributes),
        )
        return _checked(int(result), "cannot make mount from file system")

    def move_mount(
        self, from_fd: int, from_path: str, to_fd: int, to_path: str | Path, flags: int
    ) -> None:
        """See `Syscalls`."""
        result = _libc.syscall(
            ctypes.c_long(_SYS_MOVE_MOUNT),
            ctypes.c_int(from_fd),
            ctypes.c_char_p(_bytes(from_path, "move mount")),
            ctypes.c_int(to_fd),
            ctypes.c_char_p(_bytes(to_path, "move mount")),
            ctypes.c_uint(flags),
        )
        _checked(int(result), "cannot move mount", to_path)

    def open_tree(self, dirfd: int, path: str | Path, flags: int) -> int:
        """See `Syscalls`."""
        result = _libc.syscall(
            ctypes.c_long(_SYS_OPEN_TREE),
            ctypes.c_int(dirfd),
            ctypes.c_char_p(_bytes(path, "open tree")),
            ctypes.c_uint(flags | os.O_CLOEXEC),
        )
        return _checked(int(result), "cannot open mount", path)

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
        """See `Syscalls`."""
        attributes = _MOUNT_ATTR.pack(attr_set, attr_clr, propagation, userns_fd)
        result = _libc.syscall(
            ctypes.c_long(_SYS_MOUNT_SETATTR),
            ctypes.c_int(dirfd),
            ctypes.c_char_p(_bytes(path, "mount attributes")),
            ctypes.c_uint(flags),
            ctypes.c_char_p(attributes),
            ctypes.c_size_t(_MOUNT_ATTR.size),
        )
        _checked(int(result), "cannot set mount attributes", path)

    def syncfs(self, fd: int) -> None:
        """See `Syscalls`."""
        _checked(_libc.syncfs(fd), "cannot sync file system")

    def renameat2(
        self, from_fd: int, from_path: str | Path, to_fd: int, to_path: str | Path, flags: int = 0
    ) -> None:
        """See `Syscalls`."""
        source, target = _bytes(from_path, "rename"), _bytes(to_path, "rename")
        _checked(_libc.renameat2(from_fd, source, to_fd, target, flags), "cannot rename", from_path)

    def inotify_init1(self) -> int:
        """See `Syscalls`."""
        return _checked(_libc.inotify_init1(_IN_CLOEXEC | _IN_NONBLOCK), "cannot make inotify")

    def inotify_add_watch(self, fd: int, path: str | Path, mask: int) -> int:
        """See `Syscalls`."""
        return _checked(
            _libc.inotify_add_watch(fd, _bytes(path, "watch"), mask), "cannot watch", path
        )

    def inotify_rm_watch(self, fd: int, watch: int) -> None:
        """See `Syscalls`."""
        _checked(_libc.inotify_rm_watch(fd, watch), "cannot end watch")

    def get_inode_flags(self, fd: int) -> int:
        """See `Syscalls`."""
        with _mapped("cannot read inode flags"):
            # The kernel reads and writes an int in spite of the "long" in the number's name.
            return int(struct.unpack_from("i", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, b"\0" * 8))[0])

    def set_inode_flags(self, fd: int, flags: int) -> None:
        """See `Syscalls`."""
        with _mapped("cannot set inode flags"):
            fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("i4x", flags))
