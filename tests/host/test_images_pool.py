"""Unpack workers as processes: kept, ended when idle, killed when they do not move."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from imageservice.errors import BlobMismatch
from imageservice.forms import LayerForm
from imageservice.unpack import protocol
from imageservice.unpack.feed import Feed
from imageservice.unpack.pool import FEED_BYTES, UnpackPool, WorkerLost
from imageservice.unpack.protocol import Job
from sandbox.host.errors import Corrupt, DeadlineExceeded
from sandbox.host.processes import HostProcessRunner, Spawned
from tests.host.image_node import until
from tests.kit.tars import Tar, diff_id

pytestmark = pytest.mark.root


class Runner(HostProcessRunner):
    """Starts what it is told instead of the worker, and remembers every process."""

    def __init__(self, instead: Sequence[str] | None = None) -> None:
        super().__init__()
        self.instead = instead
        self.started: list[Spawned] = []

    async def spawn(self, argv: Sequence[str], **options: object) -> Spawned:
        process = await super().spawn(self.instead or argv, **options)  # type: ignore[arg-type]
        self.started.append(process)
        return process


class Node:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.count = 0

    def job(self, plain: bytes) -> Job:
        self.count += 1
        tree = self.root / f"tree{self.count}"
        tree.mkdir()
        blob = self.root / f"blob{self.count}"
        blob.write_bytes(plain)
        return Job(
            blob=str(blob),
            blob_digest=diff_id(plain),
            blob_bytes=len(plain),
            available_bytes=len(plain),
            target=str(tree),
            form="tree",
            diff_id=diff_id(plain),
            max_plain_bytes=1 << 30,
            max_entries=100_000,
        )


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def pool(runner: Runner, *, workers: int = 1, idle_s: float = 60, patience_s: float = 60):
    return UnpackPool(runner, workers=workers, idle_s=idle_s, no_progress_timeout_s=patience_s)


def names_in(directory: str) -> list[str]:
    return [path.name for path in Path(directory).iterdir()]


def ignore(_bytes: int) -> None:
    pass


def is_alive(process: Spawned) -> bool:
    return process.pidfd >= 0


async def test_a_worker_is_used_again_and_ended(node: Node) -> None:
    runner = Runner()
    workers = pool(runner)
    for _ in range(3):
        await workers.unpack(node.job(Tar().file("a").done()), ignore)
    with pytest.raises(Corrupt):
        await workers.unpack(node.job(b"no tar" * 100), ignore)
    await workers.unpack(node.job(Tar().file("a").done()), ignore)
    assert len(runner.started) == 1
    await workers.close()
    assert await runner.started[0].wait() == 0


async def test_no_more_workers_than_allowed(node: Node) -> None:
    runner = Runner()
    workers = pool(runner, workers=2)
    await workers.warm()
    await workers.warm()
    await workers.warm()
    jobs = [node.job(Tar().file("a").done()) for _ in range(6)]
    await asyncio.gather(*(workers.unpack(job, ignore) for job in jobs))
    assert len(runner.started) == 2
    await workers.close()


async def test_an_idle_worker_ends_by_itself_and_is_replaced(node: Node) -> None:
    runner = Runner()
    # Longer than from its start to its first job, whose time is not counted.
    workers = pool(runner, idle_s=0.5)
    await workers.unpack(node.job(Tar().file("a").done()), ignore)
    await until(lambda: not is_alive(runner.started[0]), "idle worker ended")
    await workers.unpack(node.job(Tar().file("a").done()), ignore)
    assert len(runner.started) == 2
    await workers.close()


async def test_a_worker_killed_while_idle_is_replaced_unseen(node: Node) -> None:
    runner = Runner()
    workers = pool(runner)
    await workers.unpack(node.job(Tar().file("a").done()), ignore)
    runner.started[0].kill_group()
    await workers.unpack(node.job(Tar().file("a").done()), ignore)
    assert len(runner.started) == 2
    await workers.close()


async def test_a_worker_that_does_not_move_is_killed(node: Node) -> None:
    runner = Runner(["/bin/sleep", "1000"])
    workers = pool(runner, patience_s=0.1)
    with pytest.raises(DeadlineExceeded, match="no progress"):
        await workers.unpack(node.job(Tar().done()), ignore)
    assert not is_alive(runner.started[0])
    await workers.close()


async def test_waiting_for_a_download_is_not_being_stuck(node: Node) -> None:
    """Twice the patience between two pieces; what has come is worked on meanwhile."""
    patience_s = 3.0
    workers = pool(Runner(), patience_s=patience_s)
    await workers.unpack(node.job(Tar().done()), ignore)  # has started: that takes patience, too
    plain = Tar().file("first", bytes(3 * FEED_BYTES)).file("last").done()
    job, feed = node.job(plain), Feed(len(plain))
    seen: list[int] = []
    task = asyncio.ensure_future(workers.unpack(job, seen.append, feed))
    feed.grow(2 * FEED_BYTES)
    await until(lambda: 2 * FEED_BYTES in seen, "the first part read")
    assert names_in(job.target) == ["first"]
    await asyncio.sleep(2 * patience_s)
    feed.grow(len(plain))
    await task
    assert sorted(names_in(job.target)) == ["first", "last"]
    await workers.close()


async def test_a_layer_whose_bytes_are_there_does_not_wait_for_a_slow_download(node: Node) -> None:
    runner = Runner()
    workers = pool(runner)
    plain = Tar().file("first", bytes(3 * FEED_BYTES)).done()
    feed, seen = Feed(len(plain)), list[int]()
    slow = asyncio.ensure_future(workers.unpack(node.job(plain), seen.append, feed))
    feed.grow(FEED_BYTES)
    await until(lambda: FEED_BYTES in seen, "the slow one begun and hungry")
    for _ in range(3):
        await workers.unpack(node.job(Tar().file("a").done()), ignore)
    assert not slow.done()
    assert len(runner.started) == 2
    feed.grow(len(plain))
    await slow
    await workers.close()


@pytest.mark.parametrize("form", ["tree", "indexed"])
@pytest.mark.parametrize("content", [b"no tar" * 200, Tar().file("a").done()], ids=["bad", "good"])
async def test_bytes_that_are_not_the_blob_are_told_from_a_bad_layer(
    node: Node, form: LayerForm, content: bytes
) -> None:
    """Whatever they hold, the next try may bring the right ones; a bad layer stays bad."""
    workers = pool(Runner())
    job = msgspec.structs.replace(node.job(content), form=form)
    with pytest.raises(BlobMismatch):
        await workers.unpack(msgspec.structs.replace(job, blob_digest=diff_id(b"another")), ignore)
    wrong = msgspec.structs.replace(
        job, diff_id=diff_id(b"another"), target=node.job(content).target
    )
    with pytest.raises(Corrupt) as caught:
        await workers.unpack(wrong, ignore)
    assert not isinstance(caught.value, BlobMismatch)
    await workers.close()


async def test_a_worker_that_cannot_start_says_why(node: Node) -> None:
    runner = Runner([sys.executable, "-c", "raise SystemExit('no such module')"])
    workers = pool(runner)
    with pytest.raises(WorkerLost, match="no such module"):
        await workers.unpack(node.job(Tar().done()), ignore)
    await workers.close()


@pytest.mark.parametrize(
    "answer", ["not json", '{"type": "Nonsense"}', '{"type": "Done"}', "x" * 100], ids=str
)
async def test_nonsense_is_no_answer(node: Node, answer: str) -> None:
    line = answer.encode() + b"\n"
    script = f"import os, time; os.write(0, {line!r}); time.sleep(1000)"
    runner = Runner([sys.executable, "-c", script])
    workers = pool(runner)
    with pytest.raises(WorkerLost):
        await workers.unpack(node.job(Tar().done()), ignore)
    assert not is_alive(runner.started[0])
    await workers.close()


async def test_cancelling_waits_for_the_death_of_the_worker(node: Node) -> None:
    big = Tar()
    for number in range(30_000):
        big.file(f"f{number}", b"x")
    runner = Runner()
    workers = pool(runner)
    moving = asyncio.Event()
    job = node.job(big.done())
    task = asyncio.ensure_future(workers.unpack(job, lambda _bytes: moving.set()))
    await moving.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not is_alive(runner.started[0])
    count = len(names_in(job.target))
    await asyncio.sleep(0.05)
    assert len(names_in(job.target)) == count
    await workers.unpack(node.job(Tar().file("a").done()), ignore)
    await workers.close()


async def test_a_worker_ends_with_the_daemon(node: Node) -> None:
    """The other end of its socket goes away in the middle of a layer: it stops by itself."""
    big = Tar()
    for number in range(60_000):
        big.file(f"f{number}", b"x")
    job = node.job(big.done())
    ours, theirs = socket.socketpair()
    argv = [sys.executable, "-P", "-m", "imageservice.unpack.worker", "60"]
    process = await HostProcessRunner().spawn(argv, stdin_fd=theirs.fileno())
    theirs.close()
    ours.sendall(protocol.encode(job))
    await asyncio.to_thread(ours.recv, 1)
    ours.close()
    assert await process.wait() == 0
    assert len(names_in(job.target)) < 60_000
