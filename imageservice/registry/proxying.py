"""Going through a proxy with aiohttp: whose certificate is judged by what, and who failed.

To an https address a proxy is asked with CONNECT, so that it sees the name of the registry and
nothing else; what stands in plain http goes to it whole, with the address in the first line. The
proxy's own password goes to the proxy: in the CONNECT, or as a header that every hop of HTTP must
take away (RFC 9110, 11.7).

aiohttp judges the certificate of an https proxy by the rules of the registry behind it. One
registry's `skip_verify` would then give the proxy's password to anybody, and its client certificate
to the proxy; so the connector here has a context for proxies alone. That method is private to
aiohttp: the version is locked, and a test fails when it is not called any more.
"""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING

import aiohttp

from imageservice.errors import RegistryUnavailable, RegistryUntrusted

if TYPE_CHECKING:
    from imageservice.proxies import Proxies, ProxyServer
    from imageservice.registry.origins import Origin

_REMEDY = "image.https_proxy, image.http_proxy and image.no_proxy say what goes through it"


class ProxyConnector(aiohttp.TCPConnector):
    """A connector that trusts proxies by the system's authorities."""

    def __init__(self, proxies: Proxies) -> None:
        super().__init__(limit=0, limit_per_host=0)
        self._proxies = {
            (proxy.host, proxy.port)
            for proxy in (proxies.https, proxies.http)
            if proxy is not None and proxy.scheme == "https"
        }
        # Made here and not when it is needed: reading the authorities blocks for some milliseconds.
        self._proxy_context = ssl.create_default_context() if self._proxies else None

    def _get_ssl_context(self, req: aiohttp.ClientRequest) -> ssl.SSLContext | None:
        # As it stands in the address; `host` would be the name as people write it.
        is_proxy = req.proxy is None and (req.url.raw_host, req.url.port) in self._proxies
        return self._proxy_context if is_proxy else super()._get_ssl_context(req)


def connect_reason(error: OSError) -> str:
    """Why there is no connection, in the kernel's words: asyncio's own text tells addresses only.

    Of several addresses each may have failed for a reason of its own.
    """
    causes: list[OSError] = [error]
    nested = getattr(error, "exceptions", ())
    if isinstance(nested, tuple):
        causes = [cause for cause in nested if isinstance(cause, OSError)] or causes
    reasons = [
        os.strerror(cause.errno) if cause.errno else cause.strerror or type(cause).__name__
        for cause in causes
    ]
    return ", ".join(dict.fromkeys(reasons)).lower()


def refused(proxy: ProxyServer, origin: Origin, status: int) -> RegistryUnavailable:
    """For a proxy that answers in the registry's place."""
    if status == 407:  # Proxy Authentication Required
        error = RegistryUnavailable(
            f"proxy {proxy.url} does not accept its user and password, or wants some", hint=_REMEDY
        )
    else:
        error = RegistryUnavailable(
            f"proxy {proxy.url} does not connect to {origin}: status {status}", hint=_REMEDY
        )
        error.is_unreachable = True
    error.is_transient = status >= 500
    return error


def proxy_failure(
    error: Exception, proxy: ProxyServer, origin: Origin
) -> RegistryUnavailable | None:
    """Ours for a failure between us and the proxy; None where it lies behind that."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return refused(proxy, origin, error.status)
    if not isinstance(error, aiohttp.ClientConnectorError):
        return None
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        reason = connect_reason(error.os_error)
    elif (error.host, error.port) != (proxy.host, proxy.port):
        return None
    elif isinstance(error, aiohttp.ClientConnectorDNSError):
        reason = "its name cannot be resolved"
    elif isinstance(error, aiohttp.ClientSSLError):
        return RegistryUntrusted(
            f"TLS certificate of proxy {proxy.url} is not trusted", hint="add it to the system's"
        )
    else:
        reason = connect_reason(error.os_error)
    failure = RegistryUnavailable(f"cannot connect to proxy {proxy.url}: {reason}", hint=_REMEDY)
    failure.is_unreachable = True
    return failure
