"""An indexed layer is what mkfs.erofs makes of the same archive, entry by entry.

mkfs.erofs with `--tar=f` copies the contents into its image, with `--tar=i` it refers to the
archive as we do; both are mounted by the kernel and compared with our index over the same bytes.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox.host.libc import LibcSyscalls
from sandbox.host.mounts import Mount, mount_one, unmount
from tests import probes
from tests.kit.erofs_utils import mkfs_erofs
from tests.kit.layer_forms import described, unpacked
from tests.kit.tars import Tar, with_xattrs

pytestmark = pytest.mark.root

SYSCALLS = LibcSyscalls()
Tree = dict[bytes, tuple[object, ...]]


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    if reason := probes.no_indexed_layers(tmp_path) or mkfs_erofs()[1]:
        pytest.skip(reason)
    old = os.umask(0)
    yield tmp_path
    os.umask(old)


@contextmanager
def made_by_mkfs(base: Path, plain: bytes, mode: str) -> Iterator[Path]:
    """The tree of mkfs.erofs; `mode` is f (contents copied) or i (contents in the archive)."""
    archive, image, tree = base / "archive.tar", base / "image.erofs", base / "theirs"
    archive.write_bytes(plain + bytes(-len(plain) % 4096))
    tree.mkdir()
    words, _ = mkfs_erofs()
    # Whiteouts in overlayfs's form, as a layer must have them.
    subprocess.run(
        [*words, "--quiet", f"--tar={mode}", "--aufs", str(image), str(archive)],
        check=True,
        capture_output=True,
    )
    options = ("ro", f"device={archive}") if mode == "i" else ("ro",)
    mount_one(Mount("erofs", str(image), tree, options), syscalls=SYSCALLS)
    try:
        yield tree
    finally:
        unmount(tree, syscalls=SYSCALLS)


def compare(base: Path, plain: bytes, mode: str) -> Tree:
    """Assert that both trees are one; what is in it."""
    with unpacked(base, "indexed", plain) as (done, ours), made_by_mkfs(base, plain, mode) as other:
        assert done.form == "indexed"
        mine, theirs = described(ours), described(other)
    for *_, attributes, _inode in theirs.values():
        # A hint for overlayfs on directories with whiteouts; nobody sees it through an overlay.
        assert isinstance(attributes, dict)
        attributes.pop("trusted.overlay.origin", None)
    assert mine.keys() == theirs.keys()
    for path, entry in mine.items():
        assert entry == theirs[path], path
    return mine


@pytest.fixture(params=["f", "i"], ids=["copied", "referred to"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def source(base: Path) -> Path:
    """Whatever a file system can hold and GNU tar can pack."""
    root = base / "source"
    (root / "deep" / ("d" * 200) / ("e" * 200)).mkdir(parents=True)
    (root / "deep" / ("d" * 200) / ("e" * 200) / ("f" * 255)).write_text("long")
    (root / "empty").touch()
    (root / "page").write_bytes(os.urandom(4096))
    (root / "more").write_bytes(os.urandom(1_000_001))
    (root / "link").symlink_to("t/" * 150)
    os.link(root / "more", root / "deep/also-more")
    with (root / "holes").open("wb") as file:
        for place in (0, 1 << 20, 3 << 20):
            file.seek(place)
            file.write(b"data" * 2000)
        file.truncate(8 << 20)
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "char", stat.S_IFCHR | 0o600, os.makedev(5, 1))
    os.mknod(root / "block", stat.S_IFBLK | 0o660, os.makedev(8, 300))
    (root / "setuid").write_text("s")
    os.chown(root / "setuid", 12, 70_000)
    (root / "setuid").chmod(0o6755)
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o1777)
    (root / "n\u00e4me \n").write_text("odd")
    os.setxattr(root / "page", "user.note", b"\0value")
    os.setxattr(root / "page", "trusted.mine", b"")
    os.setxattr(
        root / "more",
        "security.capability",
        bytes.fromhex("0100000200040000000000000000000000000000"),
    )
    for number in range(500):
        (root / f"sticky/{number:03}").write_text(str(number) * number)
    # mkfs.erofs 1.8 takes "0.25" for 25 ns: no fraction ends with a zero.
    for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        os.utime(path, ns=(0, 1_700_000_000_000_000_001 + number * 10), follow_symlinks=False)
    os.utime(root / "page", ns=(0, 4_000_000_000 * 10**9))
    os.utime(root, ns=(0, 10**18))
    return root


@pytest.mark.parametrize("form", ["posix", "gnu"])
def test_what_gnu_tar_packs(base: Path, mode: str, form: str) -> None:
    extra = ["--xattrs", "--xattrs-include=*"] if form == "posix" else []
    packed = subprocess.run(
        ["tar", f"--format={form}", *extra, "-C", source(base), "-cf", "-", "."],
        check=True,
        capture_output=True,
    )
    assert len(compare(base, packed.stdout, mode)) > 510


def test_a_real_tree(base: Path, mode: str) -> None:
    packed = subprocess.run(
        ["tar", "-C", "/usr/share/zoneinfo", "-cf", "-", "."],
        check=True,
        capture_output=True,
    )
    assert len(compare(base, packed.stdout, mode)) > 20


def test_whiteouts_opaque_directories_and_later_entries(base: Path, mode: str) -> None:
    tar = (
        Tar().directory(".").directory("a").file("a/x", b"1").file("a/x", b"second").directory("o")
    )
    tar.file("a/.wh.gone", b"").file("o/.wh..wh..opq", b"").file("o/kept").hardlink("o/also", "a/x")
    with_xattrs(tar, "attributes", {f"user.{'n' * n}": b"v" * n for n in (1, 20, 200)})
    found = compare(base, tar.directory("a", 0o700).done(), mode)
    assert found[b"a/gone"][0] == "c---------"
    assert found[b"a/x"][7] == b"second"
