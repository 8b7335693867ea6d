"""Row 4, CVE-2021-29136: the entry of the layer's own root replaces it by a link.

Every spelling of the root and of its parent, as every kind of file. Only a directory may be there,
and only in the spellings that are the root; nothing may be made in its place.
"""

from __future__ import annotations

import pytest

from imageservice.unpack import archive
from imageservice.unpack.archive import Member
from imageservice.unpack.entries import Kind, plan_entry
from sandbox.host.errors import Corrupt

ROOT_SPELLINGS = [b"", b".", b"/", b"./", b"//", b"./.", b"/./", b"a/..", b"a/b/../..", b"./a/../"]
PARENT_SPELLINGS = [b"..", b"../", b"./..", b"/..", b"a/../..", b"../../etc", b"a/../../b"]
KINDS = [
    archive.REGULAR, archive.HARDLINK, archive.SYMLINK, archive.CHARACTER, archive.BLOCK_DEVICE,
    archive.FIFO,
]  # fmt: skip


def member(name: bytes, kind: bytes) -> Member:
    return Member(
        name=name, type=kind, mode=0o777, uid=0, gid=0, stored_bytes=0, size_bytes=0, mtime_ns=0,
        link_name=b"/etc", device_major=1, device_minor=3,
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ROOT_SPELLINGS)
def test_the_root_is_no_link_file_or_device(name: bytes, kind: bytes) -> None:
    with pytest.raises(Corrupt, match="replace the root"):
        plan_entry(member(name, kind))


@pytest.mark.parametrize("name", ROOT_SPELLINGS)
def test_the_root_may_be_described_as_the_directory_that_it_is(name: bytes) -> None:
    entry = plan_entry(member(name, archive.DIRECTORY))
    assert entry is not None
    assert entry.kind is Kind.ROOT


@pytest.mark.parametrize("kind", [*KINDS, archive.DIRECTORY])
@pytest.mark.parametrize("name", PARENT_SPELLINGS)
def test_what_is_above_the_root_is_nothing_of_the_layers(name: bytes, kind: bytes) -> None:
    with pytest.raises(Corrupt, match="out of the layer"):
        plan_entry(member(name, kind))
