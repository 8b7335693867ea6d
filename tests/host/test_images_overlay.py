"""overlayfs with what images really have: many layers, none, opaque roots, undescribed parents."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from imageservice.catalog import APPLICATION_ID, MIGRATIONS
from imageservice.snapshots.overlay import OverlaySnapshotter
from imageservice.snapshots.snapshotter import LayerFacts
from sandbox.host.database import Database
from sandbox.host.errors import Corrupt, FailedPrecondition, from_os_error
from sandbox.host.libc import LibcSyscalls
from sandbox.host.mounts import Mount, mount_all, unmount
from tests.probes import RELEASE

pytestmark = pytest.mark.root

OPAQUE = "trusted.overlay.opaque"


class Node:
    """A snapshotter, and short ways to make layers and mount chains of them."""

    def __init__(self, root: Path, snapshots: OverlaySnapshotter) -> None:
        self.root = root
        self.snapshots = snapshots

    async def layer(self, number: int, *, implied: tuple[str, ...] = (), **options: object) -> str:
        """A layer; options: `opaque_root`, and `make` that fills its directory."""
        diff_id = f"sha256:{number:064x}"
        staging = await self.snapshots.stage(diff_id)
        make = options.get("make")
        if callable(make):
            make(staging.path)
        facts = LayerFacts(
            entries=0,
            size_bytes=0,
            opaque_root=bool(options.get("opaque_root")),
            implied=frozenset(path.encode() for path in implied),
        )
        await self.snapshots.commit(staging, facts)
        return diff_id

    async def prepare(self, *chain: str, key: str = "c", read_only: bool = False) -> Mount:
        (mount,) = await self.snapshots.prepare(
            key,
            chain,
            upper_dir=self.root / key / "upper",
            work_dir=self.root / key / "work",
            read_only=read_only,
        )
        return mount


@contextmanager
def mounted(mount: Mount, target: Path) -> Iterator[Path]:
    target.mkdir(exist_ok=True)
    calls = LibcSyscalls()
    mount_all([replace(mount, target=target)], syscalls=calls)
    try:
        yield target
    finally:
        unmount(target, syscalls=calls)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = await Database.open(
        tmp_path / "catalog.db", migrations=MIGRATIONS, application_id=APPLICATION_ID
    )
    yield made
    await made.close()


@pytest.fixture
async def node(tmp_path: Path, database: Database) -> AsyncIterator[Node]:
    snapshots = OverlaySnapshotter(tmp_path / "images", database, syscalls=LibcSyscalls())
    await snapshots.open()
    yield Node(tmp_path, snapshots)
    await snapshots.close()


def touch(*names: str):
    def make(root: Path) -> None:
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(name)

    return make


@pytest.mark.cell("MT6")
async def test_many_layers(node: Node, tmp_path: Path) -> None:
    # Older kernels take as many as a page has room for (sandbox.host.overlay).
    number = 300 if RELEASE >= (6, 7) else 200
    chain = [await node.layer(n, make=touch(f"f{n}", "same")) for n in range(1, number + 1)]
    with mounted(await node.prepare(*chain), tmp_path / "m") as target:
        assert len(list(target.iterdir())) == number + 1
        (target / "new").write_text("x")
    # What fits into a page must be mountable without the new interface: 128 with a short root.
    mount = await node.prepare(*chain[:128])
    names = mount.options[0].removeprefix("lowerdir=").split(":")
    assert max(len(Path(name).name) for name in names) <= 2


async def test_no_layers(node: Node, tmp_path: Path) -> None:
    with mounted(await node.prepare(), tmp_path / "m") as target:
        assert list(target.iterdir()) == []
        (target / "new").write_text("x")


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_read_only(node: Node, tmp_path: Path, count: int) -> None:
    chain = [await node.layer(n, make=touch(f"f{n}")) for n in range(1, count + 1)]
    mount = await node.prepare(*chain, read_only=True)
    with mounted(mount, tmp_path / "m") as target:
        assert len(list(target.iterdir())) == count
        with pytest.raises(OSError, match="Read-only"):
            (target / "new").write_text("x")


async def test_writes_are_kept_and_a_new_mount_works_after_an_unclean_end(
    node: Node, tmp_path: Path
) -> None:
    layer = await node.layer(1, make=touch("f"))
    mount = await node.prepare(layer)
    assert "volatile" in mount.options
    with mounted(mount, tmp_path / "m") as target:
        (target / "new").write_text("x")
    assert (tmp_path / "c/work/work/incompat/volatile").exists()
    with mounted(await node.prepare(layer), tmp_path / "m") as target:
        assert (target / "new").exists()


async def test_an_opaque_root_hides_the_layers_below(node: Node, tmp_path: Path) -> None:
    """overlayfs itself does not look at the mark on a layer's root."""
    low = await node.layer(1, make=touch("low"))
    opaque = await node.layer(2, make=touch("middle"), opaque_root=True)
    top = await node.layer(3, make=touch("top"))
    with mounted(await node.prepare(low, opaque, top), tmp_path / "m") as target:
        assert sorted(path.name for path in target.iterdir()) == ["middle", "top"]


