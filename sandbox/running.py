"""A command that an OCI runtime runs in a container, and the ways to end it.

The runtime's own process waits for the command and ends with its status. What a command leaves on
disk is one directory below the container's (`EXEC_PREFIX`), which recovery finds again.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import secrets
import shlex
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from sandbox.errors import ContainerNotRunning, RuntimeFailed, RuntimeTimeout
from sandbox.host import files
from sandbox.host.errors import NotFound, PodwrightError, map_os_errors
from sandbox.host.journal import get_logger
from sandbox.host.threads import to_its_end
from sandbox.runtime import proctree
from sandbox.runtime.command import LOG_LIMIT_BYTES, failure, has_error, runtime_message
from sandbox.runtime.written import read_pid_file

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from sandbox.cgroups import Cgroups
    from sandbox.host.clock import Clock
    from sandbox.host.pidfd import Process
    from sandbox.host.processes import Spawned
    from sandbox.settings import SandboxTimeouts

#: Directories of execs in a container's run directory; a sweep may remove what has this prefix.
EXEC_PREFIX: Final = "exec-"

#: Pause between two rounds of killing (seconds): a process may have forked in between.
_KILL_PAUSE_S: Final = 0.01
#: How long a runtime may take to end after its command was killed (seconds).
REAP_S: Final = 0.5
#: The same in parts, after each of which it is looked whether it has started anybody.
_LOOKS_S: Final = (REAP_S / 16, REAP_S / 16, REAP_S / 8, REAP_S / 4, REAP_S / 2)

_log = get_logger("execs")


def new_directory(container_directory: Path) -> Path:
    """A name for the files of one more command."""
    return container_directory / f"{EXEC_PREFIX}{secrets.token_hex(8)}"


def write_process(directory: Path, process_json: bytes) -> None:
    """Make the directory with the OCI `process` document in it. Blocking."""
    files.make_private_dir(directory)
    files.write_atomic(directory / "process.json", process_json, durable=False)


def give_score(spawned: Spawned, process_json: bytes) -> None:
    """Give the runtime's process, just started, the OOM score that its command is to have.

    crun 1.8 leaves the score of a command alone: it would inherit the daemon's own, which on a node
    whose daemon is protected makes whatever somebody runs in a container the last to be killed.
    runc sets the one that the container was created with, also after a resize.
    """
    score = msgspec.json.decode(process_json, type=_Scored).score
    if score is not None:
        with suppress(OSError):  # it has ended; or it is ours to lower no further
            Path(f"/proc/{spawned.pid}/oom_score_adj").write_text(str(score))


class _Scored(msgspec.Struct):
    """What is read here of an OCI process."""

    score: int | None = msgspec.field(default=None, name="oomScoreAdj")


async def prepare(directory: Path, process_json: bytes) -> None:
    """`write_process` in a thread; also when cancelled, nothing is written after this has ended."""
    # Or else the directory would come back right after its removal.
    await to_its_end(functools.partial(write_process, directory, process_json))


async def started(
    start: Coroutine[None, None, Spawned],
) -> tuple[Spawned, asyncio.CancelledError | None]:
    """A runtime that is started, and the cancellation of the caller that came meanwhile.

    The caller ends the command, as if the cancellation had come right afterwards, and raises it. To
    `ProcessRunner.spawn` the runtime is a program like others and would be killed alone; but on a
    busy node it may have come to the command before anybody here hears of its start.

    Raises:
        PodwrightError: as `ProcessRunner.spawn`.
    """
    starting = asyncio.get_running_loop().create_task(start)
    cancelled: asyncio.CancelledError | None = None
    while not starting.done():
        try:
            await asyncio.wait({starting})
        except asyncio.CancelledError as error:
            cancelled = error
    return starting.result(), cancelled


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A command that was started.

    Attributes:
        container_id: ours.
        runtime_name: the handler's, for messages.
        cgroup_path: OCI cgroupsPath of the container.
        directory: of this command.
        argv: the runtime's, for messages.
        spawned: the runtime's process.
        late: set once it was killed because it did not come to the command.
    """

    container_id: str
    runtime_name: str
    cgroup_path: str
    directory: Path
    argv: tuple[str, ...]
    spawned: Spawned
    cgroups: Cgroups
    clock: Clock
    timeouts: SandboxTimeouts
    late: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def pid_file(self) -> Path:
        """Where the runtime writes the command's process number."""
        return self.directory / "pid"

    async def failure(self, status: int, init: Process) -> PodwrightError | None:
        """Why the runtime could not run it; None when `status` is the command's own."""
        if self.late.is_set():
            return self.too_late()
        log = await asyncio.to_thread(_read_log, self.directory / "log")
        if not has_error(log) and status >= 0:
            return None
        if not init.alive():  # it ended while the runtime was looking at it
            return ContainerNotRunning("container is not running", container=self.container_id)
        message = runtime_message(log)
        if status < 0 and not message:
            return RuntimeFailed(
                f"{self.runtime_name} exec was ended by signal {-status}",
                container=self.container_id,
            )
        return failure(
            "exec",
            self.runtime_name,
            self.container_id,
            exit_status=status,
            message=message,
            replay=shlex.join(self.argv),
        )

    async def guard(self, init: Process) -> None:
        """See that the command begins, and ends with its container, also in a shared pid namespace.

        runc 1.1.5 with a terminal may wait for ever for one that is hung up already: seen once in
        many thousand commands whose program was not there.
        """
        try:
            async with asyncio.timeout(self.timeouts.operation_s):
                await init.wait()
        except TimeoutError:
            if not await self._has_begun():
                self.late.set()
                await self.end()
            await init.wait()
        await self.clock.sleep(self.timeouts.exec_drain_s)
        try:
            await self.cgroups.kill(self.cgroup_path)
        except (PodwrightError, OSError) as error:
            # Raised here it would end whoever has this task in his group, such as the daemon.
            _log.warning(
                "command cannot be ended with its container",
                container=self.container_id,
                error=str(error),
            )
        await self.clock.sleep(self.timeouts.exec_drain_s)
        self.spawned.kill_group(signal.SIGKILL)

    async def _has_begun(self) -> bool:
        """Whether the runtime has come to the command, by its number or a child, or has ended.

        True as well where that cannot be told, as without a free descriptor.
        """
        try:
            size = self.pid_file.stat().st_size
        except FileNotFoundError:
            size = 0
        except OSError:
            return True
        if size > 0 or self.spawned.pidfd < 0:
            return True
        try:
            everyone = await _everyone()
        except PodwrightError:
            return True
        return len(proctree.family(everyone, {self.spawned.pid})) > 1

    def too_late(self) -> RuntimeTimeout:
        """That the runtime has not come to the command in time."""
        return RuntimeTimeout(
            f"{self.runtime_name} exec did not start the command within "
            f"{self.timeouts.operation_s:g} s and was killed",
            container=self.container_id,
            hint="raise runtime.operation_timeout_s if this node is that slow",
        )

    async def clear(self) -> None:
        """Remove its files. Raises nothing; what stays is logged, and goes with the container's."""
        try:
            await to_its_end(functools.partial(files.remove_tree, self.directory))
        except PodwrightError as error:
            _log.warning(
                "files of a command cannot be removed yet",
                container=self.container_id,
                path=str(self.directory),
                error=str(error),
            )

    async def end(self) -> None:
        """Kill the command and what it started; the runtime that waits for it then ends too.

        The runtime is killed only if it stays: as the parent it reaps the command, and a zombie
        left to a lazy init would keep the container's pid namespace from ending. It may also stay
        because it has yet to come to the command: whom it starts until it is killed is killed, too.
        """
        deadline_ns = self.clock.monotonic_ns() + int(self.timeouts.exec_kill_s * 1e9)
        known: set[int] = set()
        with suppress(PodwrightError):
            if not await self._kill_all(known, deadline_ns):
                _log.warning("command does not end after SIGKILL", container=self.container_id)
            for wait_s in _LOOKS_S:
                if await self._runtime_ends_within(wait_s):
                    break
                await self._kill_all(known, deadline_ns)
            # A last look at one that is stopped: who has a signal pending forks no more (fork(2) is
            # begun anew after it), so all that it has started is there to be seen.
            if self.spawned.kill_group(signal.SIGSTOP):
                await self._kill_all(known, deadline_ns)
        await self.end_runtime(0)

    async def end_runtime(self, grace_s: float) -> None:
        """Wait for the runtime's own process, and kill it where it stays."""
        for wait_s in (grace_s, self.timeouts.exec_kill_s):
            await self._runtime_ends_within(wait_s)
            self.spawned.kill_group(signal.SIGKILL)

    async def _runtime_ends_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.spawned.wait()
                return True
        return False

    async def _kill_all(self, known: set[int], deadline_ns: int) -> bool:
        """Kill until nobody is found, or until the deadline; whether nobody is left.

        All are stopped before any is killed. Somebody may be forked between a look and the signal,
        and is found at the next look as the child of his parent, while that lives; of a dead one's
        he might have left the session as well, and nothing would tell whose he is.
        """
        stopped: set[tuple[int, int]] = set()
        for rounds in itertools.count(1):
            found = await self._look(known)
            if not found:
                return True
            fresh = [one for one in found if (one.pid, one.start_ticks) not in stopped]
            if fresh and rounds < proctree.ROUNDS:
                proctree.kill(fresh, signal.SIGSTOP)
                stopped |= {(one.pid, one.start_ticks) for one in fresh}
                continue
            proctree.kill(found)
            if self.clock.monotonic_ns() >= deadline_ns:
                break
            await self.clock.sleep(_KILL_PAUSE_S)
        return False

    async def _look(self, known: set[int]) -> list[proctree.ProcessInfo]:
        """Who of the command is there now. `known` keeps the sessions seen so far."""
        inside = await self.cgroups.processes(self.cgroup_path)
        everyone = await _everyone()
        found: dict[int, proctree.ProcessInfo] = {}
        if self.spawned.pidfd >= 0:
            # Not reaped up to here, so the number was the runtime's when /proc was read.
            found |= {info.pid: info for info in proctree.family(everyone, {self.spawned.pid})}
        with suppress(PodwrightError):
            known.add(await asyncio.to_thread(read_pid_file, self.pid_file))
        # By number alone only inside the container: elsewhere it may be a stranger's by now.
        members = [info for info in everyone if info.pid in inside]
        found |= {info.pid: info for info in proctree.family(members, known)}
        found.pop(self.spawned.pid, None)
        # Its own number as well: one that was seen before it made its session, is in it by now.
        known |= {number for info in found.values() for number in (info.session, info.pid)}
        return list(found.values())


async def _everyone() -> list[proctree.ProcessInfo]:
    with map_os_errors("cannot look at processes"):
        return await asyncio.to_thread(proctree.snapshot)


def _read_log(path: Path) -> bytes:
    try:
        return files.read_limited(path, LOG_LIMIT_BYTES)
    except NotFound:
        return b""
