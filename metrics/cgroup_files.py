"""The files of one control group, kept open between samples.

Opening a cgroup file costs several times what reading it does, and a node has thousands that are
read every few seconds. A descriptor kept open does not keep a group from being removed; reading it
then says ENODEV, also when a group of the same name has been made meanwhile. So ENODEV means: close
all that is open of this group and open by name, once.

How many descriptors may stay open is bounded; beyond that a file is opened and closed each time,
slower and otherwise the same.
"""

from __future__ import annotations

import os
import resource
from os import pread
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from metrics.cgroup_grammar import FileName
    from sandbox.host.cgroupfs import CgroupLayout

#: memory.stat has 1 to 2 KiB, nothing read here has more than this but lists of processes.
_READ_BYTES: Final = 16 * 1024
#: A list of processes fills a page but for less than one line (fs/seq_file.c).
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_LINE_BYTES: Final = 16
#: Less than this is all there is.
_WHOLE_BYTES: Final = _PAGE_BYTES - _LINE_BYTES
#: Hierarchies of version 1 in which every process of a container is, in order of preference.
_MEMBERSHIP: Final = ("pids", "memory", "cpu", "name=systemd")
#: Controller name for what cgroup2 itself tells; on a hybrid machine that tree is beside.
UNIFIED: Final = "unified"


class DescriptorBudget:
    """How many descriptors may be kept open, all groups together."""

    def __init__(self, limit: int | None = None) -> None:
        """`limit` None: half of what this process may open (RLIMIT_NOFILE)."""
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._left = soft // 2 if limit is None else limit

    def take(self) -> bool:
        """Whether one more may be kept open."""
        if self._left <= 0:
            return False
        self._left -= 1
        return True

    def give_back(self) -> None:
        """One was closed."""
        self._left += 1


class CgroupFiles:
    """Reads the files of the group at `path`; for one thread. Close it."""

    __slots__ = (
        "_budget",
        "_directories",
        "_directory",
        "_fds",
        "_last",
        "_layout",
        "_membership",
        "_open",
        "_path",
        "_together",
    )

    def __init__(self, layout: CgroupLayout, path: str, budget: DescriptorBudget) -> None:
        self._layout = layout
        self._path = path
        self._budget = budget
        self._open: dict[FileName, int] = {}
        #: Descriptors of files that are asked for together; -1 for one that is not open.
        self._together: dict[tuple[FileName, ...], list[int]] = {}
        self._last: tuple[FileName, ...] | None = None
        self._fds: list[int] = []
        #: Directories by controller, with a slash; empty where the machine lacks it.
        self._directories: dict[str, str] = {}
        controllers = layout.controllers if layout.version == 1 else ()
        controller = next((name for name in _MEMBERSHIP if name in controllers), UNIFIED)
        self._membership = (controller, "cgroup.procs")
        self._directory = self._directory_of(controller) if path else ""

    @property
    def path(self) -> str:
        """The group, as a path below every hierarchy's root."""
        return self._path

    def read(self, names: tuple[FileName, ...]) -> list[bytes | None]:
        """The texts of files, None for one that does not exist or cannot be read.

        Together, because then nothing is looked up or compared between one read and the next: half
        the time of a look was that, not the kernel's.
        """
        if names is not self._last:
            if names not in self._together:
                return self._first(names)
            # Mostly the same are asked for again, and to find them takes as long as to read one.
            self._last, self._fds = names, self._together[names]
        fds = self._fds
        try:
            texts = [pread(fd, _READ_BYTES, 0) if fd >= 0 else None for fd in fds]
            for text in texts:
                if text is not None and len(text) >= _WHOLE_BYTES:
                    texts = [_rest(fd, text) for fd, text in zip(fds, texts, strict=True)]
                    break
        except OSError:
            self.close()  # the group was removed; perhaps it was made again
            return self._first(names)
        # Only now, because this may close all that is open, and then a number is somebody else's.
        if None in texts:
            texts = [self._read(n) if t is None else t for n, t in zip(names, texts, strict=True)]
            self._note(names)
        return texts

    def _first(self, names: tuple[FileName, ...]) -> list[bytes | None]:
        texts = [self._read(name) for name in names]
        self._note(names)
        return texts

    def _note(self, names: tuple[FileName, ...]) -> None:
        self._last = names
        self._fds = self._together[names] = [self._open.get(name, -1) for name in names]

    def _read(self, name: FileName) -> bytes | None:
        fd = self._open.get(name)
        if fd is not None:
            try:
                return _text(fd)
            except OSError:
                self.close()
        directory = self._directory_of(name[0])
        if not directory:
            return None
        try:
            fd = os.open(directory + name[1], os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            text = _text(fd)
        except OSError:
            os.close(fd)
            return None
        if self._budget.take():
            self._open[name] = fd
        else:
            os.close(fd)
        return text

    def processes(self, *, tasks: int | None = None) -> list[int]:
        """Process ids in the group and in those that the container made below it.

        `tasks`: how many threads there are in all of these, where that is known.
        """
        pids = _pids(self._read(self._membership))
        if tasks == len(pids) == 1:
            return pids
        try:
            # Two links and one more for each sub-directory (kernfs).
            nested = os.stat(self._directory).st_nlink > 2  # noqa: PTH116 - of a text, thrice as fast
        except OSError:
            return pids
        if nested:
            for at, names, _ in os.walk(self._directory):
                for name in names:
                    pids += _pids(_of_path(f"{at}/{name}/cgroup.procs"))
        return pids

    def close(self) -> None:
        """Close everything; reading opens anew. Idempotent."""
        held, self._open, self._together = self._open, {}, {}
        self._last = None
        for fd in held.values():
            os.close(fd)
            self._budget.give_back()

    def _directory_of(self, controller: str) -> str:
        found = self._directories.get(controller)
        if found is None:
            found = self._directories[controller] = self._find(controller)
        return found

    def _find(self, controller: str) -> str:
        if controller == UNIFIED:
            root = self._layout.root
            return "" if root is None else f"{root / self._path.lstrip('/')}/"
        file = self._layout.file(self._path, controller, "any")
        return "" if file is None else f"{file.parent}/"


def _text(fd: int) -> bytes:
    return _whole(fd, pread(fd, _READ_BYTES, 0))


def _rest(fd: int, text: bytes | None) -> bytes | None:
    return None if text is None else _whole(fd, text)


def _whole(fd: int, text: bytes) -> bytes:
    """What `text` is the beginning of."""
    # Lists of processes come a page at a time, whatever is asked for; everything else in one piece.
    if len(text) < _WHOLE_BYTES:
        return text
    parts = [text]
    at = len(text)
    while more := pread(fd, _READ_BYTES, at):
        parts.append(more)
        at += len(more)
    return b"".join(parts)


def _of_path(path: str) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _text(fd)
    except OSError:
        return None
    finally:
        os.close(fd)


def _pids(text: bytes | None) -> list[int]:
    return [pid for pid in map(int, (text or b"").split()) if pid > 0]
