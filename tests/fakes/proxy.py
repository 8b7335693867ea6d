"""A real HTTP proxy on loopback: CONNECT and absolute requests, every name leading to one port.

Registries on loopback are never asked through a proxy, so those of a test have a name that nothing
resolves; only the proxy knows where they are.

    async with FakeRegistry(host="registry.test") as registry, FakeProxy(registry.port) as proxy:
        client = ...  # with proxy.url
        assert proxy.requests[0].first == f"GET http://registry.test:{registry.port}/v2/… HTTP/1.1"
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass


@dataclass(frozen=True)
class Asked:
    """The head of one request as the proxy saw it."""

    first: str
    headers: tuple[tuple[str, str], ...]

    def header(self, name: str) -> str | None:
        return next((v for k, v in self.headers if k.lower() == name.lower()), None)


class FakeProxy:
    """See the module's text.

    Args:
        upstream: the port on loopback that every name leads to.
        authorization: what Proxy-Authorization must be; None: nothing is asked for.
        status: answer this to everything instead.
        tls: a server context; then it is an https proxy.
    """

    def __init__(
        self,
        upstream: int,
        *,
        authorization: str | None = None,
        status: int | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.requests: list[Asked] = []
        self._upstream = upstream
        self.authorization = authorization
        self._status = status
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self, port: int = 0) -> FakeProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether another may follow."""
        asked = _parsed(await reader.readuntil(b"\r\n\r\n"))
        self.requests.append(asked)
        status = self._status
        if self.authorization is not None:
            given = asked.header("Proxy-Authorization")
            status = 407 if given != self.authorization else status
        if status is not None:
            writer.write(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
            return True
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        try:
            if asked.first.startswith("CONNECT "):
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await writer.drain()
                await _both_ways(reader, writer, up_reader, up_writer)
                if not writer.is_closing():  # one of TLS that is closed twice cannot be aborted
                    writer.close()
                await writer.wait_closed()  # what is still on its way back arrives
                return False
            await _forward(asked, reader, up_writer)
            await _answer(up_reader, writer)
            return True
        finally:
            up_writer.transport.abort()


def _parsed(head: bytes) -> Asked:
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    pairs = (line.partition(": ") for line in lines)
    return Asked(first, tuple((name, value) for name, _, value in pairs))


async def _forward(
    asked: Asked, reader: asyncio.StreamReader, up_writer: asyncio.StreamWriter
) -> None:
    method, target, version = asked.first.split(" ")
    assert target.startswith("http://"), target
    path = "/" + target.removeprefix("http://").partition("/")[2]
    kept = [(k, v) for k, v in asked.headers if not k.lower().startswith("proxy-")]
    lines = [f"{method} {path} {version}", *(f"{name}: {value}" for name, value in kept)]
    body = await reader.readexactly(int(asked.header("Content-Length") or 0))
    up_writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
    await up_writer.drain()


async def _answer(up_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await up_reader.readuntil(b"\r\n\r\n")
    length = int(_parsed(head).header("Content-Length") or 0)
    writer.write(head + await up_reader.readexactly(length))
    await writer.drain()


async def _both_ways(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    up_reader: asyncio.StreamReader,
    up_writer: asyncio.StreamWriter,
) -> None:
    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while chunk := await source.read(1 << 16):
                target.write(chunk)
                await target.drain()

    there = asyncio.ensure_future(pump(reader, up_writer))
    back = asyncio.ensure_future(pump(up_reader, writer))
    try:
        await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        there.cancel()
        back.cancel()
        await asyncio.gather(there, back, return_exceptions=True)
