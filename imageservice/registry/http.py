"""`AiohttpTransport`: the one real adapter of `transport`'s protocol.

It keeps connections per origin and TLS configuration, reads through 512 KiB buffers, never
decompresses (a blob is stored as sent, and a bomb would burst here), keeps no cookies, reads no
environment (it is told which proxy to use), follows no redirect. An exception of the HTTP library
never leaves: its text quotes URLs, and a signed URL is a secret.

Import this module only where something is sent: the library takes 7 MiB of memory.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

import aiohttp
from yarl import URL

from imageservice.errors import (
    HostsConfigInvalid,
    RegistryProtocolError,
    RegistryUnavailable,
    RegistryUntrusted,
    TooLarge,
)
from imageservice.proxies import Proxies
from imageservice.registry.proxying import (
    ProxyConnector,
    connect_reason,
    proxy_failure,
    refused,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from imageservice.proxies import ProxyServer
    from imageservice.registry.origins import Origin
    from imageservice.registry.transport import Request, Response, Tls

KIB: Final = 1024
#: Socket to parser; the parser pauses reading at twice this.
READ_BUFFER_BYTES: Final = 512 * KIB
#: One header line; a token in WWW-Authenticate or a signed Location is the longest known.
MAX_HEADER_LINE_BYTES: Final = 16 * KIB
MAX_HEADERS: Final = 128
MAX_TLS_CONTEXTS: Final = 64
USER_AGENT: Final = "podwright"


class _AiohttpResponse:
    """See `Response`."""

    def __init__(self, raw: aiohttp.ClientResponse, request: Request) -> None:
        self._raw = raw
        self._request = request

    @property
    def status(self) -> int:
        """See `Response`."""
        return self._raw.status

    def header(self, name: str) -> str:
        """See `Response`."""
        return self._raw.headers.get(name, "").strip()

    def headers(self, name: str) -> tuple[str, ...]:
        """See `Response`."""
        return tuple(self._raw.headers.getall(name, ()))

    async def read_chunk(self) -> bytes:
        """See `Response`."""
        try:
            return await self._raw.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise _translated(error, self._request) from error

    async def read(self, *, limit_bytes: int) -> bytes:
        """See `Response`."""
        origin = self._request.origin
        too_large = TooLarge(f"answer of {origin} is larger than {limit_bytes} bytes")
        announced = self._raw.content_length
        if announced is not None and announced > limit_bytes and self._request.method != "HEAD":
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._request.response_timeout_s):
                while chunk := await self.read_chunk():
                    body += chunk
                    if len(body) > limit_bytes:
                        raise too_large
        except TimeoutError as error:
            raise _unreachable(f"{origin} stopped in the middle of an answer") from error
        return bytes(body)


class AiohttpTransport:
    """See `HttpTransport`; made anywhere, used on one event loop."""

    def __init__(self, *, max_connections_per_host: int, proxies: Proxies | None = None) -> None:
        self._max_per_host = max_connections_per_host
        self._proxies = proxies or Proxies()
        self._session: aiohttp.ClientSession | None = None
        self._contexts: dict[Tls, ssl.SSLContext] = {}
        self._gates: WeakValueDictionary[Origin, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[Response]:
        """See `HttpTransport`."""
        origin = request.origin
        context = await self._context(request.tls) if origin.scheme == "https" else None
        # Our own gate and not the connector's limit: time spent waiting for a free place must not
        # count as the registry's silence.
        gate = self._gates.get(origin)
        if gate is None:
            gate = self._gates[origin] = asyncio.Semaphore(self._max_per_host)
        proxy = self._proxies.towards(origin.scheme, origin.host, origin.port)
        with request.waiting():
            await gate.acquire()
        try:
            raw = await self._send(request, context, proxy)
            try:
                if proxy is not None and raw.status == 407:  # plain http: the proxy's own answer
                    raise refused(proxy, origin, raw.status)
                yield _AiohttpResponse(raw, request)
            finally:
                # Gives the connection back when the body was read to its end, else closes it.
                raw.release()
        finally:
            gate.release()

    async def close(self) -> None:
        """See `HttpTransport`."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _send(
        self, request: Request, context: ssl.SSLContext | None, proxy: ProxyServer | None
    ) -> aiohttp.ClientResponse:
        timeout = aiohttp.ClientTimeout(
            total=None, connect=request.connect_timeout_s, sock_read=None
        )
        headers = [*request.headers, ("Accept-Encoding", "identity")]
        for_proxy = {"User-Agent": USER_AGENT}
        if proxy is not None and proxy.authorization:
            if context is None:
                headers.append(("Proxy-Authorization", proxy.authorization))
            else:
                for_proxy["Proxy-Authorization"] = proxy.authorization
        try:
            async with asyncio.timeout(request.response_timeout_s):
                return await self._open_session().request(
                    request.method,
                    URL(request.url, encoded=True),  # a signed URL must go out as it came
                    headers=headers,
                    data=request.body or None,
                    allow_redirects=False,
                    timeout=timeout,
                    ssl=True if context is None else context,
                    proxy=None if proxy is None else proxy.url,
                    proxy_headers=None if proxy is None else for_proxy,
                )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            failure = None if proxy is None else proxy_failure(error, proxy, request.origin)
            if failure is not None:
                # The cause knows every header that went to the proxy, its password too.
                raise failure from None
            raise _translated(error, request) from error

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=ProxyConnector(self._proxies),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": USER_AGENT},
                auto_decompress=False,
                trust_env=False,
                requote_redirect_url=False,
                read_bufsize=READ_BUFFER_BYTES,
                max_line_size=MAX_HEADER_LINE_BYTES,
                max_field_size=MAX_HEADER_LINE_BYTES,
                max_headers=MAX_HEADERS,
            )
        return self._session

    async def _context(self, tls: Tls) -> ssl.SSLContext:
        context = self._contexts.get(tls)
        if context is None:
            context = await asyncio.to_thread(_make_context, tls)
            if len(self._contexts) >= MAX_TLS_CONTEXTS:
                self._contexts.clear()
            self._contexts[tls] = context
        return context


