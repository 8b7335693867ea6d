"""The program that copies layers into one tree: `python -m imageservice.snapshots.copying`.

One job on standard input, nothing or a `Failed` on standard output, exit status 0 or 1. A process
of its own, because a copy takes seconds of system calls, and can be killed: a container that is no
longer wanted leaves half a tree that nobody has a name for. It ends when the daemon does, for then
nobody reads its standard output any more and the next daemon must not find it still writing.

Contents are copied by copy_file_range(2), with which btrfs, XFS and others share the blocks instead
(a reflink); between file systems, as from an index's mount, by sendfile(2). Holes stay holes.
Owners, modes, times, extended attributes (ACLs, capabilities), links within a layer, devices,
FIFOs and sockets are kept; marks of overlayfs are not, nor labels of SELinux, which the container
gets of its own.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import stat
import sys
import threading
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from imageservice.snapshots.merged import Layer, open_directory, walk
from imageservice.unpack.protocol import Failed
from sandbox.host import oom
from sandbox.host.errors import Corrupt, PodwrightError, map_os_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imageservice.snapshots.merged import Directory, File

_SOURCE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_TARGET: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: What sendfile(2) moves at most in one call.
_MOST_BYTES: Final = 0x7FFF_F000
#: Answers of copy_file_range(2) to a pair of files that it does not copy between.
_NOT_BETWEEN: Final = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_NOT_COPIED: Final = ("trusted.overlay.", "security.selinux")


class JobLayer(msgspec.Struct, frozen=True, kw_only=True):
    """A layer: its directory, and what its archive does not describe, decoded as latin-1."""

    path: str
    implied: tuple[str, ...] = ()


class CopyJob(msgspec.Struct, frozen=True, kw_only=True):
    """Layers, lowest first, and the directory to be made of them, which must not exist."""

    layers: tuple[JobLayer, ...]
    target: str


@dataclass(slots=True)
class Copier:
    """Writes one tree. Blocking."""

    layers: Sequence[Layer]
    target: int
    _linked: dict[tuple[int, int], bytes] = field(default_factory=dict)
    _looks: list[tuple[bytes, int | None]] = field(default_factory=list)
    #: Layers whose files can only be sent.
    _sent: set[int] = field(default_factory=set)

    def run(self) -> None:
        """Copy everything into the open, empty directory `target`.

        Raises:
            OSError: as the kernel says.
            Corrupt: a file is shorter than it says.
        """
        for directory in walk(self.layers):
            self._fill(directory)
            self._looks.append((directory.path, directory.looks))
        # Last of all: what is made in a directory moves its times, and takes its default ACL.
        for path, layer in self._looks:
            self._finish(path, layer)

    def _fill(self, directory: Directory) -> None:
        here = os.open(directory.path or b".", _DIRECTORY, dir_fd=self.target)
        try:
            for name in directory.directories:
                os.mkdir(name, 0o700, dir_fd=here)
            for file in directory.files:
                self._file(directory.path, file, here)
        finally:
            os.close(here)

    def _file(self, path: bytes, file: File, here: int) -> None:
        if file.status.st_nlink > 1 and self._link(path, file, here):
            return
        kind = stat.S_IFMT(file.status.st_mode)
        if kind == stat.S_IFREG:
            self._regular(file, here)
            return
        if kind == stat.S_IFLNK:
            os.symlink(os.readlink(file.name, dir_fd=file.parent), file.name, dir_fd=here)
        else:
            os.mknod(file.name, kind | 0o600, file.status.st_rdev, dir_fd=here)
        source = b"/proc/self/fd/%d/%s" % (file.parent, file.name)
        target = b"/proc/self/fd/%d/%s" % (here, file.name)
        os.chown(
            file.name, file.status.st_uid, file.status.st_gid, dir_fd=here, follow_symlinks=False
        )
        if kind != stat.S_IFLNK:
            os.chmod(target, stat.S_IMODE(file.status.st_mode))  # noqa: PTH101 - a path in bytes
        _copy_attributes(source, target)
        times = (file.status.st_atime_ns, file.status.st_mtime_ns)
        os.utime(file.name, ns=times, dir_fd=here, follow_symlinks=False)

    def _link(self, path: bytes, file: File, here: int) -> bool:
        """Whether it is one more name of a file that is there already."""
        key = (file.layer, file.status.st_ino)
        first = self._linked.get(key)
        if first is not None:
            try:
                os.link(
                    first, file.name, src_dir_fd=self.target, dst_dir_fd=here, follow_symlinks=False
                )
                return True
            except OSError as error:
                if error.errno != errno.EMLINK:
                    raise
        self._linked[key] = path + b"/" + file.name if path else file.name
        return False

    def _regular(self, file: File, here: int) -> None:
        with ExitStack() as stack:
            source = os.open(file.name, _SOURCE, dir_fd=file.parent)
            stack.callback(os.close, source)
            target = os.open(file.name, _TARGET, 0o600, dir_fd=here)
            stack.callback(os.close, target)
            self._content(file, source, target)
            _copy_looks(file.status, source, target)

    def _content(self, file: File, source: int, target: int) -> None:
        size = file.status.st_size
        offset = 0
        while offset < size:
            try:
                begin = os.lseek(source, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break  # nothing but a hole from here on
            offset = min(size, os.lseek(source, begin, os.SEEK_HOLE))
            self._range(file.layer, source, target, begin, offset)
        if os.fstat(target).st_size != size:
            os.ftruncate(target, size)

    def _range(self, layer: int, source: int, target: int, begin: int, end: int) -> None:
        while begin < end:
            count = min(end - begin, _MOST_BYTES)
            if layer in self._sent:
                os.lseek(target, begin, os.SEEK_SET)
                done = os.sendfile(target, source, begin, count)
            else:
                try:
                    done = os.copy_file_range(source, target, count, begin, begin)
                except OSError as error:
                    if error.errno not in _NOT_BETWEEN:
                        raise
                    self._sent.add(layer)
                    continue
            if not done:
                raise Corrupt("a file of a layer is shorter than it says")
            begin += done

    def _finish(self, path: bytes, layer: int | None) -> None:
        target = os.open(path or b".", _DIRECTORY, dir_fd=self.target)
        try:
            if layer is None:
                os.fchmod(target, 0o755)
                return
            source = open_directory(self.layers[layer], path)
            try:
                _copy_looks(os.fstat(source), source, target)
            finally:
                os.close(source)
        finally:
            os.close(target)


def _copy_looks(status: os.stat_result, source: int, target: int) -> None:
    # Owner first: chown(2) clears the set-user-id bits and capabilities. Then the mode; then the
    # attributes, of which an ACL has the mode's group bits; and the times last.
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    _copy_attributes(source, target)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy_attributes(source: int | bytes, target: int | bytes) -> None:
    """By descriptor, or by a path whose last part is not followed."""
    follow = isinstance(source, int)
    try:
        names = os.listxattr(source, follow_symlinks=follow)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return
    for name in names:
        if not name.startswith(_NOT_COPIED):
            value = os.getxattr(source, name, follow_symlinks=follow)
            os.setxattr(target, name, value, follow_symlinks=follow)


def copy_tree(job: CopyJob) -> None:
    """Make the tree that the layers show together. Blocking.

    Raises:
        ResourceExhausted: disk or inodes full; what was made is still there.
        PodwrightError: as the kernel says.
    """
    with ExitStack() as stack, map_os_errors("cannot copy image layers", path=job.target):
        layers = []
        for item in job.layers:
            fd = os.open(item.path, _DIRECTORY)
            stack.callback(os.close, fd)
            layers.append(Layer(fd, frozenset(path.encode("latin-1") for path in item.implied)))
        os.mkdir(job.target, 0o700)  # noqa: PTH102 - its parent exists
        target = os.open(job.target, _DIRECTORY)
        stack.callback(os.close, target)
        Copier(layers, target).run()


def main() -> int:
    """Do the one job; an exit status."""
    os.umask(0)
    # The daemon's protection is not for who handles an image's bytes.
    oom.expose_self()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # each layer is open twice, and an image may have hundreds
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    threading.Thread(target=_end_with_daemon, name="watch", daemon=True).start()
    try:
        copy_tree(msgspec.json.decode(sys.stdin.buffer.read(), type=CopyJob))
    except PodwrightError as error:
        failed = Failed(
            kind=type(error).__name__,
            message=error.message[:4096],
            hint=error.hint[:4096],
            fields={k: v[:4096] if isinstance(v, str) else v for k, v in error.fields.items()},
        )
        sys.stdout.buffer.write(msgspec.json.encode(failed))
        sys.stdout.buffer.flush()
        return 1
    return 0


def _end_with_daemon() -> None:
    """Leave without ceremony when nobody reads our standard output any more."""
    watch = select.poll()
    watch.register(1, 0)  # POLLERR is always told: pipe(7)
    watch.poll()
    os._exit(2)


if __name__ == "__main__":
    sys.exit(main())
