"""Attaching to real containers under conmon: several at once, input, sizes, the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.host.runtime_node import RuntimeNode, alive, kill, until
from tests.host.streaming_node import ERROR, STDERR, STDIN, STDOUT, StreamingNode, streaming
from tests.kit.faults import PATIENCE_S

pytestmark = [pytest.mark.root, pytest.mark.slow]

PROTOCOLS = ("spdy", "websocket")

#: Repeats its input, says when that has ended, then waits to be killed.
REPEATER = "while read line; do echo got $line; echo err $line >&2; done; echo input over; exit 9"
TICKER = "i=0; while :; do i=$((i+1)); echo tick $i; usleep 20000; done"


@pytest.fixture(params=["crun"])
async def node(
    request: pytest.FixtureRequest, tmp_path: Path, cgroup_path: str
) -> AsyncIterator[StreamingNode]:
    async with streaming(RuntimeNode(tmp_path / "n", cgroup_path, request.param)) as made:
        yield made


async def until_idle(node: StreamingNode) -> None:
    await until(lambda: not node.server.active, "nobody is served")


@pytest.mark.parametrize("how", PROTOCOLS)
async def test_several_see_the_same(node: StreamingNode, how: str) -> None:
    cid, _ = await node.container("/bin/sh", "-c", TICKER)
    sessions = [await node.attach(how, cid) for _ in range(4)]
    for session in sessions:
        await session.until(STDOUT, b"\n")
    # They came one after another: whoever was last has seen the least of it.
    first = max(int(session.got(STDOUT).split()[1]) for session in sessions)
    await sessions[0].die()
    for session in sessions[1:]:
        await session.until(STDOUT, f"tick {first + 20}\n".encode())
        lines = session.got(STDOUT).splitlines()
        numbers = [int(line.split()[1]) for line in lines[:-1]]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "none lost or twice"
        await session.client.close()
    await until_idle(node)


@pytest.mark.parametrize("how", PROTOCOLS)
async def test_stdin_once(node: StreamingNode, how: str) -> None:
    cid, created = await node.container("/bin/sh", "-c", REPEATER, stdin=True, stdin_once=True)
    onlooker = await node.attach(how, cid)
    another = await node.attach(how, cid)
    await another.die()
    session = await node.attach(how, cid, stdin=True)
    session.send(STDIN, b"one\n")
    await session.until(STDOUT, b"got one")
    await onlooker.until(STDERR, b"err one")
    session.finish()
    async with asyncio.timeout(PATIENCE_S):
        assert await session.end() == 0, "attach has no exit code to tell"
        assert await onlooker.end() == 0
    assert session.got(STDOUT) == b"got one\ninput over\n"
    assert session.got(STDERR) == b"err one\n"
    assert not alive(created.init)
    await until_idle(node)


async def test_stdin_once_ends_with_a_client_that_dies(node: StreamingNode) -> None:
    cid, created = await node.container("/bin/sh", "-c", REPEATER, stdin=True, stdin_once=True)
    session = await node.attach("spdy", cid, stdin=True)
    session.send(STDIN, b"one\n")
    await session.until(STDOUT, b"got one")
    await session.die()
    await until(lambda: not alive(created.init))


@pytest.mark.parametrize("how", PROTOCOLS)
async def test_input_outlives_its_clients_without_stdin_once(node: StreamingNode, how: str) -> None:
    cid, created = await node.container("/bin/sh", "-c", REPEATER, stdin=True)
    for word in (b"one", b"two"):
        session = await node.attach(how, cid, stdin=True)
        session.send(STDIN, word + b"\n")
        await session.until(STDOUT, b"got " + word)
        session.finish()
        async with asyncio.timeout(PATIENCE_S):
            assert await session.end() == 0, "who has no more to say has detached"
        await until_idle(node)
    assert alive(created.init)


@pytest.mark.parametrize("how", PROTOCOLS)
async def test_a_terminal(node: StreamingNode, how: str) -> None:
    cid, _ = await node.container("/bin/sh", terminal=True, stdin=True)
    session = await node.attach(how, cid, tty=True, stdin=True)
    for size in ((100, 30), (80, 24)):
        session.resize(*size)
        wanted = f"{size[1]} {size[0]}\r\n".encode()
        async with asyncio.timeout(PATIENCE_S):
            while wanted not in session.got(STDOUT):
                session.send(STDIN, b"stty size\n")
                await asyncio.sleep(0.05)
    session.send(STDIN, b"exit\n")
    async with asyncio.timeout(PATIENCE_S):
        assert await session.end() == 0
    await until_idle(node)


@pytest.mark.cell("ES9")
@pytest.mark.parametrize("how", PROTOCOLS)
async def test_a_session_ends_soon_after_its_container_with_everything(
    node: StreamingNode, how: str
) -> None:
    script = "trap 'i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo last $i; done; exit' TERM; "
    cid, created = await node.container(
        "/bin/sh", "-c", script + "while :; do echo ready; usleep 10000; done"
    )
    # Seen by the session, for conmon shows only what comes after it has taken the connection; and
    # seen at all, for before the trap is set the first process of a namespace ignores the signal.
    session = await node.attach(how, cid)
    await session.until(STDOUT, b"ready")
    kill(created.init, 15)
    async with asyncio.timeout(PATIENCE_S):
        assert await session.end() == 0
    lines = [line for line in session.got(STDOUT).splitlines() if line != b"ready"]
    assert lines == [f"last {number}".encode() for number in range(1, 2001)]
    await until_idle(node)


async def test_a_client_that_does_not_read_does_not_stop_the_container(
    node: StreamingNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox.monitor.hub.STALL_S", 0.2)
    monkeypatch.setattr("cri.streaming.wire.FLUSH_S", 0.2)
    cid, _ = await node.container("/bin/sh", "-c", "yes 0123456789012345678901234567890123456789")
    session = await node.attach("spdy", cid)
    await session.client.stop_reading()
    await until_idle(node)
    log = node.node.log_path(cid)
    size = log.stat().st_size
    await until(lambda: log.stat().st_size > size + 1_000_000)
    await session.client.close()


async def test_a_container_without_a_monitor(node: StreamingNode) -> None:
    cid, created = await node.container("/bin/sleep", "1000")
    kill(created.monitor)
    await until(lambda: not alive(created.monitor))
    session = await node.attach("spdy", cid)
    words = await session.end()
    assert isinstance(words, str)
    assert "monitor" in words
    assert session.got(ERROR)


async def test_many_come_and_go(node: StreamingNode) -> None:
    cid, created = await node.container("/bin/sh", "-c", TICKER)

    async def one(number: int) -> None:
        session = await node.attach(PROTOCOLS[number % 2], cid)
        if number % 3:
            await session.until(STDOUT, b"tick")
        await (session.die() if number % 2 else session.client.close())

    before, tasks = descriptors(), len(asyncio.all_tasks())
    for start in range(0, 200, 20):
        await asyncio.gather(*(one(number) for number in range(start, start + 20)))
    await until_idle(node)
    # conmon is left by the last one a moment later.
    await until(lambda: descriptors() <= before and len(asyncio.all_tasks()) <= tasks)
    assert alive(created.init)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
