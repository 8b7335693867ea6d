"""One blob over several connections at once, where one alone is slow.

A registry that limits each connection (object stores and content networks do), or a long way to it,
leaves most of the node's line idle. So a transfer that has run for a second, is slow and has much
before it goes on in pieces: ranges of the blob, each asked for by itself, several in flight, handed
to the sink in their order. It begins with two connections and doubles them as long as that makes it
clearly faster; a line that is full gains nothing by more of them, nor does a node on loopback,
which is never slow enough to begin. Measured with 32 MiB from a server that gives each connection
4 MiB/s: 9.0 s in one request, 5.8 s with at most two, 4.5 s with at most four, looking included.

What is ahead of its turn waits in memory and not in the file: at most a piece for each connection,
and all transfers of the node together in one `room`; a transfer that finds none there is not split.
The file of a download is then always a prefix of the blob, so what a crash leaves needs no record
of what is in it, and the worker that follows the file gets its bytes in order, early.

A piece that breaks off or stalls is asked for once more, from the byte where it was, before the
whole transfer is called broken; a connection that dies silently costs `PIECE_PATIENCE_S` and not
the patience for the registry. A registry that answers a range with something else gets one request
from then on; each time that pieces fail, half as many connections are tried next.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from imageservice.errors import PullStalled, RegistryProtocolError, RegistryUnavailable
from imageservice.registry.patience import Patience
from sandbox.host.errors import PodwrightError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imageservice.registry.exchange import Exchanger, Question
    from imageservice.registry.hosts import Endpoint
    from imageservice.registry.room import Share

#: A transfer is looked at for so long before it is split, and again before it gets connections.
LOOK_S: Final = 1.0
#: One connection that brings so much each second is not what limits a pull.
FAST_BYTES_PER_S: Final = 64 * 1024 * 1024
#: Two connections and the piece that is on its way to the disk; with less room it is not begun.
LEAST_PIECES: Final = 3
#: More connections must bring so many times as much to be worth doubling them again.
WORTH_IT: Final = 1.25
#: A piece that brings less than the least progress for so long is asked for anew.
PIECE_PATIENCE_S: Final = 15.0


class RangesRefused(Exception):
    """The host does not answer a range with that range."""


class Pieces:
    """The rest of one blob from one endpoint."""

    def __init__(
        self,
        exchanger: Exchanger,
        endpoint: Endpoint,
        question: Question,
        *,
        size_bytes: int,
        piece_bytes: int,
        stall_timeout_s: float,
        min_progress_bytes: int,
    ) -> None:
        """Nothing is asked before `fetch`.

        Args:
            exchanger: asks.
            endpoint: whom.
            question: for the blob; without a range.
            size_bytes: of the whole blob.
            piece_bytes: of a piece; as many of them as connections are in memory.
            stall_timeout_s: for the second try of a piece.
            min_progress_bytes: what must come in that time.
        """
        self._exchanger = exchanger
        self._endpoint = endpoint
        self._question = question
        self._size_bytes = size_bytes
        self._piece_bytes = piece_bytes
        self._stall_timeout_s = stall_timeout_s
        self._min_progress_bytes = min_progress_bytes

    async def fetch(
        self,
        start: int,
        *,
        rate: float,
        most: int,
        share: Share,
        hand: Callable[[bytes], Awaitable[None]],
    ) -> None:
        """Hand over everything from `start` to the end, in order.

        Args:
            start: where to begin.
            rate: bytes a second that one connection brought.
            most: connections at once.
            share: room for `LEAST_PIECES`; more is taken as there is some.
            hand: takes the next bytes.

        Raises:
            RangesRefused: the host does not do it; what was handed over is right.
            PodwrightError: as the host answers, for the first piece that is missing.
        """
        loop = asyncio.get_running_loop()
        window: deque[asyncio.Task[bytes | Exception]] = deque()
        connections, next_start = min(2, most), start
        looked_at, moved = loop.time(), 0
        failure: Exception | None = None
        async with asyncio.TaskGroup() as group:
            while failure is None and (window or next_start < self._size_bytes):
                while (
                    len(window) < connections
                    and next_start < self._size_bytes
                    and share.reach(len(window) + 2)
                ):
                    end = min(next_start + self._piece_bytes, self._size_bytes)
                    window.append(group.create_task(self._outcome(next_start, end), name="piece"))
                    next_start = end
                piece = await window.popleft()
                if isinstance(piece, Exception):
                    failure = piece
                    break
                try:
                    await hand(piece)
                except Exception as error:
                    failure = error
                moved += len(piece)
                elapsed_s = loop.time() - looked_at
                # Enough pieces for a judgement: those of the first moments were begun by fewer.
                if elapsed_s >= LOOK_S and moved >= 2 * connections * self._piece_bytes:
                    faster = moved / elapsed_s >= WORTH_IT * rate
                    rate = max(rate, moved / elapsed_s)
                    if faster and moved / elapsed_s < FAST_BYTES_PER_S:
                        connections = min(2 * connections, most)
                    looked_at, moved = loop.time(), 0
            for task in window:
                task.cancel()
        if failure is not None:
            raise failure

    async def _outcome(self, start: int, end: int) -> bytes | Exception:
        """A failure as a value: pieces before it are still wanted."""
        try:
            return await self._piece(start, end)
        except (PodwrightError, RangesRefused) as error:
            return error

    async def _piece(self, start: int, end: int) -> bytes:
        data = bytearray()
        patience_s = min(PIECE_PATIENCE_S, self._stall_timeout_s)
        try:
            await self._receive(data, start, end, patience_s)
        except (RegistryUnavailable, PullStalled) as error:
            if isinstance(error, RegistryUnavailable) and (
                not error.is_transient or error.retry_after_s is not None
            ):
                raise
            await self._receive(data, start, end, self._stall_timeout_s)
        return bytes(data)

    async def _receive(self, data: bytearray, start: int, end: int, patience_s: float) -> None:
        """Go on with `data`, which begins at `start`, up to `end`."""
        first, what = start + len(data), self._question.what
        if first == end:
            return
        patience = Patience(patience_s)
        question = replace(
            self._question,
            headers=(*self._question.headers, ("Range", f"bytes={first}-{end - 1}")),
            accepted=frozenset({200, 206, 416}),
            response_timeout_s=2 * patience_s,
            waiting=patience.with_(self._question.waiting),
        )
        try:
            async with patience, self._exchanger.ask(self._endpoint, question) as response:
                span, answer = f"bytes {first}-{end - 1}/", response.header("Content-Range")
                if response.status != 206 or answer not in (
                    f"{span}{self._size_bytes}",
                    f"{span}*",
                ):
                    raise RangesRefused
                window_bytes = 0
                while chunk := await response.read_chunk():
                    if start + len(data) + len(chunk) > end:
                        raise RegistryProtocolError(f"{what}: more than the range asked for")
                    data += chunk
                    window_bytes += len(chunk)
                    if window_bytes >= self._min_progress_bytes:
                        window_bytes = 0
                        patience.renew()
        except TimeoutError as error:
            raise PullStalled(
                f"{what}: fewer than {self._min_progress_bytes} bytes in {patience_s:g} s",
                received_bytes=start + len(data),
            ) from error
        if start + len(data) != end:
            raise RegistryUnavailable(f"{what}: the answer ended too early")
