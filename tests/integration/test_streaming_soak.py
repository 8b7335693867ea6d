"""Thousands of streaming sessions, a third of them killed midway: all true, and nothing stays.

The daemon, the runtime, conmon and the pod's network are real; the clients are ours, because real
programs can't be told when to die.
"""

from __future__ import annotations

import asyncio
import json
import random
from typing import Final

import pytest

from cri.daemon import BLOCKING_CALLS
from protos import api_pb2 as api
from tests.fakes.streaming_clients import SpdyClient, TunnelClient, WebSocketClient
from tests.kit.calls import until
from tests.kit.held import held, let_it_sample, resident_bytes
from tests.kit.node import PATIENCE_S, Node

pytestmark = pytest.mark.slow

#: The number that the project promises to bear; a tenth before it fills every pool and cache.
SESSIONS: Final = 2_000
WARM_UP: Final = 200
AT_ONCE: Final = 8
#: After the warm-up memory may grow by this much: fragments, not something kept by each session
#: (2,000 sessions that each kept one buffer of 16 KiB would be 32 MiB).
GROWTH_BYTES: Final = 16 << 20

PORT: Final = 8080
PAGE: Final = b"x" * 40_000
SERVER: Final = (
    f"head -c {len(PAGE)} /dev/zero | tr '\\0' x > /tmp/page; exec httpd -f -p {PORT} -h /tmp"
)
TICKER: Final = "i=0; while :; do i=$((i+1)); echo tick $i; usleep 10000; done"
OUTPUT: Final = b"e" * 30_000
COMMAND: Final = f"head -c {len(OUTPUT)} /dev/zero | tr '\\0' e; echo told >&2; exit 7"

STDIN, STDOUT, STDERR, ERROR = range(4)


class Sessions:
    """The node's clients; each kind of session checks what it got unless it is killed."""

    def __init__(self, node: Node, pod: str, ticker: str, server: str, dice: random.Random) -> None:
        self._node = node
        self._pod = pod
        self._ticker = ticker
        self._server = server
        self._dice = dice
        self.finished = 0
        self.killed = 0

    async def run(self, count: int) -> None:
        """`count` sessions of all kinds and protocols, several at once."""
        todo = iter(range(count))

        async def client() -> None:
            for number in todo:
                kind = (self._exec, self._attach, self._forward)[number % 3]
                killed = self._dice.random() < 1 / 3
                await kind("spdy" if self._dice.random() < 0.5 else "websocket", killed)
                self.killed += killed
                self.finished += not killed

        async with asyncio.TaskGroup() as clients:
            for _ in range(AT_ONCE):
                clients.create_task(client())

    async def _midway(self) -> None:
        await asyncio.sleep(self._dice.random() * 0.03)

    async def _open(
        self, how: str, url: str, *streams: str
    ) -> tuple[SpdyClient | WebSocketClient, dict[int, int]]:
        if how == "websocket":
            client = await WebSocketClient.connect(url, "v5.channel.k8s.io")
            return client, {number: number for number in range(4)}
        spdy = await SpdyClient.connect(url, "v4.channel.k8s.io")
        opened = await spdy.open_all(*streams)
        names = ("stdin", "stdout", "stderr", "error")
        return spdy, {names.index(name): number for name, number in opened.items()}

    async def _exec(self, how: str, killed: bool) -> None:
        # Who is killed has asked for something that has no end of its own.
        argv = ["sh", "-c", "echo begun; cat"] if killed else ["sh", "-c", COMMAND]
        request = api.ExecRequest(
            container_id=self._server, cmd=argv, stdin=killed, stdout=True, stderr=True
        )
        answer = await asyncio.to_thread(self._node.runtime.Exec, request, timeout=PATIENCE_S)
        streams = ("stdin",) if killed else ()
        client, numbers = await self._open(how, answer.url, *streams, "stdout", "stderr", "error")
        if killed:
            await self._midway()
            await client.die()
            return
        await client.wait_closed()
        await client.close()
        assert bytes(client.received[numbers[STDOUT]]) == OUTPUT
        assert bytes(client.received[numbers[STDERR]]) == b"told\n"
        status = json.loads(bytes(client.received[numbers[ERROR]]))
        assert status["details"]["causes"][0]["message"] == "7"

    async def _attach(self, how: str, killed: bool) -> None:
        request = api.AttachRequest(container_id=self._ticker, stdout=True, stderr=True)
        answer = await asyncio.to_thread(self._node.runtime.Attach, request, timeout=PATIENCE_S)
        client, numbers = await self._open(how, answer.url, "stdout", "stderr", "error")
        if killed:
            await self._midway()
            await client.die()
            return
        seen = client.received[numbers[STDOUT]]
        await client.until(lambda: seen.count(b"\n") >= 4)
        await client.close()
        # The first line may have begun before we came.
        ticks = [int(line.split()[1]) for line in bytes(seen).split(b"\n")[1:4]]
        assert ticks == list(range(ticks[0], ticks[0] + 3)), "none lost or doubled"

    async def _forward(self, how: str, killed: bool) -> None:
        request = api.PortForwardRequest(pod_sandbox_id=self._pod, port=[PORT])
        answer = await asyncio.to_thread(
            self._node.runtime.PortForward, request, timeout=PATIENCE_S
        )
        if how == "websocket":
            client: SpdyClient = await TunnelClient.open_tunnel(
                answer.url, "SPDY/3.1+portforward.k8s.io"
            )
        else:
            client = await SpdyClient.connect(answer.url, "portforward.k8s.io")
        headers = {"port": str(PORT), "requestID": "0"}
        error = await client.open(streamtype="error", **headers)
        client.finish(error)
        data = await client.open(streamtype="data", **headers)
        client.send(data, b"GET /page HTTP/1.0\r\n\r\n")
        if killed:
            await self._midway()
            await client.die()
            return
        got = await client.read_all(data)
        client.finish(data)
        assert await client.read_all(error) == b""
        assert got.endswith(b"\r\n\r\n" + PAGE), f"{len(got)} bytes: {got[:200]!r}"
        await client.close()


