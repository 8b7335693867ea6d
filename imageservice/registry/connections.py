"""Connections to registries: made, kept while they may be of use, closed.

One is kept for requests to the same origin, by the same rules of TLS and through the same proxy; so
nothing that one registry's rules allowed serves another's request.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import h11

from imageservice.registry import failures, proxying
from imageservice.registry.answer import NoAnswer, ask
from imageservice.registry.dial import dial
from imageservice.registry.wire import Wire

if TYPE_CHECKING:
    import ssl

    from imageservice.proxies import ProxyServer
    from imageservice.registry.answer import Answer, Message
    from imageservice.registry.origins import Origin

#: An idle one is closed then. A pull asks again within seconds or not at all, and servers close
#: theirs after a minute or so.
KEEP_S: Final = 15.0
_CHANGES_NOTHING: Final = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class Way:
    """How an origin is reached.

    Attributes:
        origin: the registry, whoever is in between.
        context: for TLS with it; None for plain http.
        proxy: to go through.
        proxy_context: for TLS with an https proxy.
    """

    origin: Origin
    context: ssl.SSLContext | None = None
    proxy: ProxyServer | None = None
    proxy_context: ssl.SSLContext | None = None


class Connections:
    """See the module's text; for one event loop."""

    def __init__(self) -> None:
        self._open: set[Wire] = set()
        self._idle: dict[Way, dict[Wire, asyncio.TimerHandle]] = {}

    async def ask(self, way: Way, message: Message, *, connect_timeout_s: float) -> Answer:
        """Send over a connection that is there, or a new one; give the answer to `done` after use.

        A server may close an idle connection while a request is on its way there. Then it goes out
        once more over a new one, if it changes nothing (RFC 9112, 9.3.1), as only GET and HEAD do
        here; what else is sent has a new connection at once.

        Raises:
            h11.LocalProtocolError: as `answer.ask`, also the others.
            h11.RemoteProtocolError: the answer is not HTTP within bounds.
            OSError: the connection broke; TimeoutError: there was none in time.
            RegistryUnavailable: there is none; says why.
        """
        wire = self._take(way) if message.method in _CHANGES_NOTHING else None
        if wire is not None:
            with suppress(NoAnswer):
                return await self._ask(wire, message, way.origin)
        wire = await self._connect(way, connect_timeout_s)
        return await self._ask(wire, message, way.origin)

    def done(self, way: Way, answer: Answer) -> None:
        """Keep the connection of an answer that was read to its end; close any other."""
        wire = answer.wire
        if wire not in self._open or not answer.is_reusable:
            self._drop(wire)
            return
        timer = asyncio.get_running_loop().call_later(KEEP_S, self._expire, way, wire)
        self._idle.setdefault(way, {})[wire] = timer

    async def close(self) -> None:
        """Close all, whatever is on its way."""
        for idle in self._idle.values():
            for timer in idle.values():
                timer.cancel()
        self._idle.clear()
        for wire in [*self._open]:
            self._drop(wire)
        await asyncio.sleep(0)  # the event loop closes their sockets in its next turn

    async def _ask(self, wire: Wire, message: Message, origin: Origin) -> Answer:
        try:
            return await ask(wire, message, origin)
        except BaseException:
            self._drop(wire)
            raise

    def _take(self, way: Way) -> Wire | None:
        """One that lies idle, the last used first: the others may then go."""
        idle = self._idle.get(way)
        while idle:
            wire, timer = idle.popitem()
            timer.cancel()
            if not idle:
                del self._idle[way]
            if wire.is_quiet:
                return wire
            self._drop(wire)
        return None

    def _expire(self, way: Way, wire: Wire) -> None:
        idle = self._idle[way]
        del idle[wire]
        if not idle:
            del self._idle[way]
        # Without a farewell, whose answer asyncio would wait for, within TLS for ever.
        self._drop(wire)

    def _drop(self, wire: Wire) -> None:
        self._open.discard(wire)
        wire.abort()

    async def _connect(self, way: Way, timeout_s: float) -> Wire:
        wire, proxy = Wire(), way.proxy
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        self._open.add(wire)
        try:
            with proxying.waited_for(proxy):
                async with asyncio.timeout_at(deadline_s):
                    await _reach(wire, way)
                    if wire not in self._open:
                        raise ConnectionResetError("closed while it was made")
                    if proxy is not None and way.context is not None:
                        await _tunnel(wire, proxy, way.origin)
            if proxy is not None and way.context is not None:
                async with asyncio.timeout_at(deadline_s):
                    await _secure(wire, way.origin, way.context)
        except BaseException:
            self._drop(wire)
            raise
        return wire


async def _reach(wire: Wire, way: Way) -> None:
    proxy = way.proxy
    host, port, context = (
        (way.origin.host, way.origin.port, way.context)
        if proxy is None
        else (proxy.host, proxy.port, way.proxy_context)
    )
    try:
        await asyncio.get_running_loop().create_connection(
            lambda: wire,
            sock=await dial(host, port),
            ssl=context,
            server_hostname=None if context is None else _certified(host),
        )
    except (OSError, UnicodeError) as error:
        if proxy is not None:
            raise proxying.not_connected(error, proxy) from error
        raise failures.not_connected(error, way.origin) from error


async def _tunnel(wire: Wire, proxy: ProxyServer, origin: Origin) -> None:
    try:
        answer = await ask(wire, proxying.tunnel_request(proxy, origin), origin)
    except (h11.RemoteProtocolError, OSError) as error:
        raise proxying.not_answered(error, proxy) from error
    if not 200 <= answer.status < 300:
        raise proxying.refused(proxy, origin, answer.status)
    if answer.has_excess or not wire.is_quiet:
        # A server of TLS does not speak first: this is not the registry's.
        raise proxying.not_answered(ValueError(), proxy)


async def _secure(wire: Wire, origin: Origin, context: ssl.SSLContext) -> None:
    try:
        await wire.start_tls(context, _certified(origin.host))
    except (OSError, UnicodeError) as error:
        raise failures.not_connected(error, origin) from error


def _certified(host: str) -> str:
    """As certificates have it: without the dot that ends a whole name, nor an address's zone."""
    return host.partition("%")[0].rstrip(".")
