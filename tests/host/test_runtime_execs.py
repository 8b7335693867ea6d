"""ExecSync in real containers: codes, output, and every way a command can fail to end."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.errors import (
    CommandNotFound,
    ContainerNotRunning,
    ExecTimeout,
    RuntimeBusy,
    RuntimeTimeout,
)
from sandbox.execs import ExecResult, Execs, sweep_execs
from sandbox.interactive import InteractiveExecs, InteractiveRequest
from sandbox.monitor.creation import Created
from sandbox.running import Running
from sandbox.runtime.crun import CommandRuntime
from sandbox.runtime.proctree import ProcessInfo, snapshot
from tests.host.runtime_node import RUNTIMES, RuntimeNode, alive, kill, until
from tests.kit.blocked import start_told_late
from tests.kit.faults import PATIENCE_S

pytestmark = [pytest.mark.root, pytest.mark.slow]

Make = Callable[..., RuntimeNode]


@pytest.fixture(params=RUNTIMES)
async def make(
    request: pytest.FixtureRequest, tmp_path: Path, cgroup_path: str
) -> AsyncIterator[Make]:
    nodes: list[RuntimeNode] = []

    def build(**changes: object) -> RuntimeNode:
        root = tmp_path / f"n{len(nodes)}"
        nodes.append(RuntimeNode(root, cgroup_path, request.param, **changes))
        return nodes[-1]

    yield build
    for node in nodes:
        await node.clean()


async def processes_inside(node: RuntimeNode, cid: str) -> set[str]:
    return {command_line(pid) for pid in await node.cgroups.processes(node.cgroup(cid))} - {""}


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


async def until_inside(node: RuntimeNode, cid: str, command: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while command not in await processes_inside(node, cid):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def until_not_inside(node: RuntimeNode, cid: str, word: str) -> None:
    """Nothing with `word` but the container's own /bin/sleep 1000."""
    own = {"/bin/sleep 1000"}
    async with asyncio.timeout(PATIENCE_S):
        while any(word in line for line in await processes_inside(node, cid) - own):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def leftovers(node: RuntimeNode, cid: str) -> list[str]:
    return [p.name for p in node.made[cid].iterdir() if p.name.startswith("exec-")]


async def test_output_and_exit_code(make: Make) -> None:
    node = make()
    cid, created = await node.run("/bin/sleep", "1000")
    result = await node.execs.exec_sync(
        node.shell(cid, created, "/bin/sh", "-c", "echo out; echo err >&2; exit 3")
    )
    assert (result.stdout, result.stderr, result.exit_code) == (b"out\n", b"err\n", 3)
    assert not result.truncated
    assert leftovers(node, cid) == []
    assert ("exec", node.handler.name, True) in node.observed.operations


@pytest.mark.parametrize("code", [1, 126, 127, 255])
async def test_codes_that_a_runtime_uses_for_itself_are_still_the_commands(
    make: Make, code: int
) -> None:
    node = make()
    cid, created = await node.run("/bin/sleep", "1000")
    request = node.shell(cid, created, "/bin/sh", "-c", f"exit {code}")
    assert (await node.execs.exec_sync(request)).exit_code == code


async def test_death_by_signal_is_128_plus_its_number(make: Make) -> None:
    node = make()
    cid, created = await node.run("/bin/sleep", "1000")
    result = await node.execs.exec_sync(node.shell(cid, created, "/bin/sh", "-c", "kill -9 $$"))
    assert result.exit_code == 137


async def test_a_missing_program_is_an_error_not_an_exit_code(make: Make) -> None:
    node = make()
    cid, created = await node.run("/bin/sleep", "1000")
    with pytest.raises(CommandNotFound, match="/bin/nope"):
        await node.execs.exec_sync(node.shell(cid, created, "/bin/nope"))
    assert leftovers(node, cid) == []


async def test_standard_input_is_empty_and_no_descriptor_leaks_in(make: Make) -> None:
    node = make()
    cid, created = await node.run("/bin/sleep", "1000")
    secret = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(secret, True)
    try:
        result = await node.execs.exec_sync(
            node.shell(cid, created, "/bin/sh", "-c", "cat; ls /proc/self/fd")
        )
    finally:
        os.close(secret)
    # ls has 3 open for the listing itself.
    assert result.stdout.split() == [b"0", b"1", b"2", b"3"]


async def test_endless_output_is_cut_and_the_command_goes_on(make: Make) -> None:
    node = make()
    node.execs._settings = replace(node.settings, exec_output_bytes=1_000_000)
    cid, created = await node.run("/bin/sleep", "1000")
    script = "yes | head -c 5000000; yes no | head -c 100000 >&2; exit 4"
    result = await node.execs.exec_sync(node.shell(cid, created, "/bin/sh", "-c", script))
    assert result.exit_code == 4
    assert result.truncated
    assert len(result.stdout) + len(result.stderr) == 1_000_000