def _run_server(node: Node, name: str) -> tuple[str, str, str]:
    """A pod with a container that ticks and one that serves: their three ids."""
    pod = node.run_pod(name)
    ticker = node.run(pod, "ticker", ["sh", "-c", TICKER])
    server = node.run(pod, "server", ["sh", "-c", SERVER])
    until(
        lambda: node.exec(server, "wget", "-qO-", f"http://127.0.0.1:{PORT}/page")[0] == 0,
        "the server in the pod serves",
    )
    return pod, ticker, server


@pytest.mark.cell("ES6")
def test_two_thousand_sessions_leave_nothing(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    # The thread that enters pods' networks is made for the first forwarding and stays.
    first = Sessions(node, *_run_server(node, "first"), random.Random(1))
    asyncio.run(first.run(3))
    node.remove_everything()
    node.take_baseline()

    pod, ticker, server = _run_server(node, "soak")
    # Seeded: a failure can be had again.
    sessions = Sessions(node, pod, ticker, server, random.Random(2_000))
    asyncio.run(sessions.run(WARM_UP))

    def quiet() -> bool:
        return not node.processes_doing("echo begun") and not node.processes_doing("head -c")

    until(quiet, "no command of the warm-up is left")
    let_it_sample(node, groups=3, logs=2)
    before, memory_before = held(node.pid), resident_bytes(node.pid)

    sessions.killed = sessions.finished = 0
    asyncio.run(sessions.run(SESSIONS))
    assert sessions.killed + sessions.finished == SESSIONS
    assert SESSIONS / 4 < sessions.killed < SESSIONS / 2

    until(quiet, "no command is left in the container")
    # The pool for blocking calls makes its threads when it needs them, and keeps them.
    most = (before[0], before[1] + BLOCKING_CALLS, before[2])
    until(
        lambda: all(now <= limit for now, limit in zip(held(node.pid), most, strict=True)),
        f"no more descriptors, threads and children than {most}",
    )
    memory_after = resident_bytes(node.pid)
    with capsys.disabled():
        print(
            f"\n{SESSIONS} sessions, {sessions.killed} killed: descriptors, threads, children"
            f" {before} -> {held(node.pid)},"
            f" memory {memory_before >> 20} -> {memory_after >> 20} MiB"
        )
    assert memory_after - memory_before < GROWTH_BYTES
    node.assert_true()
