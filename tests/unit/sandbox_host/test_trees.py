import errno
import os
import subprocess
from pathlib import Path

import pytest

from sandbox.host import syscalls as sc
from sandbox.host.errors import Busy, Denied, FailedPrecondition
from sandbox.host.files import filesystem_usage, remove_tree
from sandbox.host.libc import LibcSyscalls


@pytest.fixture
def canary(tmp_path):
    (tmp_path / "canary").mkdir()
    (tmp_path / "canary/file").write_text("untouched")
    yield tmp_path / "canary"
    assert (tmp_path / "canary/file").read_text() == "untouched"


def test_trees_go_and_what_their_links_point_to_stays(tmp_path, canary):
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/dir-link").symlink_to(canary)
    (tree / "a/b/file-link").symlink_to(canary / "file")
    (tree / "a/b/dangling").symlink_to("/nowhere")
    os.link(canary / "file", tree / "hard")
    os.mkfifo(tree / "fifo")
    (tree / os.fsdecode(b"\xff\xfe name")).write_text("")
    remove_tree(tree)
    assert not tree.exists()


def test_a_link_or_a_file_in_the_place_of_the_tree_goes_itself(tmp_path, canary):
    (tmp_path / "link").symlink_to(canary)
    (tmp_path / "file").write_text("")
    remove_tree(tmp_path / "link")
    remove_tree(tmp_path / "file")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["canary"]


def test_what_does_not_exist_is_removed_already(tmp_path):
    remove_tree(tmp_path / "missing")
    remove_tree(tmp_path / "missing/below")


def test_the_root_is_refused():
    with pytest.raises(FailedPrecondition):
        remove_tree(Path("/"))


def make_deep(base: Path, depth: int) -> None:
    base.mkdir()
    fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir("d" * 20, dir_fd=fd)
        below = os.open("d" * 20, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


@pytest.mark.slow
def test_5000_levels_with_a_handful_of_descriptors(tmp_path):
    try:
        make_deep(tmp_path / "deep", 5000)
        usage = filesystem_usage(tmp_path / "deep")
        assert usage.inodes == 5002
        remove_tree(tmp_path / "deep")
        assert list(tmp_path.iterdir()) == []
    finally:
        # pytest clears old directories by recursion: what is left here would stop its next runs.
        subprocess.run(["rm", "-rf", tmp_path / "deep"], check=True)


def test_directories_without_permission_bits(tmp_path):
    (tmp_path / "tree/closed/inner").mkdir(parents=True)
    (tmp_path / "tree/closed").chmod(0)
    if os.geteuid() != 0:
        with pytest.raises(Denied):
            remove_tree(tmp_path / "tree")
        (tmp_path / "tree/closed").chmod(0o700)
    remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


class MountAt(LibcSyscalls):
    """As if a mount lay on one directory of the tree."""

    def __init__(self, name: str) -> None:
        self._name = name

    def openat2(self, dirfd, path, flags, mode=0, resolve=0):
        assert resolve & sc.RESOLVE_NO_XDEV
        if path == self._name:
            error = OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            from sandbox.host.errors import from_os_error

            raise from_os_error(error, "cannot open") from error
        return super().openat2(dirfd, path, flags, mode, resolve)


@pytest.mark.parametrize("name", ["tree", "mounted"])
def test_a_mount_is_never_entered(tmp_path, name):
    (tmp_path / "tree/mounted").mkdir(parents=True)
    (tmp_path / "tree/mounted/volume-data").write_text("precious")
    with pytest.raises(Busy, match="mount point"):
        remove_tree(tmp_path / "tree", syscalls=MountAt(name))
    assert (tmp_path / "tree/mounted/volume-data").read_text() == "precious"
    usage = filesystem_usage(tmp_path / "tree", syscalls=MountAt("mounted"))
    assert usage.inodes == 1


class MovingAway(LibcSyscalls):
    """Somebody moves a directory out of the tree while the walk stands in it."""

    def __init__(self, source: Path, target: Path) -> None:
        self._source, self._target = source, target

    def openat2(self, dirfd, path, flags, mode=0, resolve=0):
        fd = super().openat2(dirfd, path, flags, mode, resolve)
        if path == self._source.name and self._source.exists():
            self._source.rename(self._target)
        return fd


def test_a_directory_moved_meanwhile_does_not_lead_elsewhere(tmp_path, canary):
    (tmp_path / "tree/a/inner").mkdir(parents=True)
    (tmp_path / "tree/keep").mkdir()
    moving = MovingAway(tmp_path / "tree/a", canary / "a")
    with pytest.raises(FailedPrecondition, match="moved"):
        remove_tree(tmp_path / "tree", syscalls=moving)
    assert (canary / "file").exists()


def test_usage_counts_blocks_once(tmp_path):
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "big").write_bytes(b"x" * 100_000)
    os.link(tree / "big", tree / "sub/same")
    with (tree / "sparse").open("wb") as file:
        file.truncate(10 * 1024**3)
    (tree / "link").symlink_to("/usr")
    usage = filesystem_usage(tree)
    expected = subprocess.run(
        ["du", "-s", "--block-size=1", tree], capture_output=True, check=True, text=True
    )
    assert usage.used_bytes == int(expected.stdout.split()[0])
    assert usage.inodes == 5
    used_bytes, inodes = usage
    assert (used_bytes, inodes) == (usage.used_bytes, 5)


def test_usage_of_a_file_and_of_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    assert filesystem_usage(tmp_path / "file").inodes == 1
    assert tuple(filesystem_usage(tmp_path / "missing")) == (0, 0)
