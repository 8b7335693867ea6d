"""The gRPC server on the unix socket: bytes to methods, failures to codes, one log line per call.

What grpc.aio would do by itself and must not (measured with 1.85): its message limit is 4 MiB, and
it sends the text of any exception of a handler to the client as UNKNOWN, that of a deserialiser
too. So no deserialiser is registered, and every call goes through `_Run`, which knows three ways a
call can end: an answer, a failure of our own classes (`cri.status` has the code and the text), or
an exception nobody planned for, of which the client is told nothing but a number to look for in the
log.

A failed call is logged here and nowhere else, with the command line that repeats it where there is
one. grpc.aio cancels the handler when the client goes away or its deadline passes; what was begun
for it is not the handler's (`cri.inflight`).
"""

from __future__ import annotations

import os
import secrets
import stat
import traceback
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, NoReturn, Protocol, TypeVar

import grpc
import grpc.aio

from cri.rpc.method import StreamCall, UnaryCall, UploadCall
from cri.status import OURS, code_of, text_of
from cri.tidying import Activity
from sandbox.host.errors import (
    Busy,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    PodwrightError,
    ResourceExhausted,
    map_os_errors,
)
from sandbox.host.files import flock_exclusive
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from pathlib import Path

    from cri.rpc.method import Method
    from sandbox.host.clock import Clock
    from sandbox.host.files import Fd

    #: What grpc passes to a handler and back when no (de)serialiser is registered.
    Context = grpc.aio.ServicerContext[bytes, bytes]

MIB: Final = 1024 * 1024
#: What kubelets and crictl accept from us, and so what we send and accept at most.
MESSAGE_LIMIT_BYTES: Final = 16 * MIB
#: Calls at once over all connections; beyond that RESOURCE_EXHAUSTED. A kubelet with 250 pods has
#: a few hundred in flight at the worst.
CALLS_LIMIT: Final = 4096
#: Root and the socket's group, as the field has it.
SOCKET_MODE: Final = 0o660
#: sun_path of unix(7) has 108 bytes, NUL included.
SOCKET_PATH_LIMIT_BYTES: Final = 107

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
    # One kubelet uses one connection for everything.
    ("grpc.max_concurrent_streams", 1024),
    ("grpc.max_metadata_size", 16 * 1024),
    # Clients may ping an idle connection every 10 s without being sent away.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A dead peer of a unix socket is noticed at once; this is for one that is stopped.
    ("grpc.keepalive_time_ms", 600_000),
    ("grpc.keepalive_timeout_ms", 60_000),
    ("grpc.so_reuseport", 0),
)

_log = get_logger("rpc")

C = TypeVar("C", UnaryCall, StreamCall, UploadCall)


class RpcObserver(Protocol):
    """Told of every call that ended."""

    def rpc(self, method: str, code: str, seconds: float) -> None:
        """`code` is gRPC's name, OK included."""
        ...


def claim_run_root(run_root: Path) -> Fd:
    """Hold the run root for this process; the caller keeps the descriptor open.

    Raises:
        FailedPrecondition: another daemon holds it.
    """
    try:
        return flock_exclusive(run_root / "lock")
    except Busy as error:
        raise FailedPrecondition(
            "another podwright serves this run root",
            hint="stop it first, or set another run_root and state_root",
            path=str(run_root),
            pid=error.fields.get("pid"),
        ) from error


