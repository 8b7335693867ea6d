"""Files the careful way: whole or absent, bounded, and never outside of where they belong.

What an image or a container can write to is only ever opened beneath a directory descriptor
(openat2), first as a mere place (O_PATH), so that looking at a device or a FIFO does nothing to it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

from sandbox.host import syscalls as sc
from sandbox.host.dirwatch import DirWatch
from sandbox.host.errors import (
    Busy,
    Denied,
    FailedPrecondition,
    InvalidArgument,
    PodwrightError,
    ResourceExhausted,
    from_os_error,
    map_os_errors,
)
from sandbox.host.libc import LibcSyscalls
from sandbox.host.trees import TreeUsage, filesystem_usage, remove_tree

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from sandbox.host.syscalls import Syscalls

__all__ = [
    "DirWatch",
    "Fd",
    "TooLarge",
    "TreeUsage",
    "filesystem_usage",
    "flock_exclusive",
    "make_private_dir",
    "open_beneath",
    "read_beneath",
    "read_limited",
    "remove_temporaries",
    "remove_tree",
    "write_atomic",
]

#: Random bytes in the name of a file that is being written, and such a name.
_TEMPORARY_BYTES: Final = 8
_TEMPORARY: Final = re.compile(r"\.[0-9a-f]{16}\.tmp")
_READ_BYTES: Final = 1024 * 1024
#: openat2 says EAGAIN when a rename elsewhere made its in-root walk uncertain (openat2(2)).
_RESOLVE_TRIES: Final = 64


class TooLarge(ResourceExhausted):
    """A file holds more than the stated limit; nothing of it is returned."""


class Fd:
    """Owner of a descriptor; forgets the number before closing it, so it cannot close another's."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        """The number, for calls that take one.

        Raises:
            ValueError: already closed.
        """
        if self._number < 0:
            raise ValueError("descriptor is closed")
        return self._number

    def detach(self) -> int:
        """The number, now the caller's to close."""
        number, self._number = self.fileno(), -1
        return number

    def close(self) -> None:
        """Close; idempotent."""
        number, self._number = self._number, -1
        if number >= 0:
            os.close(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def write_atomic(path: Path, data: bytes, mode: int = 0o600, durable: bool = True) -> None:
    """Replace `path` by `data` with exactly `mode`: readers see the old file or the new, whole.

    With `durable` both the data and the name are on disk when it returns. Blocking.

    Raises:
        NotFound: the directory does not exist.
        ResourceExhausted: the disk is full; the old file is unchanged.
        PodwrightError: as the kernel says.
    """
    temporary = path.parent / f".{secrets.token_hex(_TEMPORARY_BYTES)}.tmp"
    with map_os_errors("cannot write file", path=str(path)):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600)
        try:
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                os.fchmod(fd, mode)
                if durable:
                    os.fsync(fd)
            finally:
                os.close(fd)
            temporary.replace(path)
        except BaseException:
            with suppress(FileNotFoundError):
                temporary.unlink()
            raise
        if durable:
            _sync_directory(path.parent)


def remove_temporaries(directory: Path) -> None:
    """Remove what `write_atomic` left in a directory when it was killed; blocking.

    Only while nobody writes there: at the start, before anything is served.
    """
    with map_os_errors("cannot tidy directory", path=str(directory)), suppress(FileNotFoundError):
        for entry in directory.iterdir():
            if _TEMPORARY.fullmatch(entry.name):
                entry.unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_limited(path: Path, limit_bytes: int) -> bytes:
    """The whole of a regular file of ours; symlinks are followed, a FIFO does not block.

    Raises:
        TooLarge: it holds more than `limit_bytes`.
        NotFound: no such file.
        InvalidArgument: not a regular file.
    """
    with map_os_errors("cannot read file", path=str(path)):
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        with Fd(os.open(path, flags)) as fd:
            return _read_regular(fd.fileno(), limit_bytes, str(path))


def _read_regular(fd: int, limit_bytes: int, path: str) -> bytes:
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        raise InvalidArgument("not a regular file", path=path)
    # The size is only a hint (0 in /proc); the reading itself is what is bounded.
    chunks: list[bytes] = []
    left = limit_bytes + 1
    while left and (chunk := os.read(fd, min(left, _READ_BYTES))):
        chunks.append(chunk)
        left -= len(chunk)
    if left == 0 or info.st_size > limit_bytes:
        raise TooLarge(f"file is larger than {limit_bytes} bytes", path=path)
    return b"".join(chunks)


