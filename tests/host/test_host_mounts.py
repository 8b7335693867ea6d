"""Mounts, overlays and their taking away, on the real kernel."""

import errno
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from sandbox.host import syscalls as sc
from sandbox.host.errors import (
    Busy,
    Internal,
    InvalidArgument,
    NotFound,
    PodwrightError,
    Unsupported,
)
from sandbox.host.files import filesystem_usage, remove_tree
from sandbox.host.libc import LibcSyscalls
from sandbox.host.mounts import (
    Mount,
    clear_away,
    list_mounts,
    mount_all,
    mount_of,
    mount_one,
    unmount,
    unmount_tree,
)
from tests import probes
from tests.fakes.clock import FakeClock
from tests.probes import RELEASE

pytestmark = pytest.mark.root
calls = LibcSyscalls()


@pytest.fixture
def base(tmp_path):
    """A tmpfs of its own: private, so that nothing propagates, and gone afterwards."""
    at = tmp_path / "base"
    at.mkdir()
    mount_one(Mount("tmpfs", "t", at, ("size=8m", "private")), syscalls=calls)
    yield at
    unmount_tree(at, syscalls=calls)
    with suppress(PodwrightError):
        unmount(at, syscalls=calls)


def at(path):
    found = [mount for mount in list_mounts() if mount.target == path]
    return found[-1] if found else None


def make(base, *names):
    for name in names:
        (base / name).mkdir(parents=True)
    return [base / name for name in names]


def test_a_tmpfs_with_words_of_every_sort(base):
    (target,) = make(base, "m")
    words = ("size=64k", "mode=1777", "nosuid", "nodev", "noexec", "rslave")
    mount_one(Mount("tmpfs", "shm", target, words), syscalls=calls)
    found = at(target)
    assert {"nosuid", "nodev", "noexec"} <= set(found.options)
    assert "size=64k" in found.super_options
    assert (found.type, found.source) == ("tmpfs", "shm")
    assert mount_of(target / ".").id == found.id
    assert target.stat().st_mode & 0o7777 == 0o1777
    assert unmount(target, syscalls=calls)
    assert not unmount(target, syscalls=calls)


def test_names_with_blanks_come_back(base):
    (target,) = make(base, "a b\tc\\d")
    mount_one(Mount("tmpfs", "some source", target), syscalls=calls)
    assert at(target).source == "some source"
    assert unmount_tree(base / "a b\tc\\d", syscalls=calls) == [target]


def test_a_bind_keeps_the_restrictions_of_its_source(base):
    source, target = make(base, "s", "t")
    mount_one(Mount("tmpfs", "t", source, ("nosuid", "noexec")), syscalls=calls)
    mount_one(Mount("bind", str(source), target, ("ro", "nodev")), syscalls=calls)
    assert {"ro", "nodev", "nosuid", "noexec"} <= set(at(target).options)
    assert "ro" not in at(source).options
    with pytest.raises(OSError, match="Read-only"):
        (target / "x").write_text("")
    mount_one(Mount("bind", str(source), target, ("remount", "rw")), syscalls=calls)
    (target / "x").write_text("")


def test_a_file_can_be_bound_to_a_file(base):
    (base / "a").write_text("content")
    (base / "b").write_text("")
    mount_one(Mount("bind", str(base / "a"), base / "b", ("ro",)), syscalls=calls)
    assert (base / "b").read_text() == "content"
    unmount(base / "b", syscalls=calls)
    assert (base / "b").read_text() == ""


def test_read_only_is_of_one_mount_and_recursive_read_only_of_all(base):
    source, target = make(base, "s/inner", "t")[0].parent, base / "t"
    mount_one(Mount("tmpfs", "t", source / "inner"), syscalls=calls)
    mount_one(Mount("bind", str(source), target, ("rbind", "ro")), syscalls=calls)
    assert "ro" in at(target).options
    assert "rw" in at(target / "inner").options
    unmount_tree(target, syscalls=calls)
    mount_one(Mount("bind", str(source), target, ("rbind", "rro")), syscalls=calls)
    assert "ro" in at(target).options
    assert "ro" in at(target / "inner").options
    assert unmount_tree(target, syscalls=calls) == [target / "inner", target]


