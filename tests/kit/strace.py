"""strace on a running daemon: strike it at one of its system calls, or write down all of a kind."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.kit.calls import until

_UNFINISHED: Final = re.compile(r"(\d+) +([\d.]+) +(\w+)\((.*) <unfinished \.\.\.>")
_RESUMED: Final = re.compile(r"(\d+) +([\d.]+) +<\.\.\. (\w+) resumed>(.*)\) += +(-?\d+).*")
_WHOLE: Final = re.compile(r"(\d+) +([\d.]+) +(\w+)\((.*)\) += +(-?\d+).*")


@contextmanager
def struck(pid: int, system_calls: str, number: int, path: Path | None = None) -> Iterator[None]:
    """Within it, the process dies on entering its n-th of these system calls.

    strace counts for each thread by itself.

    Args:
        pid: of a daemon; programs that it starts are left alone.
        system_calls: names, with commas between.
        number: counted from 1.
        path: only those that have to do with this file.
    """
    narrow = [] if path is None else ["-P", str(path)]
    inject = f"inject={system_calls}:signal=SIGKILL:when={number}"
    options = ["-b", "execve", "-o", "/dev/null", *narrow, "-e", inject]
    with _attached(pid, system_calls, options) as tracer:
        try:
            yield
        finally:
            _let_go(tracer)


@contextmanager
def traced(pid: int, system_calls: str, output: Path) -> Iterator[None]:
    """Within it, these system calls of the process and all that it starts are written to `output`.

    Descriptors are written with the paths of their files; see `calls_of`.
    """
    with _attached(pid, system_calls, ["-ttt", "-y", "-s", "0", "-o", str(output)]) as tracer:
        try:
            yield
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait()


@contextmanager
def _attached(pid: int, system_calls: str, options: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    threads = list(Path(f"/proc/{pid}/task").iterdir())
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", "-e", f"trace={system_calls}", *options, "-p", str(pid)],
        stderr=subprocess.DEVNULL,
    )
    # One after the other, the first one first.
    until(lambda: all(_is_held(each, tracer.pid) for each in threads), "strace has every thread")
    yield tracer


def _is_held(thread: Path, tracer: int) -> bool:
    try:
        return f"TracerPid:\t{tracer}\n" in (thread / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True  # it has ended


def _let_go(tracer: subprocess.Popen[bytes]) -> None:
    # A polite strace sometimes waits for ever for a thread that it has killed, and nobody can
    # reap the daemon before strace has let go of all its threads.
    with contextlib.suppress(subprocess.TimeoutExpired):
        tracer.send_signal(signal.SIGINT)
        tracer.wait(1)
    tracer.kill()
    tracer.wait()


@dataclass(frozen=True, slots=True)
class SystemCall:
    """One finished system call.

    Attributes:
        thread: who made it.
        name: of the call.
        arguments: as strace writes them, descriptors as `3</path>`.
        began, ended: places in the trace. One call was over before another began when its `ended`
            is smaller than the other's `began`.
        result: -1 when it failed.
    """

    thread: int
    name: str
    arguments: str
    began: int
    ended: int
    result: int


def calls_of(trace: str) -> list[SystemCall]:
    """The system calls of a trace in the order of their ends; those without an end are left out."""
    pending: dict[int, tuple[int, str]] = {}
    found: list[SystemCall] = []
    for number, line in enumerate(trace.splitlines()):
        if match := _UNFINISHED.fullmatch(line):
            pending[int(match[1])] = number, match[4]
        elif match := _RESUMED.fullmatch(line):
            began, arguments = pending.pop(int(match[1]), (0, ""))
            text = arguments + match[4]
            found.append(SystemCall(int(match[1]), match[3], text, began, number, int(match[5])))
        elif match := _WHOLE.fullmatch(line):
            found.append(
                SystemCall(int(match[1]), match[3], match[4], number, number, int(match[5]))
            )
    return found
