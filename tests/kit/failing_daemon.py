"""The daemon, with every step that it takes on the machine numbered and open to a test's orders.

`python -m tests.kit.failing_daemon DIRECTORY serve ...` is `podwright serve ...`. Nothing of the
product knows of it: what changes the machine goes through `sandbox.host`, so the few doors there
are wrapped, and the interpreter's audit events tell of the files. A step is a line of text without
the node's own roots and ids, so that it is the same in every run:

    commit state.db inserting.work                  a transaction is about to be written
    mkdir RUN/pods/ID
    mount RUN/namespaces/ID/net
    run crun create

An order lies in DIRECTORY/order (see `tests.kit.failpoints`, which writes it) and counts from the
moment it is put there. DIRECTORY/clock holds the seconds that the daemon's wall clock is wrong by.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import sandbox.host.database as database
from sandbox.host.clock import SystemClock
from sandbox.host.errors import from_os_error
from sandbox.host.libc import LibcSyscalls
from sandbox.host.spawning import AUDIT_EVENT

T = TypeVar("T")
P = ParamSpec("P")

#: Calls of `LibcSyscalls` that change something, and which argument says what.
_CALLS: Final = {
    "mount": "target",
    "umount2": "target",
    "unshare": "flags",
    "mknodat": "path",
    "move_mount": "to_path",
    "mount_setattr": "path",
    "renameat2": "to_path",
    "syncfs": "",
    "pidfd_send_signal": "signal",
    "set_link_up": "name",
}
#: Audit events that tell of a change, and which of their arguments says what.
_EVENTS: Final = {
    "os.mkdir": 0,
    "os.rename": 1,
    "os.remove": 0,
    "os.rmdir": 0,
    "os.symlink": 1,
    "os.link": 1,
    "os.truncate": 0,
    AUDIT_EVENT: 0,
}
_ID: Final = re.compile(r"[0-9a-f]{64}")
_RANDOM: Final = re.compile(r"\.[0-9a-f]{8,}\.tmp\b|\bexec-[0-9a-f]+")
_ROOTS: Final = re.compile(r"/(run|var/tmp)/podwright-test-[^/]+")
#: Of the programs that are run: the words that say which and what for.
_VERBS: Final = frozenset(["create", "start", "kill", "delete", "state", "exec", "update", "run"])


class Steps:
    """Counts the steps and carries out the order that is in force."""

    def __init__(self, directory: Path) -> None:
        self._order_path = directory / "order"
        self._trace_path = directory / "trace"
        self._seen: tuple[int, int] | None = None
        self._order: dict[str, object] = {}
        self._count = 0
        self._matched = 0
        self._due = False
        self._busy = threading.local()
        self._lock = threading.Lock()

    def take(self, text: str, *, watched: bool = False) -> bool:
        """A step is about to be taken; may not return, or raise OSError.

        True when the caller, who watches the step's end, is to call `die` then: what happens
        within the step, or beside it, is no end of it.
        """
        if getattr(self._busy, "now", False):
            return False
        self._busy.now = True
        try:
            with self._lock:
                what = self._judge(text)
        finally:
            self._busy.now = False
        if what == "kill-after" and watched:
            return True
        if what:
            self._act(what)
        return False

    def _judge(self, text: str) -> str:
        try:
            about = self._order_path.stat()
        except FileNotFoundError:
            return ""
        if (about.st_ino, about.st_mtime_ns) != self._seen:
            self._seen = (about.st_ino, about.st_mtime_ns)
            self._order = json.loads(self._order_path.read_text())
            self._count, self._matched, self._due = 0, 0, False
        if self._due:
            die()
        line = _plain(text)
        self._count += 1
        with self._trace_path.open("a") as trace:
            trace.write(f"{line}\n")
        if "number" in self._order:
            return str(self._order["do"]) if self._count == self._order["number"] else ""
        if "match" not in self._order or not re.search(str(self._order["match"]), line):
            return ""
        self._matched += 1
        if self._matched < int(str(self._order["from"])):
            return ""
        if self._matched >= int(str(self._order["from"])) + int(str(self._order["times"])):
            return ""
        return str(self._order["do"])

    def _act(self, what: str) -> None:
        kind, _, value = what.partition(":")
        if kind == "kill":
            die()
        elif kind == "kill-after":
            self._due = True
        elif kind == "delay":
            time.sleep(float(value))
        elif kind == "fail":
            number = getattr(errno, value)
            raise OSError(number, os.strerror(number))
        else:
            raise AssertionError(f"no such order: {what}")


def die() -> None:
    """SIGKILL to ourselves."""
    os.kill(os.getpid(), signal.SIGKILL)


def _plain(text: str) -> str:
    text = _ROOTS.sub(lambda found: "RUN" if found[1] == "run" else "WORK", text)
    return _RANDOM.sub("RANDOM", _ID.sub("ID", text))


def _words(event: str, argument: object) -> str:
    if event == AUDIT_EVENT:
        argv = [os.fsdecode(word) for word in argument]  # type: ignore[attr-defined]
        verbs = [word for word in argv[1:] if word in _VERBS]
        return f"run {Path(argv[0]).name} {' '.join(verbs[:1])}".strip()
    path = os.fsdecode(argument) if isinstance(argument, str | bytes | os.PathLike) else argument
    return f"{event.removeprefix('os.')} {path}"


def install(directory: Path) -> Steps:
    """Wrap the doors; from now on orders are obeyed."""
    steps = Steps(directory)

    def heard(event: str, arguments: tuple[object, ...]) -> None:
        if event in _EVENTS:
            steps.take(_words(event, arguments[_EVENTS[event]]))
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT:
            steps.take(f"make {arguments[0]!s}")

    for name, key in _CALLS.items():
        setattr(LibcSyscalls, name, _wrapped(steps, getattr(LibcSyscalls, name), name, key))
    os.fsync = _wrapped(steps, os.fsync, "fsync", "")
    transact = database.Database._transact

    @functools.wraps(transact)
    def committing(self: database.Database, work: Callable[[object], object]) -> object:
        name = getattr(work, "__qualname__", str(work)).replace(".<locals>", "")
        last = steps.take(f"commit {self._path.name} {name}", watched=True)
        result = transact(self, work)
        if last:
            die()
        return result

    database.Database._transact = committing  # type: ignore[assignment, method-assign]
    right = SystemClock.wall_ns

    def wrong(self: SystemClock) -> int:
        try:
            return right(self) + int((directory / "clock").read_text()) * 10**9
        except FileNotFoundError:
            return right(self)

    SystemClock.wall_ns = wrong  # type: ignore[method-assign]
    sys.addaudithook(heard)
    return steps


def _wrapped(steps: Steps, call: Callable[P, T], name: str, key: str) -> Callable[P, T]:
    import inspect

    names = list(inspect.signature(call).parameters)

    @functools.wraps(call)
    def wrapper(*arguments: P.args, **keywords: P.kwargs) -> T:
        value = dict(zip(names, arguments, strict=False)) | keywords
        try:
            last = steps.take(f"{name} {value.get(key, '')}".strip(), watched=True)
        except OSError as error:
            raise from_os_error(error, f"{name} was ordered to fail") from error
        result = call(*arguments, **keywords)
        if last:
            die()
        return result

    return wrapper


def main() -> None:
    """See the module text."""
    directory = Path(sys.argv.pop(1))
    install(directory)
    sys.argv[0] = "podwright"
    from cri.cli import main as podwright

    podwright()


if __name__ == "__main__":
    main()
