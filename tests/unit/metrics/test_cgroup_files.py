"""Reading the files of a group together. What only the kernel does is tried on its own groups."""

from pathlib import Path

import pytest

from metrics.cgroup_files import CgroupFiles, DescriptorBudget
from sandbox.host.cgroupfs import CgroupLayout

A, B, C = (("cpu", "a"), ("memory", "b"), ("unified", "c"))
NAMES = (A, B, C)


def descriptors():
    return {file.name for file in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def group(tmp_path):
    directory = tmp_path / "group"
    directory.mkdir()
    for _, name in NAMES:
        (directory / name).write_text(f"{name}1\n")
    return directory


@pytest.fixture(params=[0, 1, 10], ids=lambda limit: f"{limit} may stay open")
def files(request, group):
    layout = CgroupLayout(2, {}, group.parent, frozenset({"cpu", "memory"}))
    made = CgroupFiles(layout, "/group", DescriptorBudget(request.param))
    yield made
    made.close()


def test_every_look_reads_anew_and_in_order(files, group):
    assert files.read(NAMES) == [b"a1\n", b"b1\n", b"c1\n"]
    (group / "b").write_text("other\n")
    assert files.read(NAMES) == [b"a1\n", b"other\n", b"c1\n"]
    assert files.read((C, A)) == [b"c1\n", b"a1\n"]


def test_a_file_that_appears_is_read_from_then_on(files, group):
    (group / "b").unlink()
    for _ in range(2):
        assert files.read(NAMES) == [b"a1\n", None, b"c1\n"]
    for text in ("new\n", "newer\n"):
        (group / "b").write_text(text)
        assert files.read(NAMES) == [b"a1\n", text.encode(), b"c1\n"]


def test_more_than_a_page_is_read_to_its_end(files, group):
    long = "x" * 100_000
    (group / "a").write_text(long)
    for _ in range(2):
        assert files.read(NAMES) == [long.encode(), b"b1\n", b"c1\n"]


def test_what_is_closed_is_opened_again(files, group):
    before = descriptors()
    assert files.read(NAMES)[0] == b"a1\n"
    files.close()
    files.close()
    assert descriptors() == before
    (group / "a").unlink()
    (group / "a").write_text("another\n")
    assert files.read(NAMES)[0] == b"another\n"


def test_a_controller_that_the_machine_lacks_has_no_files(tmp_path):
    (tmp_path / "group").mkdir()
    (tmp_path / "group" / "a").write_text("1\n")
    layout = CgroupLayout(1, {"cpu": tmp_path}, None, frozenset({"cpu"}))
    files = CgroupFiles(layout, "/group", DescriptorBudget(10))
    assert files.read(NAMES) == [b"1\n", None, None]
    files.close()
