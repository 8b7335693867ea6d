"""A session of port-forward: each connection of the client joined to one inside the pod.

Over SPDY a connection is two streams with the same `requestID`: `data`, both ways, and `error`, on
which the server says why it could not connect, and whose end tells the client that the connection
is over. In the channel form of WebSocket the ports are fixed beforehand, two channels for each.

A connection that breaks after it was made is only ended, without a word on its error stream:
Kubernetes' client takes any error there for the end of the whole session, and one server that
resets a connection must not take the others along.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from cri.streaming.targets import check_port
from cri.streaming.wire import ClientGone
from sandbox.host.errors import InvalidArgument, PodwrightError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cri.streaming.channels import ClientStream
    from cri.streaming.links import SpdyLink, WebSocketLink

#: Connections of one session at a time, those that are being taken down included.
CONNECTIONS_LIMIT: Final = 512
#: Two streams each, and as many again that are half open or half closed.
STREAMS_LIMIT: Final = 4 * CONNECTIONS_LIMIT
#: How long a connection stays whose server has finished while the client sends nothing.
LINGER_S: Final = 5.0
_READ_BYTES: Final = 64 * 1024

if TYPE_CHECKING:
    Connect = Callable[[int], Awaitable[socket.socket]]


class _Pair:
    """The streams of one connection as they arrive."""

    def __init__(self) -> None:
        self.streams: dict[str, ClientStream] = {}
        self.complete = asyncio.Event()


async def forward_streams(link: SpdyLink, connect: Connect, *, creation_timeout_s: float) -> None:
    """Serve connections until the client goes."""
    pairs: dict[str, _Pair] = {}
    running = 0
    async with asyncio.TaskGroup() as group:

        async def serve(key: str, pair: _Pair) -> None:
            nonlocal running
            try:
                await _serve(link, pair, connect, creation_timeout_s)
            finally:
                running -= 1
                if pairs.get(key) is pair:
                    del pairs[key]

        while (stream := await link.opened()) is not None:
            kind = stream.headers.get("streamtype", "")
            key = _request_id(stream, kind)
            pair = pairs.get(key)
            if kind not in {"data", "error"} or (pair is not None and kind in pair.streams):
                stream.reset()
                continue
            if pair is None:
                if running >= CONNECTIONS_LIMIT:
                    stream.reset()
                    continue
                pair = pairs[key] = _Pair()
                running += 1
                group.create_task(serve(key, pair))
            pair.streams[kind] = stream
            if len(pair.streams) == 2:
                pair.complete.set()


def _request_id(stream: ClientStream, kind: str) -> str:
    """What joins two streams; old clients sent none and opened them one right after the other."""
    given = stream.headers.get("requestid", "")
    if given:
        return f"id {given}"
    return f"stream {stream.number if kind == 'error' else stream.number - 2}"


async def _serve(link: SpdyLink, pair: _Pair, connect: Connect, creation_timeout_s: float) -> None:
    try:
        async with asyncio.timeout(creation_timeout_s):
            await pair.complete.wait()
        data, error = pair.streams["data"], pair.streams["error"]
        error.discard()
        try:
            port = check_port(_number(data.headers.get("port", "")))
            connected = await connect(port)
        except PodwrightError as failure:
            await error.send(str(failure).encode())
            error.finish()
            return
        await _join(data, connected)
        data.finish()
        error.finish()
    except (TimeoutError, ClientGone):
        return
    finally:
        for stream in pair.streams.values():
            link.forget(stream)


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 5:
        raise InvalidArgument(f"port {text[:16]!r} is not a number")
    return int(text)


async def forward_channels(link: WebSocketLink, ports: tuple[int, ...], connect: Connect) -> None:
    """Serve one connection for each port; returns when all are over."""
    for index, port in enumerate(ports):
        for number in (2 * index, 2 * index + 1):
            link.announce(number, port.to_bytes(2, "little"))

    async def one(index: int, port: int) -> None:
        data, error = link.channel(2 * index), link.channel(2 * index + 1)
        error.discard()
        with suppress(ClientGone):
            try:
                connected = await connect(port)
            except PodwrightError as failure:
                data.discard()
                await error.send(str(failure).encode())
                return
            await _join(data, connected)

    async with asyncio.TaskGroup() as group:
        for index, port in enumerate(ports):
            group.create_task(one(index, port))
    await link.close()


async def _join(stream: ClientStream, connected: socket.socket) -> None:
    """Copy both ways until both are over; closes the socket."""
    loop = asyncio.get_running_loop()
    received_bytes = 0

    async def inwards() -> None:
        nonlocal received_bytes
        with suppress(OSError):
            while data := await stream.read():
                received_bytes += len(data)
                await loop.sock_sendall(connected, data)
            connected.shutdown(socket.SHUT_WR)
        stream.discard()

    async def outwards() -> None:
        with suppress(OSError, ClientGone):
            while data := await loop.sock_recv(connected, _READ_BYTES):
                await stream.send(data)

    try:
        async with asyncio.TaskGroup() as group:
            into, out = group.create_task(inwards()), group.create_task(outwards())
            over = group.create_task(stream.over.wait())
            await asyncio.wait({out, over}, return_when=asyncio.FIRST_COMPLETED)
            stream.finish()
            before = -1
            while not into.done() and not over.done() and received_bytes > before:
                before = received_bytes
                await asyncio.wait(
                    {into, over}, timeout=LINGER_S, return_when=asyncio.FIRST_COMPLETED
                )
            for task in (into, out, over):
                task.cancel()
    finally:
        connected.close()
