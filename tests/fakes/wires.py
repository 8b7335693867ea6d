"""A server that says bytes as they are told, and a wire without a socket.

    async with RawServer([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", HOLD]) as server:
        ...  # the first connection: answers one request, then reads on
        assert server.requests[0].startswith(b"GET /path HTTP/1.1\r\n")

Each argument is the script of one connection: bytes answer the next request; the words below say
what else happens. Without a word at its end the connection is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from dataclasses import dataclass

from imageservice.registry.wire import Wire


@dataclass(frozen=True)
class Word:
    """Something that a server does besides answering."""

    text: str


#: Stay open, and read on.
HOLD = Word("hold")
#: Close after the next request has come, without an answer.
CLOSE = Word("close")
#: The same by a reset.
RESET = Word("reset")
#: End TCP without TLS's farewell, after what was answered.
CUT = Word("cut")
#: Answer the next request with what TLS cannot decrypt.
GARBLE = Word("garble")
#: Stay open and take notice of nothing more, TLS's farewell neither.
DEAF = Word("deaf")


class RawServer:
    """See the module's text.

    Args:
        scripts: of the connections in their order.
        tls: a server context.
        host: what is listened on.
    """

    def __init__(
        self,
        *scripts: list[bytes | Word],
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.requests: list[bytes] = []
        #: How many connections there were, and how many of them have ended.
        self.accepted = self.ended = 0
        self.port = 0
        self._scripts = list(scripts)
        self._tls = tls
        self._host = host
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> RawServer:
        self._server = await asyncio.start_server(self._serve, self._host, 0, ssl=self._tls)
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
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        script = self._scripts[self.accepted] if self.accepted < len(self._scripts) else []
        self.accepted += 1
        try:
            for step in script:
                await self._step(step, reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        else:
            if CUT not in script:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        finally:
            self.ended += 1
            self._tasks.discard(task)
            writer.transport.abort()

    async def _step(
        self, step: bytes | Word, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if step is HOLD:
            while await reader.read(1 << 16):
                pass
            return
        if step is CUT:
            raw = writer.get_extra_info("socket")
            await writer.drain()
            raw.shutdown(socket.SHUT_WR)
            return
        if step is DEAF:
            writer.transport.pause_reading()
            await asyncio.Event().wait()
        self.requests.append(await _request(reader))
        if step is RESET:
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        elif step is GARBLE:
            record = b"\x17\x03\x03\x00\x40" + bytes(64)
            os.write(writer.get_extra_info("socket").fileno(), record)
        elif isinstance(step, bytes):
            writer.write(step)
            await writer.drain()


async def _request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    return head + await reader.readexactly(length)


class MemoryTransport(asyncio.Transport):
    """Keeps what is sent; `is_reading` follows the protocol's wishes."""

    def __init__(self, tls: ssl.SSLObject | None = None) -> None:
        super().__init__({"ssl_object": tls})
        self.sent = b""
        self.reads = True
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def is_reading(self) -> bool:
        return self.reads

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True


def memory_wire(tls: ssl.SSLObject | None = None) -> tuple[Wire, MemoryTransport]:
    """A wire to which a test says what comes, by the methods that the event loop calls."""
    wire, transport = Wire(), MemoryTransport(tls)
    wire.connection_made(transport)
    return wire, transport
