"""The ends of real containers, told once: by exit code, by signal, by memory, by lost monitors."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.model import ProcessRef
from sandbox.monitor.exits import UNKNOWN_EXIT_CODE
from sandbox.runtime.driver import RuntimeStatus
from tests.host.runtime_node import RUNTIMES, Ends, RuntimeNode, alive, identity, kill, until

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(params=RUNTIMES)
async def node(
    request: pytest.FixtureRequest, tmp_path: Path, cgroup_path: str
) -> AsyncIterator[RuntimeNode]:
    made = RuntimeNode(tmp_path / "node", cgroup_path, request.param)
    yield made
    await made.clean()


@pytest.fixture
async def ends(node: RuntimeNode) -> AsyncIterator[Ends]:
    # Not in a fixture's task group: a task group must be left by the task that entered it.
    group = LooseGroup()
    made = Ends(node, group)  # type: ignore[arg-type]
    yield made
    made.watch.close()
    await group.gone()


class LooseGroup:
    """As much of a TaskGroup as the watch needs; survives being made in a fixture."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()

    def create_task(self, work: object, *, name: str | None = None) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)  # type: ignore[arg-type]
        self.tasks.add(task)
        return task

    async def gone(self) -> None:
        await asyncio.wait(self.tasks)


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 42", 42), ("kill -9 $$", 137)])
async def test_the_exit_code_is_told(node: RuntimeNode, ends: Ends, script: str, code: int) -> None:
    # The first process of a pid namespace is immune to its own SIGKILL, so a child of it is run.
    # A file's time is the kernel's of its last tick, some milliseconds ago.
    before_ns = node.clock.wall_ns() - 1_000_000_000
    cid, created = await node.run("/bin/sh", "-c", f"/bin/sh -c '{script}'; exit $?")
    ends.watch.watch(node.target(cid, created))
    told = await ends.watch.wait(cid)
    assert (told.exit_code, told.oom, told.message) == (code, False, "")
    assert before_ns < told.finished_at_ns <= node.clock.wall_ns()


async def test_an_end_is_told_once_however_often_it_is_watched(
    node: RuntimeNode, ends: Ends
) -> None:
    cid, created = await node.run("/bin/sleep", "1000")
    for _ in range(3):
        ends.watch.watch(node.target(cid, created))
    kill(created.init)
    told = await ends.watch.wait(cid)
    ends.watch.watch(node.target(cid, created))
    assert told.exit_code == 128 + signal.SIGKILL
    assert ends.told == [told]


async def test_an_end_from_before_the_watch_is_told_with_its_own_time(
    node: RuntimeNode, ends: Ends
) -> None:
    cid, created = await node.run("/bin/sh", "-c", "exit 5")
    await until((node.exits_dir / cid).exists)
    assert created.monitor is not None
    monitor = created.monitor
    await until(lambda: not alive(monitor))
    ends.watch.watch(node.target(cid, created))
    told = await ends.watch.wait(cid)
    assert told.exit_code == 5
    assert told.finished_at_ns == (node.exits_dir / cid).stat().st_mtime_ns


@pytest.mark.cell("TM2")
async def test_the_end_is_never_before_the_start(node: RuntimeNode, ends: Ends) -> None:
    cid, created = await node.run("/bin/true")
    future_ns = node.clock.wall_ns() + 10**12
    ends.watch.watch(replace(node.target(cid, created), started_at_ns=future_ns))
    assert (await ends.watch.wait(cid)).finished_at_ns == future_ns


async def test_monitor_and_container_killed_together(node: RuntimeNode, ends: Ends) -> None:
    cid, created = await node.run("/bin/sleep", "1000")
    ends.watch.watch(node.target(cid, created))
    kill(created.monitor)
    kill(created.init)
    told = await ends.watch.wait(cid)
    assert told.exit_code == UNKNOWN_EXIT_CODE
    assert "monitor died" in told.message


async def test_a_killed_monitor_is_told_while_the_container_lives(
    node: RuntimeNode, ends: Ends
) -> None:
    cid, created = await node.run("/bin/sleep", "1000")
    ends.watch.watch(node.target(cid, created))
    await asyncio.sleep(0)
    kill(created.monitor)
    await until(lambda: ends.lost == [cid])
    assert ends.told == []
    assert alive(created.init)
    kill(created.init)
    assert (await ends.watch.wait(cid)).exit_code == UNKNOWN_EXIT_CODE
    assert ends.lost == [cid]


async def test_a_monitor_killed_while_nobody_watched_is_told_as_well(
    node: RuntimeNode, ends: Ends
) -> None:
    cid, created = await node.run("/bin/sleep", "1000")
    monitor = created.monitor
    assert monitor is not None
    kill(monitor)
    await until(lambda: not alive(monitor))
    ends.watch.watch(node.target(cid, created))
    await until(lambda: ends.lost == [cid])
    assert ends.told == []


