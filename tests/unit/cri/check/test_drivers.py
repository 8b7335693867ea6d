"""What `podwright check` says of storage drivers; the real mounts are in tests/host."""

from __future__ import annotations

import os
from pathlib import Path

from cri.check.drivers import storage_driver
from cri.check.finding import Finding, Level
from imageservice.settings import ImageSettings
from imageservice.snapshots.drivers import Driver
from sandbox.host.libc import LibcSyscalls
from sandbox.host.processes import HostProcessRunner


async def findings(
    root: Path, *, privileged: bool = True, limit: int = 0, **changes: object
) -> tuple[Finding, Driver | None]:
    settings = ImageSettings(root=root, **changes)  # type: ignore[arg-type]
    [found], driver = await storage_driver(
        settings,
        HostProcessRunner(),
        LibcSyscalls(),
        privileged=privileged,
        writable_layer_bytes=limit,
    )
    return found, driver


async def test_nothing_is_tried_without_rights(tmp_path: Path) -> None:
    found, driver = await findings(tmp_path, privileged=False)
    assert (found.level, found.detail, driver) == (Level.WARNING, "not tried", None)


async def test_what_was_asked_for_and_cannot_be_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    program = tmp_path / "no-such-program"
    found, driver = await findings(
        tmp_path, storage_driver="fuse-overlayfs", fuse_overlayfs_path=program
    )
    assert (found.level, driver) == (Level.ERROR, None)
    assert "the daemon will not start" in found.detail
    assert "set it to auto" in found.remedy
    assert os.listdir(tmp_path) == []  # noqa: PTH208


async def test_copies_need_nothing_and_keep_no_limit(tmp_path: Path) -> None:
    found, driver = await findings(tmp_path, storage_driver="native")
    assert driver is not None
    assert (found.level, driver.name) == (Level.OK, "native")
    assert "cannot be limited" in found.detail
    limited, _ = await findings(tmp_path, storage_driver="native", limit=1 << 20)
    assert limited.level is Level.ERROR
    assert "runtime.writable_layer_bytes" in limited.remedy
