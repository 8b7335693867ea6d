"""One plugin, run once: environment and document in, standard output or a named failure out.

A plugin's exit status decides; its words only explain. Whatever happens, when the call returns no
process of the plugin is left that the runner could reach: past the time limit, past the output
limit and on cancellation its whole process group is killed; an ADD called off may end first.
"""

from __future__ import annotations

import os
import shlex
import signal
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from cni.document import MalformedDocument, decode_object, view
from cni.errors import (
    PluginExhausted,
    PluginFailed,
    PluginMissing,
    PluginTimedOut,
    failure_of,
    presentable,
)
from sandbox.host.errors import (
    Busy,
    DeadlineExceeded,
    Denied,
    InvalidArgument,
    NotFound,
    PodwrightError,
    ResourceExhausted,
    Unsupported,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sandbox.host.clock import Clock
    from sandbox.host.processes import Finished, ProcessRunner

#: Waits between tries while a plugin's file is being written by its installer (ETXTBSY). After the
#: last of them the failure is raised: about three seconds, an installer's copy takes less than one.
BUSY_RETRY_DELAYS_S: Final = (0.1, 0.2, 0.4, 0.8, 1.6)

#: How long an ADD that is called off may take to end by itself. A kill in the middle of it can
#: leave what no DEL finds: host-local makes an address's file first and then writes into it whose
#: it is, and DEL frees the files that name the pod. Most plugins are done in a tenth of a second.
ADD_FINISH_S: Final = 5.0

#: Set for every plugin, inherited by what it runs, so that a later life of the daemon finds what an
#: earlier one left running (see `leftovers`). The value is the cache directory.
OWNER_VARIABLE: Final = "PODWRIGHT_CNI_OWNER"


class Command(StrEnum):
    """What a plugin can be asked; values as in CNI_COMMAND."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    GC = "GC"
    STATUS = "STATUS"
    VERSION = "VERSION"


@dataclass(frozen=True, slots=True)
class PluginCall:
    """Everything one run of a plugin depends on.

    Attributes:
        path: the program; None when no directory has it, which fails the call.
        environment: the CNI_* variables and what the operator added; the runner adds PATH and LANG
            and nothing of the daemon's own.
    """

    command: Command
    plugin: str
    path: Path | None
    environment: Mapping[str, str]
    stdin: bytes
    timeout_s: float


class Observer(Protocol):
    """Told about every run of a plugin, for metrics."""

    def __call__(self, operation: str, plugin: str, seconds: float, ok: bool) -> None:
        """`operation` is the CNI command; must not raise."""
        ...


class PluginExec(Protocol):
    """Runs plugins. `PluginPrograms` is the real one."""

    async def execute(self, call: PluginCall) -> bytes:
        """Standard output of a plugin that succeeded.

        Raises:
            PluginMissing: no such program.
            PluginTimedOut: it took longer than `call.timeout_s`.
            PluginExhausted: it printed too much, or could not be started for lack of something.
            PluginUnavailable: it asks to be called later.
            PluginFailed: any other failure, in its own words.
        """
        ...


def find_plugin(name: str, directories: Sequence[Path]) -> Path | None:
    """The program of a plugin: the first executable file of its name; blocking."""
    for directory in directories:
        path = directory / name
        if path.is_file() and os.access(path, os.X_OK):
            return path
    return None


class PluginPrograms:
    """Plugins as programs of this host."""

    def __init__(
        self,
        runner: ProcessRunner,
        clock: Clock,
        *,
        directories: Sequence[Path],
        output_limit_bytes: int,
        observer: Observer | None = None,
    ) -> None:
        self._runner = runner
        self._clock = clock
        self.search(directories)
        self._output_limit_bytes = output_limit_bytes
        self._observer = observer

    def search(self, directories: Sequence[Path]) -> None:
        """Name these directories where a plugin is missing."""
        self._searched = ":".join(map(str, directories))

    async def execute(self, call: PluginCall) -> bytes:
        """See `PluginExec`."""
        started_ns = self._clock.monotonic_ns()
        ok = False
        try:
            stdout = await self._execute(call)
            ok = True
            return stdout
        finally:
            if self._observer is not None:
                took_s = (self._clock.monotonic_ns() - started_ns) / 1e9
                self._observer(call.command.value, call.plugin, took_s, ok)

    async def _execute(self, call: PluginCall) -> bytes:
        if call.path is None:
            raise PluginMissing(
                call.plugin,
                call.command,
                f"no executable file {call.plugin} in {self._searched}",
                hint="install the plugin or set bin_dirs",
            )
        for delay_s in BUSY_RETRY_DELAYS_S:
            try:
                return await self._run(call, call.path)
            except Busy:
                await self._clock.sleep(delay_s)
        try:
            return await self._run(call, call.path)
        except Busy as error:
            raise _failed(PluginMissing, call, "its program is still being written") from error

    async def _run(self, call: PluginCall, path: Path) -> bytes:
        if call.timeout_s <= 0:
            raise _failed(PluginTimedOut, call, "no time was left to run it")
        try:
            finished = await self._runner.run(
                [str(path)],
                env=call.environment,
                stdin=call.stdin,
                timeout_s=call.timeout_s,
                output_limit_bytes=self._output_limit_bytes,
                cwd=Path("/"),
                finish_s=ADD_FINISH_S if call.command is Command.ADD else 0.0,
            )
        except Busy:
            raise
        except DeadlineExceeded as error:
            text = f"killed after {call.timeout_s:g} s"
            raise _failed(PluginTimedOut, call, text) from error
        except ResourceExhausted as error:
            raise _failed(PluginExhausted, call, error.message) from error
        except (NotFound, Denied, Unsupported, InvalidArgument) as error:
            # Gone since it was looked up, not executable, or of another architecture.
            raise _failed(PluginMissing, call, error.message) from error
        except PodwrightError as error:
            raise _failed(PluginFailed, call, error.message) from error
        if finished.exit_status != 0:
            raise explain(call, finished)
        return finished.stdout


class _ErrorKeys(msgspec.Struct):
    code: int
    msg: str | None = None
    details: str | None = None


def explain(call: PluginCall, finished: Finished) -> PluginFailed:
    """The failure that a plugin's exit status and output amount to."""
    told = _reported(finished.stdout)
    if told is not None:
        return failure_of(
            call.plugin,
            call.command,
            told.msg or "no message",
            code=told.code,
            details=told.details or "",
            replay=_replay(call),
        )
    # No error document: it crashed, was killed, or is no CNI plugin. Standard error first, as that
    # is where a crash is written about.
    status = finished.exit_status
    ending = f"killed by {_signal_name(-status)}" if status < 0 else f"exit status {status}"
    said = [presentable(s.decode(errors="replace")) for s in (finished.stderr, finished.stdout)]
    words = " | ".join(text for text in said if text)
    return _failed(PluginFailed, call, f"{ending}: {words}" if words else f"{ending}, no message")


def _reported(stdout: bytes) -> _ErrorKeys | None:
    """The error document, also where a library printed lines of its own before it."""
    for text in (stdout, stdout.strip().rpartition(b"\n")[2]):
        try:
            return view(decode_object(text), _ErrorKeys)
        except MalformedDocument:
            continue
    return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _failed(kind: type[PluginFailed], call: PluginCall, msg: str) -> PluginFailed:
    return kind(call.plugin, call.command, msg, replay=_replay(call))


def _replay(call: PluginCall) -> str:
    # Without the document: it may hold tokens. The saved attachment has it.
    variables = [f"{k}={v}" for k, v in call.environment.items() if k.startswith("CNI_")]
    return shlex.join(["env", *variables, str(call.path)]) + " < plugin-config.json"