def open_beneath(
    root: Path | int,
    path: str | Path,
    flags: int,
    mode: int = 0,
    *,
    syscalls: Syscalls | None = None,
) -> Fd:
    """Open `path` with `root` as if it were "/": no "..", symlink or magic link leads outside.

    O_CLOEXEC and O_NOCTTY are added. `root` is a directory, or a descriptor of one that stays the
    caller's.

    Raises:
        NotFound: no such file inside.
        InvalidArgument: a loop of links, a magic link, or not a directory on the way.
        Unsupported: Linux before 5.6.
    """
    calls = syscalls or LibcSyscalls()
    resolve = sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_MAGICLINKS
    if isinstance(root, int):
        return Fd(_openat2(calls, root, path, flags, mode, resolve))
    with (
        map_os_errors("cannot open root directory", path=str(root)),
        Fd(os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as directory,
    ):
        return Fd(_openat2(calls, directory.fileno(), path, flags, mode, resolve))


def _openat2(
    calls: Syscalls, root: int, path: str | Path, flags: int, mode: int, resolve: int
) -> int:
    # openat2 refuses flags that mean nothing together, where open would ignore them.
    flags |= 0 if flags & os.O_PATH else os.O_NOCTTY
    for attempt in range(_RESOLVE_TRIES):
        try:
            return calls.openat2(root, path, flags, mode, resolve)
        except PodwrightError as error:
            if sc.errno_of(error) != errno.EAGAIN or attempt == _RESOLVE_TRIES - 1:
                raise
    raise AssertionError("the last try returns or raises")


def read_beneath(
    root: Path | int, path: str | Path, *, limit_bytes: int, syscalls: Syscalls | None = None
) -> bytes:
    """The whole of a regular file inside `root`; see `open_beneath`. Blocking.

    A device, a FIFO or a socket is refused without having been opened.

    Raises:
        TooLarge: it holds more than `limit_bytes`.
        NotFound: no such file inside.
        InvalidArgument: not a regular file, or a path that loops.
    """
    with (
        open_beneath(root, path, os.O_PATH, syscalls=syscalls) as place,
        map_os_errors("cannot read file", path=str(path)),
    ):
        if not stat.S_ISREG(os.fstat(place.fileno()).st_mode):
            raise InvalidArgument("not a regular file", path=str(path))
        # The place cannot change any more; this opens the very inode that was looked at.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        with Fd(os.open(f"/proc/self/fd/{place.fileno()}", flags)) as fd:
            return _read_regular(fd.fileno(), limit_bytes, str(path))


def make_private_dir(path: Path, mode: int = 0o700) -> None:
    """Make sure `path` is a real directory of ours with exactly `mode`; parents are made as well.

    A looser mode is corrected. Blocking.

    Raises:
        FailedPrecondition: a symlink or something else is there, or it belongs to another user.
        PodwrightError: as the kernel says.
    """
    with map_os_errors("cannot make directory", path=str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            raise FailedPrecondition(
                "not a directory of its own", hint="remove what is in its place", path=str(path)
            ) from error
        with Fd(fd):
            info = os.fstat(fd)
            if info.st_uid != os.geteuid():
                raise FailedPrecondition(
                    "directory belongs to another user", path=str(path), uid=info.st_uid
                )
            if stat.S_IMODE(info.st_mode) != mode:
                os.fchmod(fd, mode)


def flock_exclusive(path: Path) -> Fd:
    """Hold `path` as a lock for as long as the result is open; our pid is written into it.

    Raises:
        Busy: another process holds it; the message says which.
        Denied: the lock file is a symlink.
    """
    with map_os_errors("cannot open lock file", path=str(path)):
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            lock = Fd(os.open(path, flags, 0o600))
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise Denied("lock file is a symlink", path=str(path)) from error
    try:
        fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock.fileno(), 0)
        os.pwrite(lock.fileno(), f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError as error:
        holder = os.pread(lock.fileno(), 32, 0).decode(errors="replace").strip()
        lock.close()
        raise Busy(
            "another process holds the lock",
            hint="only one daemon may use a state directory",
            path=str(path),
            pid=holder or None,
        ) from error
    except OSError as error:
        lock.close()
        raise from_os_error(error, "cannot lock", path=str(path)) from error
    return lock
