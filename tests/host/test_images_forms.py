"""Both forms of a layer are one layer: any archive gives the same tree, or the same refusal.

The tree that a directory form makes is read back from the disk, the indexed form through the
kernel's own EROFS: names, kinds, owners, modes, times, links, attributes and contents must agree.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from imageservice.forms import LayerForm
from sandbox.host.errors import PodwrightError
from tests import probes
from tests.kit.layer_forms import described, unpacked
from tests.kit.tars import Tar, members, pax_member

pytestmark = pytest.mark.root


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    if reason := probes.no_indexed_layers(tmp_path):
        pytest.skip(reason)
    old = os.umask(0)
    yield tmp_path
    os.umask(old)


def outcome(base: Path, form: LayerForm, plain: bytes) -> tuple[object, ...]:
    try:
        with unpacked(base, form, plain) as (done, tree):
            found = described(tree)
            # Of implied directories that a later entry replaced the tree form keeps the names.
            implied = {path.encode("latin-1") for path in done.implied}
            implied = {at for at in implied if at in found and str(found[at][0])[0] == "d"}
            for at in implied:
                found[at] = (*found[at][:3], None, *found[at][4:])
            return (
                (done.entries, done.size_bytes, done.opaque_root, implied),
                sorted(found.items()),
            )
    except PodwrightError as error:
        return (type(error).__name__,)


NAMES = st.sampled_from(["a", "b", "-", "!x", "c" * 255, "\u00e9", ".x"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
TARGETS = st.sampled_from(["a", "../b", "/a/b", "..", "nowhere", "t" * 600, "a/" * 1000])


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    tar = Tar()
    for _ in range(draw(st.integers(1, 12))):
        path = draw(PATHS)
        match draw(st.sampled_from("fffddlshwocbpx")):
            case "f":
                size = draw(st.sampled_from([0, 1, 511, 512, 513, 5000, 70_000]))
                tar.add(
                    path,
                    content=os.urandom(1) * size,
                    mode=draw(st.sampled_from([0o644, 0o4755, 0o000])),
                    uid=draw(st.sampled_from([0, 1000, 4_000_000_000])),
                    mtime=draw(st.sampled_from([0, 1, 1.5, 4_000_000_000, -1])),
                )
            case "d":
                tar.directory(path, draw(st.sampled_from([0o755, 0o1777, 0o2700])))
            case "l" | "s":
                tar.symlink(path, draw(TARGETS))
            case "h":
                tar.hardlink(path, draw(PATHS))
            case "w":
                parent, _, name = path.rpartition("/")
                tar.file(f"{parent}/.wh.{name}"[: 250 + len(parent)])
            case "o":
                tar.file(f"{path}/.wh..wh..opq")
            case "c":
                tar.add(path, kind=b"3", device=(draw(st.integers(0, 4095)), 0xFFFFF))
            case "b":
                tar.add(path, kind=b"4", device=(8, draw(st.integers(0, 300))))
            case "p":
                tar.add(path, kind=b"6")
            case "x":
                records = draw(
                    st.dictionaries(
                        st.sampled_from(["user.a", "trusted.b", "user." + "n" * 200]),
                        st.binary(max_size=300),
                        max_size=3,
                    )
                )
                tar.raw(pax_member({f"SCHILY.xattr.{k}": v for k, v in records.items()}))
                draw(st.sampled_from([tar.file, tar.directory]))(path)
    return tar.done()


@given(archives())
@example(Tar().file("a/x").hardlink("h", "a/x").file("a").done())
@example(Tar().file("x").hardlink("x/y", "x").done())
@example(Tar().symlink("a", "b").hardlink("h", "a").done())
@example(Tar().file(".wh.a").hardlink("h", "a").done())
@example(Tar().file(".wh.a").file("a/x").hardlink("a", "a/x").done())
@example(Tar().directory("a").directory("a/b").file("a/.wh..wh..opq").directory("a", 0o700).done())
@settings(
    max_examples=int(os.environ.get("PODWRIGHT_FUZZ_EXAMPLES", "150")),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_both_forms_are_one_layer(base: Path, plain: bytes) -> None:
    assert outcome(base, "indexed", plain) == outcome(base, "tree", plain), members(plain)


@pytest.mark.parametrize("count", [1, 15, 16, 37, 400, 20_000])
def test_directories_of_every_length(base: Path, count: int) -> None:
    """Within an inode's block, one block, many: the kernel searches the names by halves."""
    tar = Tar()
    for number in range(count):
        tar.file(f"d/name-{number * 7919 % count:06}", str(number).encode())
    plain = tar.done()
    with unpacked(base, "indexed", plain) as (done, tree):
        assert done.form == "indexed"
        assert done.entries == count + 1
        assert len(os.listdir(tree / "d")) == count  # noqa: PTH208
        for number in range(0, count, max(1, count // 500)):
            found = (tree / f"d/name-{number * 7919 % count:06}").read_text()
            assert found == str(number)
        assert not (tree / "d/name-x").exists()


def test_what_an_index_cannot_say_is_unpacked(base: Path) -> None:
    """An attribute of 64 KiB fits no index; the layer is made of files, and says so."""
    record = pax_member({"SCHILY.xattr.user.long": b"x" * 65_536})
    plain = Tar().raw(record).file("f").file("g", b"more").done()
    with unpacked(base, "indexed", Tar().file("f").done()) as (done, _tree):
        assert done.form == "indexed"
    # ext4 has no room for it either, which is then the disk's word and not ours.
    result = outcome(base, "indexed", plain)
    assert result == outcome(base, "tree", plain)


def test_contents_are_read_in_every_way(base: Path) -> None:
    """By the page cache, directly, by mapping, across the end; large enough for read-ahead."""
    content = os.urandom(1 << 20) * 9 + b"tail"
    with unpacked(base, "indexed", Tar().file("small").file("big", content).done()) as (_, tree):
        with (tree / "big").open("rb") as file:
            assert os.pread(file.fileno(), 100, len(content) - 4) == b"tail"
            assert os.pread(file.fileno(), 100, len(content)) == b""
            assert os.pread(file.fileno(), 5000, 4_999_999) == content[4_999_999:5_004_999]
        assert (tree / "big").read_bytes() == content
        with pytest.raises(OSError, match="Read-only"):
            (tree / "new").touch()
