"""Puts the findings together, in the order in which a person would mend things."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cri import settings_table as table
from cri.check.devices import devices
from cri.check.drivers import storage_driver
from cri.check.exposure import exposure
from cri.check.groups import control_groups
from cri.check.lsm import security_modules
from cri.check.machine import kernel, python, rights, storage
from cri.check.network import network
from cri.check.programs import programs
from cri.check.registries import registries
from cri.check.state import state
from cri.check.stores import additional_stores
from cri.check.trust import trust
from cri.check.userns import user_namespaces
from sandbox.host.host_facts import HostFacts
from sandbox.host.libc import LibcSyscalls
from sandbox.host.processes import HostProcessRunner
from sandbox.paths import Paths

if TYPE_CHECKING:
    from cri.check.finding import Finding
    from cri.config import Config

PROC: Final = Path("/proc")
SYSTEMD: Final = Path("/run/systemd/system")


async def examine(config: Config) -> list[Finding]:
    """Look at this node. Raises nothing that a person could not mend: findings say it."""
    sandbox = config.sandbox()
    cni = config.cni()
    image_root = config.images().root
    syscalls = LibcSyscalls()
    host = await asyncio.to_thread(HostFacts.detect)
    uses_crun = any("crun" in handler.path.name for handler in sandbox.handlers)

    privileged = os.geteuid() == 0

    def blocking() -> tuple[list[Finding], list[Finding]]:
        before = [
            *rights(host),
            *kernel(host, syscalls, PROC),
            *security_modules(config.lsm(), apparmor=host.apparmor),
        ]
        after = [
            *control_groups(
                host.cgroup,
                sandbox.cgroup_driver,
                systemd_runs=SYSTEMD.is_dir(),
                uses_crun=uses_crun,
                privileged=privileged,
            ),
            *storage(
                sandbox.state_root,
                sandbox.run_root,
                image_root,
                syscalls,
                privileged=privileged,
                writable_layer_bytes=config.get(table.WRITABLE_LAYER),
                layer_form=config.images().layer_form,
            ),
            *state(Paths(run_root=sandbox.run_root, state_root=sandbox.state_root)),
            *network(cni, PROC),
            *registries(config),
            *devices(sandbox, may_raise="CAP_SYS_RESOURCE" in host.capabilities_effective),
            *additional_stores(config.images().additional_stores),
            *trust(config.images()),
            *python(),
        ]
        return before, after

    before, after = await asyncio.to_thread(blocking)
    runner = HostProcessRunner()
    roots, driver = await storage_driver(
        config.images(),
        runner,
        syscalls,
        privileged=privileged,
        writable_layer_bytes=config.get(table.WRITABLE_LAYER),
    )
    return [
        *before,
        *await programs(sandbox, config.get(table.PAUSE_PATH), runner),
        *after,
        *roots,
        *await user_namespaces(sandbox, image_root, driver, runner, syscalls, PROC),
        *await exposure(config, runner),
    ]
