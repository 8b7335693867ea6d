"""The machine's root file system, kernel and first steps, as files that QEMU starts from.

Made without mounting anything: packages are unpacked, a tree is bootstrapped, and both are written
into an ext4 image by mkfs.ext4(8) itself.
"""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.kit.vm import recipe
from tests.kit.vm.debs import Apt, CannotBuild

UNIT: Final = """\
[Unit]
Description=Runs what hack/vm asks for
[Service]
ExecStart=/usr/bin/python3 -IS /usr/local/lib/podwright-vm/agent.py
TasksMax=infinity
LimitNOFILE=1048576
LimitCORE=0
StandardError=journal+console
Delegate=yes
[Install]
WantedBy=multi-user.target
"""

#: No udev: devtmpfs has what is needed. The modules come in an order in which each finds its needs.
INIT: Final = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
for module in $(/bin/busybox cat /modules/order); do
  /bin/busybox insmod /modules/$module
done
i=0
while [ ! -e /dev/vda ] && [ $i -lt 200 ]; do /bin/busybox usleep 20000; i=$((i + 1)); done
/bin/busybox mount -t ext4 -o rw,noatime,prjquota /dev/vda /root || exec /bin/busybox poweroff -f
/bin/busybox umount /proc /sys
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /lib/systemd/systemd
"""


def bootstrap(tree: Path, apt: Apt) -> None:
    """Make the root tree with all packages, ready to boot but for a kernel's modules.

    Raises:
        CannotBuild: not every package is to be had.
    """
    packages = ",".join(recipe.PACKAGES)
    made = subprocess.run(
        [
            *("mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", "--format=directory"),
            *('--aptopt=APT::Install-Recommends "false"', f"--include={packages}"),
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in recipe.LEFT_OUT),
            *("bookworm", str(tree), str(apt.sources)),
        ],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    if made.returncode:
        raise CannotBuild(f"mmdebstrap: {made.stderr[-1000:]}")
    for folder in ("var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(tree / folder)
    _write(tree / "etc/hostname", "podwright-vm\n")
    _write(tree / "etc/hosts", "127.0.0.1 localhost podwright-vm\n::1 localhost\n")
    _write(tree / "etc/fstab", "")
    _write(tree / "etc/resolv.conf", "")
    _write(tree / "etc/machine-id", "0123456789abcdef0123456789abcdef\n")
    _write(tree / "etc/systemd/journald.conf.d/vm.conf", "[Journal]\nStorage=volatile\n")
    _write(tree / "usr/local/lib/podwright-vm/agent.py", (recipe.HERE / "agent.py").read_text())
    units = tree / "etc/systemd/system"
    _write(units / "podwright-agent.service", UNIT)
    wanted = units / "multi-user.target.wants/podwright-agent.service"
    wanted.parent.mkdir(exist_ok=True)
    wanted.symlink_to("/etc/systemd/system/podwright-agent.service")
    _link(units / "default.target", "/lib/systemd/system/multi-user.target")
    for unit in recipe.MASKED:
        _link(units / unit, "/dev/null")


def add_kernel(kernel: str, tree: Path, boot: Path, apt: Apt) -> None:
    """Put a kernel's modules into `tree`, and `vmlinuz` and `initrd` into `boot`."""
    package = apt.resolve(recipe.KERNEL_PACKAGE, recipe.KERNELS[kernel], recipe.KERNEL_PREFIX)
    unpacked = boot / "kernel"
    apt.unpack(package, unpacked)
    (image,) = (unpacked / "boot").glob("vmlinuz-*")
    image.rename(boot / "vmlinuz")
    (modules,) = (unpacked / "lib/modules").iterdir()
    target = tree / "usr/lib/modules" / modules.name
    for module in _chosen(modules / "kernel"):
        name = module.relative_to(modules).with_suffix("") if module.suffix == ".xz" else None
        place = target / (name or module.relative_to(modules))
        place.parent.mkdir(parents=True, exist_ok=True)
        data = module.read_bytes()
        place.write_bytes(lzma.decompress(data) if name else data)
    for text in modules.glob("modules.*"):
        shutil.copy(text, target)
    subprocess.run(["depmod", "--basedir", tree / "usr", modules.name], check=True)
    _write_initrd(target, tree, boot)
    shutil.rmtree(unpacked)


def _chosen(kernel: Path) -> Iterator[Path]:
    for folder in recipe.MODULE_FOLDERS:
        at = kernel / folder
        yield from sorted(at.rglob("*.ko*")) if at.is_dir() else at.parent.glob(f"{at.name}*")


def _write_initrd(modules: Path, tree: Path, boot: Path) -> None:
    """A cpio archive with busybox, the early modules and INIT."""
    needs: dict[str, tuple[str, list[str]]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[Path(path).stem.replace("-", "_")] = (path, others.split())
    order: list[str] = []
    for name in recipe.EARLY_MODULES:
        if name.replace("-", "_") not in needs:
            continue  # built into this kernel
        module, needed = needs[name.replace("-", "_")]
        order += [each for each in (*reversed(needed), module) if each not in order]
    stage = boot / "initrd.d"
    (stage / "modules").mkdir(parents=True)
    (stage / "bin").mkdir()
    shutil.copy(tree / "bin/busybox", stage / "bin/busybox")
    _write(stage / "init", INIT)
    (stage / "init").chmod(0o755)
    for path in order:
        shutil.copy(modules / path, stage / "modules" / Path(path).name)
    _write(stage / "modules/order", "\n".join(Path(path).name for path in order))
    names = [".", *(str(path.relative_to(stage)) for path in sorted(stage.rglob("*")))]
    with (boot / "initrd").open("wb") as archive:
        subprocess.run(
            ["busybox", "cpio", "-o", "-H", "newc"],
            input="\n".join(names).encode(),
            stdout=archive,
            stderr=subprocess.DEVNULL,
            cwd=stage,
            check=True,
        )
    shutil.rmtree(stage)


def write_image(tree: Path, image: Path, size_bytes: int) -> None:
    """Write the tree into a sparse ext4 image; nothing is mounted."""
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(size_bytes)
    features = "^has_journal,^metadata_csum,^resize_inode,quota,project"
    subprocess.run(
        [
            *("mkfs.ext4", "-q", "-F", "-d", tree, "-m", "0", "-I", "256", "-O", features),
            *("-E", "lazy_itable_init=0,quotatype=prjquota", image),
        ],
        check=True,
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
    )


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)


def _link(path: Path, target: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)
