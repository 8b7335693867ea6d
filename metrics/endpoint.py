"""GET /metrics and GET /healthz over HTTP/1.1, one request per connection.

By hand rather than with the HTTP library that pulls images: a listener that a pod in the node's
network can reach should have as few states as possible. A request is at most one small block of
headers that arrives in time; whatever else comes is answered with an error, and the connection is
closed in any case. The number of connections is bounded.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from metrics.instruments import CONTENT_TYPE
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from metrics.instruments import Instruments
    from metrics.settings import MetricsSettings

#: Scrapers send a few hundred bytes.
REQUEST_LIMIT_BYTES: Final = 8 * 1024
CONNECTIONS_LIMIT: Final = 16

_PLAIN: Final = "text/plain; charset=utf-8"
_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
}

_log = get_logger("metrics")


class MetricsEndpoint:
    """The listener; does nothing when no address is set."""

    def __init__(self, instruments: Instruments, settings: MetricsSettings) -> None:
        self._instruments = instruments
        self._settings = settings
        self._server: asyncio.Server | None = None
        self._connections = 0

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port listened on, once started."""
        if self._server is None or not self._server.sockets:
            return None
        host, port = self._server.sockets[0].getsockname()[:2]
        return str(host), int(port)

    async def start(self) -> None:
        """Listen, or say in the log why not: pods are worth more than their numbers."""
        if not self._settings.address:
            return
        host, port = self._settings.listen()
        try:
            self._server = await asyncio.start_server(
                self._serve, host, port, limit=REQUEST_LIMIT_BYTES
            )
        except OSError as error:
            _log.error(
                "metrics are not served",
                address=self._settings.address,
                error=error,
                hint="another program may have the port: set metrics.address",
            )
            return
        _log.info("serving metrics", address=self._settings.address)

    async def close(self) -> None:
        """Stop listening."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._connections >= CONNECTIONS_LIMIT:
            # Without an answer: to answer well, the request would have to be waited for.
            writer.transport.abort()
            return
        self._connections += 1
        try:
            # A peer that is slow or gone ends the connection, nothing else.
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(self._settings.request_timeout_s):
                    writer.write(await self._response(reader))
                    await writer.drain()
        finally:
            self._connections -= 1
            writer.close()

    async def _response(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return _message(400, b"not a request\n")
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _message(400, b"not a request\n")
        method, target = words[0], words[1].split(b"?", 1)[0]
        if target not in {b"/metrics", b"/healthz"}:
            return _message(404, b"only /metrics and /healthz are here\n")
        if method not in {b"GET", b"HEAD"}:
            return _message(405, b"only GET is allowed\n", b"Allow: GET, HEAD\r\n")
        if target == b"/healthz":
            return _message(200, b"ok\n", head_only=method == b"HEAD")
        try:
            body = self._instruments.exposition()
        except Exception as error:
            # Values come from callbacks of the engines; a scrape must not end the daemon.
            _log.error("metrics could not be collected", exc_info=True, error=error)
            return _message(500, b"metrics could not be collected\n")
        return _message(200, body, content_type=CONTENT_TYPE, head_only=method == b"HEAD")


def _message(
    status: int,
    body: bytes,
    headers: bytes = b"",
    *,
    content_type: str = _PLAIN,
    head_only: bool = False,
) -> bytes:
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\n"
        f"Content-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n"
    ).encode()
    return head + headers + b"\r\n" + (b"" if head_only else body)
