"""A `ProcessRunner` that starts nothing: it records, and answers from a script."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sandbox.host.errors import PodwrightError
from sandbox.host.processes import Finished


@dataclass(frozen=True)
class Run:
    """One program asked for; `spawned` tells `spawn` from `run`."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    stdin: bytes = b""
    timeout_s: float | None = None
    cwd: Path | None = None
    pass_fds: tuple[int, ...] = ()
    spawned: bool = False


class FakeSpawned:
    """A program that runs until the test says `finish`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = -1
        self.signals: list[int] = []
        self.exit_status: int | None = None
        self._ended = asyncio.Event()

    def finish(self, exit_status: int = 0) -> None:
        self.exit_status = exit_status
        self._ended.set()

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.exit_status is not None
        return self.exit_status

    def kill_group(self, signal: int = 9) -> bool:
        if self.exit_status is not None:
            return False
        self.signals.append(signal)
        if signal == 9:
            self.finish(-9)
        return True


#: What a program answers: its end, a failure to raise, or a function of the run (async or not).
Reply = Finished | BaseException | Callable[[Run], object]


@dataclass
class FakeProcessRunner:
    """Answers each `run` by the last rule whose words begin the command line (program's base name).

    >>> runner = FakeProcessRunner()
    >>> runner.on("crun state", stdout=b"{}")
    >>> runner.on("crun delete", exit_status=1, stderr=b"no such container")

    A command without a rule ends well and says nothing.
    """

    runs: list[Run] = field(default_factory=list)
    spawned: list[FakeSpawned] = field(default_factory=list)
    _rules: list[tuple[list[str], Reply]] = field(default_factory=list)

    def on(
        self,
        command: str,
        reply: Reply | None = None,
        *,
        exit_status: int = 0,
        stdout: bytes = b"",
        stderr: bytes = b"",
    ) -> None:
        """Answer commands that begin with these words."""
        words = shlex.split(command)
        answer = reply or Finished(tuple(words), exit_status, stdout, stderr, took_ns=1_000_000)
        self._rules.append((words, answer))

    def commands(self) -> list[str]:
        """The command lines so far, programs by base name."""
        return [shlex.join(_words(run.argv)) for run in self.runs]

    def _reply(self, argv: tuple[str, ...]) -> Reply | None:
        words = _words(argv)
        for begin, reply in reversed(self._rules):
            if words[: len(begin)] == begin:
                return reply
        return None

    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout_s: float | None = None,
        output_limit_bytes: int = 1024 * 1024,
        truncate: bool = False,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
        drain_s: float = 1.0,
        finish_s: float = 0.0,
        check: type[PodwrightError] | None = None,
    ) -> Finished:
        run = Run(tuple(argv), dict(env or {}), stdin, timeout_s, cwd, tuple(pass_fds))
        self.runs.append(run)
        reply = self._reply(run.argv)
        if callable(reply) and not isinstance(reply, Finished):
            reply = reply(run)
            if asyncio.iscoroutine(reply):
                reply = await reply
        else:
            await asyncio.sleep(0)
        if isinstance(reply, BaseException):
            raise reply
        if reply is None:
            reply = Finished(run.argv, 0, b"", b"", took_ns=1_000_000)
        assert isinstance(reply, Finished)
        if check is not None and reply.exit_status != 0:
            raise check(f"{run.argv[0]} failed: {reply.message}", replay=reply.replay)
        return reply

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
        stdin_fd: int | None = None,
        stdout_fd: int | None = None,
        stderr_fd: int | None = None,
        new_session: bool = True,
    ) -> FakeSpawned:
        run = Run(tuple(argv), dict(env or {}), cwd=cwd, pass_fds=tuple(pass_fds), spawned=True)
        self.runs.append(run)
        reply = self._reply(run.argv)
        if isinstance(reply, BaseException):
            raise reply
        child = FakeSpawned(pid=100_000_000 + len(self.spawned))
        self.spawned.append(child)
        if isinstance(reply, Finished):
            child.finish(reply.exit_status)
        elif callable(reply):
            reply(run)
        return child


def _words(argv: Sequence[str]) -> list[str]:
    return [Path(argv[0]).name, *argv[1:]]