async def test_the_root_looks_like_the_topmost_described_root(node: Node, tmp_path: Path) -> None:
    def root(path: Path) -> None:
        path.chmod(0o711)
        os.chown(path, 5, 6)

    described = await node.layer(1, make=root)
    implied = await node.layer(2, implied=("",))
    with mounted(await node.prepare(described, implied), tmp_path / "m") as target:
        status = target.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o711, 5, 6)


def directory(name: str, mode: int, *, opaque: bool = False):
    def make(root: Path) -> None:
        path = root
        for part in Path(name).parts:
            path /= part
            if not path.exists():
                path.mkdir()
                path.chmod(0o755)
        path.chmod(mode)
        os.chown(path, 7, 8)
        os.setxattr(path, "user.note", b"n")
        os.utime(path, (1000, 1000))
        if opaque:
            os.setxattr(path, OPAQUE, b"y")

    return make


def whiteout(name: str):
    def make(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.mknod(root / name, stat.S_IFCHR, os.makedev(0, 0))

    return make


async def test_an_undescribed_directory_looks_as_the_layer_below_says(
    node: Node, tmp_path: Path
) -> None:
    low = await node.layer(1, make=directory("tmp", 0o1777))
    top = await node.layer(2, make=touch("tmp/x"), implied=("tmp",))
    with mounted(await node.prepare(low, top), tmp_path / "m") as target:
        status = (target / "tmp").stat()
        assert stat.S_IMODE(status.st_mode) == 0o1777
        assert (status.st_uid, status.st_gid, status.st_mtime) == (7, 8, 1000)
        assert os.getxattr(target / "tmp", "user.note") == b"n"
        assert (target / "tmp/x").exists()


async def test_parents_of_a_corrected_directory_keep_their_looks(
    node: Node, tmp_path: Path
) -> None:
    def low(root: Path) -> None:
        directory("a", 0o711)(root)
        directory("a/b", 0o700)(root)
        (root / "a").chmod(0o711)

    below = await node.layer(1, make=low)
    top = await node.layer(2, make=touch("a/b/x"), implied=("a", "a/b"))
    with mounted(await node.prepare(below, top), tmp_path / "m") as target:
        assert stat.S_IMODE((target / "a").stat().st_mode) == 0o711
        assert stat.S_IMODE((target / "a/b").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "case", ["described above", "whited out between", "opaque between", "opaque itself"]
)
async def test_what_hides_the_layer_below_also_hides_its_looks(
    node: Node, tmp_path: Path, case: str
) -> None:
    low = await node.layer(1, make=directory("d", 0o1777))
    chain = [low]
    expected = 0o755
    if case == "whited out between":
        chain.append(await node.layer(2, make=whiteout("d")))
    if case == "opaque between":
        chain.append(await node.layer(2, make=directory("d", 0o700, opaque=True)))
        expected = 0o700

    def top(root: Path) -> None:
        touch("d/x")(root)
        (root / "d").chmod(0o755)
        if case == "opaque itself":
            os.setxattr(root / "d", OPAQUE, b"y")

    chain.append(await node.layer(3, make=top, implied=("d",)))
    if case == "described above":
        chain.append(await node.layer(4, make=directory("d", 0o711)))
        expected = 0o711
    with mounted(await node.prepare(*chain), tmp_path / "m") as target:
        assert stat.S_IMODE((target / "d").stat().st_mode) == expected
        assert (target / "d/x").exists()


async def test_nothing_is_put_into_the_upper_directory_without_need(
    node: Node, tmp_path: Path
) -> None:
    low = await node.layer(1, make=touch("a/x"), implied=("a",))
    top = await node.layer(2, make=touch("b/x"), implied=("b",))
    await node.prepare(low, top)
    assert list((tmp_path / "c/upper").iterdir()) == []


@pytest.mark.cell("DK9")
async def test_a_layer_is_synced_before_it_is_named_and_named_before_it_is_recorded(
    tmp_path: Path, database: Database
) -> None:
    order: list[str] = []
    layers = tmp_path / "images/layers"

    class Recording(LibcSyscalls):
        def syncfs(self, fd: int) -> None:
            order.append(f"sync, {len(list(layers.iterdir())) - 1} named")

    snapshots = OverlaySnapshotter(tmp_path / "images", database, syscalls=Recording())
    await snapshots.open()
    write = database.write

    async def spy(work: object, *, cleanup: bool = False, synced: bool = True) -> object:
        order.append(f"row, {len(list(layers.iterdir())) - 1} named")
        return await write(work, cleanup=cleanup, synced=synced)  # type: ignore[arg-type]

    database.write = spy  # type: ignore[method-assign,assignment]
    staging = await snapshots.stage("sha256:" + "a" * 64)
    await snapshots.commit(staging, LayerFacts(0, 0))
    assert order == ["sync, 0 named", "row, 1 named"]


@pytest.mark.cell("DK8")
async def test_a_sync_that_fails_leaves_the_layer_unpublished(
    tmp_path: Path, database: Database
) -> None:
    class Failing(LibcSyscalls):
        def syncfs(self, fd: int) -> None:
            raise from_os_error(OSError(errno.EIO, "input/output error"), "syncfs")

    snapshots = OverlaySnapshotter(tmp_path / "images", database, syscalls=Failing())
    await snapshots.open()
    staging = await snapshots.stage("sha256:" + "a" * 64)
    with pytest.raises(Corrupt):
        await snapshots.commit(staging, LayerFacts(0, 0))
    assert not snapshots.has(staging.diff_id)
    await snapshots.discard(staging)
    assert [path.name for path in (tmp_path / "images/layers").iterdir()] == ["empty"]


class Disk(LibcSyscalls):
    """Reports an error once, as the kernel does to a file that was open when it happened."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = False
        self.gate: threading.Event | None = None
        self.begun = threading.Event()
        self.synced: list[int] = []

    def syncfs(self, fd: int) -> None:
        self.synced.append(fd)
        self.begun.set()
        if self.gate is not None:
            self.gate.wait()
        if self.fails:
            self.fails = False
            raise from_os_error(OSError(errno.EIO, "input/output error"), "syncfs")


@pytest.mark.cell("DK8")
async def test_an_error_of_the_disk_fails_every_layer_that_was_being_written(
    tmp_path: Path, database: Database
) -> None:
    disk = Disk()
    snapshots = OverlaySnapshotter(tmp_path / "images", database, syscalls=disk)
    await snapshots.open()
    first, second = [await snapshots.stage("sha256:" + letter * 64) for letter in "ab"]
    disk.fails = True
    with pytest.raises(Corrupt):
        await snapshots.commit(first, LayerFacts(0, 0))
    # The next call is content: the kernel has told its error, and forgotten the pages.
    with pytest.raises(Corrupt, match="syncfs"):
        await snapshots.commit(second, LayerFacts(0, 0))
    await snapshots.discard(first)
    await snapshots.discard(second)
    third = await snapshots.stage(first.diff_id)
    await snapshots.commit(third, LayerFacts(0, 0))
    assert list(snapshots.layers()) == [first.diff_id]
    await snapshots.close()


@pytest.mark.cell("DK8")
async def test_an_error_concerns_a_layer_that_was_begun_during_the_sync(
    tmp_path: Path, database: Database
) -> None:
    disk = Disk()
    snapshots = OverlaySnapshotter(tmp_path / "images", database, syscalls=disk)
    await snapshots.open()
    first = await snapshots.stage("sha256:" + "a" * 64)
    disk.fails, disk.gate = True, threading.Event()
    committing = asyncio.ensure_future(snapshots.commit(first, LayerFacts(0, 0)))
    await asyncio.to_thread(disk.begun.wait)
    second = await snapshots.stage("sha256:" + "b" * 64)
    disk.gate.set()
    for waiting in (committing, snapshots.commit(second, LayerFacts(0, 0))):
        with pytest.raises(Corrupt):
            await waiting
    await snapshots.close()


async def test_the_file_system_is_held_from_before_a_layer_until_the_end(
    tmp_path: Path, database: Database
) -> None:
    """An error is told to files that were open when it happened, and to others perhaps not."""

    def held() -> set[int]:
        links = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        place = str(tmp_path / "images/layers")
        return {int(p.name) for p in links if os.path.realpath(p) == place}

    disk = Disk()
    snapshots = OverlaySnapshotter(tmp_path / "images", database, syscalls=disk)
    await snapshots.open()
    staging = await snapshots.stage("sha256:" + "a" * 64)
    before = held()
    await snapshots.commit(staging, LayerFacts(0, 0))
    assert len(before) == 1
    assert set(disk.synced) == before
    await snapshots.close()
    assert set(disk.synced) == before
    assert held() == set()


@pytest.mark.parametrize("name", ["a:b", "a,b", "a b", 'a"b', "a\\b"])
async def test_a_path_that_options_cannot_hold_is_refused(
    tmp_path: Path, database: Database, name: str
) -> None:
    snapshots = OverlaySnapshotter(tmp_path / name, database, syscalls=LibcSyscalls())
    with pytest.raises(FailedPrecondition):
        await snapshots.open()
