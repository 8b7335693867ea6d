"""Streaming sessions whose command cannot start, and those whose client goes.

Row 58, CVE-2022-23471: the task that resizes a terminal outlived a command that never started.
Row 59, CVE-2025-64329: an attachment left its tasks behind when its client went.

Tried: a thousand terminals for a program that is not there, resized before they fail; a thousand
attachments that are closed, killed or closed by half, some with input. Afterwards descriptors,
threads and children of the daemon are as before and its memory has not grown. Tasks, which nobody
can count from outside, are counted where the server runs in the test's own process:
tests/host/test_streaming_exec.py and test_streaming_attach.py. (2,000 sessions of all kinds, to
their good ends: tests/integration/test_streaming_soak.py.)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable

from wsproto.utilities import LocalProtocolError

from protos import api_pb2 as api
from tests.fakes.streaming_clients import SpdyClient, WebSocketClient
from tests.kit.calls import until
from tests.kit.held import held, let_it_sample, resident_bytes
from tests.kit.node import PATIENCE_S, Node

TICKER = "while :; do echo tick; usleep 20000; done"
COUNT = 1000 if os.environ.get("PODWRIGHT_WHOLE_MATRIX") else 200  # whole before a release
#: What is made once is made by these: threads, pools, caches.
WARM_UP = 50
AT_ONCE = 8
#: Descriptors and threads that come and go by themselves; one kept by every hundredth is more.
SLACK = 8
#: Fragments: a session that kept one buffer of 16 KiB would grow it to this (bytes).
GROWTH_BYTES = 16 << 20
SPDY, WEBSOCKET = "v4.channel.k8s.io", "v5.channel.k8s.io"
#: Channels of a WebSocket: input, and the terminal's size.
STDIN, RESIZE = 0, 4
SIZES = b'{"Width":80,"Height":24}\n{"Width":-1,"Height":2147483648}\n'


def nothing_stays(node: Node, one: Callable[[int], Awaitable[None]]) -> None:
    """Run `one` COUNT times, several at once, and compare what the daemon holds."""

    async def run(count: int) -> None:
        todo = iter(range(count))

        async def some() -> None:
            for number in todo:
                await one(number)

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(some())

    asyncio.run(run(WARM_UP))
    let_it_sample(node, groups=2, logs=1)
    until(lambda: held(node.pid)[2] == 0, "no child is left")
    (descriptors, threads, _), memory = held(node.pid), resident_bytes(node.pid)
    asyncio.run(run(COUNT))

    def as_before() -> bool:
        now = held(node.pid)
        return now[0] <= descriptors + SLACK and now[1] <= threads + SLACK and now[2] == 0

    until(as_before, f"descriptors and threads are {descriptors} and {threads} again")
    assert resident_bytes(node.pid) - memory < GROWTH_BYTES


async def spdy(url: str, *streams: str) -> tuple[SpdyClient, dict[str, int]]:
    client = await SpdyClient.connect(url, SPDY)
    return client, await client.open_all(*streams)


def test_a_thousand_terminals_for_a_program_that_is_not_there(node: Node, handler: str) -> None:
    container = node.run(node.run_pod(handler=handler), "main", ["sleep", "1000"])
    request = api.ExecRequest(
        container_id=container, cmd=["/no/such/program"], tty=True, stdin=True, stdout=True
    )

    async def one(number: int) -> None:
        answer = await asyncio.to_thread(node.runtime.Exec, request, timeout=PATIENCE_S)
        client: SpdyClient | WebSocketClient
        if number % 2:
            client, streams = await spdy(answer.url, "error", "stdin", "stdout", "resize")
            send = lambda: client.send(streams["resize"], SIZES)  # noqa: E731
        else:
            client = await WebSocketClient.connect(answer.url, WEBSOCKET)
            send = lambda: client.send(RESIZE, SIZES)  # noqa: E731
        # The session may have ended already; that is the one that failed fastest.
        with contextlib.suppress(OSError, LocalProtocolError):
            send()
        if number % 4 == 3:
            await client.die()
            return
        await client.wait_closed()
        await client.close()

    nothing_stays(node, one)
    assert not node.processes_doing("/no/such/program")


def test_a_thousand_attachments_whose_clients_go(node: Node, handler: str) -> None:
    wanted = node.create_request(node.run_pod(handler=handler), "main", ["sh", "-c", TICKER])
    wanted.config.stdin = True
    container = node.runtime.CreateContainer(wanted, timeout=PATIENCE_S).container_id
    node.ids.add(container)
    node.start(container)

    async def one(number: int) -> None:
        stdin = number % 2 == 0
        request = api.AttachRequest(
            container_id=container, stdin=stdin, stdout=True, stderr=True, tty=False
        )
        answer = await asyncio.to_thread(node.runtime.Attach, request, timeout=PATIENCE_S)
        client: SpdyClient | WebSocketClient
        if number % 4 < 2:
            kinds = ["error", *(["stdin"] if stdin else []), "stdout", "stderr"]
            client, streams = await spdy(answer.url, *kinds)
            output, typed = streams["stdout"], streams.get("stdin", 0)
        else:
            client = await WebSocketClient.connect(answer.url, WEBSOCKET)
            output, typed = 1, STDIN
        await client.until_received(output, b"tick")
        if stdin:
            client.send(typed, b"typed, and read by nobody\n")
        match number % 5:
            case 0 | 1:
                await client.die()
                return
            case 2:
                # The client has said its last, and listens on.
                client.writer.write_eof()
                with contextlib.suppress(EOFError):
                    seen = len(client.received[output])
                    await client.until(lambda: len(client.received[output]) > seen + 50)
            case 3:
                # As above, and nobody reads what comes.
                await client.stop_reading()
                client.writer.write_eof()
        await client.close()

    nothing_stays(node, one)
    assert node.status(container).state == api.CONTAINER_RUNNING
