"""Network, IPC and UTS namespaces: made, pinned by a bind mount, entered for a moment, unpinned.

These three belong to a thread (setns(2)), so a thread that goes in and comes back is enough, and
nothing forks. One persistent thread costs a quarter of a new thread each time. A thread that
cannot come back to the host's namespaces is never used again: another takes its place. A user
namespace needs a new process (`usernamespaces`), a pid namespace is the OCI runtime's business.

    pod directory/net   ── bind mount of /proc/thread-self/ns/net (nsfs)
                 /ipc   ── the namespace lives as long as the mount, no process is needed

Jobs of one worker run in the order they were given. A caller that is cancelled while its `create`
runs may therefore call `unpin` for the same directory at once: it comes after.
"""

from __future__ import annotations

import asyncio
import errno
import os
import queue
import threading
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final, TypeVar

from sandbox.host import syscalls as sc
from sandbox.host.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    PodwrightError,
    Unavailable,
    from_os_error,
    map_os_errors,
)
from sandbox.host.journal import get_logger
from sandbox.host.mounts import unmount
from sandbox.host.pidfd import start_ticks as read_start_ticks
from sandbox.host.sysctls import Kind, plan_sysctls

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from sandbox.host.clock import Clock

T = TypeVar("T")
_log = get_logger(__name__)

_CLONE: Final[Mapping[Kind, int]] = {
    "net": sc.CLONE_NEWNET,
    "ipc": sc.CLONE_NEWIPC,
    "uts": sc.CLONE_NEWUTS,
}
#: Every kind this module pins, in the order of unpinning.
PIN_NAMES: Final = ("pid", "uts", "ipc", "net", "user", "mnt", "cgroup", "time")
#: HOST_NAME_MAX (limits.h).
HOSTNAME_LIMIT_BYTES: Final = 64


def is_pinned(path: Path, *, syscalls: sc.Syscalls) -> bool:
    """Whether a namespace is mounted at `path`; a symlink or a plain file is not one. Blocking."""
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return syscalls.fstatfs(fd).type == sc.NSFS_MAGIC
    finally:
        os.close(fd)


class _Thread:
    """One thread that runs calls in order and is replaced when it cannot come home."""

    def __init__(self, name: str, syscalls: sc.Syscalls) -> None:
        self._name = name
        self._syscalls = syscalls
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._home: dict[Kind, int] = {}
        self._lost = False
        self._closed = False

    async def run(self, call: Callable[[], T]) -> T:
        """`call` in the thread; a cancelled caller does not stop a call that has begun."""
        if self._closed:
            raise Unavailable("namespace worker is closed")
        result: Future[T] = Future()

        def job() -> None:
            if not result.set_running_or_notify_cancel():
                return
            try:
                value = call()
            except BaseException as error:
                result.set_exception(error)
            else:
                result.set_result(value)

        self._loop = asyncio.get_running_loop()
        if self._thread is None:
            self._start()
        self._jobs.put(job)
        return await asyncio.wrap_future(result)

    def away(self, kinds: frozenset[Kind]) -> _Away:
        """Around what changes the thread's namespaces: comes home however the block ends."""
        return _Away(self._home, kinds, self._syscalls, self._mark_lost)

    def _mark_lost(self, kind: str, error: PodwrightError) -> None:
        self._lost = True
        _log.warning("namespace thread replaced", kind=kind, error=error)

    def _start(self) -> None:
        # Called at home, by the event loop's thread: a thread inherits the namespaces of its maker.
        # The descriptors are kept for good: coming home must not fail for want of one.
        if not self._home:
            with map_os_errors("cannot open the host's namespaces"):
                for kind in _CLONE:
                    path = f"/proc/thread-self/ns/{kind}"
                    self._home[kind] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._lost = False
        self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        self._thread.start()

    def _replace(self) -> None:
        if not self._closed:
            self._start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            if self._lost and self._loop is not None:
                with suppress(RuntimeError):  # the loop is closed: nobody will ask again
                    self._loop.call_soon_threadsafe(self._replace)
                return

    def close(self) -> None:
        """End the thread after the jobs given so far. Idempotent."""
        self._closed = True
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            thread.join()
        home, self._home = self._home, {}
        for fd in home.values():
            os.close(fd)


