"""Findings about user namespaces: whether pods with `hostUsers: false` can run here."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from cri.check.finding import Finding, Level
from cri.check.machine import existing
from cri.node import runtime_lacks_user_namespaces
from cri.userns import lack_of_user_namespaces
from sandbox.host.clock import SystemClock
from sandbox.host.errors import PodwrightError
from sandbox.host.namespaces import NamespaceWorker
from sandbox.host.usernamespaces import UserNamespaces
from sandbox.runtime.crun import CommandRuntime

if TYPE_CHECKING:
    from pathlib import Path

    from imageservice.snapshots.drivers import Driver
    from sandbox.host.processes import ProcessRunner
    from sandbox.host.syscalls import Syscalls
    from sandbox.settings import RuntimeHandler, SandboxSettings

GROUP: Final = "user namespaces"
#: Two words of a reason, and what to do about it.
REMEDIES: Final = (
    ("pass through", "chmod o+x that directory, or choose another daemon.run_root"),
    ("no user namespace", "sysctl user.max_user_namespaces=65536, or more"),
    ("cannot map owners", "keep images on ext4, XFS, btrfs or tmpfs (Linux 6.3)"),
)
NEWER_KERNEL: Final = "use Linux 5.19 or later, whose overlayfs takes layers with mapped owners"


async def user_namespaces(
    settings: SandboxSettings,
    image_root: Path,
    driver: Driver | None,
    runner: ProcessRunner,
    syscalls: Syscalls,
    proc: Path,
) -> list[Finding]:
    """Whether this node's kernel and file systems can, by trying, and which handlers can.

    Without a driver of root file systems nothing can be tried; a finding of its own says why.
    """
    if driver is None:
        remedy_ = "see the storage driver"
        return [Finding(GROUP, "this node", Level.WARNING, "not tried", remedy_)]
    worker = NamespaceWorker(syscalls=syscalls)
    try:
        name = f".podwright-check-{os.getpid()}"
        lack = await lack_of_user_namespaces(
            UserNamespaces(runner=runner, worker=worker),
            worker,
            run_root=settings.run_root,
            pins=existing(settings.run_root) / name,
            layers=existing(image_root) / f"{name}-layers",
            driver=driver,
        )
    finally:
        worker.close()
    if lack:
        return [Finding(GROUP, "this node", Level.WARNING, lack, remedy(lack))]
    limit = (proc / "sys/user/max_user_namespaces").read_text().strip()
    return [
        Finding(GROUP, "this node", Level.OK, f"works, at most {limit} at once"),
        *[await _handler(handler, runner) for handler in settings.handlers],
    ]


def remedy(lack: str) -> str:
    """What to do about a reason of `lack_of_user_namespaces`."""
    return next((what for words, what in REMEDIES if words in lack), NEWER_KERNEL)


async def _handler(handler: RuntimeHandler, runner: ProcessRunner) -> Finding:
    name = f"runtime {handler.name}"
    try:
        info = await CommandRuntime(handler, runner=runner, clock=SystemClock()).probe()
    except PodwrightError:
        # The program itself is a finding already.
        return Finding(GROUP, name, Level.WARNING, "its program does not run")
    lack = runtime_lacks_user_namespaces(info)
    if lack:
        return Finding(GROUP, name, Level.WARNING, lack, "use crun 1.5 or runc 1.1, or newer")
    return Finding(GROUP, name, Level.OK, f"{info.name} {info.version}")
