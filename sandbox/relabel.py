"""Mount sources that a pod may use under SELinux: the label of its containers, where asked for.

Without the label a confined container cannot even read what it is given, so the kubelet asks for
it on the volumes that it made for the pod (`Mount.selinux_relabel`), never on a hostPath. It is the
one thing that we change on a mount source, and only when asked and only under SELinux.

What a policy makes of it is seen by tests/integration/test_selinux.py, in the virtual machine that
has one; the walk is tested on any kernel, which keeps `security.selinux` without a policy too.

A label lets every container that has it in, so a directory of the node must not become a
container's: a mount of /etc with the flag would leave sshd unable to read its keys, and a container
able to. Such sources are refused by name, and by what they are when they are reached by another
name (a bind mount of /etc elsewhere).

The tree belongs to whoever filled it, perhaps a container that still runs: nothing in it is opened
through a link, each file is named by the descriptor of its directory, and a directory exchanged for
another meanwhile is labelled or not, but lies in the tree either way.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unsupported,
    map_os_errors,
)
from sandbox.host.journal import get_logger
from sandbox.host.lsm_files import has_selinux_label, set_selinux_label

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sandbox.host.syscalls import Syscalls
    from sandbox.spec.inputs import ResolvedMount

#: Programs, configuration and devices of the node: neither they nor anything below them.
SYSTEM_TREES: Final = frozenset(
    Path("/", name)
    for name in (
        *("bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32"),
        *("proc", "root", "sbin", "sys", "usr"),
    )
)
#: Directories that all of the node shares; what somebody made below them may be a container's.
SYSTEM_TOPS: Final = frozenset(
    Path(name)
    for name in (
        *("/", "/home", "/media", "/mnt", "/opt", "/run", "/srv", "/tmp", "/var"),  # noqa: S108
        *("/run/lock", "/run/systemd", "/run/udev", "/run/user", "/var/cache", "/var/lib"),
        *("/var/lock", "/var/log", "/var/mail", "/var/run", "/var/spool", "/var/tmp"),  # noqa: S108
    )
)
#: Each level of a tree holds a descriptor; a deeper one is no volume (PATH_MAX has 2047 at most).
DEPTH_LIMIT: Final = 256
_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

_Identity = tuple[int, int]
_log = get_logger("relabel")


def relabel_sources(mounts: Iterable[ResolvedMount], label: str, *, syscalls: Syscalls) -> None:
    """Give the sources that ask for it, with all below them, the label `label`; blocking.

    A source whose top has the label is left alone as a whole. A volume of millions of files would
    otherwise be walked for each container and each restart of one, and what containers make in it
    has the label of the directory it is made in. The top gets it last, therefore: an interrupted
    walk is begun again.

    Files that vanish meanwhile, and file systems without labels, are passed over. Image volumes
    are not meant: they are mounted with their label.

    Args:
        mounts: of a container.
        label: of its files; empty where there is no SELinux or the container has no label, and
            then nothing is done.
        syscalls: the kernel.

    Raises:
        InvalidArgument: a source is, or has in it, a directory of the node; or is too deep.
        FailedPrecondition: a source was exchanged for another meanwhile.
        PodwrightError: the policy or the file system refuses it.
    """
    if not label:
        return
    wanted = [m.source for m in mounts if m.mount.selinux_relabel and m.mount.image is None]
    for source in wanted:  # all are checked before one is changed
        _refuse_system(source, source)
    system = frozenset(_identities(SYSTEM_TREES | SYSTEM_TOPS)) if wanted else frozenset()
    for source in dict.fromkeys(wanted):
        _relabel(source, label, system, syscalls)


def _refuse_system(path: Path, source: Path) -> None:
    if path in SYSTEM_TOPS or not SYSTEM_TREES.isdisjoint((path, *path.parents)):
        raise _refusal(path, source)


def _refusal(path: Path, source: Path) -> InvalidArgument:
    return InvalidArgument(
        f"{path} belongs to the node and is not given the selinux label of a container",
        hint="leave selinux_relabel off for this mount, or mount a directory made for the pod",
        path=str(source),
    )


def _identities(paths: Iterable[Path]) -> Iterator[_Identity]:
    for path in paths:
        try:
            yield _identity(path.stat())
        except OSError:
            continue  # not on every node


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino


def _relabel(source: Path, label: str, system: frozenset[_Identity], syscalls: Syscalls) -> None:
    with ExitStack() as stack, map_os_errors("mount source cannot be labelled", path=str(source)):
        parent = os.open(source.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, parent)
        # The source was resolved before: where its path leads elsewhere by now, that is not it.
        if _path_of(parent) != source.parent:
            raise FailedPrecondition("mount source was exchanged meanwhile", path=str(source))
        top = os.open(source.name, _LOOK, dir_fd=parent)
        stack.callback(os.close, top)
        status = os.fstat(top)
        if stat.S_ISLNK(status.st_mode):
            raise FailedPrecondition("mount source was exchanged meanwhile", path=str(source))
        if _identity(status) in system:  # a directory of the node under another name
            raise _refusal(source, source)
        place = _at(parent, source.name)
        try:
            if has_selinux_label(place, label):
                return
            if stat.S_ISDIR(status.st_mode):
                opened = os.open(f"/proc/self/fd/{top}", os.O_RDONLY | os.O_DIRECTORY)
                stack.callback(os.close, opened)
                _Walk(source, label, system, syscalls).below(opened)
            set_selinux_label(place, label, syscalls=syscalls)
        except Unsupported:
            # The whole of it has no labels of its own (NFS, most of FUSE); the policy has one for
            # such file systems, or a mount option.
            _log.debug("file system of a mount source has no labels", path=str(source))


@dataclass(frozen=True, slots=True)
class _Walk:
    """What holds for all of a source's tree."""

    source: Path
    label: str
    system: frozenset[_Identity]
    syscalls: Syscalls

    def below(self, directory: int, depth: int = 1) -> None:
        """Label all that is below an open directory, which itself is left."""
        if _identity(os.fstat(directory)) in self.system:
            raise _refusal(_path_of(directory), self.source)
        if depth > DEPTH_LIMIT:
            raise InvalidArgument(
                f"directories are nested deeper than {DEPTH_LIMIT}: no label is set there",
                path=str(self.source),
                hint="leave selinux_relabel off for this mount, or remove them",
            )
        inner = []
        with os.scandir(directory) as entries:
            for entry in entries:
                # A directory is judged before it is changed: it may be one of the node's.
                if entry.is_dir(follow_symlinks=False):
                    inner.append(entry.name)
                else:
                    self._set(directory, entry.name)
        for name in inner:
            opened = _enter(directory, name)
            if opened is None:
                continue
            try:
                self.below(opened, depth + 1)
            finally:
                os.close(opened)
            self._set(directory, name)

    def _set(self, directory: int, name: str) -> None:
        try:
            set_selinux_label(_at(directory, name), self.label, syscalls=self.syscalls)
        except NotFound:
            return  # it went meanwhile
        except Unsupported:
            return  # a file system mounted below that has no labels


def _enter(directory: int, name: str) -> int | None:
    """The directory of that name, open for listing; None when it is none, or is gone."""
    try:
        return os.open(name, _LIST, dir_fd=directory)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _at(directory: int, name: str) -> Path:
    """A path that leads to a name in an open directory, whatever happens to the way there."""
    return Path(f"/proc/self/fd/{directory}", name)


def _path_of(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()
