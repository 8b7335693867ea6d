"""A runtime's program on a read-only bind mount of its own.

A container could write to the runtime's program through /proc/PID/exe of a process that enters it
(CVE-2019-5736), so crun and runc copy themselves into sealed memory each time they run, unless the
program lies on a read-only file system, which cannot be written through any link
(src/libcrun/cloned_binary.c, `is_self_cloned`). A bind mount that is read-only, in the daemon's run
root, is one. The protection is the same, the copying is left out.

Measured on the reference machine with crun 1.8.1: 1.2 to 2 ms of each call of the runtime.

The mount holds the very file that was there when it was made. When another takes its place, as an
upgrade of the package does, the other is run, unsealed, until the next start of the daemon.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from sandbox.host import files
from sandbox.host import syscalls as sc
from sandbox.host.errors import PodwrightError
from sandbox.host.journal import get_logger
from sandbox.host.mounts import STACK_LIMIT, Mount, mount_one

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox.host.syscalls import Syscalls

_log = get_logger("runtime")


class SealedProgram:
    """Where to run a program from; `seal` and `unseal` block."""

    def __init__(self, program: Path) -> None:
        """Unsealed at first: `path` is the program itself."""
        self._program = program
        self._place: Path | None = None
        self._identity: tuple[int, ...] | None = None

    @property
    def path(self) -> Path:
        """What to run now: the sealed program while it is still the one that is installed."""
        if self._place is None or _identity(self._program) != self._identity:
            return self._program
        return self._place

    def seal(self, directory: Path, *, syscalls: Syscalls) -> None:
        """Mount it below `directory`, which is made; what an earlier daemon left there is used.

        Where that cannot be, the program is run where it is; the log says why.
        """
        place = directory / self._program.name
        try:
            files.make_private_dir(directory, mode=0o700)
            before = _identity(self._program)
            if before is not None and before == _identity(place) and _is_read_only(place):
                self._place, self._identity = place, before  # a killed daemon's
                return
            _detach(place, syscalls)
            place.touch(mode=0o600)
            source = str(self._program.resolve())
            mount_one(Mount("bind", source, place, ("ro", "private")), syscalls=syscalls)
        except FileNotFoundError:
            return  # not installed; the probe says so
        except (OSError, PodwrightError) as error:
            _log.warning(
                "the runtime is run where it is and copies itself each time",
                path=str(self._program),
                error=str(error),
            )
            return
        if before is None or before != _identity(place):
            _detach(place, syscalls)  # replaced in this very moment
            return
        self._place, self._identity = place, before

    def unseal(self, *, syscalls: Syscalls) -> None:
        """Take the mount away; calls that still run keep the file."""
        place, self._place = self._place, None
        if place is not None:
            with suppress(PodwrightError, OSError):
                _detach(place, syscalls)
                place.unlink()


def _detach(place: Path, syscalls: Syscalls) -> None:
    """Unmount at once: containers that wait to be started run this file, and keep it."""
    for _ in range(STACK_LIMIT):
        try:
            syscalls.umount2(place, sc.MNT_DETACH | sc.UMOUNT_NOFOLLOW)
        except PodwrightError as error:
            if sc.errno_of(error) in (errno.EINVAL, errno.ENOENT):
                return
            raise


def _is_read_only(path: Path) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _identity(path: Path) -> tuple[int, ...] | None:
    """What tells this file from one that took its place or was written to."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
