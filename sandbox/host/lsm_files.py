"""What the kernel's security modules show of themselves in files; everything here blocks briefly.

AppArmor: Documentation/admin-guide/LSM/apparmor.rst and apparmor(7). SELinux: selinux(8), and
lxc_contexts of container-selinux, the file in which distributions name the labels of containers.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from sandbox.host import files
from sandbox.host.errors import NotFound, PodwrightError, map_os_errors

if TYPE_CHECKING:
    from sandbox.host.syscalls import Syscalls

SYS: Final = Path("/sys")
PROC: Final = Path("/proc")
ETC: Final = Path("/etc")

#: A node with hundreds of profiles lists them in some tens of KiB.
_PROFILES_LIMIT_BYTES: Final = 4 * 1024 * 1024
_CONTEXTS_LIMIT_BYTES: Final = 64 * 1024
_LABEL_ATTRIBUTE: Final = "security.selinux"
#: No label yet; or none possible, which setting one then says.
_NO_LABEL: Final = (errno.ENODATA, errno.EOPNOTSUPP)


def apparmor_directory(sys: Path = SYS) -> Path:
    """Where AppArmor's files are once securityfs is mounted."""
    return sys / "kernel/security/apparmor"


def apparmor_profiles(sys: Path = SYS) -> frozenset[str] | None:
    """Names of the profiles in the kernel; None where that cannot be read."""
    try:
        # Not a regular file's size to go by: the kernel makes the text while it is read.
        with (apparmor_directory(sys) / "profiles").open("rb") as file:
            text = file.read(_PROFILES_LIMIT_BYTES)
    except OSError:
        return None
    # One a line, "NAME (MODE)"; a name may have spaces.
    lines = text.decode(errors="surrogateescape").splitlines()
    return frozenset(line.rpartition(" (")[0] for line in lines if " (" in line)


def own_apparmor_label(proc: Path = PROC) -> str:
    """This process's own confinement, such as "unconfined"; empty where there is none to tell."""
    for name in ("self/attr/apparmor/current", "self/attr/current"):
        try:
            text = (proc / name).read_text()
        except (OSError, ValueError):
            continue
        return text.rstrip("\0\n").rpartition(" (")[0] or text.rstrip("\0\n")
    return ""


def apparmor_abi(etc: Path = ETC) -> bool:
    """Whether apparmor_parser will find `abi/3.0` (shipped by its packages since 3.0)."""
    return (etc / "apparmor.d/abi/3.0").is_file()


def selinux_running(sys: Path = SYS, proc: Path = PROC) -> bool:
    """Whether SELinux is there with a policy: before one is loaded, all is labelled "kernel"."""
    if not (sys / "fs/selinux/enforce").exists():
        return False
    try:
        return (proc / "self/attr/current").read_text().rstrip("\0\n") not in ("", "kernel")
    except OSError:
        return False


class ContainerLabels(NamedTuple):
    """Labels of containers' processes, of their files, and of files that all of them only read."""

    process: str
    file: str
    shared: str


def selinux_container_labels(etc: Path = ETC) -> ContainerLabels:
    """What the node's policy names for containers.

    Raises:
        NotFound: the policy has none; the message names the file that was looked for.
    """
    try:
        config = files.read_limited(etc / "selinux/config", _CONTEXTS_LIMIT_BYTES).decode()
    except (PodwrightError, UnicodeDecodeError):
        config = ""
    kind = _assigned(config, "SELINUXTYPE") or "targeted"
    path = etc / "selinux" / Path(kind).name / "contexts/lxc_contexts"
    text = files.read_limited(path, _CONTEXTS_LIMIT_BYTES).decode(errors="replace")
    process, file = _assigned(text, "process"), _assigned(text, "file")
    if process.count(":") < 3 or file.count(":") < 3:
        raise NotFound("the file names no labels for containers", path=str(path))
    return ContainerLabels(process, file, _assigned(text, "ro_file") or file)


def _assigned(text: str, name: str) -> str:
    match = re.search(rf'^\s*{name}\s*=\s*"?([^"\s#]+)"?', text, re.MULTILINE)
    return match[1] if match else ""


def has_selinux_label(path: Path, label: str) -> bool:
    """Whether a file, not what a link points to, has exactly this label.

    Raises:
        PodwrightError: it cannot be read; that it has none, or can have none, is False.
    """
    with map_os_errors("label of a file cannot be read", path=str(path)):
        try:
            found = os.getxattr(path, _LABEL_ATTRIBUTE, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LABEL:
                raise
            return False
    return found == label.encode() + b"\0"


def set_selinux_label(path: Path, label: str, *, syscalls: Syscalls) -> bool:
    """Label one file, not what a link points to; False when it had the label already.

    A label that is the same is not written again: the kernel would sync the inode for nothing, and
    on a read-only file system the write would fail.

    Raises:
        PodwrightError: the file system has no labels (Unsupported), or the policy refuses it.
    """
    if has_selinux_label(path, label):
        return False
    syscalls.lsetxattr(path, _LABEL_ATTRIBUTE, label.encode() + b"\0")
    return True


def label_tree(root: Path, label: str, *, syscalls: Syscalls) -> None:
    """Label `root` and all below it, links themselves; for a tree that nobody changes meanwhile.

    Raises:
        PodwrightError: as `set_selinux_label`, or the tree cannot be read.
    """
    set_selinux_label(root, label, syscalls=syscalls)
    with map_os_errors("files cannot be labelled", path=str(root)):
        pending = [root]
        while pending:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    set_selinux_label(Path(entry.path), label, syscalls=syscalls)
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(Path(entry.path))


def label_tree_once(root: Path, label: str, *, syscalls: Syscalls) -> None:
    """The same, but nothing where `root` has the label; it gets it last, so a walk is repeated.

    Raises:
        PodwrightError: as `label_tree`.
    """
    if has_selinux_label(root, label):
        return
    with map_os_errors("files cannot be labelled", path=str(root)):
        inner = [Path(entry.path) for entry in os.scandir(root)]
    for path in inner:
        if path.is_dir() and not path.is_symlink():
            label_tree(path, label, syscalls=syscalls)
        else:
            set_selinux_label(path, label, syscalls=syscalls)
    set_selinux_label(root, label, syscalls=syscalls)
