"""Control groups as files, for version 1, version 2 and the hybrid of both: grammar, no policy.

A path here is one text such as "/podwright/pod1/c1", below the root of every hierarchy. On
version 1 each controller (or group of them) is a hierarchy of its own and the same path exists in
each; on version 2 there is one. A machine that mounts cgroup2 beside version 1 controllers is
version 1: the controllers are what limits are made of. Only directories that `create` made, or that
a runtime made below a path given to `remove`, are ever touched; a hierarchy's root never is.

All functions block, briefly.
"""

from __future__ import annotations

import errno
import os
import signal as signals
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from sandbox.host.cgroup_dirs import (
    below,
    inherit_cpuset,
    make,
    pids_of,
    read,
    try_write,
    write,
)
from sandbox.host.cgroup_text import flat_keyed, max_or_int, nested_keyed, psi
from sandbox.host.clock import Clock, SystemClock
from sandbox.host.errors import Busy, InvalidArgument, PodwrightError, Unsupported, from_os_error
from sandbox.host.libc import LibcSyscalls
from sandbox.host.mountinfo import MountInfo, list_mounts
from sandbox.host.syscalls import errno_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from sandbox.host.syscalls import Syscalls

__all__ = ["CgroupLayout", "flat_keyed", "max_or_int", "nested_keyed", "psi"]

#: rmdir says EBUSY until the last process has been reaped; waits double up to the last one.
_REMOVE_WAITS_S: Final = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.32)
#: Rounds of reading and signalling; each ends with fewer forks alive, and a frozen group has none.
_KILL_ROUNDS: Final = 16
#: Pidfds held at once.
_KILL_BATCH: Final = 64
#: Mount options of a version 1 hierarchy that are not controllers.
_NOT_CONTROLLERS: Final = frozenset({"rw", "ro", "clone_children", "xattr", "noprefix", "none"})


