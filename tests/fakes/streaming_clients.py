"""Clients of the streaming server: SPDY and WebSocket over real sockets, with manners of choice.

They can stop reading, half-close, or die, which the real programs cannot be told to do.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import ssl
import struct
from collections import defaultdict
from contextlib import suppress
from urllib.parse import urlsplit

import h11
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Message,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)

from cri.streaming import spdy_frames as frames
from cri.streaming.spdy_headers import HeaderCompressor, HeaderDecompressor


class Refused(Exception):
    """The server did not upgrade."""

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        super().__init__(f"{status}: {body.decode()}")
        self.status = status
        self.headers = headers
        self.body = body


async def _connect(url: str, context: ssl.SSLContext | None):
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port, ssl=context, limit=1024 * 1024)


class _Client:
    """A connection, and a task that reads it unless told not to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.closed = asyncio.Event()
        self.received: dict[int, bytearray] = defaultdict(bytearray)
        self.ended: dict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self.changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start_reading(self) -> None:
        assert self._task is None
        self._task = asyncio.get_running_loop().create_task(self._read())

    async def stop_reading(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _read(self) -> None:
        with suppress(ConnectionError, ssl.SSLError):
            while data := await self.reader.read(64 * 1024):
                self.take(data)
                self.changed.set()
        self.closed.set()
        for event in self.ended.values():
            event.set()
        self.changed.set()

    def take(self, data: bytes) -> None:
        raise NotImplementedError

    async def until(self, condition) -> None:
        while not condition():
            if self.closed.is_set():
                raise EOFError(f"the server closed; received: {dict(self.received)}")
            self.changed.clear()
            await self.changed.wait()

    async def until_received(self, number: int, text: bytes) -> None:
        await self.until(lambda: text in self.received[number])

    async def wait_closed(self) -> None:
        if not self.closed.is_set():
            await self.closed.wait()

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def close(self) -> None:
        await self.stop_reading()
        self.writer.close()
        with suppress(ConnectionError, ssl.SSLError):
            await self.writer.wait_closed()

    async def die(self) -> None:
        """As when the process is killed with unread bytes: the connection is reset."""
        await self.stop_reading()
        link = self.writer.get_extra_info("socket")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        await asyncio.sleep(0)


class SpdyClient(_Client):
    """As client-go's SPDY executor, but scriptable. Streams are odd numbers from 1."""

    def __init__(self, reader, writer, protocol: str) -> None:
        super().__init__(reader, writer)
        self.protocol = protocol
        self.replied: set[int] = set()
        self.resets: dict[int, int] = {}
        self.pongs: list[int] = []
        self.gone_away = False
        self.windows: list[tuple[int, int]] = []
        self._next = 1
        self._decoder = frames.FrameDecoder()
        self._compressor = HeaderCompressor()
        self._decompressor = HeaderDecompressor()

    @classmethod
    async def connect(
        cls,
        url: str,
        *protocols: str,
        method: str = "POST",
        context: ssl.SSLContext | None = None,
        early: bytes = b"",
    ) -> SpdyClient:
        reader, writer = await _connect(url, context)
        http = h11.Connection(h11.CLIENT)
        headers = [
            ("Host", "localhost"),
            ("Connection", "Upgrade"),
            ("Upgrade", "SPDY/3.1"),
            *(("X-Stream-Protocol-Version", name) for name in protocols),
        ]
        if method == "POST":
            headers.append(("Content-Length", "0"))
        path = urlsplit(url).path
        writer.write(http.send(h11.Request(method=method, target=path, headers=headers)))
        writer.write(http.send(h11.EndOfMessage()) or b"")
        writer.write(early)
        answer, trailing = await _response(reader, http)
        if answer.status_code != 101:
            writer.close()
            raise Refused(answer.status_code, list(answer.headers), trailing)
        chosen = dict(answer.headers).get(b"x-stream-protocol-version", b"").decode()
        client = cls(reader, writer, chosen)
        if trailing:
            client.take(trailing)
        client.start_reading()
        return client

    def take(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            if isinstance(frame, frames.Data):
                self.received[frame.stream_id] += frame.data
                if frame.fin:
                    self.ended[frame.stream_id].set()
            elif frame.kind == frames.SYN_REPLY:
                number, block = frames.parse_block_frame(frame.payload)
                self._decompressor.decompress(block)
                self.replied.add(number)
            elif frame.kind == frames.RST_STREAM:
                number, status = frames.parse_pair(frame.payload)
                self.resets[number] = status
                self.ended[number].set()
            elif frame.kind == frames.PING:
                self.pongs.append(frames.parse_ping(frame.payload))
            elif frame.kind == frames.GOAWAY:
                self.gone_away = True
            elif frame.kind == frames.WINDOW_UPDATE:
                self.windows.append(frames.parse_pair(frame.payload))

    def open_now(self, *, fin: bool = False, **headers: str) -> int:
        number, self._next = self._next, self._next + 2
        self.write(frames.syn_stream(number, self._compressor.compress(headers), fin=fin))
        return number

    async def open(self, **headers: str) -> int:
        """A stream, once the server has replied or refused."""
        number = self.open_now(**headers)
        await self.until(lambda: number in self.replied or number in self.resets)
        return number

    async def open_all(self, *kinds: str) -> dict[str, int]:
        return {kind: await self.open(streamType=kind) for kind in kinds}

    def send(self, number: int, data: bytes, *, fin: bool = False) -> None:
        self.write(frames.data_frame(number, data, fin=fin))

    async def drain(self) -> None:
        await self.writer.drain()

    def finish(self, number: int) -> None:
        self.send(number, b"", fin=True)

    async def read_all(self, number: int) -> bytes:
        await self.ended[number].wait()
        return bytes(self.received[number])


class WebSocketClient(_Client):
    """As client-go's WebSocket executor, but scriptable; `ended` is the connection's end."""

    def __init__(self, reader, writer, connection: WSConnection, protocol: str | None) -> None:
        super().__init__(reader, writer)
        self.protocol = protocol or ""
        self.code: int | None = None
        self.pongs: list[bytes] = []
        self.messages: list[bytes] = []
        self._partial = bytearray()
        self._connection = connection

    @classmethod
    async def connect(
        cls, url: str, *protocols: str, context: ssl.SSLContext | None = None
    ) -> WebSocketClient:
        reader, writer = await _connect(url, context)
        handshake = WSConnection(ConnectionType.CLIENT)
        path = urlsplit(url).path
        writer.write(
            handshake.send(Request(host="localhost", target=path, subprotocols=list(protocols)))
        )
        refused: RejectConnection | None = None
        body = b""
        while True:
            data = await reader.read(64 * 1024)
            handshake.receive_data(data or None)
            for event in handshake.events():
                if isinstance(event, AcceptConnection):
                    client = cls(reader, writer, handshake, event.subprotocol)
                    client._events()
                    client.start_reading()
                    return client
                if isinstance(event, RejectConnection):
                    refused = event
                if isinstance(event, RejectData):
                    body += event.data
                    if event.body_finished and refused is not None:
                        writer.close()
                        raise Refused(refused.status_code, list(refused.headers), body)

    def take(self, data: bytes) -> None:
        self._connection.receive_data(data)
        self._events()

    def _events(self) -> None:
        for event in self._connection.events():
            if isinstance(event, Message):
                data = event.data
                self._partial += data.encode() if isinstance(data, str) else data
                if event.message_finished:
                    self._message(bytes(self._partial))
                    self._partial.clear()
            elif isinstance(event, Ping):
                self.write(self._connection.send(event.response()))
            elif isinstance(event, Pong):
                self.pongs.append(bytes(event.payload))
            elif isinstance(event, CloseConnection):
                self.code = int(event.code)
                if self._connection.state.name == "REMOTE_CLOSING":
                    self.write(self._connection.send(event.response()))
                self.writer.close()

    def _message(self, message: bytes) -> None:
        self.messages.append(message)
        if message:
            self.received[message[0]] += message[1:]

    def send(self, channel: int, data: bytes) -> None:
        self.write(self._connection.send(BytesMessage(bytes((channel,)) + data)))

    def send_text(self, text: str) -> None:
        self.write(self._connection.send(TextMessage(text)))

    def send_bytes(self, data: bytes) -> None:
        self.write(self._connection.send(BytesMessage(data)))

    def finish(self, channel: int) -> None:
        self.send(255, bytes((channel,)))

    def ping(self, payload: bytes) -> None:
        self.write(self._connection.send(Ping(payload)))

    def say_goodbye(self) -> None:
        self.write(self._connection.send(CloseConnection(1000)))


class TunnelClient(SpdyClient):
    """SPDY inside of WebSocket messages, as `kubectl port-forward`."""

    def __init__(self, socket_client: WebSocketClient) -> None:
        super().__init__(socket_client.reader, socket_client.writer, socket_client.protocol)
        self._socket_client = socket_client

    @classmethod
    async def open_tunnel(cls, url: str, *protocols: str) -> TunnelClient:
        inner = await WebSocketClient.connect(url, *protocols)
        await inner.stop_reading()
        client = cls(inner)
        inner._message = lambda message: SpdyClient.take(client, message)  # type: ignore[method-assign]
        client.start_reading()
        return client

    def take(self, data: bytes) -> None:
        self._socket_client.take(data)

    def write(self, data: bytes) -> None:
        self._socket_client.send_bytes(data)


async def _response(reader: asyncio.StreamReader, http: h11.Connection):
    """(the answer's head, what came after it or its body)."""
    body = b""
    answer = None
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(64 * 1024))
        elif isinstance(event, h11.InformationalResponse) and event.status_code == 101:
            return event, http.trailing_data[0]
        elif isinstance(event, h11.Response):
            answer = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed) or event is h11.PAUSED:
            assert answer is not None, event
            return answer, body


async def raw_request(url: str, *lines: str, method: str = "GET") -> bytes:
    """The server's whole answer to a request of these header lines."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = "\r\n".join([f"{method} {parts.path or '/'} HTTP/1.1", "Host: x", *lines, "", ""])
    writer.write(head.encode())
    answer = await reader.read()
    writer.close()
    return answer


def websocket_key() -> str:
    import base64

    return base64.b64encode(secrets.token_bytes(16)).decode()
