"""Findings about how root file systems can be made of image layers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from cri.check.finding import Finding, Level
from cri.check.machine import STORAGE, existing
from imageservice.snapshots.drivers import DriverWish, choose_driver
from sandbox.host.errors import Unsupported
from sandbox.layer_limits import LACKS

if TYPE_CHECKING:
    from imageservice.settings import ImageSettings
    from imageservice.snapshots.drivers import Driver
    from sandbox.host.processes import ProcessRunner
    from sandbox.host.syscalls import Syscalls

NAME: Final = "storage driver"
OVERLAY_REMEDY: Final = (
    "load the overlay module, and keep images on ext4, XFS with ftype=1 or tmpfs:"
    " each container costs a copy of its image, or a program, without"
)


async def storage_driver(
    settings: ImageSettings,
    runner: ProcessRunner,
    syscalls: Syscalls,
    *,
    privileged: bool,
    writable_layer_bytes: int = 0,
) -> tuple[list[Finding], Driver | None]:
    """Which one the daemon would use, tried where images are kept; None when there is none.

    Args:
        settings: what the image service is told.
        runner: starts helpers.
        syscalls: the kernel.
        privileged: mounts can be made.
        writable_layer_bytes: the limit of every container, which not every driver can keep.
    """
    if not privileged:
        return [Finding(STORAGE, NAME, Level.WARNING, "not tried", "run the check as root")], None
    at = existing(settings.root)
    try:
        storage = await choose_driver(
            DriverWish.of(settings, runner),
            at / f".podwright-check-{os.getpid()}-driver",
            syscalls=syscalls,
        )
    except Unsupported as error:
        detail = f"the daemon will not start: {error.message}"
        return [Finding(STORAGE, NAME, Level.ERROR, detail, error.hint)], None
    name = storage.driver.name
    lack = LACKS.get(name, "")
    if lack and writable_layer_bytes:
        detail = f"{name}: the daemon will not start: {lack}"
        remedy = "use overlay, or set runtime.writable_layer_bytes to 0"
        return [Finding(STORAGE, NAME, Level.ERROR, detail, remedy)], storage.driver
    if storage.reasons:
        reasons = "; ".join(storage.reasons.values())
        found = Finding(STORAGE, NAME, Level.WARNING, f"{name}, for {reasons}", OVERLAY_REMEDY)
        return [found], storage.driver
    asked = ", as image.storage_driver says" if settings.storage_driver != "auto" else ""
    without = "; writable layers cannot be limited with it" if lack else ""
    detail = f"{name} works at {at}{asked}{without}"
    return [Finding(STORAGE, NAME, Level.OK, detail)], storage.driver
