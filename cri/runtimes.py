"""The configured OCI runtimes as objects, with the short ways that the node and they allow."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cri import settings_speed as speed
from sandbox.runtime.crun import CommandRuntime, is_crun
from sandbox.runtime.sealed import SealedProgram

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from cri.config import Config
    from metrics.instruments import Instruments
    from sandbox.host.clock import Clock
    from sandbox.host.processes import ProcessRunner
    from sandbox.host.syscalls import Syscalls
    from sandbox.paths import Paths
    from sandbox.settings import SandboxSettings


async def build_runtimes(
    config: Config,
    sandbox: SandboxSettings,
    paths: Paths,
    stack: AsyncExitStack,
    *,
    systemd_cgroup: bool,
    runner: ProcessRunner,
    syscalls: Syscalls,
    clock: Clock,
    observer: Instruments,
) -> dict[str, CommandRuntime]:
    """By handler name; nothing has been asked of them yet. What they mount goes with `stack`."""
    runtimes: dict[str, CommandRuntime] = {}
    for handler in sandbox.handlers:
        program = SealedProgram(handler.path)
        # What runc copies is small enough not to matter, and runsc runs itself again as others.
        if is_crun(handler) and config.get(speed.SEALED_PROGRAMS):
            place = paths.programs / handler.name
            await asyncio.to_thread(program.seal, place, syscalls=syscalls)
            stack.callback(program.unseal, syscalls=syscalls)
        runtimes[handler.name] = CommandRuntime(
            handler,
            runner=runner,
            clock=clock,
            systemd_cgroup=systemd_cgroup,
            timeouts=sandbox.timeouts,
            observer=observer,
            program=program,
            direct_start=config.get(speed.DIRECT_START),
        )
    return runtimes