class RpcServer:
    """Serves methods on a unix socket."""

    def __init__(
        self,
        methods: Iterable[Method],
        *,
        socket_path: Path,
        observer: RpcObserver,
        clock: Clock,
        socket_gid: int | None = None,
        message_limit_bytes: int = MESSAGE_LIMIT_BYTES,
        activity: Activity | None = None,
    ) -> None:
        self._methods = tuple(methods)
        self._socket_path = socket_path
        self._observer = observer
        self._clock = clock
        self._socket_gid = socket_gid
        self._limit_bytes = message_limit_bytes
        self._activity = activity or Activity()
        self._server: grpc.aio.Server | None = None

    @property
    def observer(self) -> RpcObserver:
        """Who is told of ended calls."""
        return self._observer

    @property
    def activity(self) -> Activity:
        """Who is told of calls that change something."""
        return self._activity

    @property
    def clock(self) -> Clock:
        """Where durations come from."""
        return self._clock

    @property
    def message_limit_bytes(self) -> int:
        """The largest answer."""
        return self._limit_bytes

    async def start(self) -> None:
        """Take the socket's place and answer from now on.

        The caller holds the run root (`claim_run_root`), so a socket found there is a leftover.

        Raises:
            FailedPrecondition: something else is at the socket's path.
            InvalidArgument: the path is too long for a socket.
        """
        server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=CALLS_LIMIT)
        by_service: dict[str, dict[str, grpc.RpcMethodHandler[bytes, bytes]]] = {}
        for method in self._methods:
            by_service.setdefault(method.service, {})[method.name] = self._handler(method)
        server.add_generic_rpc_handlers(
            tuple(
                grpc.method_handlers_generic_handler(service, handlers)
                for service, handlers in by_service.items()
            )
        )
        self._bind(server)
        await server.start()
        self._server = server
        _log.info("listening", socket=str(self._socket_path), methods=len(self._methods))

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, give those in flight `grace_s`, then end them (UNAVAILABLE)."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(grace_s)

    def _bind(self, server: grpc.aio.Server) -> None:
        path = self._socket_path
        if len(os.fsencode(path)) > SOCKET_PATH_LIMIT_BYTES:
            raise InvalidArgument(
                f"socket path is longer than {SOCKET_PATH_LIMIT_BYTES} bytes", path=str(path)
            )
        remove_stale_socket(path)
        # Nobody may connect between bind and chmod: the mode comes from the umask until then.
        before = os.umask(0o177)
        try:
            bound = server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            raise Internal("cannot listen on the socket", path=str(path)) from error
        finally:
            os.umask(before)
        if not bound:
            raise Internal("cannot listen on the socket", path=str(path))
        with map_os_errors("cannot set group and mode of the socket", path=str(path)):
            # The group first: the mode must not open it to the one that it had before.
            if self._socket_gid is not None:
                os.chown(path, -1, self._socket_gid, follow_symlinks=False)
            path.chmod(SOCKET_MODE)

    def _handler(self, method: Method) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def unary(data: bytes, context: Context) -> bytes:
            run = _Run(self, method)
            try:
                answer = run.checked(await run.opened(data, UnaryCall).answer())
            except BaseException as error:
                await run.failed(error, context)
            run.ended(grpc.StatusCode.OK)
            return answer

        async def stream(data: bytes, context: Context) -> AsyncIterator[bytes]:
            run = _Run(self, method)
            try:
                async with aclosing(run.opened(data, StreamCall).answers()) as answers:
                    async for answer in answers:
                        yield run.checked(answer)
            except BaseException as error:
                await run.failed(error, context)
            run.ended(grpc.StatusCode.OK)

        async def upload(data: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
            run = _Run(self, method)
            try:
                messages = aiter(data)
                call = run.opened(await anext(messages, b""), UploadCall)
                async with aclosing(call.answers(messages)) as answers:
                    async for answer in answers:
                        yield run.checked(answer)
            except BaseException as error:
                await run.failed(error, context)
            run.ended(grpc.StatusCode.OK)

        if method.uploads:
            return grpc.stream_stream_rpc_method_handler(upload)
        if method.streams:
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)


