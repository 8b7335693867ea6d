"""Interactive commands in real containers, over both protocols and both runtimes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from sandbox.settings import SandboxTimeouts
from tests.host.runtime_node import RUNTIMES, RuntimeNode, alive, kill, until
from tests.host.streaming_node import (
    ERROR,
    RESIZE,
    STDERR,
    STDIN,
    STDOUT,
    StreamingNode,
    streaming,
)
from tests.kit.blocked import start_told_late
from tests.kit.faults import PATIENCE_S

pytestmark = [pytest.mark.root, pytest.mark.slow]

PROTOCOLS = ("spdy", "websocket")
Make = Callable[..., StreamingNode]


@pytest.fixture(params=RUNTIMES)
async def node(
    request: pytest.FixtureRequest, tmp_path: Path, cgroup_path: str
) -> AsyncIterator[StreamingNode]:
    timeouts = SandboxTimeouts(exec_drain_s=0.3)
    inner = RuntimeNode(tmp_path / "n", cgroup_path, request.param, timeouts=timeouts)
    async with streaming(inner) as made:
        yield made


@pytest.fixture
async def sleeper(node: StreamingNode) -> str:
    cid, _ = await node.container("/bin/sleep", "1000")
    return cid


async def inside(node: StreamingNode, cid: str) -> set[str]:
    pids = await node.node.cgroups.processes(node.node.cgroup(cid))
    return {command_line(pid) for pid in pids} - {"", "/bin/sleep 1000"}


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def until_inside(node: StreamingNode, cid: str, word: str, *, there: bool = True) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while any(word in line for line in await inside(node, cid)) is not there:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def leftovers(node: StreamingNode, cid: str) -> list[str]:
    return [p.name for p in node.node.made[cid].iterdir() if p.name.startswith("exec-")]


async def until_clean(node: StreamingNode, cid: str) -> None:
    await until(lambda: not node.server.active and not leftovers(node, cid), "nothing is left")


@pytest.mark.parametrize("how", PROTOCOLS)
async def test_output_and_exit_code(node: StreamingNode, sleeper: str, how: str) -> None:
    session = await node.exec(how, sleeper, "/bin/sh", "-c", "echo out; echo err >&2; tty; exit 42")
    assert await session.end() == 42
    assert session.got(STDOUT) == b"out\nnot a tty\n"
    assert session.got(STDERR) == b"err\n"
    await until_clean(node, sleeper)


@pytest.mark.parametrize("how", PROTOCOLS)
async def test_success(node: StreamingNode, sleeper: str, how: str) -> None:
    assert await (await node.exec(how, sleeper, "/bin/true")).end() == 0


@pytest.mark.parametrize("how", PROTOCOLS)
async def test_input_to_its_end(node: StreamingNode, sleeper: str, how: str) -> None:
    session = await node.exec(how, sleeper, "/bin/cat", stdin=True)
    session.send(STDIN, b"one ")
    await session.until(STDOUT, b"one ")
    session.send(STDIN, b"two")
    session.finish()
    assert await session.end() == 0
    assert session.got(STDOUT) == b"one two"


@pytest.mark.parametrize("how", PROTOCOLS)
async def test_megabytes_there_and_back_without_a_byte_lost(
    node: StreamingNode, sleeper: str, how: str
) -> None:
    content = os.urandom(3_000_000)
    session = await node.exec(how, sleeper, "/bin/cat", stdin=True)
    for start in range(0, len(content), 50_000):
        session.send(STDIN, content[start : start + 50_000])
        await session.client.writer.drain()
    session.finish()
    assert await session.end() == 0
    received = session.got(STDOUT)
    assert hashlib.sha256(received).digest() == hashlib.sha256(content).digest()


@pytest.mark.parametrize("how", PROTOCOLS)
async def test_the_last_bytes_before_the_end_arrive(
    node: StreamingNode, sleeper: str, how: str
) -> None:
    session = await node.exec(
        how, sleeper, "/bin/sh", "-c", "dd if=/dev/zero bs=1000 count=20000 2>/dev/null; exit 3"
    )
    # As long as the client does not read, the command has to wait: the sockets hold less.
    await session.client.stop_reading()
    await until_inside(node, sleeper, "dd if")
    session.client.start_reading()
    assert await session.end() == 3
    assert len(session.got(STDOUT)) == 20_000_000


async def test_a_missing_program(node: StreamingNode, sleeper: str) -> None:
    for tty in (False, True):
        session = await node.exec("spdy", sleeper, "/bin/nope", tty=tty)
        words = await session.end()
        assert isinstance(words, str)
        assert "/bin/nope" in words
        await until_clean(node, sleeper)


# Terminals.


async def test_a_terminal_for_a_missing_program_leaves_no_task(
    node: StreamingNode, sleeper: str
) -> None:
    async def one(number: int) -> None:
        how = PROTOCOLS[number % 2]
        session = await node.exec(how, sleeper, "/no/such", tty=True, stdin=True)
        with contextlib.suppress(OSError):
            session.resize(80, 24)
        if number % 4 < 2:
            await session.die()
            return
        await session.end()
        assert b"/no/such" in session.got(ERROR)

    await one(2)  # the pool's threads and what waits for them are made now
    before, tasks = descriptors(), len(asyncio.all_tasks())
    for start in range(0, 60, 6):
        await asyncio.gather(*(one(number) for number in range(start, start + 6)))
    await until_clean(node, sleeper)
    await until(lambda: descriptors() <= before and len(asyncio.all_tasks()) <= tasks)


@pytest.mark.parametrize("how", PROTOCOLS)
async def test_a_terminal(node: StreamingNode, sleeper: str, how: str) -> None:
    session = await node.exec(
        how, sleeper, "/bin/sh", "-c", "tty; echo $TERM; exit 7", tty=True, stdin=True
    )
    assert await session.end() == 7
    assert session.got(STDOUT) == b"/dev/pts/0\r\nxterm\r\n"
    await until_clean(node, sleeper)


@pytest.mark.parametrize("how", PROTOCOLS)
async def test_typing_and_resizing(node: StreamingNode, sleeper: str, how: str) -> None:
    session = await node.exec(how, sleeper, "/bin/sh", tty=True, stdin=True)
    session.resize(123, 45)
    session.send(STDIN, b"PS1=; stty -echo\n")
    for size in ((123, 45), (80, 24), (40, 12)):
        session.resize(*size)
        wanted = f"{size[1]} {size[0]}".encode()
        async with asyncio.timeout(PATIENCE_S):
            while wanted not in session.got(STDOUT):
                session.send(STDIN, b"stty size\n")
                await asyncio.sleep(0.05)
    # What is no size changes nothing.
    for text in (b'{"Width":-1,"Height":2147483648}', b'{"Width":0,"Height":0}', b"\xff{}"):
        session.send(RESIZE, text)
    session.send(STDIN, b"echo before; stty size; echo after; exit 5\n")
    assert await session.end() == 5
    assert b"before\r\n12 40\r\nafter\r\n" in session.got(STDOUT)


async def test_interrupt_from_the_keyboard(node: StreamingNode, sleeper: str) -> None:
    session = await node.exec(
        "spdy", sleeper, "/bin/sh", "-c", "echo ready; sleep 555", tty=True, stdin=True
    )
    await session.until(STDOUT, b"ready")
    session.send(STDIN, b"\x03")
    assert await session.end() == 130
    await until_inside(node, sleeper, "555", there=False)


async def test_the_end_of_input_on_a_terminal_in_line_mode(
    node: StreamingNode, sleeper: str
) -> None:
    session = await node.exec("spdy", sleeper, "/bin/cat", tty=True, stdin=True)
    session.send(STDIN, b"line\n")
    await session.until(STDOUT, b"line\r\nline\r\n")
    session.finish()
    assert await session.end() == 0


async def test_much_output_of_a_terminal(node: StreamingNode, sleeper: str) -> None:
    session = await node.exec("spdy", sleeper, "/bin/seq", "1", "20000", tty=True)
    assert await session.end() == 0
    assert session.got(STDOUT).split() == [str(n).encode() for n in range(1, 20001)]


# Ends that are not normal.


@pytest.mark.cell("ES6")
@pytest.mark.parametrize("how", PROTOCOLS)
@pytest.mark.parametrize("tty", [False, True], ids=["pipes", "terminal"])
async def test_the_command_of_a_vanished_client_ends(
    node: StreamingNode, sleeper: str, how: str, tty: bool
) -> None:
    script = "sleep 1111 & echo ready; sleep 1112; sleep 1113"
    session = await node.exec(how, sleeper, "/bin/sh", "-c", script, tty=tty, stdin=True)
    await session.until(STDOUT, b"ready")
    await until_inside(node, sleeper, "1112")
    await session.die()
    await until_inside(node, sleeper, "1112", there=False)
    assert not [line for line in await inside(node, sleeper) if "1113" in line]
    if not tty:
        await until_inside(node, sleeper, "1111", there=False)
    await until_clean(node, sleeper)


@pytest.mark.parametrize("tty", [False, True], ids=["pipes", "terminal"])
async def test_the_command_of_a_client_that_vanished_while_it_was_started_ends(
    node: StreamingNode, sleeper: str, tty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon hears of the start only when the command runs already."""
    with start_told_late(monkeypatch) as may_be_told:
        # It waits for its terminal to be taken, if it has one, and is seen by its own name before.
        session = await node.exec("spdy", sleeper, "/bin/sleep", "7777", tty=tty, stdin=True)
        await until(lambda: started_by(node, sleeper), "the runtime has been started")
        if not tty:
            await until_inside(node, sleeper, "7777")
        (wire,) = node.server._tasks.values()
        await session.die()
        await wire.lost.wait()
        may_be_told.set()
        await until_clean(node, sleeper)
    assert await inside(node, sleeper) == set()