class _Away:
    """Context manager of `_Thread.away`."""

    def __init__(
        self,
        home: Mapping[Kind, int],
        kinds: frozenset[Kind],
        syscalls: sc.Syscalls,
        lost: Callable[[str, PodwrightError], None],
    ) -> None:
        self._home = home
        self._kinds = kinds
        self._syscalls = syscalls
        self._lost = lost

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        for kind in self._kinds:
            try:
                self._syscalls.setns(self._home[kind], _CLONE[kind])
            except PodwrightError as error:
                self._lost(kind, error)


class NamespaceWorker:
    """Makes, pins, enters and unpins namespaces; one per daemon, used from its event loop.

    Making has a thread of its own, so that a slow `run_in_network` call never delays a pod.
    """

    def __init__(self, *, syscalls: sc.Syscalls, clock: Clock | None = None) -> None:
        self._syscalls = syscalls
        self._clock = clock
        self._maker = _Thread("namespaces", syscalls)
        self._visitor = _Thread("namespace-visits", syscalls)

    async def create(
        self,
        directory: Path,
        kinds: frozenset[Kind],
        *,
        hostname: str = "",
        sysctls: Mapping[str, str] | None = None,
        loopback_up: bool = True,
    ) -> dict[str, Path]:
        """New namespaces of `kinds`, pinned as directory/KIND; undone when a step fails.

        `hostname` is set when not empty and "uts" is among the kinds; `sysctls` are written inside.

        Raises:
            InvalidArgument: a sysctl or the host name is not acceptable; nothing was made.
            AlreadyExists: a namespace is pinned there already.
            Denied, ResourceExhausted: as the kernel says.
        """
        plan = plan_sysctls(sysctls or {}, kinds)
        check_hostname(hostname)
        if hostname and "uts" not in kinds:
            raise InvalidArgument("host name needs a uts namespace of the pod's own")
        return await self._maker.run(
            lambda: self._create(directory, kinds, hostname, plan, loopback_up)
        )

    def _create(
        self,
        directory: Path,
        kinds: frozenset[Kind],
        hostname: str,
        plan: list[tuple[str, str, str]],
        loopback_up: bool,
    ) -> dict[str, Path]:
        pins: dict[Kind, Path] = {kind: directory / kind for kind in _CLONE if kind in kinds}
        with map_os_errors("cannot make namespace directory", path=str(directory)):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with ExitStack() as undo:
            for pin in pins.values():
                self._make_pin_file(pin)
                undo.callback(self._drop_quietly, pin)
            with self._maker.away(frozenset(pins)):
                self._syscalls.unshare(sum(_CLONE[kind] for kind in pins))
                for key, path, value in plan:
                    _write_sysctl(key, path, value)
                if hostname:
                    self._syscalls.sethostname(hostname)
                if loopback_up and "net" in pins:
                    self._syscalls.set_link_up("lo")
                for kind, pin in pins.items():
                    self._syscalls.mount(f"/proc/thread-self/ns/{kind}", pin, "", sc.MS_BIND)
            undo.pop_all()
        return dict(pins.items())

    def _make_pin_file(self, pin: Path) -> None:
        if self.is_pinned(pin):
            raise AlreadyExists("namespace is pinned already", path=str(pin))
        with map_os_errors("cannot make pin", path=str(pin)):
            # Not O_EXCL: a plain file left by a crash between here and the mount is reused.
            flags = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(pin, flags, 0o400))

    def _drop_quietly(self, pin: Path) -> None:
        try:
            self._drop(pin)
        except PodwrightError as error:
            _log.warning("pin not removed", path=str(pin), error=error)

    def _drop(self, pin: Path) -> None:
        unmount(pin, syscalls=self._syscalls, clock=self._clock)
        with map_os_errors("cannot remove pin", path=str(pin)), suppress(FileNotFoundError):
            pin.unlink()

    async def pin_process(
        self, pid: int, kind: str, target: Path, *, start_ticks: int | None = None
    ) -> None:
        """Pin a namespace of process `pid` at `target`.

        With `start_ticks` the process is checked to be the one meant after its namespace was
        opened, so a number that changed hands cannot pin somebody else's.

        Raises:
            NotFound: the process is gone or another one has its number.
            AlreadyExists: a namespace is pinned there already.
        """
        if kind not in PIN_NAMES:
            raise InvalidArgument(f"no such kind of namespace: {kind}")
        await self._maker.run(lambda: self._pin_process(pid, kind, target, start_ticks))

    def _pin_process(self, pid: int, kind: str, target: Path, ticks: int | None) -> None:
        with map_os_errors(f"cannot open {kind} namespace", pid=pid):
            fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if ticks is not None and read_start_ticks(pid) != ticks:
                raise NotFound("process is gone, its number belongs to another", pid=pid)
            with map_os_errors("cannot make namespace directory", path=str(target.parent)):
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_pin_file(target)
            try:
                self._syscalls.mount(f"/proc/thread-self/fd/{fd}", target, "", sc.MS_BIND)
            except BaseException:
                self._drop_quietly(target)
                raise
        finally:
            os.close(fd)

    async def unpin(self, directory: Path, *, keep: Collection[str] = ()) -> None:
        """Unmount and remove every pin in `directory`, then the directory. Idempotent.

        Those in `keep` stay, and the directory with them.

        Raises:
            Busy, Denied: as the kernel says; the other pins are gone then.
        """
        await self._maker.run(lambda: self._unpin(directory, keep))

    def _unpin(self, directory: Path, keep: Collection[str]) -> None:
        try:
            present = {pin.name for pin in directory.iterdir()}
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise from_os_error(error, "cannot unpin", path=str(directory)) from error
        first: PodwrightError | None = None
        for name in (name for name in PIN_NAMES if name in present and name not in keep):
            try:
                self._drop(directory / name)
            except PodwrightError as error:
                first = first or error
        if first is not None:
            raise first
        if not present.isdisjoint(keep):
            return
        try:
            directory.rmdir()
        except FileNotFoundError:
            pass
        except OSError as error:
            # Somebody else's file lies there; the pins, which are ours, are gone.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise from_os_error(error, "cannot remove", path=str(directory)) from error

    async def run_in_network(self, path: Path, call: Callable[[], T]) -> T:
        """`call` in a thread inside the network namespace pinned at `path`; its result.

        Keep it short: calls run one after another. A socket made inside stays in that namespace
        wherever it is used later. In there read /proc/thread-self/net, because /proc/net is that of
        the process's first thread, on the host.

        Raises:
            NotFound: nothing is pinned there.
        """

        def enter() -> T:
            with map_os_errors("cannot open network namespace", path=str(path)):
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if self._syscalls.fstatfs(fd).type != sc.NSFS_MAGIC:
                    raise NotFound("no network namespace is pinned at path", path=str(path))
                with self._visitor.away(frozenset({"net"})):
                    self._syscalls.setns(fd, sc.CLONE_NEWNET)
                    return call()
            finally:
                os.close(fd)

        return await self._visitor.run(enter)

    def is_pinned(self, path: Path) -> bool:
        """See the function `is_pinned`."""
        return is_pinned(path, syscalls=self._syscalls)

    def close(self) -> None:
        """End the threads after what they have to do; what is pinned stays. Idempotent."""
        self._maker.close()
        self._visitor.close()


def check_hostname(name: str) -> None:
    """Raise InvalidArgument for what cannot be a host name; an empty one is not set at all."""
    if len(name.encode(errors="surrogatepass")) > HOSTNAME_LIMIT_BYTES:
        raise InvalidArgument(f"host name is longer than {HOSTNAME_LIMIT_BYTES} bytes")
    if any(c.isspace() or not c.isprintable() or c == "/" for c in name):
        raise InvalidArgument("host name holds a blank, a slash or a control character")


def _write_sysctl(key: str, path: str, value: str) -> None:
    # /proc/sys shows the namespaces of the thread that opens the file, not those of the process.
    try:
        fd = os.open(f"/proc/sys/{path}", os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode() + b"\n")
        finally:
            os.close(fd)
    except OSError as error:
        what = f"cannot set sysctl {key}"
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise from_os_error(error, what) from error
        reason = (error.strerror or str(error)).lower()
        raise InvalidArgument(f"{what}: {reason}") from error
