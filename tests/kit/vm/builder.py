"""What a machine starts from, made once and kept in the cache until its recipe changes.

$cache/vm/tree-KEY       the root tree, for any kernel
$cache/vm/qemu           QEMU 10, unpacked
$cache/vm/KERNEL-KEY     vmlinuz, initrd, root.ext4 as it was after the boot, and the saved state
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.kit.vm import recipe, tree
from tests.kit.vm.debs import Apt, CannotBuild
from tests.kit.vm.machine import Boot, Machine, MachineFailed

#: Machines of other recipes are kept this long after their last use (seconds).
_KEPT_S: Final = 86_400.0

#: Run in the machine before it is saved: what every test would wait for, and then less memory.
WARM: Final = """\
modprobe -a $MODULES || true
mount -t tmpfs none /mnt && umount /mnt
iptables -t nat -S >/dev/null; ip6tables -t nat -S >/dev/null
python3 -c 'import asyncio, json, ssl, sqlite3'
crun --version >/dev/null; runc --version >/dev/null; conmon --version >/dev/null
systemctl --failed --no-legend --plain
journalctl --rotate --vacuum-time=1s >/dev/null 2>&1 || true
sync; echo 3 >/proc/sys/vm/drop_caches
"""


class Builder:
    """Makes and finds machines in one directory of the cache."""

    def __init__(self, home: Path) -> None:
        """Keep everything below `home`."""
        self._home = home
        home.mkdir(parents=True, exist_ok=True)

    def boot(self, kernel: str, disks: tuple[Path, ...]) -> tuple[Boot, Path]:
        """A machine's parts and its saved state; made when they are not there.

        Raises:
            CannotBuild: Debian's archive cannot be reached, or has not that kernel.
            MachineFailed: it does not boot, or something in it failed to start.
        """
        key = recipe.fingerprint("recipe", "tree", "agent", "builder", "machine")
        folder = self._home / f"{kernel}-{key}"
        with self._alone():
            if not (folder / "state").exists():
                self._make(kernel, folder)
            os.utime(folder)
            qemu = Path((folder / "qemu").read_text())
        return Boot(qemu=qemu, folder=folder, disks=disks), folder / "state"

    def _make(self, kernel: str, folder: Path) -> None:
        self._forget(f"{kernel}-*")
        apt = Apt(self._home / "apt")
        qemu = self._qemu(apt)
        base = self._home / f"tree-{recipe.fingerprint('recipe', 'tree', 'agent')}"
        if not base.exists():
            self._forget("tree-????????????")
            say("making a root tree (about a minute, once)")
            fresh = base.with_suffix(".new")
            shutil.rmtree(fresh, ignore_errors=True)
            tree.bootstrap(fresh, apt)
            fresh.rename(base)
        with tempfile.TemporaryDirectory(prefix="making-", dir=self._home) as name:
            work = Path(name)
            parts = work / "parts"
            parts.mkdir()
            say(f"adding Linux {kernel}")
            subprocess.run(["cp", "-al", base, work / "tree"], check=True)
            tree.add_kernel(kernel, work / "tree", parts, apt)
            tree.write_image(work / "tree", parts / "root.ext4", recipe.ROOT_BYTES)
            (parts / "qemu").write_text(str(qemu))
            say("booting it and saving its state")
            self._save(Boot(qemu=qemu, folder=parts, disks=self._blanks(work)), work)
            parts.rename(folder)

    def _qemu(self, apt: Apt) -> Path:
        """QEMU 10, unpacked; or the root directory for the one that is installed."""
        qemu = self._home / "qemu"
        if qemu.exists():
            return qemu
        say(f"unpacking QEMU of {recipe.QEMU_SUITE}")
        unpacked = self._home / "qemu.new"
        shutil.rmtree(unpacked, ignore_errors=True)
        try:
            for package in recipe.QEMU_PACKAGES:
                apt.unpack(f"{package}/{recipe.QEMU_SUITE}", unpacked)
        except CannotBuild as error:
            say(f"{error}; using the one that is installed, at half the speed")
            return Path("/")
        unpacked.rename(qemu)
        return qemu

    def _forget(self, pattern: str) -> None:
        """Delete what no run has used for a day: other checkouts may have other recipes."""
        for old in self._home.glob(pattern):
            if time.time() - old.stat().st_mtime > _KEPT_S:
                shutil.rmtree(old)

    def _blanks(self, work: Path) -> tuple[Path, ...]:
        """Empty disks of the sizes that the real ones will have."""
        blanks = []
        for name, size_bytes in (("b", recipe.PACKAGES_BYTES), ("c", recipe.TREE_BYTES)):
            blank = work / f"blank-{name}"
            with blank.open("wb") as file:
                file.truncate(size_bytes)
            blanks.append(blank)
        return tuple(blanks)

    def _save(self, boot: Boot, work: Path) -> None:
        with Machine.booted(boot, work / "scratch") as machine:
            said = bytearray()
            modules = " ".join(recipe.WARM_MODULES)
            machine.run(["sh", "-c", WARM], said.extend, env={"MODULES": modules})
            if said.strip():
                raise MachineFailed(f"after the boot: {said.decode(errors='replace')}")
            machine.save(boot.folder / "state.new")
            machine.booted_disk.rename(boot.folder / "root.ext4")
        (boot.folder / "state.new").rename(boot.folder / "state")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One at a time makes machines."""
        with (self._home / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def say(text: str) -> None:
    """Tell who waits."""
    print(f"==> {text}", file=sys.stderr, flush=True)
