"""The configured OCI runtimes as objects, with the short ways that the node and they allow."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri import settings_speed as speed
from sandbox.host import files
from sandbox.host.errors import PodwrightError, map_os_errors
from sandbox.host.journal import get_logger
from sandbox.runtime.crun import CommandRuntime, is_crun
from sandbox.runtime.sealed import SealedProgram

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AsyncExitStack
    from pathlib import Path

    from cri.config import Config
    from metrics.instruments import Instruments
    from sandbox.host.clock import Clock
    from sandbox.host.processes import ProcessRunner
    from sandbox.host.syscalls import Syscalls
    from sandbox.paths import Paths
    from sandbox.runtime.driver import RuntimeInfo
    from sandbox.settings import RuntimeHandler, SandboxTimeouts

_log = get_logger("node")


def shared_books(handlers: Iterable[RuntimeHandler], run_root: Path) -> frozenset[str]:
    """Names of the handlers whose root is elsewhere than below the run root. Blocking, briefly."""
    ours = run_root.resolve()
    return frozenset(h.name for h in handlers if not h.root.resolve().is_relative_to(ours))


@dataclass(frozen=True, slots=True)
class Made:
    """A handler's runtime, asked what it is.

    Attributes:
        handler: as configured.
        runtime: drives it.
        info: what the program has said; None where it does not run.
        missing: why not.
        shared: its root is not the daemon's own.
    """

    handler: RuntimeHandler
    runtime: CommandRuntime
    info: RuntimeInfo | None
    missing: str
    shared: bool


class RuntimeMaker:
    """Makes them, at the start and when the configuration is read again."""

    def __init__(
        self,
        config: Config,
        timeouts: SandboxTimeouts,
        paths: Paths,
        *,
        systemd_cgroup: bool,
        runner: ProcessRunner,
        syscalls: Syscalls,
        clock: Clock,
        observer: Instruments,
    ) -> None:
        self._sealed = config.get(speed.SEALED_PROGRAMS)
        self._direct_start = config.get(speed.DIRECT_START)
        self._direct_delete = config.get(speed.DIRECT_DELETE)
        self._timeouts = timeouts
        self._paths = paths
        self._systemd_cgroup = systemd_cgroup
        self._runner = runner
        self._syscalls = syscalls
        self._clock = clock
        self._observer = observer

    async def make(self, handler: RuntimeHandler, stack: AsyncExitStack | None = None) -> Made:
        """Make one, with its root directory, and ask the program what it is.

        A missing program fails only the pods that ask for it, so that is told and not raised.

        Args:
            handler: as configured.
            stack: what is mounted for it goes with this; without one nothing is mounted.

        Raises:
            PodwrightError: its root cannot be made, or is not a directory of ours.
        """
        shared = await asyncio.to_thread(self._make_root, handler)
        program = SealedProgram(handler.path)
        # What runc copies is small enough not to matter, and runsc runs itself again as others.
        if stack is not None and self._sealed and is_crun(handler):
            place = self._paths.programs / handler.name
            await asyncio.to_thread(program.seal, place, syscalls=self._syscalls)
            stack.callback(program.unseal, syscalls=self._syscalls)
        runtime = CommandRuntime(
            handler,
            runner=self._runner,
            clock=self._clock,
            systemd_cgroup=self._systemd_cgroup,
            timeouts=self._timeouts,
            observer=self._observer,
            program=program,
            direct_start=self._direct_start,
            direct_delete=self._direct_delete,
        )
        info, missing = None, ""
        try:
            info = await runtime.probe()
        except PodwrightError as error:
            missing = str(error)
            _log.warning("runtime handler cannot be used", handler=handler.name, error=missing)
        return Made(handler, runtime, info, missing, shared)

    def _make_root(self, handler: RuntimeHandler) -> bool:
        """Whether it is shared: then it is others' to say who may look into it."""
        shared = bool(shared_books([handler], self._paths.run_root))
        if not shared:
            files.make_private_dir(handler.root, mode=0o700)
            return False
        with map_os_errors("cannot make directory", path=str(handler.root)):
            handler.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        return True