async def test_output_of_many_megabytes_arrives_whole(make: Make) -> None:
    node = make()
    cid, created = await node.run("/bin/sleep", "1000")
    script = "yes | head -c 12000000; yes no | head -c 3000000 >&2"
    result = await node.execs.exec_sync(node.shell(cid, created, "/bin/sh", "-c", script))
    assert (len(result.stdout), len(result.stderr)) == (12_000_000, 3_000_000)
    assert set(result.stdout.split(b"\n")) == {b"y", b""}
    assert not result.truncated


SCRIPTS = {
    "plain": "sleep 1111",
    "ignores signals": "trap '' TERM INT HUP; sleep 1111; sleep 1111",
    "children": "sleep 1111 & sleep 1111 & wait",
    "orphaned child": "(sleep 1111 &) ; sleep 1111",
    "own session": "setsid sleep 1111 & wait",
    "own session, deeper": "setsid sh -c 'sleep 1111 & wait' & wait",
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
async def test_a_timeout_kills_the_command_and_all_it_started(make: Make, script: str) -> None:
    node = make()
    cid, created = await node.run("/bin/sleep", "1000")
    with pytest.raises(ExecTimeout):
        await node.execs.exec_sync(node.shell(cid, created, "/bin/sh", "-c", script, timeout_s=0.5))
    assert await processes_inside(node, cid) == {"/bin/sleep 1000"}
    assert alive(created.init)
    assert leftovers(node, cid) == []


async def test_a_command_that_begins_while_it_is_ended_is_ended_as_well(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime is slow, and comes to the command only when its time is over."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    node = make()
    cid, created = await node.run("/bin/sleep", "1000")
    slow = tmp_path / "slow" / node.handler.name
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\nread -r _ < {gate}\nexec {node.handler.path} "$@"\n')
    slow.chmod(0o755)
    runtime = CommandRuntime(replace(node.handler, path=slow), runner=node.runner, clock=node.clock)
    look = Running._look
    opened = os.open(gate, os.O_RDWR | os.O_NONBLOCK)

    async def first_look(self: Running, known: set[int]) -> list[ProcessInfo]:
        found = await look(self, known)
        with suppress(BlockingIOError):
            os.write(opened, b"\n")
        return found

    monkeypatch.setattr(Running, "_look", first_look)
    request = node.shell(cid, created, "/bin/sh", "-c", "sleep 1111 & sleep 1114", timeout_s=0.05)
    try:
        with pytest.raises(ExecTimeout):
            await node.execs.exec_sync(replace(request, runtime=runtime))
    finally:
        os.close(opened)
    assert await processes_inside(node, cid) == {"/bin/sleep 1000"}
    assert leftovers(node, cid) == []


async def test_who_leaves_the_session_between_a_look_and_the_kill_is_ended_as_well(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a parent that was killed before he was seen nothing tells any more."""
    node = make()
    cid, created = await node.run("/bin/sleep", "1000")
    script = "while [ ! -e /tmp/go ]; do usleep 1000; done; setsid sleep 1115 & sleep 1116"
    request = node.shell(cid, created, "/bin/sh", "-c", script)
    look, looks = Running._look, 0

    async def slow(self: Running, known: set[int]) -> list[ProcessInfo]:
        nonlocal looks
        found = await look(self, known)
        looks += 1
        if looks == 1:
            (node.rootfs / "tmp/go").touch()
            await until_inside(node, cid, "sleep 1115")
        return found

    monkeypatch.setattr(Running, "_look", slow)
    task = asyncio.create_task(node.execs.exec_sync(request))
    await until_inside(node, cid, "/bin/sh -c " + script)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await processes_inside(node, cid) == {"/bin/sleep 1000"}
    assert leftovers(node, cid) == []


async def test_an_exec_that_is_called_off_while_its_runtime_is_started_leaves_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon hears of the start only when the command runs already."""
    node = make()
    cid, created = await node.run("/bin/sleep", "1000")
    with start_told_late(monkeypatch) as may_be_told:
        request = node.shell(cid, created, "/bin/sh", "-c", "sleep 1111 & sleep 1117")
        task = asyncio.create_task(node.execs.exec_sync(request))
        await until_inside(node, cid, "sleep 1117")
        task.cancel()
        await asyncio.sleep(0)
        may_be_told.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await processes_inside(node, cid) == {"/bin/sleep 1000"}
    assert leftovers(node, cid) == []


async def test_a_cancelled_exec_leaves_nothing(make: Make) -> None:
    node = make()
    cid, created = await node.run("/bin/sleep", "1000")
    request = node.shell(cid, created, "/bin/sh", "-c", "sleep 1111 & sleep 1112")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(node.execs.exec_sync(request))
        await until_inside(node, cid, "sleep 1112")
        task.cancel()
    assert await processes_inside(node, cid) == {"/bin/sleep 1000"}
    assert leftovers(node, cid) == []


async def test_an_exec_that_is_cancelled_again_and_again_is_still_ended(make: Make) -> None:
    """As when the client goes and the daemon stops: the command must not be left unknown."""
    node = make()
    cid, created = await node.run("/bin/sleep", "1000")
    request = node.shell(cid, created, "/bin/sh", "-c", "sleep 1111 & sleep 1112")
    task = asyncio.create_task(node.execs.exec_sync(request))
    await until_inside(node, cid, "sleep 1112")
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    assert task.cancelled()
    await until_not_inside(node, cid, "sleep 111")
    await until(lambda: leftovers(node, cid) == [])


async def test_a_background_process_holding_the_pipe_is_not_waited_for(make: Make) -> None:
    node = make()
    cid, created = await node.run("/bin/sleep", "1000")
    request = node.shell(cid, created, "/bin/sh", "-c", "echo kept; sleep 1111 &")
    if node.handler.name == "crun":
        result = await node.execs.exec_sync(request)
        assert (result.stdout, result.exit_code) == (b"kept\n", 0)
    else:
        with pytest.raises(ExecTimeout, match="withholds"):
            await node.execs.exec_sync(request)
    # It may have been forked only, and not be executed, when the shell that forked it has ended.
    await until_inside(node, cid, "sleep 1111")
    assert leftovers(node, cid) == []


async def test_what_a_killed_daemon_left_running_is_swept(make: Make) -> None:
    node = make()
    cid, created = await node.run("/bin/sleep", "1000")
    directory = node.made[cid] / "exec-0123456789abcdef"
    directory.mkdir()
    request = node.shell(cid, created, "/bin/sh", "-c", "sleep 1111 & sleep 1112")
    (directory / "process.json").write_bytes(request.process_json)
    await node.runner.spawn(
        node.runtime.exec_argv(
            cid,
            process_file=directory / "process.json",
            pid_file=directory / "pid",
            log_file=directory / "log",
        )
    )
    await until_inside(node, cid, "sleep 1112")
    swept = await sweep_execs(node.made[cid], node.cgroup(cid), node.cgroups, node.clock)
    assert swept == 1
    await until_not_inside(node, cid, "sleep")
    assert leftovers(node, cid) == []
    assert alive(created.init)


async def test_a_loop_that_is_called_off_whole_leaves_what_the_next_daemon_needs(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon ends while it ends a command: the directory tells the next one of it."""
    node = make()
    cid, created = await node.run("/bin/sleep", "1000")
    ending = asyncio.Event()

    async def end(_running: Running) -> None:
        ending.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Running, "end", end)
    request = node.shell(cid, created, "/bin/sleep", "1113")
    task = asyncio.ensure_future(node.execs.exec_sync(request))
    await until_inside(node, cid, "/bin/sleep 1113")
    task.cancel()
    await ending.wait()
    for each in asyncio.all_tasks() - {asyncio.current_task()}:
        if each is task or "end" in each.get_coro().__qualname__:
            each.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(leftovers(node, cid)) == 1
    assert await sweep_execs(node.made[cid], node.cgroup(cid), node.cgroups, node.clock) == 1
    await until_not_inside(node, cid, "sleep")
    assert leftovers(node, cid) == []


@pytest.mark.parametrize("own_pids", [True, False], ids=["own pids", "shared pids"])
async def test_an_exec_ends_with_its_container(make: Make, own_pids: bool) -> None:
    node = make()
    cid, created = await node.run("/bin/sleep", "1000", pid_namespace=own_pids)
    request = node.shell(cid, created, "/bin/sleep", "1111")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(node.execs.exec_sync(request))
        await until_inside(node, cid, "/bin/sleep 1111")
        kill(created.init)
    assert task.result().exit_code == 137
    assert await processes_inside(node, cid) == set()


class Impatient:
    """A container with a running program, and a node that waits a moment for runtimes only."""

    def __init__(self, node: RuntimeNode, cid: str, created: Created, patience_s: float) -> None:
        self.node, self.cid, self.created = node, cid, created
        timeouts = replace(node.settings.timeouts, operation_s=patience_s)
        self.settings = replace(node.settings, timeouts=timeouts)
        self.seconds = f"1237.{secrets.randbits(32)}"  # nobody else sleeps so long

    @property
    def hanging(self) -> CommandRuntime:
        """The runtime, which never comes to a command."""
        script = self.node.root / "hanging" / self.node.handler.name
        script.parent.mkdir()
        script.write_text(f"#!/bin/sh\nexec sleep {self.seconds}\n")
        script.chmod(0o755)
        handler = replace(self.node.handler, path=script)
        return CommandRuntime(handler, runner=self.node.runner, clock=self.node.clock)

    async def run(self, how: str, *command: str, runtime: CommandRuntime) -> int:
        """The exit code."""
        if how == "sync":
            return (await self._sync(*command, runtime=runtime)).exit_code
        return await self._interactive(*command, terminal=how == "terminal", runtime=runtime)

    async def _sync(self, *command: str, runtime: CommandRuntime) -> ExecResult:
        node = self.node
        execs = Execs(
            self.settings,
            runner=node.runner,
            cgroups=node.cgroups,
            clock=node.clock,
            observer=node.observed,
        )
        request = node.shell(self.cid, self.created, *command)
        return await execs.exec_sync(replace(request, runtime=runtime))

    async def _interactive(self, *command: str, terminal: bool, runtime: CommandRuntime) -> int:
        node = self.node
        request = InteractiveRequest(
            container_id=self.cid,
            runtime=runtime,
            directory=node.made[self.cid],
            cgroup_path=node.cgroup(self.cid),
            init=self.created.init,
            process_json=json.dumps({**node.process(*command), "terminal": terminal}).encode(),
            terminal=terminal,
            stdout=True,
        )
        async with asyncio.TaskGroup() as group:
            execs = InteractiveExecs(
                self.settings,
                runner=node.runner,
                cgroups=node.cgroups,
                clock=node.clock,
                group=group,
            )
            try:
                running = await execs.start(request)
                try:
                    return await running.wait()
                finally:
                    await running.close()
            except RuntimeTimeout as error:
                told = error
        raise told


@pytest.mark.parametrize("how", ["sync", "pipes", "terminal"])
async def test_a_runtime_that_never_comes_to_the_command_is_killed(make: Make, how: str) -> None:
    node = make()
    cid, created = await node.run("/bin/sleep", "1000")
    scene = Impatient(node, cid, created, 0.2)
    with pytest.raises(RuntimeTimeout, match="exec did not start the command within"):
        await scene.run(how, "/bin/true", runtime=scene.hanging)
    assert leftovers(node, cid) == []
    assert not [one for one in snapshot() if scene.seconds in command_line(one.pid)]


@pytest.mark.parametrize("how", ["sync", "pipes", "terminal"])
async def test_a_command_may_take_longer_than_its_start_may(make: Make, how: str) -> None:
    node = make()
    cid, created = await node.run("/bin/sleep", "1000")
    scene = Impatient(node, cid, created, 1.0)
    assert await scene.run(how, "/bin/sh", "-c", "sleep 2; exit 7", runtime=node.runtime) == 7


async def test_an_exec_in_a_dead_container(make: Make) -> None:
    node = make()
    cid, created = await node.run("/bin/true")
    await until(lambda: not alive(created.init))
    with pytest.raises(ContainerNotRunning):
        await node.execs.exec_sync(node.shell(cid, created, "/bin/true"))


@pytest.mark.cell("ES4")
async def test_an_exec_in_a_paused_container(make: Make) -> None:
    node = make()
    cid, created = await node.run("/bin/sleep", "1000")
    await node.runtime.pause(cid)
    try:
        # runc says so at once; crun waits for the thaw, so the time-out has to end it.
        with pytest.raises((RuntimeBusy, ExecTimeout)):
            await node.execs.exec_sync(node.shell(cid, created, "/bin/true", timeout_s=0.5))
    finally:
        await node.runtime.resume(cid)
    assert leftovers(node, cid) == []
    request = node.shell(cid, created, "/bin/true")
    assert (await node.execs.exec_sync(request)).exit_code == 0


async def test_many_execs_at_once_leave_nothing(make: Make) -> None:
    node = make()
    cid, created = await node.run("/bin/sleep", "1000")
    requests = [node.shell(cid, created, "/bin/echo", str(number)) for number in range(20)]
    results = await asyncio.gather(*(node.execs.exec_sync(request) for request in requests))
    assert [int(result.stdout) for result in results] == list(range(20))
    assert await processes_inside(node, cid) == {"/bin/sleep 1000"}
    assert leftovers(node, cid) == []
