"""The disks that carry this tree into the machine, where it lies at the same path as outside.

Two, because they change at different times: what was installed (virtual environment, crictl and
critest, images of the kit), and the source, compiled outside since nothing is slower inside.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.kit.vm import recipe
from tests.kit.vm.tree import write_image

#: What of the cache is in the machine: conformance programs and images.
_CACHED: Final = ("cri-tools-*", "images")

#: Run inside before anything else. The clock of a saved machine stands where it was saved.
SETUP: Final = """\
set -e
date -s "@$NOW" >/dev/null
mkdir -p "$TOP" "$CACHE" /run/podwright-vm
mount -o noatime /dev/vdb /run/podwright-vm
mount -o noatime /dev/vdc "$TOP"
mount --bind /run/podwright-vm/venv "$TOP/.venv"
mount --bind /run/podwright-vm/cache "$CACHE"
"""


def packages_disk(top: Path, cache: Path, home: Path) -> Path:
    """The disk with what was installed for the tree at `top`; made when something of it changed."""
    sources = [path for pattern in _CACHED for path in sorted(cache.glob(pattern))]
    files = sorted(cache.glob("images/stamp-*")) + sorted(cache.glob("cri-tools-*/*"))
    marks = [f"{file} {file.stat().st_mtime_ns}" for file in files]
    stamp = (top / ".venv/podwright-stamp").read_text()
    key = recipe.fingerprint("disks", "tree", "recipe", extra=f"{top}\n{stamp}\n{marks}")
    disk = home / f"packages-{_short(top)}-{key}.ext4"
    if disk.exists():
        return disk
    for old in home.glob(f"packages-{_short(top)}-*.ext4"):
        old.unlink()
    stage = home / f"packages-{_short(top)}.d"
    shutil.rmtree(stage, ignore_errors=True)
    (stage / "cache").mkdir(parents=True)
    _copy(top / ".venv", stage / "venv")
    for source in sources:
        _copy(source, stage / "cache")
    _write(stage, disk, recipe.PACKAGES_BYTES)
    shutil.rmtree(stage)
    return disk


def tree_disk(top: Path, home: Path) -> Path:
    """The disk with the source as it is now, tracked or new, compiled."""
    stage = home / f"tree-{_short(top)}.d"
    stage.mkdir(parents=True, exist_ok=True)
    names = _source(top)
    for path in stage.rglob("*"):
        inside = path.relative_to(stage)
        if path.is_file() and "__pycache__" not in inside.parts and str(inside) not in names:
            path.unlink()
    for name in names:
        source, target = top / name, stage / name
        if not target.exists() or _mark(source) != _mark(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    (stage / ".venv").mkdir(exist_ok=True)
    # Only what changed is compiled; the .pyc files name the source's time, which the disk keeps.
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", "-j", "2", "-s", stage, "-p", top, stage],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    disk = home / f"tree-{_short(top)}.ext4"
    _write(stage, disk, recipe.TREE_BYTES)
    return disk


def tree_mark(top: Path) -> str:
    """Twelve hex digits that change with any file of the source but its prose."""
    state = hashlib.sha256()
    for name in sorted(_source(top)):
        if not name.endswith(".md"):
            content = hashlib.sha256((top / name).read_bytes()).hexdigest()
            state.update(f"{name}\0{content}\n".encode())
    return state.hexdigest()[:12]


def _source(top: Path) -> set[str]:
    """Names of the files that git has, or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=top,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return {name for name in listed.split("\0") if (top / name).is_file()}


def _write(stage: Path, disk: Path, size_bytes: int) -> None:
    """Beside, then in its place: a machine that runs keeps the file that it has opened."""
    new = disk.with_suffix(f".{os.getpid()}")
    write_image(stage, new, size_bytes)
    new.rename(disk)


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", source, target], check=True)


def _mark(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_mode


def _short(top: Path) -> str:
    """Each checkout has disks of its own."""
    return hashlib.sha256(str(top).encode()).hexdigest()[:8]