def started_by(node: StreamingNode, cid: str) -> list[Path]:
    """What a runtime that was started to run a command has been given."""
    return list(node.node.made[cid].glob("exec-*/process.json"))


async def test_what_ignores_the_hang_up_stays(node: StreamingNode, sleeper: str) -> None:
    script = "trap '' HUP; echo ready; sleep 2222"
    session = await node.exec("spdy", sleeper, "/bin/sh", "-c", script, tty=True, stdin=True)
    await session.until(STDOUT, b"ready")
    await until_inside(node, sleeper, "2222")
    await session.die()
    await until_clean(node, sleeper)
    assert [line for line in await inside(node, sleeper) if "2222" in line]


async def test_a_vanished_client_while_the_input_is_stuck(
    node: StreamingNode, sleeper: str
) -> None:
    session = await node.exec("spdy", sleeper, "/bin/sleep", "3333", stdin=True)
    await until_inside(node, sleeper, "3333")
    for _ in range(20):
        session.send(STDIN, b"x" * 100_000)
    (wire,) = node.server._tasks.values()
    while not wire._holders:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await session.die()
    await until_inside(node, sleeper, "3333", there=False)
    await until_clean(node, sleeper)


@pytest.mark.parametrize("how", PROTOCOLS)
@pytest.mark.parametrize("tty", [False, True], ids=["pipes", "terminal"])
async def test_a_session_ends_soon_after_its_container(
    node: StreamingNode, how: str, tty: bool
) -> None:
    cid, created = await node.container("/bin/sleep", "1000")
    session = await node.exec(
        how, cid, "/bin/sh", "-c", "echo flushed; sleep 4444", tty=tty, stdin=True
    )
    await session.until(STDOUT, b"flushed")
    kill(created.init)
    async with asyncio.timeout(PATIENCE_S):
        assert await session.end() == 137
    await until_clean(node, cid)


