"""conmon for real, under crun and runc: creation, its failures, logs, control messages, attach."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from sandbox.errors import (
    CommandNotFound,
    LogPathRefused,
    MonitorFailed,
    MonitorGone,
    RuntimeBusy,
    RuntimeFailed,
    RuntimeMissing,
    RuntimeTimeout,
)
from sandbox.monitor.attach import AttachSocket
from sandbox.monitor.logs import parse_line
from sandbox.monitor.request import conmon_argv
from sandbox.monitor.survivors import find_monitor
from sandbox.runtime import proctree
from sandbox.runtime.driver import RuntimeStatus
from sandbox.settings import SandboxTimeouts
from tests.host.runtime_node import (
    RUNTIMES,
    RuntimeNode,
    alive,
    command_lines,
    kill,
    until,
)
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


#: How long the hook's child sleeps; nobody else on the machine sleeps so long.
HOOK_SLEEPS = f"1234.{secrets.randbits(32)}"


def slow_hook(tmp_path: Path) -> dict[str, object]:
    script = tmp_path / "hook"
    script.write_text(f"#!/bin/sh\nsleep {HOOK_SLEEPS} &\nwait\n")
    script.chmod(0o755)
    hook = {"path": str(script), "args": ["hook"], "env": ["PATH=/bin:/usr/bin"]}
    return {"createRuntime": [hook]}


def descriptors(pid: int) -> set[str]:
    """What a process has open; for our own, all but the standard streams."""
    found = set()
    for name in Path(f"/proc/{pid}/fd").iterdir():
        if pid != os.getpid() or int(name.name) > 2:
            with suppress(FileNotFoundError):
                found.add(str(name.readlink()))
    return found


def unix_sockets() -> list[str]:
    return Path("/proc/net/unix").read_text().splitlines()


def lowest_oom_score_adj() -> str:
    """-1000, or what it is already where the host forbids lowering it."""
    words = "echo -1000 > /proc/self/oom_score_adj; cat /proc/self/oom_score_adj"
    ended = subprocess.run(["/bin/sh", "-c", words], capture_output=True, text=True)
    return ended.stdout.strip()


async def test_a_container_is_created_started_and_its_end_recorded(make: Make) -> None:
    node = make()
    cid, created = await node.run("/bin/sh", "-c", "echo out; echo err >&2; exit 7")
    await until((node.exits_dir / cid).exists)
    assert (node.exits_dir / cid).read_text() == "7"
    entries = [parse_line(line) for line in node.log(cid).splitlines(keepends=True)]
    assert {(e.stream, e.output) for e in entries} == {("stdout", b"out\n"), ("stderr", b"err\n")}
    assert created.log_path == str(node.log_path(cid))
    assert ("create", node.handler.name, True) in node.observed.operations


async def test_the_process_waits_until_started(make: Make) -> None:
    node = make()
    cid, _ = node.bundle("/bin/echo", "hello")
    created = await node.conmon.create(node.request(cid))
    state = await node.runtime.state(cid)
    assert state is not None
    assert (state.status, state.pid) == (RuntimeStatus.CREATED, created.pid)
    assert created.monitor == find_monitor(node.made[cid])
    assert node.log(cid) == b""


@pytest.mark.cell("HD4")
async def test_conmon_is_protected_from_memory_kills_and_owns_nothing_of_ours(make: Make) -> None:
    node = make()
    secret = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(secret, True)
    try:
        _, created = await node.run("/bin/sleep", "1000")
    finally:
        os.close(secret)
    assert created.monitor is not None
    proc = Path(f"/proc/{created.monitor_pid}")
    assert (proc / "oom_score_adj").read_text().strip() == lowest_oom_score_adj()
    assert os.getsid(created.monitor_pid) == created.monitor_pid
    variables = {word.split("=")[0] for word in (proc / "environ").read_text().split("\0") if word}
    assert variables <= {"PATH", "LANG", "_OCI_SYNCPIPE", "_OCI_STARTPIPE"}
    shared = descriptors(created.monitor_pid) & descriptors(os.getpid())
    assert not {name for name in shared if name.startswith(("pipe:", "socket:"))}
    # A start answers a moment before the program is executed, which closes the runtime's own.
    await until(lambda: len(descriptors(created.pid)) == 3)
    inside = descriptors(created.pid)
    assert all(name == "/dev/null" or name.startswith("pipe:") for name in inside)


async def test_conmon_goes_to_a_cgroup_of_its_own_if_told(make: Make, cgroup_path: str) -> None:
    node = make(monitor_cgroup=f"{cgroup_path}/monitors")
    _, created = await node.run("/bin/sleep", "1000")
    inside = await node.cgroups.processes(f"{cgroup_path}/monitors")
    assert created.monitor_pid in inside
    assert created.pid not in inside
    # Who made the container has ended, and is reaped by conmon at some time.
    alone = {created.monitor_pid}
    await until(lambda: node.cgroups.layout.procs(f"{cgroup_path}/monitors") == alone)


async def test_without_log_path_output_is_discarded(make: Make) -> None:
    node = make()
    cid, created = await node.run("/bin/sh", "-c", "echo lost; exit 3", log_path="")
    await until((node.exits_dir / cid).exists)
    assert created.log_path == ""
    await node.conmon.reopen_log(node.made[cid])


async def test_a_runtime_error_is_told_in_its_own_words_and_leaves_nothing(make: Make) -> None:
    node = make()
    cid, bundle = node.bundle("/bin/true")
    document = (bundle / "config.json").read_text()
    (bundle / "config.json").write_text(document.replace(str(node.rootfs), "/no/such/place"))
    with pytest.raises(RuntimeFailed, match=r"/no/such/place|no such file"):
        await node.conmon.create(node.request(cid))
    assert not node.log_path(cid).exists()
    assert await node.runtime.containers() == frozenset()
    assert not any(d.exists() for d in node.cgroups.directories(node.cgroup(cid)))
    await until(lambda: not command_lines(cid))


async def test_an_existing_container_is_not_cleared_by_a_second_create(make: Make) -> None:
    node = make()
    cid, created = await node.run("/bin/sleep", "1000")
    with pytest.raises(RuntimeBusy):
        await node.conmon.create(node.request(cid))
    assert alive(created.init)


async def test_a_missing_program_is_told(make: Make) -> None:
    node = make()
    with pytest.raises(CommandNotFound, match="/bin/nope"):
        await node.run("/bin/nope")


class Refused(Exception):
    """What the maker of a bundle met."""


def waits_at_its_start_pipe(cid: str) -> bool:
    """Whether the container's conmon has come to where it is held."""
    found = proctree.with_word(proctree.snapshot(), f"--cid={cid}")
    with suppress(FileNotFoundError):
        return ["pipe" in Path(f"/proc/{one.pid}/wchan").read_text() for one in found] == [True]
    return False


