"""Directories in which only root has a say: what counts, what is named, what is read again."""

from __future__ import annotations

import os
import stat

import pytest

from sandbox.host.dropins import DropIns, check_trusted
from sandbox.host.errors import Denied, InvalidArgument, NotFound
from tests.fakes.clock import FakeClock


class Parser:
    """Takes any text but "bad", and counts."""

    def __init__(self):
        self.calls = []

    def __call__(self, data, path):
        self.calls.append(path.name)
        if data == b"bad":
            raise InvalidArgument("it is bad")
        return data.decode()


@pytest.fixture
def parser():
    return Parser()


def drop_ins(parser, *directories, limit_bytes=100):
    # Long after any file here was made, so that all of them have settled.
    clock = FakeClock(wall_s=4_000_000_000.0)
    return DropIns(
        directories, suffixes=(".json",), parse=parser, limit_bytes=limit_bytes, clock=clock
    )


def test_directories_in_their_order_and_files_by_name(parser, tmp_path):
    first, second, absent = tmp_path / "z", tmp_path / "a", tmp_path / "none"
    for directory, name in ((first, "b"), (first, "a"), (second, "c")):
        directory.mkdir(exist_ok=True)
        (directory / f"{name}.json").write_text(name)
    (first / "a.txt").write_text("other")
    (first / "sub.json").mkdir()
    looked = drop_ins(parser, first, absent, second).look()
    assert [(f.content, f.rank) for f in looked.files] == [("a", 0), ("b", 0), ("c", 2)]
    assert looked.problems == ()


def test_what_cannot_be_used_is_named_and_hides_nothing(parser, tmp_path):
    (tmp_path / "a.json").write_text("good")
    (tmp_path / "b.json").write_text("bad")
    (tmp_path / "c.json").write_text("x" * 101)
    (tmp_path / "d.json").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "e.json")
    looked = drop_ins(parser, tmp_path).look()
    assert [f.content for f in looked.files] == ["good"]
    assert {p.path.name: p.reason for p in looked.problems} == {
        "b.json": "it is bad",
        "c.json": "file is larger than 100 bytes",
        "d.json": "leads nowhere",
        "e.json": "not a regular file",
    }
    not_a_directory = drop_ins(parser, tmp_path / "a.json").look()
    assert "cannot be listed" in not_a_directory.problems[0].reason


def test_a_file_is_read_again_only_when_it_changed(parser, tmp_path):
    file = tmp_path / "a.json"
    file.write_text("one")
    files = drop_ins(parser, tmp_path)
    files.look()
    files.look()
    assert parser.calls == ["a.json"]
    file.write_text("two")
    assert [f.content for f in files.look().files] == ["two"]
    # The same size and time of change as before: only the change of the inode tells.
    status = file.stat()
    file.write_text("six")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [f.content for f in files.look().files] == ["six"]
    file.chmod(0o622)
    assert files.look().files == ()
    file.unlink()
    assert files.look().problems == ()


def test_a_file_that_has_just_changed_is_read_each_time(parser, tmp_path):
    (tmp_path / "a.json").write_text("one")
    clock = FakeClock(wall_s=(tmp_path / "a.json").stat().st_ctime + 1.5)
    files = DropIns([tmp_path], suffixes=(".json",), parse=parser, limit_bytes=9, clock=clock)
    files.look()
    files.look()
    assert len(parser.calls) == 2
    clock.advance(1)
    files.look()
    files.look()
    assert len(parser.calls) == 3


@pytest.mark.parametrize("bits", [stat.S_IWOTH, stat.S_IWOTH | stat.S_ISVTX])
def test_a_directory_that_others_may_write_does_not_count(parser, tmp_path, bits):
    place = tmp_path / "conf"
    place.mkdir()
    (place / "a.json").write_text("good")
    place.chmod(0o755 | bits)
    looked = drop_ins(parser, place).look()
    assert looked.files == ()
    assert "can be written by others than root" in looked.problems[0].reason
    assert parser.calls == []


def test_a_directory_above_may_be_sticky_but_not_open(tmp_path):
    above = tmp_path / "above"
    (above / "conf").mkdir(parents=True)
    file = above / "conf" / "a"
    file.write_text("good")
    above.chmod(0o1777)
    check_trusted(file)
    above.chmod(0o777)
    with pytest.raises(Denied, match=f"{above} can be written"):
        check_trusted(file)


def test_a_link_is_judged_by_where_it_leads(tmp_path):
    open_place = tmp_path / "open"
    open_place.mkdir()
    (open_place / "real").write_text("x")
    open_place.chmod(0o777)
    (tmp_path / "link").symlink_to(open_place / "real")
    with pytest.raises(Denied, match=f"{open_place} can be written"):
        check_trusted(tmp_path / "link")
    with pytest.raises(NotFound, match="none cannot be used"):
        check_trusted(tmp_path / "none")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs chown")
def test_another_owner_or_a_group_that_may_write_is_named(tmp_path):
    file = tmp_path / "a"
    file.write_text("x")
    os.chown(file, 12345, 0)
    with pytest.raises(Denied, match="belongs to user 12345"):
        check_trusted(file)
    os.chown(file, 0, 12345)
    file.chmod(0o660)
    with pytest.raises(Denied, match="can be written"):
        check_trusted(file)
    os.chown(file, 0, 0)  # the group of root is root's
    check_trusted(file)
