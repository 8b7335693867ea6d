import errno
import re
from pathlib import Path

import pytest

from sandbox.host import syscalls as sc
from sandbox.host.errors import Busy, Denied, InvalidArgument, NotFound, Unsupported
from sandbox.host.mounts import Mount, mount_all, mount_one, unmount, unmount_tree
from sandbox.host.overlay import join_options, split_layers
from tests.fakes.clock import FakeClock
from tests.fakes.syscalls import FakeSyscalls

AT = Path("/run/podwright/none")


def mounted(kind, source, *options, fail=None):
    calls = FakeSyscalls(fail=fail)
    mount_one(Mount(kind, source, AT, options), syscalls=calls)
    return calls


def test_words_are_flags_and_the_rest_is_text_for_the_file_system():
    (call,) = mounted("tmpfs", "shm", "size=64k", "nosuid", "mode=1777", "noexec", "rw").calls
    assert (call.name, call.source, call.fstype) == ("mount", "shm", "tmpfs")
    assert call.flags == sc.MS_NOSUID | sc.MS_NOEXEC
    assert call.data == "size=64k,mode=1777"


def test_the_last_word_wins():
    (call,) = mounted("tmpfs", "t", "ro", "nosuid", "rw", "suid").calls
    assert call.flags == 0


def test_a_bind_keeps_what_its_source_forbids_and_adds_what_was_asked():
    bind, attributes = mounted("bind", "/src", "rbind", "ro", "nodev", "dev").calls
    assert (bind.name, bind.flags, bind.data) == ("mount", sc.MS_BIND | sc.MS_REC, "")
    assert attributes.name == "mount_setattr"
    assert attributes.attr_set == sc.MOUNT_ATTR_RDONLY
    assert attributes.attr_clr == sc.MOUNT_ATTR_NODEV
    assert attributes.flags == 0  # not recursive: "ro" is the top mount's


def test_access_times_are_one_field():
    _, call = mounted("bind", "/src", "noatime").calls
    assert call.attr_set == sc.MOUNT_ATTR_NOATIME
    assert call.attr_clr == sc.MOUNT_ATTR_ATIME_MASK


def test_a_plain_bind_is_one_call():
    assert mounted("bind", "/src").names == ["mount"]


def test_recursive_read_only_reaches_the_mounts_below():
    _, call = mounted("bind", "/src", "rbind", "rro").calls
    assert (call.name, call.flags) == ("mount_setattr", sc.AT_RECURSIVE)
    assert call.attr_set == sc.MOUNT_ATTR_RDONLY


def test_recursive_read_only_on_an_old_kernel_is_unsupported_and_undone():
    calls = FakeSyscalls(fail={"mount_setattr": [errno.ENOSYS]})
    with pytest.raises(Unsupported):
        mount_one(Mount("bind", "/src", AT, ("rbind", "rro")), syscalls=calls)
    assert calls.names == ["mount", "mount_setattr", "umount2"]


def test_before_linux_5_12_a_bind_is_remounted_with_what_it_inherited(tmp_path):
    calls = FakeSyscalls(fail={"mount_setattr": [errno.ENOSYS]})
    mount_one(Mount("bind", "/src", tmp_path, ("ro", "nosuid")), syscalls=calls)
    last = calls.calls[-1]
    wanted = sc.MS_BIND | sc.MS_REMOUNT | sc.MS_RDONLY | sc.MS_NOSUID
    assert last.name == "mount"
    assert last.flags & wanted == wanted
    assert not last.flags & sc.MS_REC


def test_propagation_comes_last_and_alone():
    mount, propagation = mounted("tmpfs", "t", "rslave", "nodev").calls
    assert mount.flags == sc.MS_NODEV
    assert (propagation.flags, propagation.fstype) == (sc.MS_SLAVE | sc.MS_REC, "")
    (only,) = mounted("none", "none", "rshared").calls
    assert only.flags == sc.MS_SHARED | sc.MS_REC


def test_a_remount_of_a_bind_changes_attributes_only():
    (call,) = mounted("bind", "/src", "remount", "ro").calls
    assert (call.name, call.attr_set) == ("mount_setattr", sc.MOUNT_ATTR_RDONLY)
    (call,) = mounted("tmpfs", "t", "remount", "size=1m").calls
    assert (call.flags, call.data) == (sc.MS_REMOUNT, "size=1m")