def _make_context(tls: Tls) -> ssl.SSLContext:
    """A client context (TLS 1.2 or later); blocking, reads files."""
    context = ssl.create_default_context()
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


def _unreachable(message: str) -> RegistryUnavailable:
    error = RegistryUnavailable(message)
    error.is_unreachable = True
    return error


def _translated(error: Exception, request: Request) -> RegistryUnavailable:
    """Ours for a failure of the HTTP library; by class, because its text quotes URLs."""
    origin = request.origin
    match error:
        case aiohttp.ClientConnectorCertificateError() | ssl.CertificateError():
            cause = getattr(error, "certificate_error", error)
            why = getattr(cause, "verify_message", "") or "certificate is not valid"
            return RegistryUntrusted(
                f"TLS certificate of {origin} is not trusted: {ascii(str(why))[1:-1][:200]}",
                hint="put the authority's certificate into certs.d and name it as ca in hosts.toml",
            )
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return RegistryUntrusted(
                f"TLS with {origin} failed",
                hint="if the registry speaks plain HTTP, name it with http:// in its hosts.toml",
            )
        case aiohttp.ClientConnectorDNSError():
            return _unreachable(f"name {origin.host} cannot be resolved")
        case TimeoutError():
            return _unreachable(f"{origin} did not answer in time")
        case aiohttp.ClientConnectorError():
            return _unreachable(f"cannot connect to {origin}: {connect_reason(error.os_error)}")
        case aiohttp.ClientPayloadError():
            return RegistryUnavailable(f"{origin} ended the answer too early")
        case aiohttp.ClientResponseError() | ValueError():
            return RegistryProtocolError(f"{origin} does not answer in HTTP within bounds")
        case _:
            return _unreachable(f"connection to {origin} broke")
