"""The one HTTP/1.1 request on a connection, up to the upgrade: bytes in, values out, on h11.

A request is one bounded block of headers, without a body. Whatever it asks for besides an upgrade
is answered with an error and the connection is closed; there are no redirects and no second
request, so nothing can be smuggled behind the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import h11

if TYPE_CHECKING:
    from collections.abc import Iterable

#: A request line and headers; clients of the kubelet send a few hundred bytes.
REQUEST_LIMIT_BYTES: Final = 16 * 1024

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request whose headers are complete.

    Attributes:
        method: as sent, such as GET.
        path: the target without its query.
        headers: names in lower case, in the order sent.
    """

    method: str
    path: str
    headers: Headers

    def values(self, name: str) -> list[str]:
        """Every element of a header that is a comma-separated list; lines of it are joined."""
        lines = [value for key, value in self.headers if key == name]
        parts = (part.strip() for line in lines for part in line.split(","))
        return [part for part in parts if part]

    def value(self, name: str) -> str:
        """The header where it occurs once; empty where it is absent or ambiguous."""
        found = [value for key, value in self.headers if key == name]
        return found[0].strip() if len(found) == 1 else ""


@dataclass(frozen=True, slots=True)
class Malformed:
    """Not a request that will be answered with anything but `status`."""

    status: int
    reason: str


class HttpExchange:
    """One connection's HTTP part."""

    def __init__(self) -> None:
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_LIMIT_BYTES)
        self._request: HttpRequest | None = None
        self._outcome: HttpRequest | Malformed | None = None

    def receive_data(self, data: bytes) -> HttpRequest | Malformed | None:
        """What these bytes complete, once; None while more is needed.

        An empty `data` says that the client will send no more.
        """
        if self._outcome is not None:
            # The client does not wait for the answer: kept for whoever takes over.
            self._h11.receive_data(data)
            return None
        try:
            self._h11.receive_data(data)
            self._outcome = self._next()
        except h11.RemoteProtocolError as error:
            self._outcome = Malformed(error.error_status_hint, f"not a request: {error}")
        return self._outcome

    def _next(self) -> HttpRequest | Malformed | None:
        while True:
            event = self._h11.next_event()
            if isinstance(event, h11.Request):
                if event.http_version != b"1.1":
                    return Malformed(
                        HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "only HTTP/1.1 is spoken here"
                    )
                if any(name == b"transfer-encoding" for name, _ in event.headers):
                    # Even an empty body would leave it open where the next protocol begins.
                    return Malformed(HTTPStatus.BAD_REQUEST, "a request here has no body")
                self._request = HttpRequest(
                    method=event.method.decode("ascii"),
                    path=event.target.decode("latin-1").partition("?")[0],
                    headers=tuple(
                        (name.decode("ascii"), value.decode("latin-1"))
                        for name, value in event.headers
                    ),
                )
            elif isinstance(event, h11.Data):
                return Malformed(HTTPStatus.BAD_REQUEST, "a request here has no body")
            elif isinstance(event, h11.EndOfMessage):
                return self._request
            elif isinstance(event, h11.ConnectionClosed):
                return Malformed(HTTPStatus.BAD_REQUEST, "no request was sent")
            else:
                return None

    def switch(self, headers: Headers) -> tuple[bytes, bytes]:
        """Accept the upgrade: (the answer, what the client has sent of the new protocol)."""
        answer = self._h11.send(h11.InformationalResponse(status_code=101, headers=_wire(headers)))
        trailing, _ = self._h11.trailing_data
        return answer or b"", trailing

    def refuse(self, status: int, text: str, headers: Headers = ()) -> bytes:
        """The whole answer that ends the connection."""
        body = text.encode() + b"\n"
        response = h11.Response(
            status_code=status,
            reason=HTTPStatus(status).phrase.encode(),
            headers=_wire(
                (
                    ("Content-Type", "text/plain; charset=utf-8"),
                    ("Content-Length", str(len(body))),
                    ("X-Content-Type-Options", "nosniff"),
                    ("Connection", "close"),
                    *headers,
                )
            ),
        )
        parts: Iterable[bytes | None] = (
            self._h11.send(response),
            self._h11.send(h11.Data(data=body)),
            self._h11.send(h11.EndOfMessage()),
        )
        return b"".join(part or b"" for part in parts)


def _wire(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers]
