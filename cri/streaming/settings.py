"""What an operator may set about streaming, as one frozen value."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sandbox.host.errors import InvalidArgument

if TYPE_CHECKING:
    from pathlib import Path

TlsChoice = Literal["off", "self-made", "pair"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingSettings:
    """Where sessions are served and how long things may take.

    Attributes:
        address: `IP:PORT` or `[IP]:PORT` of the listener; port 0 takes any free one. Loopback by
            default: the kubelet is on the same node and stands between clients and this server.
        tls: `off`; `self-made`, a certificate made at each start (it protects from listening, not
            from an impostor); `pair`, the two files below, read at each start.
        tls_cert: PEM certificate chain for `pair`.
        tls_key: its PEM key.
        idle_timeout_s: a session on which nothing moves is closed. Kubernetes' own default.
        creation_timeout_s: for a client to open the streams of its session.
        token_life_s: from the answer with the URL until a client must have connected.
    """

    address: str = "127.0.0.1:0"
    tls: TlsChoice = "off"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    idle_timeout_s: float = 4 * 3600.0
    creation_timeout_s: float = 30.0
    token_life_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse what the server could not start with. Raises InvalidArgument."""
        self.listen()
        if (self.tls == "pair") != (self.tls_cert is not None and self.tls_key is not None):
            raise InvalidArgument(
                "streaming needs both a certificate and a key, and tls = pair, or none of them"
            )
        for name in ("idle_timeout_s", "creation_timeout_s", "token_life_s"):
            if getattr(self, name) <= 0:
                raise InvalidArgument(f"streaming.{name} must be more than 0 seconds")

    def listen(self) -> tuple[str, int]:
        """Host and port. Raises InvalidArgument when `address` is not of the form above."""
        host, colon, port = self.address.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        try:
            ipaddress.ip_address(host)
            number = int(port)
        except ValueError:
            colon = ""
            number = -1
        if not colon or not port.isascii() or not 0 <= number <= 65_535:
            raise InvalidArgument(
                "streaming address is not IP:PORT",
                address=self.address,
                hint="write it like 127.0.0.1:0",
            )
        return host, number
