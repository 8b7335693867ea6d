"""One HTTP exchange on the wire: bounded, never following anything by itself.

The protocol is what the rest of the package speaks; `http.WireTransport` is its one real adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from imageservice.registry.origins import origin_of

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from imageservice.registry.origins import Origin

#: Makes a block in which something else than the host is waited for.
Waiting = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Tls:
    """How to speak TLS with one host.

    Attributes:
        ca_files: authorities trusted besides the system's.
        client_pairs: (certificate, key) files; the key is "" when in the same file.
        verify: False only where the operator wrote `skip_verify`.
        stamps: change when a file does, so that a connection made with the old one is not used.
    """

    ca_files: tuple[str, ...] = ()
    client_pairs: tuple[tuple[str, str], ...] = ()
    verify: bool = True
    stamps: tuple[tuple[int, int], ...] = ()

    def for_stranger(self) -> Tls:
        """For a host that this one sends us to: its authorities, never its identity or laxness."""
        return Tls(ca_files=self.ca_files, stamps=self.stamps)


@dataclass(frozen=True, slots=True)
class Request:
    """What to send.

    Attributes:
        method: GET, HEAD or POST.
        url: absolute, already checked (`origins.py`).
        headers: in order; may hold secrets.
        body: for POST; may hold secrets.
        tls: see `Tls`.
        connect_timeout_s: name resolution, TCP and TLS together.
        response_timeout_s: until the headers of the answer are complete.
        waiting: entered while the request waits for a free place, which is not its host's fault.
    """

    method: str
    url: str = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    body: bytes = field(default=b"", repr=False)
    tls: Tls = field(default_factory=Tls)
    connect_timeout_s: float = 30.0
    response_timeout_s: float = 60.0
    waiting: Waiting = field(default=nullcontext, repr=False)

    @property
    def origin(self) -> Origin:
        """Whom it is sent to."""
        return origin_of(self.url)


class Response(Protocol):
    """An answer whose body has not been read yet."""

    @property
    def status(self) -> int:
        """The status code."""
        ...

    def header(self, name: str) -> str:
        """The first header of that name (any case), stripped; empty when absent."""
        ...

    def headers(self, name: str) -> tuple[str, ...]:
        """Every header of that name."""
        ...

    async def read_chunk(self) -> bytes:
        """What has arrived of the body, waiting for at least one byte; empty at its end.

        Raises:
            RegistryUnavailable: the connection broke, or the body is shorter than announced.
        """
        ...

    async def read(self, *, limit_bytes: int) -> bytes:
        """The whole body, within the request's response timeout.

        Raises:
            TooLarge: it is, or claims to be, longer than `limit_bytes`.
            RegistryUnavailable: as `read_chunk`, and when it takes too long.
        """
        ...


class HttpTransport(Protocol):
    """Sends requests. `async with transport.open(request) as response` closes what it opened.

    Raises on entering: RegistryUnavailable (unreachable, timed out), RegistryUntrusted,
    RegistryProtocolError (not HTTP, or headers beyond the bounds), HostsConfigInvalid (a
    certificate file that does not load).
    """

    def open(self, request: Request) -> AbstractAsyncContextManager[Response]:
        """Send `request`; the response lives inside the block."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...