def test_propagation(base):
    (target,) = make(base, "m")
    mount_one(Mount("tmpfs", "t", target, ("shared",)), syscalls=calls)
    assert at(target).propagation == {"shared"}
    mount_one(Mount("none", "none", target, ("slave",)), syscalls=calls)
    assert at(target).propagation == frozenset()
    mount_one(Mount("none", "none", target, ("unbindable",)), syscalls=calls)
    assert at(target).propagation == {"unbindable"}


def test_failures_leave_no_mount_behind(base):
    source, target = make(base, "s", "t")
    with pytest.raises(NotFound):
        mount_one(Mount("bind", str(base / "missing"), target), syscalls=calls)
    with pytest.raises(NotFound):
        mount_one(Mount("tmpfs", "t", base / "missing"), syscalls=calls)
    with pytest.raises(InvalidArgument):
        mount_one(Mount("tmpfs", "t", target, ("no-such-option=1",)), syscalls=calls)
    with pytest.raises(Unsupported):
        mount_one(Mount("nosuchfs", "t", target), syscalls=calls)
    (base / "link").symlink_to(target)
    with pytest.raises(InvalidArgument):
        mount_one(Mount("bind", str(source), base / "link"), syscalls=calls)
    with pytest.raises(NotFound):
        mount_all([Mount("tmpfs", "t", target), Mount("bind", "/missing", source)], syscalls=calls)
    assert at(target) is None
    assert at(source) is None


def test_a_link_is_not_followed_when_unmounting(base):
    (target,) = make(base, "m")
    mount_one(Mount("tmpfs", "t", target), syscalls=calls)
    (base / "link").symlink_to(target)
    assert not unmount(base / "link", syscalls=calls)
    assert unmount_tree(base / "link", syscalls=calls) == []
    assert at(target) is not None


def test_a_stack_goes_in_one_call(base):
    (target,) = make(base, "m")
    for _ in range(3):
        mount_one(Mount("tmpfs", "t", target), syscalls=calls)
    assert unmount(target, syscalls=calls)
    assert at(target) is None


@pytest.mark.cell("MT1")
def test_a_busy_mount_is_detached_and_its_space_comes_back_with_its_last_user(base):
    (target,) = make(base, "m")
    mount_one(Mount("tmpfs", "t", target), syscalls=calls)
    holder = subprocess.Popen(["sleep", "1000"], cwd=target)
    clock = FakeClock()
    try:
        assert unmount(target, syscalls=calls, clock=clock)
        assert clock.slept_s == [0.1, 0.1]
        assert at(target) is None
        target.rmdir()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()


@pytest.fixture
def layers(tmp_path):
    if reason := probes.no_overlay():
        pytest.skip(reason)

    def make_layers(count, prefix=""):
        places = []
        for number in range(count):
            place = tmp_path / (prefix + f"layer-{number:03}")
            place.mkdir(parents=True)
            (place / f"file-{number}").write_text(str(number))
            (place / "same").write_text(str(number))
            places.append(place)
        for name in ("upper", "work", "root"):
            (tmp_path / name).mkdir()
        return places

    yield make_layers
    unmount_tree(tmp_path, syscalls=calls)


def overlay(tmp_path, places, *words):
    escaped = [str(p).replace("\\", "\\\\").replace(":", "\\:") for p in places]
    return Mount(
        "overlay",
        "overlay",
        tmp_path / "root",
        (
            "lowerdir=" + ":".join(escaped),
            f"upperdir={tmp_path / 'upper'}",
            f"workdir={tmp_path / 'work'}",
            *words,
        ),
    )


#: By the names of descriptors: "/proc/self/fd/1234:" a layer, in a page with the other options.
MOST_IN_A_PAGE = 200


def mount_layers(mount, syscalls=calls):
    """Mount it; a kernel that takes layers in one text only refuses too many in these words."""
    layers = mount.options[0].count(":/") + 1
    if RELEASE < (6, 7) and layers > MOST_IN_A_PAGE:
        with pytest.raises(Unsupported, match="more layers than this kernel takes"):
            mount_one(mount, syscalls=syscalls)
        pytest.skip("more layers than a page has room for need Linux 6.7; they are refused")
    mount_one(mount, syscalls=syscalls)


