"""How ends are told, with processes that have ended and a clock that is moved."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from sandbox.host.errors import NotFound, ResourceExhausted
from sandbox.host.pidfd import boot_id, start_ticks
from sandbox.model import ProcessRef
from sandbox.monitor.exitfile import ExitFile, parse_exit_code, read_exit
from sandbox.monitor.exits import UNKNOWN_EXIT_CODE, Exited, ExitWatch, WatchTarget
from tests.fakes.clock import FakeClock

CID = "c" * 64
#: No boot has this id, so the process is known to have ended.
GONE = ProcessRef(pid=4242, start_ticks=1, boot_id="an earlier boot")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def told() -> list[Exited]:
    return []


@pytest.fixture
def exits_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "exits"
    directory.mkdir()
    return directory


Body = Callable[[ExitWatch], Awaitable[None]]


class Counts:
    """Kills by container's group; of the pod's group one answer after the other, the last stays."""

    def __init__(self, own: dict[str, int | None] | None = None, above: list[int] | None = None):
        self._own = own or {}
        self._above = above or []

    async def oom_kills(self, cgroup: str) -> int | None:
        return self._own.get(cgroup)

    async def oom_kills_above(self, _cgroup: str) -> int | None:
        if not self._above:
            return None
        return self._above.pop(0) if len(self._above) > 1 else self._above[0]

    def group_above(self, cgroup: str) -> str:
        return cgroup.rpartition("/")[0]


class Unreadable(Counts):
    async def oom_kills(self, _cgroup: str) -> int | None:
        raise ResourceExhausted("no descriptors")


@pytest.fixture
def watching(clock: FakeClock, told: list[Exited], exits_dir: Path) -> Callable[..., object]:
    async def run(body: Body, **changes: object) -> None:
        async def on_exit(exited: Exited) -> None:
            told.append(exited)

        async with asyncio.TaskGroup() as group:
            values = {"on_exit": on_exit, "counts": Counts(), **changes}
            watch = ExitWatch(
                group=group,
                clock=clock,
                exit_dir=exits_dir,
                **values,  # type: ignore[arg-type]
            )
            await body(watch)
            watch.close()

    return run


def target(exits_dir: Path, **changes: object) -> WatchTarget:
    values = {"container_id": CID, "init": GONE, "exit_file": exits_dir / CID, **changes}
    return WatchTarget(**values)  # type: ignore[arg-type]


async def test_a_container_that_ended_while_nobody_looked(watching, told, exits_dir) -> None:
    (exits_dir / CID).write_text("3")

    async def body(watch: ExitWatch) -> None:
        watch.watch(target(exits_dir, monitor=GONE))
        assert watch.watched(CID)
        await watch.wait(CID)
        assert not watch.watched(CID)

    await watching(body)
    assert [(exited.exit_code, exited.message) for exited in told] == [(3, "")]


async def test_a_late_exit_file_is_waited_for(watching, told, exits_dir) -> None:
    async def body(watch: ExitWatch) -> None:
        watch.watch(target(exits_dir))
        for _ in range(3):
            await asyncio.sleep(0)
        # At once, as conmon does: the watch may look between its making and the writing.
        (exits_dir / "new").write_text("4")
        (exits_dir / "new").rename(exits_dir / CID)
        await watch.wait(CID)

    await watching(body, exit_file_s=1e9)
    assert told[0].exit_code == 4


async def test_an_exit_file_that_never_comes(watching, told, exits_dir, clock) -> None:
    began_ns = clock.wall_ns()

    async def body(watch: ExitWatch) -> None:
        watch.watch(target(exits_dir))
        await watch.wait(CID)

    await watching(body)
    assert told[0].exit_code == UNKNOWN_EXIT_CODE
    assert "in time" in told[0].message
    # The moment it was noticed, not that of giving up.
    assert told[0].finished_at_ns == began_ns
    assert sum(clock.slept_s) >= 5.0


async def test_a_dead_monitor_is_not_waited_for(watching, told, exits_dir, clock) -> None:
    async def body(watch: ExitWatch) -> None:
        watch.watch(target(exits_dir, monitor=GONE))
        await watch.wait(CID)

    await watching(body)
    assert told[0].exit_code == UNKNOWN_EXIT_CODE
    assert clock.slept_s == []


async def test_an_exit_that_was_not_recorded_is_told_again(watching, exits_dir, clock) -> None:
    (exits_dir / CID).write_text("0")
    tries: list[Exited] = []

    async def failing_twice(exited: Exited) -> None:
        tries.append(exited)
        if len(tries) == 1:
            raise ResourceExhausted("disk is full")
        if len(tries) == 2:
            raise RuntimeError("a fault of ours")

    async def body(watch: ExitWatch) -> None:
        watch.watch(target(exits_dir))
        await watch.wait(CID)

    await watching(body, on_exit=failing_twice)
    assert len(tries) == 3
    assert clock.slept_s == [0.5, 1.0]


async def test_memory_kills_by_counter_and_by_conmon_s_file(
    watching, told, exits_dir, tmp_path
) -> None:
    (exits_dir / CID).write_text("137")
    other = "d" * 64
    (exits_dir / other).write_text("137")
    (tmp_path / "oom").touch()

    async def body(watch: ExitWatch) -> None:
        watch.watch(target(exits_dir, cgroup_path="/x"))
        watch.watch(
            target(exits_dir, container_id=other, exit_file=exits_dir / other, bundle=tmp_path)
        )
        await watch.wait(CID)
        await watch.wait(other)

    await watching(body, counts=Counts(own={"/x": 1}))
    assert [exited.oom for exited in told] == [True, True]


@pytest.mark.parametrize(
    ("code", "own", "risen", "oom"),
    [
        ("137", None, 1, True),  # the group went before it could be asked
        ("137", None, 0, False),  # killed by somebody
        ("137", 0, 1, False),  # its own group knows better
        ("1", None, 1, False),  # it ended by itself
    ],
)
async def test_the_pods_group_tells_of_kills_in_a_group_that_is_gone(
    watching, told, exits_dir, code: str, own: int | None, risen: int, oom: bool
) -> None:
    counts = Counts(own={"/pod/x": own}, above=[5, 5 + risen])

    async def body(watch: ExitWatch) -> None:
        (exits_dir / CID).write_text(code)
        watch.watch(target(exits_dir, cgroup_path="/pod/x"))
        await watch.wait(CID)

    await watching(body, counts=counts)
    assert [exited.oom for exited in told] == [oom]


async def test_unreadable_counters_do_not_hide_the_end(watching, told, exits_dir) -> None:
    (exits_dir / CID).write_text("1")

    async def body(watch: ExitWatch) -> None:
        watch.watch(target(exits_dir, cgroup_path="/x"))
        await watch.wait(CID)

    await watching(body, counts=Unreadable())
    assert (told[0].exit_code, told[0].oom) == (1, False)


async def test_forgotten_containers_are_told_of_no_more(watching, told, exits_dir) -> None:
    async def body(watch: ExitWatch) -> None:
        watch.watch(target(exits_dir))
        watch.forget(CID)
        watch.forget(CID)
        with pytest.raises(NotFound):
            await watch.wait(CID)

    await watching(body)
    assert told == []


async def test_a_container_that_is_forgotten_at_once_leaves_no_descriptor(
    watching, exits_dir
) -> None:
    """It was made, and its creation was called off while its watch still began."""

    class Slow(Counts):
        begun = asyncio.Event()

        async def oom_kills_above(self, _cgroup: str) -> int | None:
            self.begun.set()
            await asyncio.Event().wait()
            return None

    def held() -> int:
        count = 0
        for entry in list(Path("/proc/self/fd").iterdir()):
            with suppress(FileNotFoundError):  # the directory's own
                count += str(entry.readlink()) == "anon_inode:[pidfd]"
        return count

    async def body(watch: ExitWatch) -> None:
        before = held()
        watch.watch(target(exits_dir, monitor=monitor, cgroup_path="/pod/container"))
        await Slow.begun.wait()
        assert held() == before + 1
        watch.forget(CID)
        await asyncio.sleep(0)
        assert held() == before

    lives = await asyncio.create_subprocess_exec("sleep", "1000")
    monitor = ProcessRef(pid=lives.pid, start_ticks=start_ticks(lives.pid) or 0, boot_id=boot_id())
    try:
        await watching(body, counts=Slow())
    finally:
        lives.kill()
        await lives.wait()


async def test_a_broken_runtime_does_not_end_the_daemon(watching, told, exits_dir) -> None:
    class Broken:
        async def state(self, _cid: str) -> None:
            raise RuntimeError("boom")

    async def body(watch: ExitWatch) -> None:
        watch.watch(target(exits_dir, init=None, runtime=Broken()))
        await watch.wait(CID)

    await watching(body)
    assert told[0].exit_code == UNKNOWN_EXIT_CODE
    assert "boom" in told[0].message


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"0", 0),
        (b"255", 255),
        (b" 7\n", 7),
        (b"-1", None),
        (b"256", None),
        (b"", None),
        (b"1e2", None),
        (b"0007", None),
        ("٣".encode(), None),
    ],
)
def test_exit_codes(text: bytes, code: int | None) -> None:
    assert parse_exit_code(text) == code


def test_the_first_good_file_counts(tmp_path: Path) -> None:
    bad, good = tmp_path / "bad", tmp_path / "good"
    assert read_exit([bad, good]) == ""
    bad.write_text("?")
    assert "holds" in str(read_exit([bad, good]))
    good.write_text("2")
    found = read_exit([bad, good])
    assert found == ExitFile(2, good.stat().st_mtime_ns)
    bad.unlink()
    bad.mkdir()
    assert isinstance(read_exit([bad, good]), ExitFile)
    assert "cannot be read" in str(read_exit([bad]))
