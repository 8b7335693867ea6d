"""Directories of small files in which only root may have a say, read anew when they change.

What these files say is done as root (devices are handed out, programs are run), so a file counts
only where nobody else could have written it: file, directory and everything above belong to root
and can be written by root alone. A sticky directory such as /tmp is fine above, since it keeps
others from replacing what is not theirs; the last directory must not be one, because others could
add files there.

They are followed without a watch: each look lists the directories and compares each file's stat(2)
with that of the last look, so an answer is never older than its question, and nothing has to be
caught up after an overflow. What cannot be used is named with its reason and hides nothing else.
"""

from __future__ import annotations

import os
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from sandbox.host.clock import Clock, SystemClock
from sandbox.host.errors import Denied, PodwrightError, from_os_error, map_os_errors
from sandbox.host.files import read_limited

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

T = TypeVar("T")

#: More files than this in one directory are not configuration any more.
FILES_LIMIT: Final = 1000
#: A file that changed less than this before it was read may change again within the same tick of
#: its file system's clock and so look unchanged (ns); FAT, the coarsest, counts in two seconds.
SETTLED_NS: Final = 2_000_000_000
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH

Stamp = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DropIn(Generic[T]):
    """One file and what it says; `rank` is the place of its directory in the list."""

    path: Path
    rank: int
    content: T


@dataclass(frozen=True, slots=True)
class Problem:
    """A file or directory that does not count, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        """`PATH: reason`."""
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Looked(Generic[T]):
    """What one look found: directories in their order, the files of each by name."""

    files: tuple[DropIn[T], ...]
    problems: tuple[Problem, ...]


class DropIns(Generic[T]):
    """See the module text. May be used from several threads."""

    def __init__(
        self,
        directories: Iterable[Path],
        *,
        suffixes: Sequence[str],
        parse: Callable[[bytes, Path], T],
        limit_bytes: int,
        clock: Clock | None = None,
    ) -> None:
        """Nothing is read before the first look.

        Args:
            directories: looked at in this order; one that does not exist is empty.
            suffixes: of the names that count, each with its dot; others are left alone.
            parse: makes the content; raises PodwrightError saying what is wrong.
            limit_bytes: of one file.
            clock: tells how long ago a file changed.
        """
        self.directories = tuple(directories)
        self._suffixes = tuple(suffixes)
        self._parse = parse
        self._limit_bytes = limit_bytes
        self._clock = clock or SystemClock()
        self._known: dict[Path, tuple[Stamp, T | None, str]] = {}
        self._lock = threading.Lock()

    def look(self) -> Looked[T]:
        """What the directories hold now. Blocking; raises nothing that a file could cause."""
        with self._lock:
            files: list[DropIn[T]] = []
            problems: list[Problem] = []
            known: dict[Path, tuple[Stamp, T | None, str]] = {}
            for rank, directory in enumerate(self.directories):
                try:
                    paths = self._list(directory)
                except PodwrightError as error:
                    problems.append(Problem(directory, error.message))
                    continue
                for path in paths:
                    content, reason = self._file(path, known)
                    if reason:
                        problems.append(Problem(path, reason))
                    elif content is not None:
                        files.append(DropIn(path, rank, content))
            self._known = known
            return Looked(tuple(files), tuple(problems))

    def _list(self, directory: Path) -> list[Path]:
        try:
            names = sorted(os.listdir(directory))  # noqa: PTH208 - names only
        except FileNotFoundError:
            return []
        except OSError as error:
            raise from_os_error(error, "cannot be listed") from error
        wanted = [name for name in names if name.endswith(self._suffixes)]
        if not wanted:
            return []
        check_trusted(directory)
        if len(wanted) > FILES_LIMIT:
            raise Denied(f"holds more than {FILES_LIMIT} files")
        return [directory / name for name in wanted]

    def _file(
        self, path: Path, known: dict[Path, tuple[Stamp, T | None, str]]
    ) -> tuple[T | None, str]:
        """(content, "") or (None, reason); (None, "") for one that went or is a directory."""
        try:
            status = path.stat()
        except FileNotFoundError:
            # Gone since it was listed; but a link that leads nowhere is somebody's mistake.
            return None, "leads nowhere" if path.is_symlink() else ""
        except OSError as error:
            return None, from_os_error(error, "cannot be read").message
        if stat.S_ISDIR(status.st_mode):
            return None, ""
        stamp = _stamp(status)
        before = self._known.get(path)
        if before is not None and before[0] == stamp:
            known[path] = before
            return before[1], before[2]
        content: T | None = None
        reason = ""
        try:
            check_trusted(path)
            content = self._parse(read_limited(path, self._limit_bytes), path)
        except PodwrightError as error:
            reason = error.message
        if self._clock.wall_ns() - status.st_ctime_ns > SETTLED_NS:
            known[path] = (stamp, content, reason)
        return content, reason


def check_trusted(path: Path) -> None:
    """Make sure that only root could have put `path` where it is and what is in it.

    Links are followed; what counts is where they lead. The daemon's own user counts as root, so
    that an unprivileged run can be tried.

    Raises:
        Denied: naming who else could write, and where.
        NotFound: no such file.
    """
    real = Path(os.path.realpath(path))
    with map_os_errors(f"{path} cannot be used"):
        _check_one(real, real.lstat(), last=True)
        for above in real.parents:
            # The directory of a file is last as well: whoever may add files there has a say.
            _check_one(above, above.lstat(), last=above == real.parent and not real.is_dir())


def _check_one(path: Path, status: os.stat_result, *, last: bool) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise Denied(
            f"{path} belongs to user {status.st_uid}, not to root", hint=f"chown root {path}"
        )
    loose = status.st_mode & _OTHERS_WRITE
    if status.st_gid == 0:
        loose &= stat.S_IWOTH
    if loose and (last or not status.st_mode & stat.S_ISVTX):
        raise Denied(f"{path} can be written by others than root", hint=f"chmod go-w {path}")


def _stamp(status: os.stat_result) -> Stamp:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_mode,
        status.st_uid,
        status.st_gid,
    )
