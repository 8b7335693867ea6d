"""Going through a proxy: what it is asked, and who failed.

To an https address a proxy is asked with CONNECT, so that it sees the name of the registry and
nothing else; what stands in plain http goes to it whole, with the address in the first line. The
proxy's own password goes to the proxy: in the CONNECT, or as a header that every hop of HTTP must
take away (RFC 9110, 11.7). An https proxy is judged by the system's authorities: one registry's
`skip_verify` would else give the proxy's password to anybody, and its client certificate to the
proxy.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from imageservice.errors import RegistryProtocolError, RegistryUnavailable, RegistryUntrusted
from imageservice.registry.answer import Message
from imageservice.registry.failures import connect_reason, unreachable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageservice.proxies import ProxyServer
    from imageservice.registry.origins import Origin

USER_AGENT: Final = "podwright"
_REMEDY: Final = "image.https_proxy, image.http_proxy and image.no_proxy say what goes through it"


def tunnel_request(proxy: ProxyServer, origin: Origin) -> Message:
    """What asks for a way through to `origin`."""
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    target = f"{host}:{origin.port}"  # here the port is never left out (RFC 9110, 9.3.6)
    return Message("CONNECT", target, (("Host", target), ("User-Agent", USER_AGENT), *own(proxy)))


def own(proxy: ProxyServer) -> tuple[tuple[str, str], ...]:
    """The headers that are for the proxy alone."""
    return (("Proxy-Authorization", proxy.authorization),) if proxy.authorization else ()


def refused(proxy: ProxyServer, origin: Origin, status: int) -> RegistryUnavailable:
    """For a proxy that answers in the registry's place."""
    if status == 407:  # Proxy Authentication Required
        error = RegistryUnavailable(
            f"proxy {proxy.url} does not accept its user and password, or wants some", hint=_REMEDY
        )
    else:
        error = unreachable(
            f"proxy {proxy.url} does not connect to {origin}: status {status}", hint=_REMEDY
        )
    error.is_transient = status >= 500
    return error


def not_connected(error: OSError | UnicodeError, proxy: ProxyServer) -> RegistryUnavailable:
    """For a failure between us and the proxy."""
    match error:
        case ssl.SSLError():
            return RegistryUntrusted(
                f"TLS certificate of proxy {proxy.url} is not trusted",
                hint="add it to the system's",
            )
        case socket.gaierror() | UnicodeError():
            reason = "its name cannot be resolved"
        case _:
            reason = connect_reason(error)
    return unreachable(f"cannot connect to proxy {proxy.url}: {reason}", hint=_REMEDY)


def not_answered(error: Exception, proxy: ProxyServer) -> RegistryUnavailable:
    """For a proxy that does not say whether it connects."""
    if isinstance(error, OSError):
        return unreachable(f"proxy {proxy.url} broke the connection", hint=_REMEDY)
    return RegistryProtocolError(f"proxy {proxy.url} does not answer in HTTP", hint=_REMEDY)


@contextmanager
def waited_for(proxy: ProxyServer | None) -> Iterator[None]:
    """A block whose TimeoutError is the fault of the proxy, if there is one."""
    try:
        yield
    except TimeoutError as error:
        if proxy is None:
            raise
        raise unreachable(f"proxy {proxy.url} did not answer in time", hint=_REMEDY) from error