async def test_a_container_that_ended_before_the_client_came(node: StreamingNode) -> None:
    cid, created = await node.container("/bin/true")
    await until(lambda: not alive(created.init))
    for tty in (False, True):
        session = await node.exec("spdy", cid, "/bin/true", tty=tty)
        words = await session.end()
        assert isinstance(words, str)
        assert "not running" in words


async def test_a_background_process_that_holds_the_output(
    node: StreamingNode, sleeper: str
) -> None:
    if node.node.handler.name == "runc":
        pytest.skip("runc itself ends only when the last holder of the output does")
    session = await node.exec("spdy", sleeper, "/bin/sh", "-c", "sleep 5555 & echo done; exit 4")
    async with asyncio.timeout(PATIENCE_S):
        assert await session.end() == 4
    assert session.got(STDOUT) == b"done\n"
    assert [line for line in await inside(node, sleeper) if "5555" in line]


async def test_nothing_of_ours_leaks_into_the_container(node: StreamingNode, sleeper: str) -> None:
    secret = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(secret, True)
    try:
        for tty in (False, True):
            session = await node.exec("spdy", sleeper, "/bin/ls", "/proc/self/fd", tty=tty)
            assert await session.end() == 0
            # 3 is the listing itself.
            assert session.got(STDOUT).split() == [b"0", b"1", b"2", b"3"]
    finally:
        os.close(secret)


async def test_stopping_the_daemon_ends_its_sessions(node: StreamingNode, sleeper: str) -> None:
    session = await node.exec("spdy", sleeper, "/bin/sleep", "6666", stdin=True)
    await until_inside(node, sleeper, "6666")
    await node.server.close()
    await session.client.wait_closed()
    await session.client.close()
    await until_inside(node, sleeper, "6666", there=False)
    assert leftovers(node, sleeper) == []


@pytest.mark.cell("ES6")
async def test_many_at_once_a_third_of_them_killed(node: StreamingNode, sleeper: str) -> None:
    async def one(number: int) -> None:
        how = PROTOCOLS[number % 2]
        tty = number % 4 < 2
        script = f"echo {number}; cat; exit {number}"
        session = await node.exec(how, sleeper, "/bin/sh", "-c", script, tty=tty, stdin=True)
        await session.until(STDOUT, str(number).encode())
        if number % 3 == 0:
            await session.die()
            return
        session.finish()
        assert await session.end() == number
        assert session.got(ERROR)

    before = descriptors()
    for start in (0, 12, 24):
        await asyncio.gather(*(one(number) for number in range(start, start + 12)))
    await until_clean(node, sleeper)
    await until(lambda: descriptors() <= before, "every descriptor is closed")
    assert await inside(node, sleeper) == set()