@pytest.mark.cell("MT6")
@pytest.mark.parametrize("count", [1, 20, 128, 300])
def test_overlays_of_many_layers(tmp_path, layers, count):
    places = layers(count)
    mount_layers(overlay(tmp_path, places, "volatile", "nodev"))
    root = tmp_path / "root"
    assert (root / "same").read_text() == "0", "the first directory is the topmost"
    assert (root / f"file-{count - 1}").read_text() == str(count - 1)
    (root / "new").write_text("x")
    assert (tmp_path / "upper/new").read_text() == "x"
    found = at(root)
    assert found.type == "overlay"
    assert "nodev" in found.options
    assert {"volatile", "fsync=volatile"} & set(found.super_options)  # the name since Linux 6.18
    unmount(root, syscalls=calls)
    # What "volatile" leaves forbids a second mount; the caller clears it, see the image store.
    assert (tmp_path / "work/work/incompat/volatile").is_dir()


def test_read_only_overlays_beyond_a_page(tmp_path, layers):
    places = layers(128)
    words = ("lowerdir=" + ":".join(map(str, places)), "ro")
    mount_layers(Mount("overlay", "overlay", tmp_path / "root", words))
    with pytest.raises(OSError, match="Read-only"):
        (tmp_path / "root/x").write_text("")


@pytest.mark.parametrize("count", [2, 64])
def test_layer_paths_with_odd_characters(tmp_path, layers, count):
    places = layers(count, prefix="with:colon, comma and blank ")
    mount_layers(overlay(tmp_path, places))
    assert (tmp_path / "root/same").read_text() == "0"
    assert (tmp_path / f"root/file-{count - 1}").exists()


@pytest.mark.cell("MT6")
def test_layer_paths_longer_than_an_option_may_be(tmp_path, layers):
    places = layers(20, prefix="x" * 200 + "/" + "y" * 200)
    mount_layers(overlay(tmp_path, places))
    assert (tmp_path / "root/file-19").exists()


class OfLinux612(LibcSyscalls):
    """Takes no descriptors of layers, as kernels before 6.13."""

    def fsconfig_fd(self, fd, key, value):
        raise Internal("cannot set mount option") from OSError(errno.EBADF, "bad descriptor")


@pytest.mark.skipif(RELEASE < (6, 7), reason="a kernel before 6.7 takes no layer by itself")
def test_long_layer_paths_where_no_descriptor_is_taken(tmp_path, layers):
    places = layers(20, prefix="x" * 200 + "/" + "y" * 200)
    mount_layers(overlay(tmp_path, places), syscalls=OfLinux612())
    assert (tmp_path / "root/file-0").exists()
    assert (tmp_path / "root/file-19").exists()


class OfLinux61(LibcSyscalls):
    """Takes layers in one text only, as kernels before 6.7."""

    def fsconfig_string(self, fd, key, value):
        if key == "lowerdir+":
            raise InvalidArgument("cannot set mount option") from OSError(errno.EINVAL, "unknown")
        super().fsconfig_string(fd, key, value)


@pytest.mark.cell("MT6")
def test_many_layers_where_they_are_taken_in_one_text_only(tmp_path, layers):
    before = len(list(Path("/proc/self/fd").iterdir()))
    mount_layers(overlay(tmp_path, layers(128, prefix="with:colon, comma ")), OfLinux61())
    assert (tmp_path / "root/same").read_text() == "0"
    assert (tmp_path / "root/file-127").exists()
    (tmp_path / "root/new").write_text("x")
    assert (tmp_path / "upper/new").exists()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_too_many_layers_for_one_text_are_refused(tmp_path, layers):
    with pytest.raises(Unsupported, match=r"more layers than this kernel takes.*Linux 6\.7"):
        mount_one(overlay(tmp_path, layers(300)), syscalls=OfLinux61())
    assert at(tmp_path / "root") is None


def test_the_kernels_own_words_explain_a_refused_overlay(tmp_path, layers):
    places = layers(128)
    with pytest.raises(PodwrightError) as caught:
        mount_one(overlay(tmp_path, places, "nosuchoption=1"), syscalls=calls)
    # Older kernels take them by mount(2), which has no words but a number.
    assert ("nosuchoption" if RELEASE >= (6, 7) else "EINVAL") in str(caught.value)
    assert at(tmp_path / "root") is None


