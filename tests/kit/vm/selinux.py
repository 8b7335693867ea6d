"""The machine of hack/vm with SELinux in the place of AppArmor: Debian's policy, enforced.

Its tree is a copy of the other one's, with more packages and with the policy's module `container`,
which Debian 12 has in its source and does not ship; and with `podwright.te` beside this. Every file
is labelled before the image is written, since a machine that labels itself boots twice. All this is
a module of its own so that the other machine is not made anew when this one changes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.kit.vm import recipe, tree
from tests.kit.vm.builder import WARM, Builder, say
from tests.kit.vm.debs import Apt, CannotBuild
from tests.kit.vm.machine import Boot, Machine, MachineFailed

PACKAGES: Final = (
    *("selinux-policy-default", "selinux-policy-dev", "policycoreutils", "selinux-utils"),
    *("semodule-utils", "checkpolicy"),
)
#: Has the text of all modules, in a tar archive.
SOURCE: Final = "selinux-policy-src"
MODULE: Final = "policy/modules/services/container"

_APPARMOR: Final = "apparmor=1 security=apparmor lsm=landlock,lockdown,yama,integrity,apparmor,bpf"
_SELINUX: Final = "selinux=1 lsm=landlock,lockdown,yama,integrity,selinux,bpf audit=1"
#: "selinux=1" goes to the first process too, where it means nothing.
KERNEL_LINE: Final = recipe.KERNEL_LINE.replace(_APPARMOR, _SELINUX)

_CONFIG: Final = "SELINUX=enforcing\nSELINUXTYPE=default\nSETLOCALDEFS=0\n"
_CONTEXTS: Final = "/etc/selinux/default/contexts/files/file_contexts"
#: Run in the tree: both modules are compiled and put into the policy.
_INSTALL: Final = """\
set -e
cd /root/policy
make -f /usr/share/selinux/devel/Makefile NAME=default container.pp podwright.pp
semodule -s default -n -i container.pp -i podwright.pp
"""
#: Labelling wants /proc, by which libselinux names the files that it has opened; -m: not what the
#: mount table here says of labels, since this kernel has none.
_LABEL: Final = f"""\
mount -t proc proc "$0/proc"
chroot "$0" setfiles -m -F {_CONTEXTS} /
"""


class SelinuxMachine(Machine):
    """A machine whose kernel has SELinux."""

    def _argv(self, boot: Boot, state: Path | None) -> list[str]:
        words = super()._argv(boot, state)
        words[words.index(recipe.KERNEL_LINE)] = KERNEL_LINE
        return words


class SelinuxBuilder(Builder):
    """Makes and finds those, as `selinux-KERNEL-KEY`, beside the others."""

    def boot(self, kernel: str, disks: tuple[Path, ...]) -> tuple[Boot, Path]:
        """As in `Builder`."""
        text = (recipe.HERE / "podwright.te").read_text()
        names = ("recipe", "tree", "agent", "builder", "machine", "selinux")
        folder = self._home / f"selinux-{kernel}-{recipe.fingerprint(*names, extra=text)}"
        with self._alone():
            if not (folder / "state").exists():
                self._make(kernel, folder)
            os.utime(folder)
            qemu = Path((folder / "qemu").read_text())
        return Boot(qemu=qemu, folder=folder, disks=disks), folder / "state"

    def _make(self, kernel: str, folder: Path) -> None:
        self._forget(f"selinux-{kernel}-*")
        apt = Apt(self._home / "apt")
        qemu = self._qemu(apt)
        with tempfile.TemporaryDirectory(prefix="making-", dir=self._home) as name:
            work = Path(name)
            parts, root = work / "parts", work / "tree"
            parts.mkdir()
            say("adding an SELinux policy to a root tree (two minutes, once)")
            _run("cp", "-a", str(self._base(apt)), str(root))
            _install_packages(root)
            _install_policy(root, apt, work)
            say(f"adding Linux {kernel}")
            tree.add_kernel(kernel, root, parts, apt)
            _run("unshare", "--mount", "--propagation=private", "sh", "-ec", _LABEL, str(root))
            tree.write_image(root, parts / "root.ext4", recipe.ROOT_BYTES)
            (parts / "qemu").write_text(str(qemu))
            say("booting it and saving its state")
            self._save(Boot(qemu=qemu, folder=parts, disks=self._blanks(work)), work)
            parts.rename(folder)

    def _base(self, apt: Apt) -> Path:
        """The tree of the other machines."""
        base = self._home / f"tree-{recipe.fingerprint('recipe', 'tree', 'agent')}"
        if not base.exists():
            say("making a root tree (about a minute, once)")
            fresh = base.with_suffix(".new")
            shutil.rmtree(fresh, ignore_errors=True)
            tree.bootstrap(fresh, apt)
            fresh.rename(base)
        return base

    def _save(self, boot: Boot, work: Path) -> None:
        with SelinuxMachine.booted(boot, work / "scratch") as machine:
            said = bytearray()
            machine.run(["getenforce"], said.extend)
            if said.strip() != b"Enforcing":
                raise MachineFailed(f"no policy is enforced: {said.decode(errors='replace')}")
            said.clear()
            modules = " ".join(recipe.WARM_MODULES)
            # mount(8), by which tests mount what they need, is held by this policy too.
            machine.run(["setsebool", "allow_mount_anyfile=1"], said.extend)
            machine.run(["sh", "-c", WARM], said.extend, env={"MODULES": modules})
            if said.strip():
                raise MachineFailed(f"after the boot: {said.decode(errors='replace')}")
            machine.save(boot.folder / "state.new")
            machine.booted_disk.rename(boot.folder / "root.ext4")
        (boot.folder / "state.new").rename(boot.folder / "state")


def _install_packages(root: Path) -> None:
    """By the tree's own apt, whose sources are in it; names are resolved as here meanwhile."""
    names = root / "etc/resolv.conf"
    names.write_bytes(Path("/etc/resolv.conf").read_bytes())
    apt = ("chroot", str(root), "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq")
    _run(*apt, "-o", "APT::Sandbox::User=root", "update")
    _run(*apt, "-y", "--no-install-recommends", "install", *PACKAGES)
    _run(*apt, "clean")
    shutil.rmtree(root / "var/lib/apt/lists")
    names.write_text("")


def _install_policy(root: Path, apt: Apt, work: Path) -> None:
    source = work / "source"
    apt.unpack(SOURCE, source)
    (archive,) = source.rglob("selinux-policy-src.tar*")
    _run("tar", "-C", str(source), "-xf", str(archive))
    modules = root / "root/policy"
    modules.mkdir()
    # Not container.if: that is among the headers of selinux-policy-dev.
    for kind in ("te", "fc"):
        shutil.copy(source / f"selinux-policy-src/{MODULE}.{kind}", modules)
    shutil.copy(recipe.HERE / "podwright.te", modules)
    _run("chroot", str(root), "sh", "-c", _INSTALL)
    shutil.rmtree(modules)
    (root / "etc/selinux/config").write_text(_CONFIG)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    if done.returncode:
        raise CannotBuild(f"{argv[0]}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
