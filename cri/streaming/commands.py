"""A session of exec or attach: the client's streams joined to a command's.

Order at the end: the command has ended, its outputs are read to their end and sent, then the
verdict goes out on the error stream, then every stream is finished and the connection closed. A
client that vanishes cancels the whole session wherever it is; `Command.close` does the rest.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cri.streaming.targets import ExecTarget
from cri.streaming.verdict import SizeReader, Verdict, status_json, status_text
from cri.streaming.wire import ClientGone
from sandbox.host.errors import PodwrightError
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from cri.streaming.backend import Command, Sessions, Sink, Source
    from cri.streaming.channels import ClientStream, Link
    from cri.streaming.links import SpdyLink, WebSocketLink
    from cri.streaming.negotiate import Agreed
    from cri.streaming.targets import AttachTarget

#: Channel numbers of the WebSocket protocols; the first three are the descriptors'.
CHANNELS: Final = {"stdin": 0, "stdout": 1, "stderr": 2, "error": 3, "resize": 4}
#: Streams of a session over SPDY, with room for a client's mistakes.
STREAMS_LIMIT: Final = 16

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ClientStreams:
    """What the client has opened; those it did not ask for are None."""

    error: ClientStream
    stdin: ClientStream | None = None
    stdout: ClientStream | None = None
    stderr: ClientStream | None = None
    resize: ClientStream | None = None


def expected_streams(target: ExecTarget | AttachTarget, agreed: Agreed) -> set[str]:
    """Names of the streams that a SPDY client opens for `target`."""
    wanted = {name for name in ("stdin", "stdout", "stderr") if getattr(target, name)}
    if target.tty and agreed.resizes:
        wanted.add("resize")
    return wanted | {"error"}


async def gather(link: SpdyLink, wanted: set[str]) -> ClientStreams:
    """Wait until the client has opened its streams; others are reset. Raises ClientGone."""
    found: dict[str, ClientStream] = {}
    while wanted - found.keys():
        stream = await link.opened()
        if stream is None:
            raise ClientGone("streaming client left before its session began")
        name = stream.headers.get("streamtype", "")
        if name in wanted and name not in found:
            found[name] = stream
        else:
            stream.reset()
    link.refuse_more()
    return ClientStreams(**found)


def channels(link: WebSocketLink, target: ExecTarget | AttachTarget) -> ClientStreams:
    """The streams of a WebSocket connection, and the sign that it works."""
    streams = {name: link.channel(number) for name, number in CHANNELS.items()}
    for name in ("stdin", "stdout", "stderr"):
        if not getattr(target, name):
            streams.pop(name).discard()
    # Clients wait for a message, an empty one on the first output, before they say anything.
    first = next((name for name in ("stdout", "stderr") if name in streams), "error")
    link.announce(CHANNELS[first])
    return ClientStreams(**streams)


async def run_command(
    link: Link,
    streams: ClientStreams,
    target: ExecTarget | AttachTarget,
    agreed: Agreed,
    sessions: Sessions,
) -> None:
    """The whole session from the open streams to the closed connection."""
    log = _log.bind(kind=agreed.kind, container=target.container_id, peer=link.wire.peer)
    try:
        command = await _open(target, sessions)
        try:
            verdict = await _attend(link, streams, command)
        finally:
            await command.close()
    except PodwrightError as error:
        verdict = Verdict(failure=_failure_text(target, error))
    if verdict.failure:
        log.info("streaming session failed", error=verdict.failure)
    else:
        log.debug("streaming session ended", exit_code=verdict.exit_code)
    status = status_json(verdict) if agreed.structured_status else status_text(verdict)
    async with asyncio.TaskGroup() as group:
        await link.wire.keep_moving({group.create_task(_tell(streams.error, status))})
    for stream in link.streams():
        stream.discard()
        stream.finish()
    await link.close()


async def _tell(stream: ClientStream, text: bytes) -> None:
    with suppress(ClientGone):
        await stream.send(text)


def _failure_text(target: ExecTarget | AttachTarget, error: PodwrightError) -> str:
    what = "executing command in" if isinstance(target, ExecTarget) else "attaching to"
    return f"error {what} container: {error}"


async def _open(target: ExecTarget | AttachTarget, sessions: Sessions) -> Command:
    if isinstance(target, ExecTarget):
        return await sessions.exec(target)
    return await sessions.attach(target)


async def _attend(link: Link, streams: ClientStreams, command: Command) -> Verdict:
    async with asyncio.TaskGroup() as group:
        inputs = [
            group.create_task(_copy_in(streams.stdin, command.stdin)),
            group.create_task(_resize(streams.resize, command)),
        ]
        outputs = {
            group.create_task(_copy_out(command.stdout, streams.stdout)),
            # A terminal's client has no second stream, a container without one may still write it.
            group.create_task(_copy_out(command.stderr, streams.stderr or streams.stdout)),
        }
        ended = group.create_task(_ended(command))
        verdict = await ended
        await link.wire.keep_moving(outputs)
        for task in inputs:
            task.cancel()
    return verdict


async def _ended(command: Command) -> Verdict:
    # A value instead of an exception, which would take the outputs along before their end.
    try:
        return Verdict(exit_code=await command.wait())
    except PodwrightError as error:
        return Verdict(failure=f"error executing command in container: {error}")


async def _copy_out(source: Source | None, stream: ClientStream | None) -> None:
    if source is None:
        return
    with suppress(ClientGone):
        while data := await source.read():
            if stream is not None:
                await stream.send(data)


async def _copy_in(stream: ClientStream | None, sink: Sink | None) -> None:
    if stream is None:
        return
    while sink is not None and (data := await stream.read()):
        if not await sink.write(data):
            break
    if sink is not None:
        sink.finish()
    stream.discard()


async def _resize(stream: ClientStream | None, command: Command) -> None:
    if stream is None:
        return
    sizes = SizeReader()
    while data := await stream.read():
        # Only the last counts: a window being dragged sends hundreds.
        for columns, rows in sizes.feed(data)[-1:]:
            command.resize(columns, rows)