@pytest.mark.parametrize("content", ["", "zero", "-1", "256", "9" * 1000, "1\n2"])
async def test_a_garbage_exit_file_is_255_with_a_reason(
    node: RuntimeNode, ends: Ends, content: str
) -> None:
    cid, created = await node.run("/bin/true")
    monitor = created.monitor
    assert monitor is not None
    await until(lambda: not alive(monitor))
    (node.exits_dir / cid).write_text(content)
    ends.watch.watch(replace(node.target(cid, created), bundle=None))
    told = await ends.watch.wait(cid)
    assert told.exit_code == UNKNOWN_EXIT_CODE
    assert "exit file" in told.message


async def test_a_lost_exit_file_is_made_up_for_by_the_second_copy(
    node: RuntimeNode, ends: Ends
) -> None:
    cid, created = await node.run("/bin/sh", "-c", "exit 9")
    monitor = created.monitor
    assert monitor is not None
    await until(lambda: not alive(monitor))
    (node.exits_dir / cid).unlink()
    ends.watch.watch(node.target(cid, created))
    assert (await ends.watch.wait(cid)).exit_code == 9


@pytest.mark.cell("DB9")
async def test_an_exit_file_beside_a_living_process_is_not_believed(
    node: RuntimeNode, ends: Ends
) -> None:
    cid, created = await node.run("/bin/sleep", "1000")
    ends.watch.watch(node.target(cid, created))
    (node.exits_dir / cid).write_text("0")
    await asyncio.sleep(0.1)
    assert ends.told == []
    assert alive(created.init)


@pytest.mark.cell("HD13")
async def test_a_reused_number_is_a_dead_container_and_its_owner_is_left_alone(
    node: RuntimeNode, ends: Ends
) -> None:
    cid, created = await node.run("/bin/sleep", "1000")
    other, stranger = await node.run("/bin/sleep", "1000")
    kill(created.init)
    monitor = created.monitor
    assert monitor is not None
    await until(lambda: not alive(monitor))
    wrong = ProcessRef(
        pid=stranger.pid,
        start_ticks=created.init.start_ticks - 1,
        boot_id=created.init.boot_id,
    )
    ends.watch.watch(replace(node.target(cid, created), init=wrong))
    assert (await ends.watch.wait(cid)).exit_code == 137
    assert alive(stranger.init)
    assert other in await node.runtime.containers()


async def test_without_a_recorded_process_the_runtime_is_asked(
    node: RuntimeNode, ends: Ends
) -> None:
    cid, created = await node.run("/bin/sleep", "1000")
    target = replace(node.target(cid, created), init=None, monitor=None, runtime=node.runtime)
    ends.watch.watch(target)
    await asyncio.sleep(0.1)
    assert ends.told == []
    kill(created.init)
    assert (await ends.watch.wait(cid)).exit_code == 137


async def test_memory_kills_are_told(node: RuntimeNode, ends: Ends) -> None:
    cid, created = await node.run(
        "/bin/sh",
        "-c",
        "exec dd if=/dev/zero of=/dev/null bs=64M count=1",
        memory_bytes=16 * 1024 * 1024,
    )
    ends.watch.watch(node.target(cid, created))
    told = await ends.watch.wait(cid)
    assert (told.exit_code, told.oom) == (137, True)


async def test_a_hundred_short_containers_lose_no_end(node: RuntimeNode, ends: Ends) -> None:
    async def one(code: int) -> tuple[str, int]:
        cid, created = await node.run("/bin/sh", "-c", f"exit {code}")
        ends.watch.watch(node.target(cid, created))
        await ends.watch.wait(cid)
        return cid, code

    wanted = {}
    for start in range(0, 100, 4):
        wanted.update(await asyncio.gather(*(one(code) for code in range(start, start + 4))))
    assert {told.container_id: told.exit_code for told in ends.told} == wanted
    assert len(ends.told) == 100


async def test_a_pause_process_without_monitor(node: RuntimeNode, ends: Ends) -> None:
    cid, bundle = node.bundle("/bin/sleep", "1000")
    pid = await node.runtime.create(bundle, cid, bundle / "pid")
    ref = identity(pid)
    await node.runtime.start(cid)
    ends.watch.watch(
        replace(
            node.target(cid, _Made(ref)),  # type: ignore[arg-type]
            exit_file=None,
            bundle=None,
        )
    )
    kill(ref)
    told = await ends.watch.wait(cid)
    assert (told.exit_code, told.message) == (
        UNKNOWN_EXIT_CODE,
        "exit code is not known: it had no monitor",
    )
    state = await node.runtime.state(cid)
    assert state is not None
    assert state.status is RuntimeStatus.STOPPED


class _Made:
    monitor = None

    def __init__(self, init: ProcessRef) -> None:
        self.init = init
