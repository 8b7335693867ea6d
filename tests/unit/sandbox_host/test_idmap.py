"""Ids inside and outside, and what is asked of the kernel for a mapped mount."""

import errno
from pathlib import Path

import pytest

from sandbox.host import syscalls as sc
from sandbox.host.errors import InvalidArgument, NotFound, Unsupported
from sandbox.host.idmap import IdMap, IdRange
from sandbox.host.mounts import Mount, mount_one
from tests.fakes.syscalls import FakeSyscalls

AT = Path("/run/podwright/none")


def mapped(tmp_path, *options, fail=None, kind="bind"):
    namespace = tmp_path / "user"
    namespace.touch()
    calls = FakeSyscalls(fail=fail)
    words = (*options, f"X-mount.idmap={namespace}")
    mount_one(Mount(kind, "/src", AT, words), syscalls=calls)
    return calls


def test_numbers_at_the_edges():
    ids = IdRange(0, 100_000, 10)
    assert [ids.to_outside(n) for n in (-1, 0, 9, 10)] == [None, 100_000, 100_009, None]
    assert ids.line == "0 100000 10\n"


def test_who_is_not_mapped_belongs_to_root_inside():
    ids = IdMap(IdRange(0, 100_000, 10), IdRange(0, 300_000, 10), Path("/pin"))
    assert ids.owner(10, 3) == (100_000, 300_003)
    assert ids.owner(3, 10) == (100_003, 300_000)


def test_a_mapped_bind_is_cloned_mapped_and_put_in_place(tmp_path):
    calls = mapped(tmp_path, "rbind", "ro", "rslave")
    tree, mapping, put, attributes, propagation = calls.calls
    assert (tree.name, tree.flags) == ("open_tree", sc.OPEN_TREE_CLONE | sc.AT_RECURSIVE)
    assert (mapping.attr_set, mapping.flags) == (
        sc.MOUNT_ATTR_IDMAP,
        sc.AT_EMPTY_PATH | sc.AT_RECURSIVE,
    )
    assert mapping.userns_fd > 0
    assert (put.name, put.to_path) == ("move_mount", AT)
    assert attributes.attr_set == sc.MOUNT_ATTR_RDONLY
    assert propagation.flags == sc.MS_SLAVE | sc.MS_REC


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EPERM])
def test_what_is_below_stays_unmapped_where_it_cannot_be(tmp_path, number):
    calls = mapped(tmp_path, "rbind", fail={"mount_setattr": [number, None]})
    first, second = calls.named("mount_setattr")
    assert first.flags & sc.AT_RECURSIVE
    assert not second.flags & sc.AT_RECURSIVE
    assert calls.named("move_mount")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EINVAL, "its file system cannot"),
        (errno.EPERM, "mapped already"),
        (errno.ENOSYS, "5.12"),
    ],
)
def test_a_source_that_cannot_be_mapped_is_never_mounted_without(tmp_path, number, words):
    calls = FakeSyscalls(fail={"mount_setattr": [number, number]})
    namespace = tmp_path / "user"
    namespace.touch()
    with pytest.raises(Unsupported, match=words) as error:
        mount_one(
            Mount("bind", "/src", AT, ("rbind", f"X-mount.idmap={namespace}")), syscalls=calls
        )
    assert error.value.hint
    assert not calls.named("move_mount")
    assert not calls.named("mount")


def test_only_binds_are_mapped(tmp_path):
    with pytest.raises(InvalidArgument):
        mapped(tmp_path, kind="tmpfs")


def test_a_user_namespace_that_is_gone_is_said(tmp_path):
    with pytest.raises(NotFound):
        mount_one(
            Mount("bind", "/src", AT, (f"X-mount.idmap={tmp_path}/gone",)), syscalls=FakeSyscalls()
        )
