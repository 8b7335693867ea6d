"""The contract of `Snapshotter`, held by every driver and by the fake."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from imageservice.catalog import APPLICATION_ID, MIGRATIONS
from imageservice.forms import INDEX_NAME, TAR_NAME
from imageservice.snapshots.drivers import DriverWish
from imageservice.snapshots.ledger import read_layers
from imageservice.snapshots.overlay import OverlaySnapshotter
from imageservice.snapshots.snapshotter import LayerFacts, Snapshotter, Staging
from imageservice.unpack.archive import read_members
from imageservice.unpack.entries import plan_entry
from imageservice.unpack.erofs import write_index
from imageservice.unpack.layer_tree import LayerTree
from imageservice.unpack.stream import ChunkStream
from sandbox.host.database import Database
from sandbox.host.errors import NotFound, ResourceExhausted, Unsupported
from sandbox.host.libc import LibcSyscalls
from sandbox.host.mounts import mounts_below
from tests.fakes.snapshotter import MemorySnapshotter
from tests.kit.blocked import Blocked, call_off_within, slow_set
from tests.kit.tars import Tar
from tests.kit.tars import diff_id as diff_id_of

A, B = ("sha256:" + letter * 64 for letter in "ab")
FACTS = LayerFacts(entries=1, size_bytes=4)


#: Every driver over layers of both forms.
REAL = [
    pytest.param((form, driver), marks=pytest.mark.root, id=f"{driver}-{form}")
    for driver in ("overlay", "fuse-overlayfs", "native")
    for form in ("tree", "indexed")
]


@pytest.fixture(params=["memory", *REAL])
async def snapshots(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Snapshotter]:
    if request.param == "memory":
        memory = MemorySnapshotter(tmp_path / "images")
        await memory.open()
        yield memory
        return
    database = await Database.open(
        tmp_path / "catalog.db", migrations=MIGRATIONS, application_id=APPLICATION_ID
    )
    form, driver = request.param
    overlay = OverlaySnapshotter(
        tmp_path / "images",
        database,
        syscalls=LibcSyscalls(),
        layer_form=form,
        driver=DriverWish(driver),
    )
    try:
        await overlay.open()
    except Unsupported as error:
        await database.close()
        pytest.skip(str(error))
    yield overlay
    for key in list(overlay.leases()):
        await overlay.release(key)
    await overlay.close()
    await database.close()


async def commit(snapshots: Snapshotter, diff_id: str, text: str = "text") -> None:
    staging = await snapshots.stage(diff_id)
    await snapshots.commit(staging, fill(staging, text))


def fill(staging: Staging, text: str = "text") -> LayerFacts:
    """Make a layer with one file, in the form that is asked for."""
    if staging.form == "tree":
        (staging.path / "file").write_text(text)
        return FACTS
    tree = LayerTree(max_entries=10)
    plain = Tar().file("file", text.encode()).done()
    stream = ChunkStream(iter([plain, b""]).__next__)
    for member in read_members(stream):
        entry = plan_entry(member)
        assert entry is not None
        tree.apply(entry, stream.position)
    index = b"".join(write_index(tree.root, tar_bytes=len(plain), uuid=bytes(16)))
    (staging.path / TAR_NAME).write_bytes(plain)
    (staging.path / INDEX_NAME).write_bytes(index)
    return replace(FACTS, form="indexed", index_digest=diff_id_of(index))


async def prepare(snapshots: Snapshotter, tmp_path: Path, key: str, *chain: str) -> Path:
    """Prepare, and the first lower directory of the mount, or where the copy is."""
    (mount,) = await snapshots.prepare(
        key, chain, upper_dir=tmp_path / key / "upper", work_dir=tmp_path / key / "work"
    )
    if mount.type == "bind":
        return Path(mount.source)
    lower = next(word for word in mount.options if word.startswith("lowerdir="))
    return Path(lower.removeprefix("lowerdir=").split(":")[0])


async def test_a_staged_layer_is_invisible_until_committed(snapshots: Snapshotter) -> None:
    staging = await snapshots.stage(A)
    assert staging.path.is_dir()
    assert list(staging.path.iterdir()) == []
    assert not snapshots.has(A)
    await snapshots.commit(staging, FACTS)
    assert snapshots.has(A)
    assert list(snapshots.layers()) == [A]


async def test_a_discarded_staging_leaves_nothing(snapshots: Snapshotter) -> None:
    staging = await snapshots.stage(A)
    fill(staging)
    await snapshots.discard(staging)
    assert not staging.path.exists()
    await snapshots.discard(staging)
    with pytest.raises(NotFound):
        await snapshots.commit(staging, FACTS)
    assert not snapshots.has(A)


async def test_of_two_stagings_the_first_commit_stays(
    snapshots: Snapshotter, tmp_path: Path
) -> None:
    first, second = await snapshots.stage(A), await snapshots.stage(A)
    assert first.path != second.path
    await snapshots.commit(first, fill(first, "first"))
    await snapshots.commit(second, fill(second, "second"))
    assert (await prepare(snapshots, tmp_path, "k", A) / "file").read_text() == "first"
    assert not second.path.exists()


async def test_who_is_called_off_while_it_is_recorded_has_committed(tmp_path: Path) -> None:
    """Memory, the record and the directory say the same."""
    database = await Database.open(
        tmp_path / "catalog.db", migrations=MIGRATIONS, application_id=APPLICATION_ID
    )
    snapshots = OverlaySnapshotter(tmp_path / "images", database, syscalls=LibcSyscalls())
    await snapshots.open()
    staging = await snapshots.stage(A)
    blocked = Blocked()
    facts = replace(fill(staging), implied=slow_set([b"etc"], blocked))
    await call_off_within(snapshots.commit(staging, facts), blocked)
    await snapshots.discard(staging)
    assert [row.diff_id for row in await database.read(read_layers)] == [A]
    assert list(snapshots.layers()) == [A]
    assert (await prepare(snapshots, tmp_path, "k", A) / "file").read_text() == "text"
    await snapshots.close()
    await database.close()


@contextmanager
def no_thread_free() -> Iterator[None]:
    """Whatever the event loop gives to a thread meanwhile waits in the queue."""
    may_go_on = threading.Event()
    threads = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(threads)
    threads.submit(may_go_on.wait)
    try:
        yield
    finally:
        may_go_on.set()


async def test_a_staging_does_not_outlive_whoever_is_called_off(tmp_path: Path) -> None:
    """Neither one that is being made nor one that is being discarded, before a thread is free."""
    database = await Database.open(
        tmp_path / "catalog.db", migrations=MIGRATIONS, application_id=APPLICATION_ID
    )
    snapshots = OverlaySnapshotter(tmp_path / "images", database, syscalls=LibcSyscalls())
    await snapshots.open()
    staging = await snapshots.stage(A)
    fill(staging)
    for work in (snapshots.discard(staging), snapshots.stage(B)):
        task = asyncio.ensure_future(work)
        with no_thread_free():
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert list((tmp_path / "images/staging").iterdir()) == []
    await snapshots.close()
    await database.close()


async def test_removal_goes_on_without_its_caller(tmp_path: Path) -> None:
    database = await Database.open(
        tmp_path / "catalog.db", migrations=MIGRATIONS, application_id=APPLICATION_ID
    )
    snapshots = OverlaySnapshotter(tmp_path / "images", database, syscalls=LibcSyscalls())
    await snapshots.open()
    for moment in range(20):
        await commit(snapshots, A)
        await commit(snapshots, B)
        removing = asyncio.ensure_future(snapshots.remove({A, B}))
        for _ in range(1 + moment):
            await asyncio.sleep(0.0001)
        removing.cancel()
        await asyncio.wait({removing})
        left = [path.name for path in (tmp_path / "images/layers").iterdir()]
        assert left == ["empty"], moment
        assert not list((tmp_path / "images/staging").iterdir())
        assert await database.read(read_layers) == []
    await snapshots.close()
    await database.close()


async def test_discarding_after_commit_keeps_the_layer(
    snapshots: Snapshotter, tmp_path: Path
) -> None:
    staging = await snapshots.stage(A)
    await snapshots.commit(staging, fill(staging, "kept"))
    await snapshots.discard(staging)
    assert (await prepare(snapshots, tmp_path, "k", A) / "file").read_text() == "kept"


async def test_the_topmost_layer_comes_first(snapshots: Snapshotter, tmp_path: Path) -> None:
    await commit(snapshots, A, "lower")
    await commit(snapshots, B, "upper")
    assert (await prepare(snapshots, tmp_path, "k", A, B) / "file").read_text() == "upper"


async def test_prepare_makes_the_directories_and_the_lease(
    snapshots: Snapshotter, tmp_path: Path
) -> None:
    await commit(snapshots, A)
    await prepare(snapshots, tmp_path, "k", A)
    assert (tmp_path / "k/upper").is_dir()
    assert (tmp_path / "k/work").is_dir()
    assert dict(snapshots.leases()) == {"k": (A,)}


async def test_prepare_again_keeps_what_was_written(snapshots: Snapshotter, tmp_path: Path) -> None:
    await commit(snapshots, A)
    await prepare(snapshots, tmp_path, "k", A)
    (tmp_path / "k/upper/new").write_text("x")
    await prepare(snapshots, tmp_path, "k", A)
    assert (tmp_path / "k/upper/new").exists()
    assert dict(snapshots.leases()) == {"k": (A,)}


async def test_prepare_of_a_missing_layer_takes_no_lease(
    snapshots: Snapshotter, tmp_path: Path
) -> None:
    await commit(snapshots, A)
    with pytest.raises(NotFound):
        await prepare(snapshots, tmp_path, "k", A, B)
    assert not snapshots.leases()


@pytest.mark.root
async def test_without_the_record_of_its_lease_nothing_stays_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer can then be removed with what it takes of the disk, which may be full."""
    database = await Database.open(
        tmp_path / "catalog.db", migrations=MIGRATIONS, application_id=APPLICATION_ID
    )
    snapshots = OverlaySnapshotter(
        tmp_path / "images", database, syscalls=LibcSyscalls(), layer_form="indexed"
    )
    try:
        await snapshots.open()
    except Unsupported as error:
        await database.close()
        pytest.skip(str(error))
    await commit(snapshots, A)
    mounted: list[bool] = []

    async def refuse(*_args: object, **_options: object) -> None:
        while not mounts_below(tmp_path):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        mounted.append(True)
        raise ResourceExhausted("database is full")

    with monkeypatch.context() as patch:
        patch.setattr(database, "write", refuse)
        with pytest.raises(ResourceExhausted):
            await prepare(snapshots, tmp_path, "k", A)
    assert mounted
    assert mounts_below(tmp_path) == []
    assert not snapshots.leases()
    await snapshots.close()
    await database.close()


