"""A layer unpacked in either form, and everything that can be seen of a tree."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imageservice.forms import LayerForm
from imageservice.snapshots.indexed import mount_index
from imageservice.unpack.layer import unpack_layer
from imageservice.unpack.protocol import Done, Job
from sandbox.host.files import remove_tree
from sandbox.host.libc import LibcSyscalls
from sandbox.host.mounts import unmount
from tests.kit.tars import diff_id

SYSCALLS = LibcSyscalls()


def described(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything that a container could tell apart, by path below `root`."""
    found: dict[bytes, tuple[object, ...]] = {}
    inodes: dict[int, int] = {}
    stack = [b""]
    top = os.fsencode(root)
    while stack:
        path = stack.pop()
        here = top + b"/" + path if path else top
        status = os.lstat(here)
        kind = stat.S_IFMT(status.st_mode)
        content: object = None
        if kind == stat.S_IFREG:
            content = Path(os.fsdecode(here)).read_bytes()
        elif kind == stat.S_IFLNK:
            content = os.readlink(here)  # noqa: PTH115 - a path in bytes
        elif kind == stat.S_IFDIR:
            names = sorted(os.listdir(here))  # noqa: PTH208 - names in bytes
            assert len(names) == len(set(names))
            stack += [path + b"/" + name if path else name for name in names]
        found[path] = (
            stat.filemode(status.st_mode),
            status.st_uid,
            status.st_gid,
            # Made up for whiteouts, and for implied directories: the caller leaves those out.
            None if kind == stat.S_IFCHR and not status.st_rdev else status.st_mtime_ns,
            status.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
            status.st_nlink,
            0 if kind == stat.S_IFDIR else status.st_size,
            content,
            {
                name: os.getxattr(here, name, follow_symlinks=False)
                for name in sorted(os.listxattr(here, follow_symlinks=False))
            },
            # Which names are one file: the order of their first sight, not the numbers.
            inodes.setdefault(status.st_ino, len(inodes)) if kind == stat.S_IFREG else None,
        )
    return found


@contextmanager
def unpacked(base: Path, form: LayerForm, plain: bytes) -> Iterator[tuple[Done, Path]]:
    with tempfile.TemporaryDirectory(dir=base, ignore_cleanup_errors=True) as name:
        root = Path(name)
        target, tree = root / "target", root / "tree"
        target.mkdir(mode=0o755)
        tree.mkdir()
        (root / "blob").write_bytes(plain)
        done = unpack_layer(
            Job(
                blob=str(root / "blob"),
                blob_digest=diff_id(plain),
                blob_bytes=len(plain),
                available_bytes=len(plain),
                target=str(target),
                form=form,
                diff_id=diff_id(plain),
                max_plain_bytes=1 << 28,
                max_entries=200_000,
            ),
            lambda _bytes: None,
        )
        try:
            if done.form == "indexed":
                mount_index(target, tree, syscalls=SYSCALLS)
                yield done, tree
            else:
                yield done, target
        finally:
            unmount(tree, syscalls=SYSCALLS)
            remove_tree(target)
