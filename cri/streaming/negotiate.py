"""Which protocol a request gets, or why none: pure, decided from the request's headers alone.

| upgrade   | offers in                 | exec, attach       | port-forward                |
| --------- | ------------------------- | ------------------ | --------------------------- |
| SPDY/3.1  | X-Stream-Protocol-Version | v4, v3, v2, v1     | portforward.k8s.io          |
| websocket | Sec-WebSocket-Protocol    | v5, v4, v1, and    | SPDY/3.1+portforward.k8s.io |
|           |                           | base64 of v4, v1   | v4, v1, and base64 of both  |

(v4 stands for v4.channel.k8s.io, v1 for channel.k8s.io, and so on.)

The first of the client's offers that we know is taken. Without any offer the oldest protocol is
meant, as ever. Clients that are refused with 403 try again with what they know besides.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from wsproto.utilities import generate_accept_token

from cri.streaming.targets import KINDS

if TYPE_CHECKING:
    from cri.streaming.http1 import Headers, HttpRequest

SPDY: Final = "SPDY/3.1"
PORT_FORWARD: Final = "portforward.k8s.io"
TUNNEL: Final = f"{SPDY}+{PORT_FORWARD}"

_V1: Final = "channel.k8s.io"
_V2: Final = "v2.channel.k8s.io"
_V3: Final = "v3.channel.k8s.io"
_V4: Final = "v4.channel.k8s.io"
_V5: Final = "v5.channel.k8s.io"
_BASE64_V1: Final = "base64.channel.k8s.io"
_BASE64_V4: Final = "v4.base64.channel.k8s.io"

_SPDY_COMMANDS: Final = (_V4, _V3, _V2, _V1)
_WS_COMMANDS: Final = (_V5, _V4, _V1, _BASE64_V4, _BASE64_V1)
_WS_FORWARD: Final = (TUNNEL, _V4, _V1, _BASE64_V4, _BASE64_V1)

_NONCE_LENGTH: Final = 24


class Carrier(enum.Enum):
    """What carries the streams."""

    SPDY = "spdy"
    WEBSOCKET = "websocket"
    TUNNEL = "spdy in websocket"


@dataclass(frozen=True, slots=True)
class Agreed:
    """An upgrade that will be accepted.

    Attributes:
        kind: exec, attach or portforward.
        token: from the URL, not looked at yet.
        carrier: what the streams travel in.
        protocol: the sub-protocol, empty where the client offered none.
        headers: of the 101 answer.
    """

    kind: str
    token: str
    carrier: Carrier
    protocol: str
    headers: Headers

    @property
    def base64(self) -> bool:
        """Channels in text messages."""
        return self.protocol in {_BASE64_V1, _BASE64_V4}

    @property
    def structured_status(self) -> bool:
        """The error stream carries a Status document."""
        return self.protocol in {_V4, _V5, _BASE64_V4}

    @property
    def half_close(self) -> bool:
        """Single channels can be closed (SPDY streams always can)."""
        return self.protocol == _V5

    @property
    def resizes(self) -> bool:
        """A client with a terminal opens a stream for its sizes."""
        return self.protocol not in {_V1, _V2, ""} or self.carrier is Carrier.WEBSOCKET


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to a request that gets no session."""

    status: int
    text: str
    headers: Headers = ()


def negotiate(request: HttpRequest) -> Agreed | Refusal:
    """Judge a request by its path, method and headers."""
    parts = request.path.split("/")
    if len(parts) != 3 or parts[0] or parts[1] not in KINDS.values() or not parts[2]:
        return Refusal(HTTPStatus.NOT_FOUND, "not found")
    if request.method not in {"GET", "POST"}:
        return Refusal(
            HTTPStatus.METHOD_NOT_ALLOWED, "method not allowed", (("Allow", "GET, POST"),)
        )
    kind, token = parts[1], parts[2]
    upgrades = [value.lower() for value in request.values("upgrade")]
    if "upgrade" not in {value.lower() for value in request.values("connection")} or not upgrades:
        return Refusal(HTTPStatus.BAD_REQUEST, "an upgrade to SPDY/3.1 or websocket is required")
    if "websocket" in upgrades:
        return _websocket(request, kind, token)
    if SPDY.lower() in upgrades:
        return _spdy(request, kind, token)
    return Refusal(HTTPStatus.BAD_REQUEST, "the upgrade must be SPDY/3.1 or websocket")


def _spdy(request: HttpRequest, kind: str, token: str) -> Agreed | Refusal:
    known = (PORT_FORWARD,) if kind == "portforward" else _SPDY_COMMANDS
    offered = request.values("x-stream-protocol-version")
    protocol = next((name for name in offered if name in known), None)
    if offered and protocol is None:
        return Refusal(
            HTTPStatus.FORBIDDEN,
            f"unable to upgrade: none of the stream protocols offered is known, known are: "
            f"{', '.join(known)}",
            tuple(("X-Accepted-Stream-Protocol-Versions", name) for name in known),
        )
    headers: Headers = (("Connection", "Upgrade"), ("Upgrade", SPDY))
    if protocol is not None:
        headers = (*headers, ("X-Stream-Protocol-Version", protocol))
    return Agreed(kind, token, Carrier.SPDY, protocol or "", headers)


def _websocket(request: HttpRequest, kind: str, token: str) -> Agreed | Refusal:
    if request.method != "GET":
        return Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "websocket needs GET", (("Allow", "GET"),))
    if request.value("sec-websocket-version") != "13":
        return Refusal(
            HTTPStatus.UPGRADE_REQUIRED,
            "only version 13 of websocket is known",
            (("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket")),
        )
    nonce = request.value("sec-websocket-key")
    if len(nonce) != _NONCE_LENGTH or not nonce.isascii():
        return Refusal(HTTPStatus.BAD_REQUEST, "Sec-WebSocket-Key is missing or malformed")
    known = _WS_FORWARD if kind == "portforward" else _WS_COMMANDS
    offered = request.values("sec-websocket-protocol")
    protocol = next((name for name in offered if name in known), None)
    if offered and protocol is None:
        return Refusal(
            HTTPStatus.FORBIDDEN,
            "unable to upgrade: none of the sub-protocols offered is known, known are: "
            f"{', '.join(known)}",
        )
    headers: Headers = (
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Accept", generate_accept_token(nonce.encode()).decode()),
    )
    if protocol is not None:
        headers = (*headers, ("Sec-WebSocket-Protocol", protocol))
    carrier = Carrier.TUNNEL if protocol == TUNNEL else Carrier.WEBSOCKET
    return Agreed(kind, token, carrier, protocol or "", headers)