async def test_an_image_without_layers(snapshots: Snapshotter, tmp_path: Path) -> None:
    await prepare(snapshots, tmp_path, "k")
    assert dict(snapshots.leases()) == {"k": ()}


async def test_read_only_has_no_upper_directory(snapshots: Snapshotter, tmp_path: Path) -> None:
    await commit(snapshots, A)
    (mount,) = await snapshots.prepare(
        "k", (A,), upper_dir=tmp_path / "u", work_dir=tmp_path / "w", read_only=True
    )
    assert not any(word.startswith(("upperdir", "workdir")) for word in mount.options)
    assert "ro" in mount.options
    # A copy has to be somewhere, and is the container's own.
    assert (tmp_path / "u").exists() == (mount.source == str(tmp_path / "u"))


async def test_a_leased_layer_is_not_removed(snapshots: Snapshotter, tmp_path: Path) -> None:
    await commit(snapshots, A)
    lower = await prepare(snapshots, tmp_path, "k", A)
    await snapshots.remove({A})
    assert snapshots.has(A)
    assert (lower / "file").exists()
    await snapshots.release("k")
    await snapshots.release("k")
    await snapshots.remove({A, B})
    assert not snapshots.has(A)
    assert lower.exists() == lower.is_relative_to(tmp_path / "k")


async def test_two_leases_need_two_releases(snapshots: Snapshotter, tmp_path: Path) -> None:
    await commit(snapshots, A)
    await prepare(snapshots, tmp_path, "k1", A)
    await prepare(snapshots, tmp_path, "k2", A)
    await snapshots.release("k1")
    await snapshots.remove({A})
    assert snapshots.has(A)


async def test_a_removed_layer_can_be_committed_again(
    snapshots: Snapshotter, tmp_path: Path
) -> None:
    await commit(snapshots, A, "old")
    removing = asyncio.gather(snapshots.remove({A}))
    await asyncio.sleep(0)
    assert not snapshots.has(A)  # from the first suspension on
    await commit(snapshots, A, "new")
    await removing
    assert snapshots.has(A)
    assert (await prepare(snapshots, tmp_path, "k", A) / "file").read_text() == "new"


async def test_usage_follows(snapshots: Snapshotter) -> None:
    empty = await snapshots.usage()
    await commit(snapshots, A)
    full = await snapshots.usage()
    assert full.used_bytes > empty.used_bytes
    assert full.inodes > empty.inodes
    await snapshots.remove({A})
    assert await snapshots.usage() == empty
