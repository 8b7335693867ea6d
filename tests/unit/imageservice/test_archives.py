"""What is written down of an archive, how it is looked up, and how often layers are read for it."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from imageservice.archives import table as table_module
from imageservice.archives.formats import read_images
from imageservice.archives.scan import scan
from imageservice.archives.table import ArchiveTable, Extent, SharedFile
from imageservice.manifest import Platform
from sandbox.host.errors import Cancelled, Corrupt, NotFound
from tests.kit import archives, oci
from tests.kit.tars import Tar

LIMIT = 1 << 30


@pytest.fixture
def files():
    with ExitStack() as stack:
        yield stack


def opened(root: Path, data: bytes, files: ExitStack, kind=ArchiveTable) -> ArchiveTable:
    archive, table = root / "archive", root / "table"
    archive.write_bytes(data)
    scan(archive, root / "plain", table, limit_bytes=LIMIT)
    plain = SharedFile(archive)
    files.callback(plain.close)
    rows = SharedFile(table)
    files.callback(rows.close)
    return kind(plain, rows)


def test_every_name_is_found_and_no_other(tmp_path, files):
    tar = Tar()
    for number in range(3000):
        tar.file(f"./d/{number}", b"%d" % number)
    table = opened(tmp_path, tar.done(), files)
    for number in range(3000):
        assert table.read(f"d/{number}", limit_bytes=10) == b"%d" % number
        assert f"/d//{number}" in table
    for name in ("d", "d/3000", "", "e/1", "d/\udcff", "d/" + "x" * 9000):
        assert name not in table
        with pytest.raises(NotFound):
            table.find(name)


def test_links_lead_to_files_and_not_out_of_the_archive(tmp_path, files):
    tar = Tar().file("a/one", b"one").file("käse", b"two")
    tar.symlink("b/up", "../a/one").symlink("b/out", "../../etc/passwd").symlink("round", "round")
    tar.add("hard", kind=b"1", link="a/one").symlink("b/twice", "up").symlink("tall", "käse")
    table = opened(tmp_path, tar.done(), files)
    for name in ("b/up", "hard", "b/twice"):
        assert table.read(name, limit_bytes=10) == b"one"
    assert table.read("tall", limit_bytes=10) == table.read("käse", limit_bytes=10) == b"two"
    with pytest.raises(NotFound):
        table.find("b/out")
    with pytest.raises(Corrupt, match="without end"):
        table.find("round")


@pytest.mark.parametrize("again", ["a", "./a", "/a", "b/../a"])
def test_a_name_that_is_there_twice_in_any_spelling_is_refused(tmp_path, again):
    (tmp_path / "archive").write_bytes(Tar().file("a").file(again).done())
    with pytest.raises(Corrupt, match="twice"):
        scan(tmp_path / "archive", tmp_path / "plain", tmp_path / "table", limit_bytes=LIMIT)


def test_a_table_that_was_cut_is_noticed(tmp_path, files):
    table = opened(tmp_path, Tar().file("a").file("b").file("c").done(), files)
    os.truncate(tmp_path / "table", 10)
    with pytest.raises(Corrupt, match="cut"):
        table.find("a")


class Counting(ArchiveTable):
    """Notes which members are read beyond their first bytes."""

    def __init__(self, *files: SharedFile) -> None:
        super().__init__(*files)
        self.read_whole: list[Extent] = []

    def read_at(self, extent: Extent, position: int, size_bytes: int) -> bytes:
        if position == 0 and size_bytes > 16:
            self.read_whole.append(extent)
        return super().read_at(extent, position, size_bytes)


def test_a_compressed_layer_that_images_share_by_links_is_hashed_once(tmp_path, files):
    def image(text: str) -> oci.Image:
        layers = [
            oci.make_layer([oci.Entry(name, content=name.encode() * 100)])
            for name in ("base", text)
        ]
        return oci.make_image(layers, oci.ImageConfig())

    data = archives.docker([(image(t), [f"{t}:1"]) for t in ("a", "b", "c")], compressed=True)
    table = opened(tmp_path, data, files, kind=Counting)
    found = read_images(table, Platform.host())
    layers = {layer.digest for one in found for layer in one.manifest.layers}
    assert len(found) == 3
    assert len(layers) == 4
    read = [extent for extent in table.read_whole if extent == table.find("0-0/layer.tar")]
    assert len(read) == 1
    assert table.find("2-0/layer.tar") == read[0]


async def test_a_file_is_closed_under_no_reader(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"hello")
    shared = SharedFile(tmp_path / "file")
    begun, go_on, pread = threading.Event(), threading.Event(), os.pread

    def slow(fd: int, size: int, offset: int) -> bytes:
        begun.set()
        go_on.wait()
        return pread(fd, size, offset)

    monkeypatch.setattr(table_module.os, "pread", slow)
    reading = asyncio.ensure_future(asyncio.to_thread(shared.read_at, 0, 5))
    await asyncio.to_thread(begun.wait)
    fd = shared._fd
    shared.close()
    assert os.fstat(fd).st_size == 5
    with pytest.raises(Cancelled):
        shared.read_at(0, 5)
    go_on.set()
    assert await reading == b"hello"
    assert shared._fd == -1
    shared.close()