class _Run:
    """One call from its bytes to its end, which is accounted for exactly once."""

    def __init__(self, server: RpcServer, method: Method) -> None:
        self._server = server
        self._method = method
        self._began_ns = server.clock.monotonic_ns()
        self._subject: Mapping[str, str] = {}
        if self._is_work:
            server.activity.begin()

    @property
    def _is_work(self) -> bool:
        # A stream may last as long as its client, like that of the events.
        return not self._method.quiet and not self._method.streams

    def opened(self, data: bytes, kind: type[C]) -> C:
        """The call that `data` asks for."""
        call = self._method.open(data)
        assert isinstance(call, kind)
        self._subject = call.subject
        return call

    def checked(self, answer: bytes) -> bytes:
        """`answer`, unless no client would accept it."""
        limit = self._server.message_limit_bytes
        if len(answer) > limit:
            larger = self._method.larger
            raise ResourceExhausted(
                f"the answer of {self._method.name} has {len(answer)} bytes,"
                f" a message may have {limit}",
                hint=f"use {larger}, or a filter" if larger else "",
            )
        return answer

    def ended(self, code: grpc.StatusCode, text: str = "", **facts: str) -> None:
        """Count and log the end of the call."""
        took_ms = self._account(code)
        if code is grpc.StatusCode.OK:
            if self._method.quiet:
                _log.debug(self._method.name, took_ms=took_ms, **self._subject)
            else:
                _log.info(self._method.name, took_ms=took_ms, **self._subject)
            return
        what = f"{self._method.name} failed"
        log = _log.bind(code=code.name, took_ms=took_ms, error=text, **self._subject, **facts)
        if code in OURS:
            log.error(what)
        else:
            log.info(what)

    async def failed(self, error: BaseException, context: Context) -> NoReturn:
        """End the call with the status that `error` stands for."""
        planned = planned_failure(error)
        if planned is not None:
            facts = {"replay": planned.replay} if planned.replay else {}
            if planned.__cause__ is not None:
                facts["cause"] = f"{type(planned.__cause__).__name__}: {planned.__cause__}"
            code, text = code_of(planned), text_of(planned)
            self.ended(code, str(planned), **facts)
            await context.abort(code, text)
        if isinstance(error, Exception):
            number = secrets.token_hex(4)
            trace = "".join(traceback.format_exception(error))
            self.ended(grpc.StatusCode.INTERNAL, "unplanned exception", id=number, trace=trace)
            await context.abort(
                grpc.StatusCode.INTERNAL,
                f"internal error in {self._method.name}; see the daemon's log, id {number}",
            )
        # Cancelled: the client went away, its deadline passed, or the daemon is stopping.
        remaining_s: object = context.time_remaining()  # None without a deadline
        late = isinstance(remaining_s, int | float) and remaining_s <= 0
        self._log_cancelled(
            grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
        )
        raise error

    def _log_cancelled(self, code: grpc.StatusCode) -> None:
        took_ms = self._account(code)
        _log.info(
            f"{self._method.name}: caller is gone",
            code=code.name,
            took_ms=took_ms,
            **self._subject,
        )

    def _account(self, code: grpc.StatusCode) -> float:
        """Tell everybody of the end; how long the call took in ms."""
        took_ns = self._server.clock.monotonic_ns() - self._began_ns
        self._server.observer.rpc(self._method.name, code.name, took_ns / 1e9)
        if self._is_work:
            self._server.activity.end()
        elif self._method.streams:
            self._server.activity.passed()
        return round(took_ns / 1e6, 1)


def planned_failure(error: BaseException) -> PodwrightError | None:
    """The failure of our own classes in `error`: itself, or the first one in a group."""
    if isinstance(error, PodwrightError):
        return error
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            if (found := planned_failure(inner)) is not None:
                return found
    return None


def remove_stale_socket(path: Path) -> None:
    """Remove the socket that a killed daemon left behind; never anything else.

    Raises:
        FailedPrecondition: something that is no socket is at `path`.
    """
    with map_os_errors("cannot replace the socket", path=str(path)):
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise FailedPrecondition(
                "there is something at the socket's path that is no socket",
                path=str(path),
                hint="move it away",
            )
        path.unlink()