def test_a_later_step_that_fails_takes_the_mount_away_and_its_error_is_the_one_raised():
    calls = FakeSyscalls(fail={"mount_setattr": [errno.EPERM], "umount2": [errno.EBUSY]})
    with pytest.raises(Denied):
        mount_one(Mount("bind", "/src", AT, ("ro",)), syscalls=calls)
    assert calls.names == ["mount", "mount_setattr", "umount2"]
    assert calls.calls[-1].flags == sc.MNT_DETACH | sc.UMOUNT_NOFOLLOW


def test_a_symlink_is_no_target(tmp_path):
    (tmp_path / "link").symlink_to("/")
    calls = FakeSyscalls()
    with pytest.raises(InvalidArgument, match="symlink"):
        mount_one(Mount("tmpfs", "t", tmp_path / "link"), syscalls=calls)
    assert calls.calls == []


def test_a_missing_source_is_named_in_the_hint():
    calls = FakeSyscalls(fail={"mount": [errno.ENOENT]})
    with pytest.raises(NotFound, match="/no/source"):
        mount_one(Mount("bind", "/no/source", AT), syscalls=calls)


@pytest.mark.parametrize("word", ["size=1,nodev", "a,b", "context=a,b"])
def test_a_comma_cannot_smuggle_in_an_option(word):
    with pytest.raises(InvalidArgument, match="comma"):
        mounted("tmpfs", "t", word)


def test_nul_is_refused():
    with pytest.raises(InvalidArgument, match="NUL"):
        mounted("tmpfs", "t", "size=1\0")


def test_overlay_paths_with_commas_and_colons():
    assert join_options(["upperdir=/a,b", 'context="c1,c2"'], path="") == (
        'upperdir=/a\\,b,context="c1,c2"'
    )
    assert split_layers(r"/a\:b:/c\,d:/e") == ["/a:b", "/c,d", "/e"]


LAYERS = [f"/var/lib/podwright/images/layers/{n:064x}/fs" for n in range(128)]


def overlay_options(*extra):
    return ("lowerdir=" + ":".join(LAYERS), "upperdir=/u", "workdir=/w", *extra)


def test_a_short_overlay_is_one_mount_call():
    (call,) = mounted("overlay", "overlay", "lowerdir=/b:/a", "upperdir=/u", "volatile").calls
    assert call.data == "lowerdir=/b:/a,upperdir=/u,volatile"


def test_128_layers_go_one_by_one_topmost_first():
    calls = mounted("overlay", "overlay", *overlay_options("volatile", "index=off", "ro", "nodev"))
    assert calls.names[0] == "fsopen"
    added = [c.value for c in calls.named("fsconfig_string") if c.key == "lowerdir+"]
    assert added == LAYERS
    strings = {c.key: c.value for c in calls.named("fsconfig_string") if c.key != "lowerdir+"}
    assert strings == {"source": "overlay", "upperdir": "/u", "workdir": "/w", "index": "off"}
    assert [c.key for c in calls.named("fsconfig_flag")] == ["volatile", "ro"]
    assert calls.names[-3:] == ["fsconfig_create", "fsmount", "move_mount"]
    assert calls.named("fsmount")[0].attributes == sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NODEV
    assert calls.named("move_mount")[0].to_path == AT


def test_a_layer_path_longer_than_a_value_may_be_goes_by_descriptor():
    long = "/" + "x" * 200 + "/" + "y" * 200
    layers = "lowerdir=" + ":".join([long] * 12)
    calls = mounted("overlay", "overlay", layers)
    assert len(calls.named("fsconfig_fd")) == 12
    assert calls.named("openat2")[0].path == long