@pytest.mark.parametrize("early", [True, False], ids=["early", "late"])
async def test_conmon_waits_while_the_bundle_is_made(make: Make, early: bool) -> None:
    node = make(early=early)
    cid, bundle = node.bundle("/bin/echo", "hello")
    document = (bundle / "config.json").read_text()
    (bundle / "config.json").unlink()
    async with node.conmon.begin(node.request(cid)) as creation:
        if early:
            await until(lambda: waits_at_its_start_pipe(cid))
        else:
            assert not command_lines(cid)
        (bundle / "config.json").write_text(document)
        created = await creation.finish()
    assert alive(created.init)
    assert created.monitor == find_monitor(bundle)


@pytest.mark.parametrize("conmon", [True, False], ids=["conmon", "no conmon"])
async def test_what_the_maker_of_the_bundle_meets_is_told_and_nothing_is_left(
    make: Make, tmp_path: Path, conmon: bool
) -> None:
    node = make() if conmon else make(conmon=tmp_path / "no-conmon")
    cid, bundle = node.bundle("/bin/true")

    async def refuse() -> None:
        async with node.conmon.begin(node.request(cid)):
            if conmon:
                await until(lambda: waits_at_its_start_pipe(cid))
            raise Refused

    with pytest.raises(Refused):
        await refuse()
    await until(lambda: not command_lines(cid))
    assert not (bundle / "pid").exists()
    assert not node.log_path(cid).exists()
    assert await node.runtime.containers() == frozenset()