def test_removing_stops_at_a_mount_and_goes_on_after_it_is_gone(base):
    (target,) = make(base, "tree/sub/volume")
    mount_one(Mount("tmpfs", "t", target), syscalls=calls)
    (target / "precious").write_text("data")
    inside = filesystem_usage(base / "tree").inodes
    assert inside == 2, "the volume is another mount"
    for path in (base / "tree", target):
        with pytest.raises(Busy, match="mount point"):
            remove_tree(path)
    assert (target / "precious").read_text() == "data"
    unmount_tree(base / "tree", syscalls=calls)
    remove_tree(base / "tree")
    assert not (base / "tree").exists()


def test_removing_does_not_enter_a_bind_of_the_same_file_system(base):
    inside, outside = make(base, "tree/bound", "outside")
    (outside / "precious").write_text("data")
    mount_one(Mount("bind", str(outside), inside), syscalls=calls)
    with pytest.raises(Busy):
        remove_tree(base / "tree")
    assert (outside / "precious").read_text() == "data"


def test_clearing_away_takes_mounts_with_it_and_nothing_that_they_show(base):
    outside, volume, bound = make(base, "outside", "tree/sub/volume", "tree/bound")
    (outside / "precious").write_text("data")
    mount_one(Mount("tmpfs", "t", volume), syscalls=calls)
    mount_one(Mount("bind", str(outside), bound), syscalls=calls)
    for _ in range(2):  # the second finds nothing
        clear_away(base / "tree", syscalls=calls)
        assert not (base / "tree").exists()
    assert (outside / "precious").read_text() == "data"
    assert at(volume) is None
    assert at(bound) is None


@pytest.mark.cell("MT5")
def test_removing_takes_immutable_and_append_only_away(tmp_path):
    if os.statvfs(tmp_path).f_bsize == 0:
        pytest.skip("no file system")
    tree = tmp_path / "tree"
    (tree / "dir").mkdir(parents=True)
    (tree / "dir/immutable").write_text("x")
    (tree / "dir/append").write_text("x")
    flags = {
        tree / "dir/immutable": sc.FS_IMMUTABLE_FL,
        tree / "dir/append": sc.FS_APPEND_FL,
        tree / "dir": sc.FS_IMMUTABLE_FL,
        tree: sc.FS_APPEND_FL,
    }
    for path, flag in flags.items():
        fd = os.open(path, os.O_RDONLY)
        try:
            calls.set_inode_flags(fd, calls.get_inode_flags(fd) | flag)
        except Unsupported as error:
            pytest.skip(str(error))
        finally:
            os.close(fd)
    with pytest.raises(PermissionError):
        (tree / "dir/immutable").unlink()
    remove_tree(tree)
    assert not tree.exists()


def test_devices_and_whiteouts_are_removed_unopened(base):
    (tree,) = make(base, "tree")
    calls.mknodat(sc.AT_FDCWD, str(tree / "whiteout"), 0o020000, os.makedev(0, 0))
    calls.mknodat(sc.AT_FDCWD, str(tree / "console"), 0o020600, os.makedev(5, 1))
    remove_tree(tree)
    assert not tree.exists()


def test_attributes_of_directories_and_links(base):
    (place,) = make(base, "d")
    (place / "link").symlink_to("/nowhere")
    fd = os.open(place, os.O_RDONLY)
    calls.fsetxattr(fd, "trusted.overlay.opaque", b"y")
    os.close(fd)
    calls.lsetxattr(place / "link", "trusted.test", b"1")
    assert os.getxattr(place, "trusted.overlay.opaque") == b"y"
    assert os.getxattr(place / "link", "trusted.test", follow_symlinks=False) == b"1"


def test_new_mount_calls_directly(base):
    source, target = make(base, "s", "t")
    (source / "x").write_text("x")
    tree = calls.open_tree(sc.AT_FDCWD, source, sc.OPEN_TREE_CLONE)
    try:
        flags = sc.AT_EMPTY_PATH
        calls.mount_setattr(tree, "", flags, attr_set=sc.MOUNT_ATTR_RDONLY)
        calls.move_mount(tree, "", sc.AT_FDCWD, target, sc.MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(tree)
    assert (target / "x").exists()
    assert "ro" in at(target).options