@dataclass(frozen=True, slots=True)
class CgroupLayout:
    """Where the hierarchies are.

    Attributes:
        version: 1 or 2, by where the controllers are.
        controllers: version 1: controller name (also "name=systemd") -> mount point.
        root: version 2: the mount point; hybrid: that of the cgroup2 without controllers, or None.
        available: names of the controllers that can limit something.
    """

    version: Literal[1, 2]
    controllers: Mapping[str, Path] = field(default_factory=dict)
    root: Path | None = None
    available: frozenset[str] = frozenset()

    @classmethod
    def detect(cls, mounts: Iterable[MountInfo] | None = None) -> CgroupLayout:
        """The machine's layout, from `mounts` (None: mountinfo of this process).

        Raises:
            Unsupported: no cgroup hierarchy is mounted.
        """
        found: dict[str, Path] = {}
        root: Path | None = None
        for mount in list_mounts() if mounts is None else mounts:
            if mount.type == "cgroup":
                for word in mount.super_options:
                    if "=" not in word or word.startswith("name="):
                        found.setdefault(word, mount.target)
            elif mount.type == "cgroup2" and root is None:
                root = mount.target
        controllers = {name: at for name, at in found.items() if name not in _NOT_CONTROLLERS}
        limiting = frozenset(name for name in controllers if not name.startswith("name="))
        if limiting:
            return cls(1, controllers, root, limiting)
        if root is not None:
            listed = (read(root / "cgroup.controllers") or "").split()
            return cls(2, {}, root, frozenset(listed))
        raise Unsupported("no cgroup hierarchy is mounted", hint="mount cgroup2 on /sys/fs/cgroup")

    @property
    def hybrid(self) -> bool:
        """Version 1 controllers with a cgroup2 tree beside them."""
        return self.version == 1 and self.root is not None

    def _roots(self) -> list[Path]:
        roots = list(dict.fromkeys(self.controllers.values()))
        return [*roots, self.root] if self.root is not None else roots

    def walk(self) -> set[str]:
        """Every cgroup there is, in any hierarchy, as a path below its root; blocking."""
        found: set[str] = set()
        for root in self._roots():
            found.update(f"/{at.relative_to(root)}" for at in below(root) if at != root)
        return found

    def dirs(self, path: str) -> list[Path]:
        """`path` in every hierarchy, existing or not.

        Raises:
            InvalidArgument: not an absolute path without "." and "..".
        """
        relative = _relative(path)
        return [root / relative for root in self._roots()]

    def create(self, path: str) -> list[Path]:
        """Make `path` and its parents in every hierarchy; the directories that are new.

        Version 1: cpuset lists are copied down, without them no process may enter. Version 2: every
        controller is enabled in each parent.

        Raises:
            InvalidArgument: not an absolute path without "." and "..", or the root.
            Busy: version 2: a parent holds processes, so controllers cannot be enabled in it.
            Denied, ResourceExhausted: as the kernel says; what was new is gone again.
        """
        relative = _relative(path, root_allowed=False)
        made: list[Path] = []
        try:
            for root in self._roots():
                directory = root
                for part in relative.parts:
                    if self.version == 2:
                        self._enable_controllers(directory)
                    directory = directory / part
                    if make(directory):
                        made.append(directory)
                    if root == self.controllers.get("cpuset"):
                        inherit_cpuset(directory)
        except BaseException:
            for directory in reversed(made):
                with suppress(OSError):
                    directory.rmdir()
            raise
        return made

    def _enable_controllers(self, directory: Path) -> None:
        enabled = (read(directory / "cgroup.subtree_control") or "").split()
        offered = (read(directory / "cgroup.controllers") or "").split()
        for name in offered:
            if name in enabled:
                continue
            try:
                write(directory / "cgroup.subtree_control", f"+{name}")
            except PodwrightError as error:
                # A controller may refuse (cpu with realtime processes): the others still help.
                if errno_of(error) not in (errno.EINVAL, errno.ENOENT, errno.EOPNOTSUPP):
                    raise

    def remove(self, path: str, *, clock: Clock | None = None) -> bool:
        """Remove `path` and everything below it from every hierarchy; False when nothing existed.

        A directory is tried again for about a second while its last processes are being reaped.

        Raises:
            Busy: processes are still in it; the message names some.
            InvalidArgument: not an absolute path without "." and "..", or the root.
        """
        relative = _relative(path, root_allowed=False)
        clock = clock or SystemClock()
        existed = False
        for root in self._roots():
            for directory in below(root / relative):
                existed = True
                self._rmdir(directory, path, clock)
        return existed

    def _rmdir(self, directory: Path, path: str, clock: Clock) -> None:
        for wait_s in (*_REMOVE_WAITS_S, None):
            try:
                directory.rmdir()
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise from_os_error(error, "cannot remove cgroup") from error
                if wait_s is None:
                    pids = ", ".join(map(str, sorted(pids_of(directory))[:8])) or "unknown"
                    raise Busy(
                        "cgroup still holds processes", cgroup=path, pids=pids, at=str(directory)
                    ) from error
                clock.sleep_blocking(wait_s)
            else:
                return

    def procs(self, path: str, *, recursive: bool = False) -> set[int]:
        """Processes in `path` in any hierarchy (those of other pid namespaces left out).

        Raises:
            InvalidArgument: not an absolute path without "." and "..".
        """
        found: set[int] = set()
        for directory in self.dirs(path):
            for each in below(directory) if recursive else (directory,):
                found |= pids_of(each)
        return found

    def kill_all(
        self, path: str, signal: int = signals.SIGKILL, *, syscalls: Syscalls | None = None
    ) -> int:
        """Signal every process at or below `path` through a pidfd; how many were signalled.

        Their end is not awaited. A process is signalled only when it is still in the group after
        its pidfd was opened, so a number that changed hands hits nobody. With SIGKILL, forks are
        outrun: version 2 by cgroup.kill, version 1 by freezing first; a frozen group is thawed,
        for in version 1 a frozen process cannot die. This process itself is left out.

        Raises:
            InvalidArgument: not an absolute path without "." and "..", or the root.
            Denied: as the kernel says.
        """
        relative = _relative(path, root_allowed=False)
        calls = syscalls or LibcSyscalls()
        kill = signal == signals.SIGKILL
        own = os.getpid()
        if kill and self.version == 2 and self.root is not None:
            pids = self.procs(path, recursive=True)
            if own not in pids and try_write(self.root / relative / "cgroup.kill", "1"):
                return len(pids)
        members = self.procs(path, recursive=True)
        if not members:
            # Nearly always, at a teardown; then nothing can fork, and nothing need be frozen.
            return 0
        freezer = self.controllers.get("freezer")
        groups = list(below(freezer / relative)) if kill and freezer is not None else []
        signalled: set[int] = set()
        try:
            if own not in members:
                for group in reversed(groups):
                    try_write(group / "freezer.state", "FROZEN")
            for _ in range(_KILL_ROUNDS):
                fresh = self.procs(path, recursive=True) - signalled - {own}
                if not fresh:
                    break
                for batch in _batched(sorted(fresh), _KILL_BATCH):
                    self._signal(batch, signal, path, calls)
                signalled |= fresh
        finally:
            for group in groups:
                try_write(group / "freezer.state", "THAWED")
        return len(signalled)

    def _signal(self, pids: list[int], signal: int, path: str, syscalls: Syscalls) -> None:
        held: dict[int, int] = {}
        try:
            for pid in pids:
                # EINVAL: the number is a thread's now, so the process is gone.
                with _tolerated(errno.ESRCH, errno.EINVAL):
                    held[pid] = syscalls.pidfd_open(pid)
            members = self.procs(path, recursive=True)
            for pid, fd in held.items():
                if pid in members:
                    with _tolerated(errno.ESRCH):
                        syscalls.pidfd_send_signal(fd, signal)
        finally:
            for fd in held.values():
                os.close(fd)

    def file(self, path: str, controller: str, name: str) -> Path | None:
        """Where a controller's file is, or None when the machine lacks the controller.

        On version 2 `controller` may be "cgroup" for the core files.
        """
        relative = _relative(path)
        if self.version == 2:
            return None if self.root is None else self.root / relative / name
        root = self.controllers.get(controller)
        return None if root is None else root / relative / name

    def read(self, path: str, controller: str, name: str) -> str | None:
        """A file's text without the last line break; None when it does not exist.

        Raises:
            Denied, InvalidArgument: as the kernel says.
        """
        file = self.file(path, controller, name)
        return None if file is None else read(file)

    def write(self, path: str, controller: str, name: str, value: str) -> None:
        """Set a value in one system call, as the kernel wants it.

        Raises:
            Unsupported: the machine lacks the controller.
            NotFound: the group, or the file, does not exist.
            InvalidArgument, Busy, Denied: as the kernel says.
        """
        file = self.file(path, controller, name)
        if file is None:
            raise Unsupported(f"cgroup controller {controller} is not available", file=name)
        write(file, value)

    def oom_kills(self, path: str) -> int | None:
        """How many processes at or below `path` the kernel killed for memory; None if not told."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        text = self.read(path, "memory", name)
        return None if text is None else flat_keyed(text).get("oom_kill")


def _relative(path: str, *, root_allowed: bool = True) -> Path:
    parts = path.split("/")[1:] if path.startswith("/") else [""]
    clean = [part for part in parts if part]
    bad = not path.startswith("/") or any(part in (".", "..") for part in clean)
    if bad or "\0" in path or (not clean and not root_allowed):
        raise InvalidArgument("cgroup path must be absolute and plain", cgroup=path[:256])
    return Path(*clean)


@contextmanager
def _tolerated(*numbers: int) -> Iterator[None]:
    try:
        yield
    except PodwrightError as error:
        if errno_of(error) not in numbers:
            raise


def _batched(items: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
