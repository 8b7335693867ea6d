"""The streaming server: hands out URLs, listens, and runs one session for each client that comes.

    CRI call ── exec_url(target) ──► token ──► http://127.0.0.1:PORT/exec/TOKEN
    client ──► HTTP request ──► negotiate ──► token redeemed ──► 101 ──► streams ──► session

Every connection is one task. Two things end it: its work is done, or the client has gone; the
second cancels the work wherever it is. Nothing that a client does reaches further than its task.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from cri.streaming.commands import (
    CHANNELS,
    STREAMS_LIMIT,
    channels,
    expected_streams,
    gather,
    run_command,
)
from cri.streaming.forwards import STREAMS_LIMIT as FORWARD_STREAMS_LIMIT
from cri.streaming.forwards import forward_channels, forward_streams
from cri.streaming.http1 import HttpExchange, Malformed
from cri.streaming.links import SpdyLink, TunnelLink, WebSocketLink
from cri.streaming.negotiate import Carrier, Refusal, negotiate
from cri.streaming.targets import KINDS, PortForwardTarget
from cri.streaming.tls import server_context
from cri.streaming.tokens import Tokens
from cri.streaming.wire import ClientGone, Wire
from sandbox.host.errors import FailedPrecondition, PodwrightError, Unavailable, from_os_error
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    import socket

    from cri.streaming.backend import Sessions
    from cri.streaming.http1 import HttpRequest
    from cri.streaming.negotiate import Agreed
    from cri.streaming.settings import StreamingSettings
    from cri.streaming.targets import AttachTarget, ExecTarget, Target
    from sandbox.host.clock import Clock

#: For a client to send its request.
REQUEST_S: Final = 10.0
#: Clients that have connected and not shown a token yet; one more makes the oldest leave.
STRANGERS_LIMIT: Final = 256
#: Idle sessions are looked for this often, or four times in an idle timeout.
_LOOK_S: Final = 30.0

_log = get_logger(__name__)


class StreamingServer:
    """See the module text; one per daemon."""

    def __init__(self, settings: StreamingSettings, sessions: Sessions, *, clock: Clock) -> None:
        """Nothing is opened before `start`."""
        self._settings = settings
        self._sessions = sessions
        self._clock = clock
        self._tokens: Tokens[Target] = Tokens(clock=clock, life_s=settings.token_life_s)
        self._group: asyncio.TaskGroup | None = None
        self._server: asyncio.Server | None = None
        self._base = ""
        self._tasks: dict[asyncio.Task[None], Wire] = {}
        self._strangers: dict[Wire, None] = {}
        self._watch: asyncio.Task[None] | None = None

    @property
    def base_url(self) -> str:
        """`scheme://host:port`; empty unless started."""
        return self._base

    @property
    def active(self) -> int:
        """Connections being served."""
        return len(self._tasks)

    async def start(self, group: asyncio.TaskGroup) -> None:
        """Listen; sessions become tasks of `group`.

        Raises:
            InvalidArgument: the certificate cannot be used.
            PodwrightError: the address cannot be listened on.
        """
        settings = self._settings
        context = await asyncio.to_thread(server_context, settings, self._clock.wall_ns())
        host, port = settings.listen()
        self._group = group
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: Wire(self._made, clock=self._clock),
                host,
                port,
                ssl=context,
                ssl_handshake_timeout=REQUEST_S if context is not None else None,
                ssl_shutdown_timeout=REQUEST_S if context is not None else None,
            )
        except OSError as error:
            raise from_os_error(
                error,
                "cannot listen for streaming sessions",
                hint="set streaming.address to a free address of this node",
                address=settings.address,
            ) from error
        number = self._server.sockets[0].getsockname()[1]
        scheme = "http" if context is None else "https"
        self._base = f"{scheme}://{_reachable(host)}:{number}"
        self._watch = group.create_task(self._watch_idle(), name="streaming-idle")
        _log.info("serving streaming sessions", url=self._base)

    async def close(self, grace_s: float = 0.0) -> None:
        """Stop listening, give sessions the grace to end themselves, end the rest. Idempotent."""
        self._base = ""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
        tasks = list(self._tasks)
        if tasks and grace_s > 0:
            await asyncio.wait(tasks, timeout=grace_s)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if server is not None:
            await server.wait_closed()

    # URLs.

    def exec_url(self, target: ExecTarget) -> str:
        """Where a client runs `target`, once.

        Raises:
            NotFound, FailedPrecondition: there is no such container, or it does not run.
            ResourceExhausted: too many URLs wait for their clients.
        """
        full_id = self._sessions.check_container(target.container_id)
        return self._url(replace(target, container_id=full_id))

    def attach_url(self, target: AttachTarget) -> str:
        """Where a client attaches, once. Raises as `exec_url`."""
        full_id = self._sessions.check_container(target.container_id)
        return self._url(replace(target, container_id=full_id))

    def portforward_url(self, target: PortForwardTarget) -> str:
        """Where a client reaches a pod's ports, once. Raises as `exec_url`."""
        full_id = self._sessions.check_pod(target.pod_id)
        return self._url(replace(target, pod_id=full_id))

    def _url(self, target: Target) -> str:
        if not self._base:
            raise Unavailable("streaming sessions are not served at the moment")
        return f"{self._base}/{KINDS[type(target)]}/{self._tokens.issue(target)}"

    # Connections.

    def _made(self, wire: Wire) -> None:
        if self._group is None or self._server is None:
            wire.abort()
            return
        if len(self._strangers) >= STRANGERS_LIMIT:
            next(iter(self._strangers)).abort()
        self._strangers[wire] = None
        asked: asyncio.Future[HttpRequest | Malformed] = asyncio.Future()
        exchange = HttpExchange()

        def receive(data: bytes) -> None:
            outcome = exchange.receive_data(data)
            if outcome is not None and not asked.done():
                wire.hold(exchange)  # what follows belongs to the next protocol
                asked.set_result(outcome)

        wire.receiver = receive
        wire.when_lost(lambda: self._strangers.pop(wire, None))
        task = self._group.create_task(self._attend(wire, exchange, asked), name="streaming")
        self._tasks[task] = wire
        task.add_done_callback(self._tasks.pop)

    async def _attend(
        self,
        wire: Wire,
        exchange: HttpExchange,
        asked: asyncio.Future[HttpRequest | Malformed],
    ) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                work = group.create_task(self._session(wire, exchange, asked))
                lost = group.create_task(wire.lost.wait())
                await asyncio.wait({work, lost}, return_when=asyncio.FIRST_COMPLETED)
                work.cancel()
                lost.cancel()
        except* ClientGone:
            _log.debug("streaming client has gone", peer=wire.peer)
        except* PodwrightError as group_error:
            _log.info(
                "streaming session broke off", peer=wire.peer, error=str(group_error.exceptions[0])
            )
        except* Exception:
            # Whatever it is, it is this session's alone.
            _log.error("streaming session failed", exc_info=True, peer=wire.peer)
        finally:
            wire.abort()

    async def _session(
        self,
        wire: Wire,
        exchange: HttpExchange,
        asked: asyncio.Future[HttpRequest | Malformed],
    ) -> None:
        judged = await self._judge(asked)
        if isinstance(judged, Refusal):
            wire.write(exchange.refuse(judged.status, judged.text, judged.headers))
            await wire.finish()
            return
        agreed, target = judged
        self._strangers.pop(wire, None)
        answer, trailing = exchange.switch(agreed.headers)
        wire.write(answer)
        link = _link(wire, agreed, target)
        wire.receiver = link.receive
        if trailing:
            wire.data_received(trailing)
        wire.release(exchange)
        if isinstance(target, PortForwardTarget):
            await self._forward(link, target)
        else:
            await self._command(link, target, agreed)

    async def _judge(
        self, asked: asyncio.Future[HttpRequest | Malformed]
    ) -> tuple[Agreed, Target] | Refusal:
        try:
            async with asyncio.timeout(REQUEST_S):
                request = await asked
        except TimeoutError:
            return Refusal(HTTPStatus.REQUEST_TIMEOUT, "no request came in time")
        if isinstance(request, Malformed):
            return Refusal(request.status, request.reason)
        agreed = negotiate(request)
        if isinstance(agreed, Refusal):
            return agreed
        target = self._tokens.redeem(agreed.token)
        if target is None or KINDS[type(target)] != agreed.kind:
            return Refusal(HTTPStatus.NOT_FOUND, "not found, or used already")
        return agreed, target

    async def _command(
        self,
        link: SpdyLink | WebSocketLink,
        target: ExecTarget | AttachTarget,
        agreed: Agreed,
    ) -> None:
        if isinstance(link, WebSocketLink):
            streams = channels(link, target)
        else:
            try:
                async with asyncio.timeout(self._settings.creation_timeout_s):
                    streams = await gather(link, expected_streams(target, agreed))
            except TimeoutError as error:
                raise FailedPrecondition(
                    "streaming client did not open its streams in time"
                ) from error
        await run_command(link, streams, target, agreed, self._sessions)

    async def _forward(self, link: SpdyLink | WebSocketLink, target: PortForwardTarget) -> None:
        async def connect(port: int) -> socket.socket:
            return await self._sessions.connect(target.pod_id, port)

        if isinstance(link, WebSocketLink):
            await forward_channels(link, target.ports, connect)
        else:
            timeout_s = self._settings.creation_timeout_s
            await forward_streams(link, connect, creation_timeout_s=timeout_s)

    async def _watch_idle(self) -> None:
        idle_s = self._settings.idle_timeout_s
        while True:
            await self._clock.sleep(min(_LOOK_S, idle_s / 4))
            oldest_ns = self._clock.monotonic_ns() - int(idle_s * 1e9)
            for wire in list(self._tasks.values()):
                if wire.last_ns <= oldest_ns:
                    _log.info("idle streaming session closed", peer=wire.peer, idle_s=idle_s)
                    wire.abort()


def _link(wire: Wire, agreed: Agreed, target: Target) -> SpdyLink | WebSocketLink:
    forward = isinstance(target, PortForwardTarget)
    if agreed.carrier is Carrier.TUNNEL:
        return TunnelLink(wire, streams_limit=FORWARD_STREAMS_LIMIT)
    if agreed.carrier is Carrier.SPDY:
        limit = FORWARD_STREAMS_LIMIT if forward else STREAMS_LIMIT
        return SpdyLink(wire, streams_limit=limit)
    numbers = (
        range(2 * len(target.ports)) if isinstance(target, PortForwardTarget) else CHANNELS.values()
    )
    return WebSocketLink(
        wire, list(numbers), base64_text=agreed.base64, half_close=agreed.half_close
    )


def _reachable(host: str) -> str:
    """A host for the URL: an address to listen on everywhere is no address to connect to."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - only compared
    return f"[{host}]" if ":" in host else host
