"""One request and its answer on a connection: where each part ends, and what is too much.

h11 decides what an answer is: its grammar, which lengths contradict each other, chunks, whether the
connection may be used again. Only the bytes of a body whose length is told do not pass through it;
they are counted here, since h11 copies each three times: 245 MB over loopback take 0.07 s of the
processor when they are counted, 0.3 s in chunks.

Refused besides, because nobody means well by it: Content-Length together with Transfer-Encoding
(RFC 9112, 6.3, takes it for an attempt at smuggling), and heads beyond the bounds below. Bodies are
never decompressed: a blob is stored as sent, and a bomb would burst here.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import h11

from imageservice.errors import RegistryUnavailable, TooLarge
from imageservice.registry.failures import unreachable

if TYPE_CHECKING:
    from imageservice.registry.origins import Origin
    from imageservice.registry.wire import Wire

KIB: Final = 1024
#: One header line; a token in WWW-Authenticate or a signed Location is the longest known.
MAX_HEADER_LINE_BYTES: Final = 16 * KIB
MAX_HEADERS: Final = 128
#: All before the body, interim answers too.
MAX_HEAD_BYTES: Final = 64 * KIB
#: Answers of 1xx before the one that counts; a server has reason for one or two.
MAX_INTERIM: Final = 16
#: Events of h11 in one go: a body in chunks of one byte must not hold the event loop.
MAX_EVENTS: Final = 256
_READ_BYTES: Final = 256 * KIB
_BEGINNING: Final = b"HTTP/1."
_ENDED: Final = frozenset({h11.DONE, h11.MUST_CLOSE, h11.CLOSED})


class NoAnswer(ConnectionError):
    """The connection ended before a byte of an answer."""


@dataclass(frozen=True, slots=True)
class Message:
    """A request as it goes out.

    Attributes:
        method: such as GET.
        target: as it stands in the first line.
        headers: all of them, in order.
        body: its length must be among the headers.
        read_timeout_s: for an answer's body that is read as a whole.
    """

    method: str
    target: str = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(default=b"", repr=False)
    read_timeout_s: float = 60.0


class Answer:
    """See `Response`; `ask` makes it."""

    def __init__(
        self, wire: Wire, http: h11.Connection, head: h11.Response, message: Message, origin: Origin
    ) -> None:
        self.wire = wire
        self._http = http
        self._head = head
        self._origin = origin
        self._read_timeout_s = message.read_timeout_s
        self._left = self._length = _told_length(message.method, head)
        self._first = b""
        #: Whether more came with the head than belongs to the answer.
        self.has_excess = False
        if self._left is not None:
            came, _ = http.trailing_data
            self._first, self.has_excess = came[: self._left], len(came) > self._left

    @property
    def status(self) -> int:
        """See `Response`."""
        return self._head.status_code

    @property
    def is_reusable(self) -> bool:
        """Whether the next request may go over this connection; before, the body must be read."""
        if self._left is None:
            is_whole = self._http.their_state is h11.DONE and not self._http.trailing_data[0]
        else:
            is_whole = not self._left and not self.has_excess
        return is_whole and self._http.our_state is h11.DONE and self.wire.is_quiet

    def header(self, name: str) -> str:
        """See `Response`."""
        return next(iter(self.headers(name)), "")

    def headers(self, name: str) -> tuple[str, ...]:
        """See `Response`."""
        wanted = name.lower().encode("ascii")
        return tuple(
            value.decode("latin-1").strip() for key, value in self._head.headers if key == wanted
        )

    async def read_chunk(self) -> bytes:
        """See `Response`."""
        try:
            return await (self._next_framed() if self._left is None else self._next_counted())
        except (h11.RemoteProtocolError, OSError) as error:
            raise RegistryUnavailable(f"{self._origin} ended the answer too early") from error

    async def read(self, *, limit_bytes: int) -> bytes:
        """See `Response`."""
        too_large = TooLarge(f"answer of {self._origin} is larger than {limit_bytes} bytes")
        if (self._length or 0) > limit_bytes:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._read_timeout_s):
                while chunk := await self.read_chunk():
                    body += chunk
                    if len(body) > limit_bytes:
                        raise too_large
        except TimeoutError as error:
            raise unreachable(f"{self._origin} stopped in the middle of an answer") from error
        return bytes(body)

    async def _next_counted(self) -> bytes:
        assert self._left is not None
        if not self._left:
            return b""
        chunk = self._first or await self.wire.read(self._left)
        self._first = b""
        if not chunk:
            raise ConnectionResetError("closed within the body")
        self._left -= len(chunk)
        return chunk

    async def _next_framed(self) -> bytes:
        """In chunks, or all until the connection is closed."""
        parts: list[bytes] = []
        while self._http.their_state not in _ENDED and len(parts) < MAX_EVENTS:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError:
                if parts:
                    break  # it is raised again the next time
                raise
            if isinstance(event, h11.Data):
                parts.append(event.data)
            elif event is h11.NEED_DATA:
                if parts:
                    break
                await asyncio.sleep(0)  # there may be more here already, so nothing else would wait
                self._http.receive_data(await self.wire.read(_READ_BYTES))
        if len(parts) == MAX_EVENTS:
            await asyncio.sleep(0)  # nothing was waited for, and the next part is here already
        return b"".join(parts)


async def ask(wire: Wire, message: Message, origin: Origin) -> Answer:
    """Send a request and wait for the head of its answer.

    Raises:
        h11.LocalProtocolError: HTTP has no such request; its text may quote secrets of ours.
        h11.RemoteProtocolError: the answer is not HTTP within the bounds.
        NoAnswer: nothing came at all.
        OSError: the connection broke.
    """
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
    # As what the URL and the headers are: h11 checks the bytes.
    headers = [(name.encode(), value.strip(" \t").encode()) for name, value in message.headers]
    request = h11.Request(method=message.method, target=message.target, headers=headers)
    parts = [http.send(request)]
    if message.body:
        parts.append(http.send(h11.Data(data=message.body)))
    parts.append(http.send(h11.EndOfMessage()))
    wire.write(b"".join(parts))
    return Answer(wire, http, await _head(wire, http), message, origin)


async def _head(wire: Wire, http: h11.Connection) -> h11.Response:
    beginning, taken_bytes, interim = b"", 0, 0
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            data = await _more(wire, taken_bytes)
            taken_bytes += len(data)
            # Otherwise who answers in another protocol would be waited for.
            beginning += data[: len(_BEGINNING) - len(beginning)]
            if not _BEGINNING.startswith(beginning):
                raise h11.RemoteProtocolError("not HTTP/1")
            http.receive_data(data)
        elif isinstance(event, h11.Response):
            _check(event)
            return event
        elif isinstance(event, h11.InformationalResponse) and interim < MAX_INTERIM:
            interim += 1
        else:
            raise h11.RemoteProtocolError("no answer that was asked for")


async def _more(wire: Wire, taken_bytes: int) -> bytes:
    if taken_bytes == MAX_HEAD_BYTES:
        raise h11.RemoteProtocolError("the head is too large")
    try:
        data = await wire.read(MAX_HEAD_BYTES - taken_bytes)
    except OSError as error:
        # A failure of TLS is told as such: what is wanted may be our certificate.
        if taken_bytes or isinstance(error, ssl.SSLError):
            raise
        raise NoAnswer from error
    if data:
        return data
    raise ConnectionResetError("closed within the head") if taken_bytes else NoAnswer


def _check(head: h11.Response) -> None:
    lines = [len(name) + len(value) for name, value in head.headers]
    if len(lines) > MAX_HEADERS or max(lines, default=0) > MAX_HEADER_LINE_BYTES:
        raise h11.RemoteProtocolError("the head is too large")
    names = {name for name, _ in head.headers}
    if {b"content-length", b"transfer-encoding"} <= names:
        raise h11.RemoteProtocolError("two ways to tell the length")


def _told_length(method: str, head: h11.Response) -> int | None:
    """The length of a body if it is told (RFC 9112, 6.3); None if its end shows.

    What follows an accepted CONNECT is no body, and a proxy's other answer to it is not read.
    """
    if method in {"HEAD", "CONNECT"} or head.status_code in {204, 304}:
        return 0
    length = dict(head.headers).get(b"content-length")
    return None if length is None else int(length)