@pytest.mark.cell("CC6")
async def test_a_waiting_conmon_of_a_dead_daemon_ends_and_leaves_nothing(make: Make) -> None:
    """It takes the end of its start pipe for a start, and the runtime finds no document."""
    node = make()
    cid, bundle = node.bundle("/bin/true")
    (bundle / "config.json").unlink()
    argv = conmon_argv(Path("/usr/bin/conmon"), node.request(cid), log=None, systemd_cgroup=False)
    reading, ours = os.pipe()
    try:
        waiting = await asyncio.create_subprocess_exec(
            *argv, cwd=bundle, pass_fds=[reading], env={"_OCI_STARTPIPE": str(reading)}
        )
        os.close(reading)
        await until(lambda: waits_at_its_start_pipe(cid))
    finally:
        os.close(ours)
    await waiting.wait()
    await until(lambda: not command_lines(cid))
    assert list(node.exits_dir.iterdir()) == []
    assert await node.runtime.containers() == frozenset()
    assert not any(d.exists() for d in node.cgroups.directories(node.cgroup(cid)))


async def test_missing_conmon_and_missing_runtime(make: Make, tmp_path: Path) -> None:
    node = make(conmon=tmp_path / "no-conmon")
    cid, _ = node.bundle("/bin/true")
    with pytest.raises(RuntimeMissing, match="conmon is not installed"):
        await node.conmon.create(node.request(cid))
    node = make(program=tmp_path / "no-runtime")
    cid, _ = node.bundle("/bin/true")
    with pytest.raises(MonitorFailed, match="no-runtime"):
        await node.conmon.create(node.request(cid))


async def test_a_hanging_hook_is_cut_off_and_everything_is_cleared(
    make: Make, tmp_path: Path
) -> None:
    node = make(timeouts=SandboxTimeouts(create_s=0.5))
    cid, _ = node.bundle("/bin/true", hooks=slow_hook(tmp_path))
    with pytest.raises(RuntimeTimeout):
        await node.conmon.create(node.request(cid))
    await _assert_nothing_left(node, cid, tmp_path)


async def test_a_cancelled_create_clears_everything(make: Make, tmp_path: Path) -> None:
    node = make()
    cid, _ = node.bundle("/bin/true", hooks=slow_hook(tmp_path))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(node.conmon.create(node.request(cid)))
        await until(lambda: command_lines(str(tmp_path / "hook")))
        task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    await _assert_nothing_left(node, cid, tmp_path)


async def _assert_nothing_left(node: RuntimeNode, cid: str, tmp_path: Path) -> None:
    assert await node.runtime.containers() == frozenset()
    assert not any(d.exists() for d in node.cgroups.directories(node.cgroup(cid)))
    await until(lambda: not command_lines(cid))
    await until(lambda: not command_lines(str(tmp_path / "hook")))
    await until(lambda: not command_lines(HOOK_SLEEPS))


async def test_reopen_after_rename_goes_on_in_a_new_file(make: Make) -> None:
    node = make(timeouts=SandboxTimeouts(reopen_s=PATIENCE_S))
    script = "i=0; while true; do i=$((i+1)); echo $i; done"
    cid, _ = await node.run("/bin/sh", "-c", script)
    log = node.log_path(cid)
    await until(lambda: log.stat().st_size > 100_000)
    for number in range(1, 4):
        log.rename(log.with_name(f"0.log.{number}"))
        await node.conmon.reopen_log(node.made[cid])
        await until(lambda: log.stat().st_size > 100_000)
    monitor = find_monitor(node.made[cid])
    assert monitor is not None
    kill(monitor)
    await until(lambda: not alive(monitor))
    await node.cgroups.kill(node.cgroup(cid))
    lines: list[bytes] = []
    for name in ("0.log.1", "0.log.2", "0.log.3", "0.log"):
        for line in log.with_name(name).read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                lines += [parse_line(line).output]
    joined = b"".join(lines)
    numbers = [int(word) for word in joined.split()[:-1]]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_reopen_without_rename_keeps_what_is_there(make: Make) -> None:
    node = make()
    cid, _ = await node.run("/bin/sh", "-c", "echo first; sleep 1000")
    await until(lambda: b"first" in node.log(cid))
    await asyncio.gather(*(node.conmon.reopen_log(node.made[cid]) for _ in range(20)))
    assert b"first" in node.log(cid)


