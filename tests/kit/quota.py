"""A file system that keeps project quota, in a file on a loop device, for tests."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

#: Kernels without CONFIG_QFMT_V2 say ESRCH or EINVAL, which mount(8) reports like this.
_LACKING = ("wrong fs type", "No such process", "unknown filesystem", "missing codepage")


@contextlib.contextmanager
def quota_mount(work: Path, *, size_mib: int = 64) -> Iterator[Path]:
    """Mount a new ext4 with project quota; skips, with the reason, where the kernel has none."""
    image, target = work / "quota.img", work / "quota"
    target.mkdir()
    with image.open("wb") as file:
        file.truncate(size_mib << 20)
    subprocess.run(
        ["mkfs.ext4", "-q", "-O", "project,quota", "-E", "quotatype=prjquota", str(image)],
        check=True,
    )
    mounted = subprocess.run(
        ["mount", "-o", "loop,prjquota", str(image), str(target)], capture_output=True, text=True
    )
    if mounted.returncode and any(text in mounted.stderr for text in _LACKING):
        image.unlink()
        target.rmdir()
        pytest.skip(f"this kernel has no project quota on ext4: {mounted.stderr.strip()}")
    assert mounted.returncode == 0, mounted.stderr
    try:
        yield target
    finally:
        subprocess.run(["umount", str(target)], check=True)
        image.unlink()
        target.rmdir()
