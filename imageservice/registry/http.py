"""`WireTransport`: the one real adapter of `transport`'s protocol.

Why no HTTP library: the daemon lies idle most of its life, and what is imported for one pull stays.
aiohttp with its eight helpers took 8.5 MiB (45 before the first pull, 53.5 ever after), httpcore 5;
what is here takes 0.1 besides h11, which the streaming server needs as well: 45 before and after.
It is no slower: 245 MB over loopback take 0.07 s of the processor here as there, 0.25 with TLS.
And a registry needs little: a few connections, bodies as they are. So no cookies are kept, no
environment is read (it is told which proxy to use), no redirect is followed.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

import h11

from imageservice.errors import HostsConfigInvalid, RegistryProtocolError
from imageservice.proxies import Proxies
from imageservice.registry.answer import Message
from imageservice.registry.connections import Connections, Way
from imageservice.registry.failures import not_answered
from imageservice.registry.proxying import USER_AGENT, own, refused
from imageservice.registry.transport import Tls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from imageservice.registry.answer import Answer
    from imageservice.registry.origins import Origin
    from imageservice.registry.transport import Request, Response

MAX_TLS_CONTEXTS: Final = 64


class WireTransport:
    """See `HttpTransport`; made anywhere, used on one event loop."""

    def __init__(self, *, max_connections_per_host: int, proxies: Proxies | None = None) -> None:
        self._max_per_host = max_connections_per_host
        self._proxies = proxies or Proxies()
        self._connections = Connections()
        self._contexts: dict[Tls, ssl.SSLContext] = {}
        self._gates: WeakValueDictionary[Origin, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[Response]:
        """See `HttpTransport`."""
        origin = request.origin
        way = await self._way(origin, request.tls)
        # A gate and not a limit of the connections: time spent waiting for a free place must not
        # count as the registry's silence.
        gate = self._gates.get(origin)
        if gate is None:
            gate = self._gates[origin] = asyncio.Semaphore(self._max_per_host)
        with request.waiting():
            await gate.acquire()
        try:
            answer = await self._send(request, way)
            try:
                # In plain http it is the proxy's own answer; through a tunnel, the registry's.
                if way.proxy is not None and way.context is None and answer.status == 407:
                    raise refused(way.proxy, origin, answer.status)
                yield answer
            finally:
                self._connections.done(way, answer)
        finally:
            gate.release()

    async def close(self) -> None:
        """See `HttpTransport`."""
        await self._connections.close()

    async def _way(self, origin: Origin, tls: Tls) -> Way:
        proxy = self._proxies.towards(origin.scheme, origin.host, origin.port)
        return Way(
            origin,
            await self._context(tls) if origin.scheme == "https" else None,
            proxy,
            await self._context(Tls()) if proxy is not None and proxy.scheme == "https" else None,
        )

    async def _send(self, request: Request, way: Way) -> Answer:
        try:
            async with asyncio.timeout(request.response_timeout_s):
                return await self._connections.ask(
                    way, _message(request, way), connect_timeout_s=request.connect_timeout_s
                )
        except (h11.LocalProtocolError, UnicodeError):
            # The cause quotes the header, which may be a secret.
            raise RegistryProtocolError(
                f"request to {way.origin} has a header that HTTP does not have"
            ) from None
        except (h11.RemoteProtocolError, OSError) as error:
            raise not_answered(error, way.origin) from error

    async def _context(self, tls: Tls) -> ssl.SSLContext:
        context = self._contexts.get(tls)
        if context is None:
            made = await asyncio.to_thread(_make_context, tls)
            if len(self._contexts) >= MAX_TLS_CONTEXTS:
                self._contexts.clear()
            context = self._contexts.setdefault(tls, made)
        return context


def _message(request: Request, way: Way) -> Message:
    """The URL goes out byte for byte: a signed one is good for nothing else."""
    after = request.url.partition("://")[2].partition("#")[0]
    start = next((place for place, char in enumerate(after) if char in "/?"), len(after))
    target = after[start:] if after.startswith("/", start) else f"/{after[start:]}"
    headers = [("Host", way.origin.netloc), *request.headers]
    names = {name.lower() for name, _ in headers}
    defaults = [("User-Agent", USER_AGENT), ("Accept", "*/*"), ("Accept-Encoding", "identity")]
    headers += [pair for pair in defaults if pair[0].lower() not in names]
    if request.method == "POST":
        headers.append(("Content-Length", str(len(request.body))))
    if way.proxy is not None and way.context is None:
        target = f"{way.origin}{target}"
        headers += own(way.proxy)
    return Message(request.method, target, tuple(headers), request.body, request.response_timeout_s)


def _make_context(tls: Tls) -> ssl.SSLContext:
    """A client context (TLS 1.2 or later); blocking, reads files."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # Debian's Python leaves it to a file
    path = ""
    try:
        for path in tls.ca_files:
            context.load_verify_locations(cafile=path)
        for path, key in tls.client_pairs:
            # A key with a passphrase must fail, not ask on the daemon's terminal.
            context.load_cert_chain(path, key or None, password="")
    except (ssl.SSLError, OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise HostsConfigInvalid(
            f"certificate or key does not load: {reason or 'unreadable'}", path=path
        ) from error
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
