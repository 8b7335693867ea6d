"""No thread works on for somebody who was told that the work is called off.

What it makes would come to light after the undo, and what it removes may be somebody else's by
then.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from imageservice import content, keyrings
from imageservice.content import ContentStore
from imageservice.digest import Digest
from imageservice.keyrings import NodeKeyrings
from imageservice.reference import parse_reference
from imageservice.settings import ImageSettings
from imageservice.snapshots import drivers
from imageservice.snapshots.drivers import MountingDriver, Plan
from imageservice.snapshots.ledger import LayerRow
from imageservice.snapshots.places import LayerPlaces
from imageservice.snapshots.snapshotter import LayerFacts
from imageservice.unpack.pool import UnpackPool
from sandbox.host.processes import HostProcessRunner, Spawned
from tests.fakes.syscalls import FakeSyscalls
from tests.kit.blocked import Blocked, assert_waited_for

BODY = b"a document"
APP = parse_reference("reg.example/team/app:1")


@pytest.fixture
def thread(monkeypatch: pytest.MonkeyPatch) -> Blocked:
    blocked = Blocked()
    monkeypatch.setattr(LayerPlaces, "_mount", blocked)
    monkeypatch.setattr(LayerPlaces, "_unmount", blocked)
    monkeypatch.setattr(drivers, "make_upper", blocked)
    monkeypatch.setattr(content, "write_atomic", blocked)
    monkeypatch.setattr(ContentStore, "_unlink", blocked)
    return blocked


def row() -> LayerRow:
    facts = LayerFacts(entries=1, size_bytes=1, form="indexed")
    return LayerRow("sha256:" + "a" * 64, "1", facts, "boot")


def mount(root: Path) -> Awaitable[object]:
    return LayerPlaces(root, syscalls=FakeSyscalls()).mount([row()])


def unmount(root: Path) -> Awaitable[object]:
    return LayerPlaces(root, syscalls=FakeSyscalls()).unmount_unless(lambda _: False, [row()])


def compose(root: Path) -> Awaitable[object]:
    machine = drivers._Machine(HostProcessRunner(), FakeSyscalls(), Path("/none"))
    driver = MountingDriver("overlay", (), machine)
    return driver.compose(
        Plan(
            lower=(),
            empty=root / "empty",
            upper_dir=root / "upper",
            work_dir=root / "work",
            read_only=False,
            mapped=None,
        )
    )


async def put(root: Path) -> None:
    store = ContentStore(root)
    await store.open()
    await store.put(Digest.of(BODY), BODY)


async def drop(root: Path) -> None:
    store = ContentStore(root)
    await store.open()
    ingest = await store.begin(Digest.of(BODY), 10)
    await ingest.release()
    await store.drop(Digest.of(BODY))


@pytest.mark.parametrize("work", [mount, unmount, compose, put, drop], ids=lambda w: w.__name__)
async def test_it_has_ended(
    work: Callable[[Path], Awaitable[object]], thread: Blocked, tmp_path: Path
) -> None:
    await assert_waited_for(work(tmp_path), thread)


@pytest.mark.parametrize("moment", ["found", "used"])
async def test_credentials_of_one_pull_do_not_outlive_it(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is called off: while its file is read, and twice once it is to be removed."""
    settings = ImageSettings(auth_file=None, namespaced_auth_dir=tmp_path)
    file = tmp_path / "secrets"
    file.write_text("{}")
    begun, may_go_on = threading.Event(), threading.Event()

    def found(*_args: object) -> keyrings.FoundFile:
        if moment == "found":
            begun.set()
            may_go_on.wait()
        content = keyrings.parse_auth_file(b"{}", where="here")
        return keyrings.FoundFile(file, keyrings._stamp(file.stat()), content, True)

    real = keyrings._remove_if_used

    def remove(one: keyrings.FoundFile | None) -> None:
        begun.set()
        may_go_on.wait()
        real(one)

    monkeypatch.setattr(keyrings, "find_file", found)
    monkeypatch.setattr(keyrings, "_remove_if_used", remove)

    pulling = asyncio.Event()

    async def pull() -> None:
        async with NodeKeyrings(settings, HostProcessRunner()).of_pull(APP, "shop", None):
            pulling.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(pull())
    if moment == "used":
        await pulling.wait()
        task.cancel()
    await asyncio.to_thread(begun.wait)
    task.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not file.exists()


async def test_a_worker_that_is_called_off_as_it_starts_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither its process nor a descriptor of it is left, at whatever moment."""
    started: list[Spawned] = []

    class Runner(HostProcessRunner):
        async def spawn(self, argv: object, **options: object) -> Spawned:
            process = await super().spawn(["sleep", "1000"], **options)  # type: ignore[arg-type]
            started.append(process)
            return process

    def descriptors() -> set[str]:
        return {str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.exists()}

    pool = UnpackPool(Runner(), workers=2, idle_s=60, no_progress_timeout_s=60)
    connecting = asyncio.Event()

    async def connect(**_options: object) -> None:
        connecting.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio, "open_connection", connect)
    before = descriptors()
    task = asyncio.ensure_future(pool.warm())
    await connecting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    ended = asyncio.ensure_future(started[0].wait())
    await asyncio.wait({ended}, timeout=30)
    started[0].kill_group()
    assert ended.done()
    assert descriptors() <= before
    await pool.close()
