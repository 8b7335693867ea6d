"""Path rules, whiteouts and attribute policy: what a member may ask for."""

from __future__ import annotations

import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageservice.unpack.archive import Member
from imageservice.unpack.entries import Kind, plan_entry, split_path
from sandbox.host.errors import Corrupt


def member(
    name: bytes,
    kind: bytes = tarfile.REGTYPE,
    link: bytes = b"",
    xattrs: dict[str, bytes] | None = None,
    **fields: int,
) -> Member:
    values = {"mode": 0o644, "uid": 0, "gid": 0, "device_major": 0, "device_minor": 0, **fields}
    return Member(
        name=name,
        type=kind,
        stored_bytes=0,
        size_bytes=0,
        mtime_ns=0,
        link_name=link,
        xattrs=xattrs or {},
        **values,
    )


@pytest.mark.parametrize(
    ("raw", "parent", "name"),
    [
        (b"a", b"", b"a"),
        (b"./a/b", b"a", b"b"),
        (b"/a/b/", b"a", b"b"),
        (b"///a", b"", b"a"),
        (b"a//b/./c", b"a/b", b"c"),
        (b"a/../b", b"", b"b"),
        (b"a/b/../../c", b"", b"c"),
        (b".bashrc", b"", b".bashrc"),
        (b"a/.b", b"a", b".b"),
        (b"..a/b..", b"..a", b"b.."),
        (b".", b"", b""),
        (b"./", b"", b""),
        (b"/", b"", b""),
        (b"", b"", b""),
        (b"a/..", b"", b""),
        (b"caf\xe9/\xff", b"caf\xe9", b"\xff"),
    ],
)
def test_paths_are_cleaned(raw: bytes, parent: bytes, name: bytes) -> None:
    assert split_path(raw) == (parent, name)


@pytest.mark.parametrize(
    "raw",
    [b"..", b"../a", b"/../a", b"a/../../b", b"./../a", b"a\0b", b"a" * 256, b"a/" * 2048 + b"b"],
)
def test_paths_out_of_the_layer_are_refused(raw: bytes) -> None:
    with pytest.raises(Corrupt):
        split_path(raw)


@given(st.lists(st.sampled_from([b"a", b"b", b"..", b".", b"", b"...", b"..x"]), max_size=12))
def test_no_path_climbs_and_cleaning_is_stable(parts: list[bytes]) -> None:
    try:
        parent, name = split_path(b"/".join(parts))
    except Corrupt:
        return
    path = parent + b"/" + name if parent else name
    assert not {b"", b".", b".."} & set(path.split(b"/")) or not path
    assert split_path(path) == (parent, name)


@pytest.mark.parametrize(
    "kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
@pytest.mark.parametrize("name", [b".", b"/", b"./", b"", b"a/.."])
def test_the_root_is_only_ever_a_directory(kind: bytes, name: bytes) -> None:
    with pytest.raises(Corrupt, match="root"):
        plan_entry(member(name, kind, b"/etc"))


def test_root_directory_gives_the_root_its_attributes() -> None:
    entry = plan_entry(member(b"./", tarfile.DIRTYPE))
    assert entry is not None
    assert entry.kind is Kind.ROOT


def test_whiteouts() -> None:
    entry = plan_entry(member(b"a/.wh.b"))
    assert entry is not None
    assert (entry.kind, entry.parent, entry.name) == (Kind.WHITEOUT, b"a", b"b")
    entry = plan_entry(member(b"a/.wh..wh..opq"))
    assert entry is not None
    assert (entry.kind, entry.parent, entry.name) == (Kind.OPAQUE, b"a", b"")
    entry = plan_entry(member(b".wh.x", tarfile.LNKTYPE, b".wh..wh.aufs"))
    assert entry is not None
    assert entry.kind is Kind.WHITEOUT


@pytest.mark.parametrize("name", [b".wh..wh.aufs", b".wh..wh.plnk", b"d/.wh..wh.orph/12.34"])
def test_aufs_bookkeeping_is_dropped(name: bytes) -> None:
    assert plan_entry(member(name)) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (b".wh.", tarfile.REGTYPE),
        (b".wh..", tarfile.REGTYPE),
        (b".wh...", tarfile.REGTYPE),
        (b".wh..wh.", tarfile.REGTYPE),
        (b".wh..wh.x", tarfile.REGTYPE),
        (b".wh.a/b", tarfile.REGTYPE),
        (b".wh..wh..opq/b", tarfile.REGTYPE),
        (b".wh.a", tarfile.DIRTYPE),
        (b".wh.a", tarfile.SYMTYPE),
        (b".wh.a", tarfile.CHRTYPE),
        (b".wh..wh..opq", tarfile.DIRTYPE),
    ],
)
def test_odd_whiteouts_are_refused(name: bytes, kind: bytes) -> None:
    with pytest.raises(Corrupt):
        plan_entry(member(name, kind, b"t"))


def test_the_prefix_inside_a_name_means_nothing() -> None:
    entry = plan_entry(member(b"d/a.wh.b"))
    assert entry is not None
    assert (entry.kind, entry.name) == (Kind.FILE, b"a.wh.b")


@pytest.mark.parametrize("target", [b"../x", b"/../x", b"a/../../x", b"", b".", b"a\0"])
def test_hard_links_stay_inside(target: bytes) -> None:
    with pytest.raises(Corrupt):
        plan_entry(member(b"l", tarfile.LNKTYPE, target))


def test_hard_link_to_itself_is_refused() -> None:
    with pytest.raises(Corrupt, match="itself"):
        plan_entry(member(b"./a/l", tarfile.LNKTYPE, b"/a/./l"))


def test_symbolic_links_may_point_anywhere() -> None:
    entry = plan_entry(member(b"l", tarfile.SYMTYPE, b"../../../etc/passwd"))
    assert entry is not None
    assert entry.member.link_name == b"../../../etc/passwd"


@pytest.mark.parametrize("target", [b"", b"a\0b", b"x" * 4096])
def test_symbolic_links_that_cannot_be_made_are_refused(target: bytes) -> None:
    with pytest.raises(Corrupt):
        plan_entry(member(b"l", tarfile.SYMTYPE, target))


@pytest.mark.parametrize(
    "fields",
    [
        {"uid": -1},
        {"gid": -1},
        {"uid": (1 << 32) - 1},
        {"device_major": 1 << 12},
        {"device_minor": -1},
    ],
)
def test_numbers_out_of_range_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(Corrupt):
        plan_entry(member(b"d", tarfile.CHRTYPE, **fields))


def test_attribute_policy() -> None:
    given_xattrs = {
        "user.a": b"1",
        "trusted.b": b"2",
        "security.capability": b"3",
        "system.posix_acl_access": b"4",
        "trusted.overlay.opaque": b"y",
        "trusted.overlay.redirect": b"/etc",
        "user.overlay.opaque": b"y",
        "security.selinux": b"s",
        "security.ima": b"s",
        "unknown.x": b"s",
    }
    entry = plan_entry(member(b"f", xattrs=given_xattrs))
    assert entry is not None
    assert set(entry.xattrs) == {
        "user.a",
        "trusted.b",
        "security.capability",
        "system.posix_acl_access",
    }


def test_oversized_attributes_are_refused() -> None:
    with pytest.raises(Corrupt):
        plan_entry(member(b"f", xattrs={"user.a": bytes(65537)}))