@pytest.mark.cell("LG2")
async def test_reopen_refuses_a_directory_that_became_a_link(make: Make, tmp_path: Path) -> None:
    node = make()
    cid, created = await node.run("/bin/sleep", "1000")
    directory = node.root / "logs" / cid
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    directory.rename(directory.with_name("gone"))
    directory.symlink_to(elsewhere)
    with pytest.raises(LogPathRefused):
        await node.conmon.reopen_log(node.made[cid])
    assert list(elsewhere.iterdir()) == []
    directory.unlink()
    with pytest.raises(LogPathRefused, match="gone"):
        await node.conmon.reopen_log(node.made[cid])
    assert created.monitor is not None
    assert alive(created.monitor)


@pytest.mark.cell("LG4")
async def test_reopen_fails_when_conmon_is_dead_or_stuck_and_makes_no_file(make: Make) -> None:
    node = make(timeouts=SandboxTimeouts(reopen_s=0.2))
    cid, created = await node.run("/bin/sleep", "1000")
    log = node.log_path(cid)
    log.rename(log.with_name("old"))
    kill(created.monitor, signal.SIGSTOP)
    with pytest.raises(MonitorGone, match="did not open"):
        await node.conmon.reopen_log(node.made[cid])
    assert [p.name for p in log.parent.iterdir()] == ["old"]
    kill(created.monitor)
    await until(lambda: find_monitor(node.made[cid]) is None)
    with pytest.raises(MonitorGone, match="dead"):
        await node.conmon.reopen_log(node.made[cid])
    assert [p.name for p in log.parent.iterdir()] == ["old"]


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "hard link"])
async def test_a_planted_log_is_refused(make: Make, kind: str, tmp_path: Path) -> None:
    node = make()
    cid, _ = node.bundle("/bin/true")
    log = node.log_path(cid)
    log.parent.mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    match kind:
        case "link":
            log.symlink_to(victim)
        case "fifo":
            os.mkfifo(log)
        case "directory":
            log.mkdir()
        case _:
            log.hardlink_to(victim)
    with pytest.raises(LogPathRefused):
        await node.conmon.create(node.request(cid))
    assert victim.read_text() == "untouched"


@pytest.mark.cell("LG6")
async def test_every_one_of_many_control_messages_counts(make: Make) -> None:
    """conmon 2.1.6 loses the second of two messages that arrive together; ours never do."""
    node = make()
    cid, created = await node.run(
        "/bin/sh", "-c", "while true; do stty size; usleep 20000; done", terminal=True
    )
    kill(created.monitor, signal.SIGSTOP)
    for columns in (81, 82, 83):
        await node.conmon.resize(node.made[cid], columns, 24)
    await node.conmon.resize(node.made[cid], 0, 0)
    kill(created.monitor, signal.SIGCONT)
    await until(lambda: b"24 83" in node.log(cid))


async def test_attach_streams_output_and_input(make: Make) -> None:
    node = make()
    cid, _ = await node.run("/bin/cat", stdin=True, stdin_once=True)
    async with await AttachSocket.connect(node.made[cid]) as attached:
        await attached.send(b"hello\n")
        first = await attached.receive()
        assert first is not None
        assert (first.stream, first.data) == ("stdout", b"hello\n")
        big = b"x" * 100_000
        await attached.send(big)
        got = b""
        while len(got) < len(big):
            piece = await attached.receive()
            assert piece is not None
            got += piece.data
        assert got == big
        attached.end_input()
        assert await attached.receive() is None
    await until((node.exits_dir / cid).exists)
    assert (node.exits_dir / cid).read_text() == "0"


async def test_attach_sockets_are_files_never_abstract(make: Make) -> None:
    node = make()
    cid, _ = await node.run("/bin/sleep", "1000", terminal=True, stdin=True)
    assert (node.made[cid] / "attach").is_socket()
    assert not [line for line in unix_sockets() if "@" in line and cid in line]
    assert (node.made[cid] / "attach").stat().st_mode & 0o077 == 0


async def test_attach_to_a_dead_monitor(make: Make) -> None:
    node = make()
    cid, created = await node.run("/bin/sleep", "1000")
    monitor = created.monitor
    assert monitor is not None
    kill(monitor)
    await until(lambda: not alive(monitor))
    with pytest.raises(MonitorGone):
        await AttachSocket.connect(node.made[cid])