@pytest.mark.parametrize("code", [errno.EBADF, errno.EINVAL])
def test_where_no_descriptor_is_taken_its_name_is(code):
    """Linux 6.7 to 6.12: every layer is text, and an O_PATH descriptor a bad one."""
    long = "/" + "x" * 200 + "/" + "y" * 200
    layers = "lowerdir=" + ":".join([long] * 12)
    calls = mounted("overlay", "overlay", layers, fail={"fsconfig_fd": [code] * 12})
    added = [c.value for c in calls.named("fsconfig_string") if c.key == "lowerdir+"]
    assert added == [f"/proc/self/fd/{c.value}" for c in calls.named("fsconfig_fd")]
    with pytest.raises(Denied):
        mounted("overlay", "overlay", layers, fail={"fsconfig_fd": [errno.EPERM]})


@pytest.mark.parametrize(
    "fail", [{"fsopen": [errno.ENOSYS]}, {"fsconfig_string": [None, errno.EINVAL]}]
)
def test_a_kernel_without_single_layers_gets_the_names_of_descriptors(fail):
    calls = mounted("overlay", "overlay", *overlay_options("volatile"), fail=fail)
    opened = [call.path for call in calls.named("openat2")]
    assert opened == [*LAYERS, "/u", "/w"]
    (call,) = calls.named("mount")
    lower, upper, work, *rest = call.data.split(",")
    names = [*split_layers(lower.removeprefix("lowerdir=")), upper, work]
    assert all(re.fullmatch(r"(\w+=)?/proc/self/fd/\d+", name) for name in names)
    assert rest == ["volatile"]


def test_more_layers_than_fit_even_so_are_refused():
    words = ("lowerdir=" + ":".join(LAYERS * 2), "ro")
    with pytest.raises(Unsupported, match=r"more layers than this kernel takes"):
        mounted("overlay", "overlay", *words, fail={"fsopen": [errno.ENOSYS]})


def test_mount_all_undoes_in_reverse_what_it_did():
    calls = FakeSyscalls(fail={"mount": [None, None, None, errno.EPERM]})
    mounts = [
        Mount("tmpfs", "t", AT / "a"),
        Mount("none", "none", AT / "a", ("private",)),
        Mount("tmpfs", "t", AT / "b"),
        Mount("tmpfs", "t", AT / "c"),
    ]
    with pytest.raises(Denied):
        mount_all(mounts, syscalls=calls)
    assert [c.target for c in calls.named("umount2")] == [AT / "b", AT / "a"]


def test_busy_is_tried_again():
    clock = FakeClock()
    calls = FakeSyscalls(fail={"umount2": [errno.EBUSY, errno.EBUSY, None, errno.EINVAL]})
    assert unmount(AT, syscalls=calls, clock=clock)
    assert clock.slept_s == [0.1, 0.1]
    assert all(call.flags == sc.UMOUNT_NOFOLLOW for call in calls.calls)


def test_what_stays_busy_is_detached():
    clock = FakeClock()
    calls = FakeSyscalls(fail={"umount2": [errno.EBUSY] * 3 + [None, errno.EINVAL]})
    assert unmount(AT, syscalls=calls, clock=clock)
    assert [c.flags & sc.MNT_DETACH for c in calls.calls] == [0, 0, 0, sc.MNT_DETACH, 0]
    assert len(clock.slept_s) == 2


def test_stacked_mounts_all_go():
    calls = FakeSyscalls(fail={"umount2": [None, None, None, errno.EINVAL]})
    assert unmount(AT, syscalls=calls)
    assert len(calls.calls) == 4


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOENT, errno.ENOTDIR])
def test_nothing_mounted_is_false(number):
    assert not unmount(AT, syscalls=FakeSyscalls(fail={"umount2": [number]}))


def test_refusals_come_out():
    with pytest.raises(Denied):
        unmount(AT, syscalls=FakeSyscalls(fail={"umount2": [errno.EPERM]}))
    with pytest.raises(Busy):
        unmount(AT, syscalls=FakeSyscalls(fail={"umount2": [errno.EBUSY] * 4}), clock=FakeClock())


def test_mounts_without_end_are_not_waited_for():
    with pytest.raises(InvalidArgument):
        unmount(AT, syscalls=FakeSyscalls())


def test_a_tree_without_mounts_has_nothing_to_unmount(tmp_path):
    calls = FakeSyscalls()
    assert unmount_tree(tmp_path, syscalls=calls) == []
    assert calls.calls == []
