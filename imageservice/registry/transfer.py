"""One blob on its way from an endpoint to a sink: where it stands, and one try to move it on.

A transfer outlives its connections: each try asks for the bytes that are still missing, from the
same host or another, because the digest names the same bytes everywhere. It never writes more than
the descriptor allows and never writes a byte twice.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from imageservice.errors import (
    PullStalled,
    RegistryProtocolError,
    RegistryUnavailable,
    SizeMismatch,
)
from imageservice.registry import pieces
from imageservice.registry.patience import Patience
from imageservice.registry.pieces import Pieces, RangesRefused
from imageservice.registry.room import Room, Share
from sandbox.host.errors import PodwrightError

if TYPE_CHECKING:
    from collections.abc import Callable

    from imageservice.manifest import Descriptor
    from imageservice.progress import TransferObserver
    from imageservice.registry.exchange import Exchanger, Question
    from imageservice.registry.hosts import Endpoint
    from imageservice.registry.source import BlobSink
    from imageservice.registry.transport import Response

#: Sinks hash and write each chunk in a thread: fewer, larger chunks cost less.
CHUNK_BYTES: Final = 256 * 1024
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")


class SinkFailed(Exception):
    """Carries what a sink raised past the handlers for failures of the registry."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class Transfer:
    """The state of one blob's download; `received_bytes` counts from the blob's beginning."""

    def __init__(
        self,
        descriptor: Descriptor,
        sink: BlobSink,
        *,
        offset_bytes: int,
        on_progress: Callable[[int], None] | None,
        stall_timeout_s: float,
        min_progress_bytes: int,
        observer: TransferObserver,
        connections: int = 1,
        piece_bytes: int = 4 * 1024 * 1024,
        room: Room,
    ) -> None:
        self.size_bytes = descriptor.size_bytes
        self.received_bytes = offset_bytes
        self._sink = sink
        self._on_progress = on_progress
        self._stall_timeout_s = stall_timeout_s
        self._min_progress_bytes = min_progress_bytes
        self._observer = observer
        self._connections = connections
        self._piece_bytes = piece_bytes
        self._share = Share(room, piece_bytes)
        self._rate = 0.0
        self._pending: list[bytes] = []
        self._pending_bytes = 0

    @property
    def is_complete(self) -> bool:
        """Whether every byte has been written."""
        return self.received_bytes == self.size_bytes

    async def advance(self, exchanger: Exchanger, endpoint: Endpoint, question: Question) -> None:
        """Ask `endpoint` for what is missing and write it; returns when all is there.

        Raises:
            PullStalled: fewer than the least progress in the time allowed for it.
            SinkFailed: the sink raised.
            PodwrightError: see `ImageSource.fetch_blob`; what came before it was written.
        """
        try:
            await self._stream(exchanger, endpoint, question)
            if not self.is_complete:  # it was left because more connections may bring more
                await self._in_pieces(exchanger, endpoint, question)
        finally:
            self._share.close()

    async def _in_pieces(
        self, exchanger: Exchanger, endpoint: Endpoint, question: Question
    ) -> None:
        rest = Pieces(
            exchanger,
            endpoint,
            question,
            size_bytes=self.size_bytes,
            piece_bytes=self._piece_bytes,
            stall_timeout_s=self._stall_timeout_s,
            min_progress_bytes=self._min_progress_bytes,
        )
        try:
            await rest.fetch(
                self.received_bytes,
                rate=self._rate,
                most=self._connections,
                share=self._share,
                hand=self._hand,
            )
        except RangesRefused:
            self._connections = 1
            self._share.close()
            await self._stream(exchanger, endpoint, question)
        except PodwrightError as error:
            self._connections //= 2
            if isinstance(error, PullStalled):
                self._observer.transfer_stalled()
            raise

    async def _stream(self, exchanger: Exchanger, endpoint: Endpoint, question: Question) -> None:
        """One request for all that is missing; may end early, to go on in pieces."""
        headers = question.headers
        if self.received_bytes:
            self._observer.transfer_resumed(held_bytes=self.received_bytes)
            headers = (*headers, ("Range", f"bytes={self.received_bytes}-"))
        # The stall rule below is the shorter one; the transport's own limit is a second line.
        patience = Patience(self._stall_timeout_s)
        question = replace(
            question,
            headers=headers,
            accepted=frozenset({200, 206}),
            response_timeout_s=2 * self._stall_timeout_s,
            waiting=patience.with_(question.waiting),
        )
        try:
            async with patience, exchanger.ask(endpoint, question) as response:
                skip_bytes = self._check_head(response, question)
                await self._receive(response, question, patience, skip_bytes)
        except TimeoutError as error:
            self._observer.transfer_stalled()
            raise PullStalled(
                f"{question.what}: fewer than {self._min_progress_bytes} bytes in "
                f"{self._stall_timeout_s:g} s",
                received_bytes=self.received_bytes,
            ) from error
        finally:
            # Half a chunk of a cancelled try must not be written after what the next one brings.
            self._pending.clear()
            self._pending_bytes = 0

    def _check_head(self, response: Response, question: Question) -> int:
        """How many bytes of this answer we have already; refuses an answer of another size."""
        missing = self.size_bytes - self.received_bytes
        if response.status == 206:
            match = _CONTENT_RANGE.fullmatch(response.header("Content-Range"))
            if match is None or int(match[1]) != self.received_bytes:
                raise RegistryProtocolError(f"{question.what}: answer is not the range asked for")
            if match[3] != "*" and int(match[3]) != self.size_bytes:
                raise self._wrong_size(question, match[3])
            if int(match[2]) >= self.size_bytes:
                raise self._wrong_size(question, str(int(match[2]) + 1))
            return 0
        announced = response.header("Content-Length")
        if announced.isascii() and announced.isdigit() and announced != str(self.size_bytes):
            raise self._wrong_size(question, announced[:20])
        return self.size_bytes - missing

    async def _receive(
        self, response: Response, question: Question, patience: Patience, skip_bytes: int
    ) -> None:
        loop = asyncio.get_running_loop()
        began_s, began_bytes = loop.time(), self.received_bytes
        patience.renew()
        window_bytes = 0
        ranges = response.status == 206 or response.header("Accept-Ranges").lower() == "bytes"
        try:
            while chunk := await response.read_chunk():
                window_bytes += len(chunk)
                if window_bytes >= self._min_progress_bytes:
                    window_bytes = 0
                    patience.renew()
                if skip_bytes:
                    skipped = min(skip_bytes, len(chunk))
                    skip_bytes -= skipped
                    chunk = chunk[skipped:]
                room = self.size_bytes - self.received_bytes - self._pending_bytes
                if len(chunk) > room:
                    raise self._wrong_size(question, "more")
                self._pending.append(chunk)
                self._pending_bytes += len(chunk)
                if self._pending_bytes >= CHUNK_BYTES:
                    await self._flush(patience)
                if (
                    ranges
                    and self._is_worth_splitting(loop.time() - began_s, began_bytes)
                    and self._share.reach(pieces.LEAST_PIECES)
                ):
                    await self._flush(patience)
                    return
        except RegistryUnavailable:
            await self._flush(patience)
            raise
        await self._flush(patience)
        if not self.is_complete:
            raise RegistryUnavailable(f"{question.what}: the answer ended too early")

    def _is_worth_splitting(self, elapsed_s: float, began_bytes: int) -> bool:
        """Whether this one request is slow, and enough is missing for several."""
        if self._connections < 2 or elapsed_s < pieces.LOOK_S:
            return False
        held_bytes = self.received_bytes + self._pending_bytes
        self._rate = (held_bytes - began_bytes) / elapsed_s
        missing_bytes = self.size_bytes - held_bytes
        # What one connection brings in a few seconds needs no help.
        return self._rate < pieces.FAST_BYTES_PER_S and missing_bytes > max(
            2 * self._piece_bytes, 2 * pieces.LOOK_S * self._rate
        )

    async def _flush(self, patience: Patience) -> None:
        """Hand what has come to the sink, whose time does not count as the registry's."""
        if not self._pending_bytes:
            return
        chunk = self._pending[0] if len(self._pending) == 1 else b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        with patience.paused():
            await self._hand(chunk)

    async def _hand(self, chunk: bytes) -> None:
        try:
            await self._sink.write(chunk)
        except Exception as error:
            raise SinkFailed(error) from error
        self.received_bytes += len(chunk)
        if self._on_progress is not None:
            self._on_progress(self.received_bytes)

    def _wrong_size(self, question: Question, actual: str) -> SizeMismatch:
        return SizeMismatch(
            f"{question.what}: size is not what its descriptor says",
            expected_bytes=self.size_bytes,
            actual_bytes=actual,
        )


class MemorySink:
    """A `BlobSink` that keeps a small blob."""

    def __init__(self) -> None:
        self.data = bytearray()

    async def write(self, chunk: bytes, /) -> None:
        """See `BlobSink`."""
        self.data += chunk
