"""A few unpack workers: started when needed, kept for a while, killed when they do not move.

A worker costs 0.13 s and 20 MB, so one stays for the next layer and ends by itself after its idle
time. It takes one layer at a time, from the first MiB of its blob on: what arrives is hashed,
inflated and indexed while the rest is on its way. `turns` says which layers are at work and which
wait. A worker that has bytes to work on and reports no progress for the time allowed, one that says
something that is no message, and one whose caller went away are killed: there is no state in it
worth a farewell. One that waits for its download is only waiting: whether that has stalled is known
where the registry is.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

import imageservice
from imageservice import errors as image_errors
from imageservice.unpack import protocol
from imageservice.unpack.feed import Feed
from imageservice.unpack.protocol import Done, Failed, Hungry, Job, More, Progress
from imageservice.unpack.turns import Turns
from sandbox.host import errors as host_errors
from sandbox.host.errors import DeadlineExceeded, Internal, PodwrightError
from sandbox.host.journal import get_logger
from sandbox.host.threads import in_one_piece

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.host.processes import ProcessRunner, Spawned

_log = get_logger(__name__)
#: Bytes of a blob that are worth waking a worker for: some 30 ms of its work.
FEED_BYTES: Final = 1 << 20
_STDERR_TAIL_BYTES: Final = 4096
#: How long a worker may take to end after its socket was closed, before it is killed.
_FAREWELL_S: Final = 2.0
#: How long a killed worker is waited for; longer means that it is stuck in the kernel.
_KILL_WAIT_S: Final = 10.0


class WorkerLost(Internal):
    """A worker ended in the middle of a layer."""


class _Worker:
    """One process, its socket, and a memory file with what it wrote on standard error."""

    def __init__(
        self,
        process: Spawned,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        stderr_fd: int,
    ) -> None:
        self.process = process
        self.reader = reader
        self.writer = writer
        self._stderr_fd = stderr_fd

    def stderr_tail(self) -> str:
        size = os.fstat(self._stderr_fd).st_size
        start = max(0, size - _STDERR_TAIL_BYTES)
        tail = os.pread(self._stderr_fd, _STDERR_TAIL_BYTES, start)
        return tail.decode(errors="replace").strip()

    def close(self) -> bool:
        """Close the socket, which ends the process; whether this was the first time."""
        self.writer.close()
        fd, self._stderr_fd = self._stderr_fd, -1
        if fd < 0:
            return False
        os.close(fd)
        return True


class UnpackPool:
    """Unpacks layers in workers. For one event loop."""

    def __init__(
        self,
        runner: ProcessRunner,
        *,
        workers: int,
        idle_s: float,
        no_progress_timeout_s: float,
    ) -> None:
        self._runner = runner
        self._idle_s = idle_s
        self._no_progress_timeout_s = no_progress_timeout_s
        self._limit = workers
        self._turns = Turns(workers)
        self._alive = 0
        self._idle: list[_Worker] = []
        self._closed = False

    async def close(self) -> None:
        """End the idle workers; those at work end with their callers."""
        self._closed = True
        while self._idle:
            await self._end(self._idle.pop())

    async def warm(self) -> None:
        """Start a worker, if one more may be needed: it gets ready while a blob is fetched.

        Raises:
            PodwrightError: it cannot be started; `unpack` would fail as well.
        """
        if self._alive < self._limit and not self._closed:
            self._idle.insert(0, await self._start())

    async def unpack(
        self, job: Job, on_progress: Callable[[int], None], feed: Feed | None = None
    ) -> Done:
        """Unpack one layer; waits for its first bytes and for a free worker.

        When cancelled, the worker is dead before this returns: nothing writes to the tree any more.

        Args:
            job: what to do.
            on_progress: called with the bytes of the blob that are behind the worker.
            feed: what is there of the blob, where it is still being fetched.

        Raises:
            BlobMismatch: what was fetched is not the blob.
            Corrupt, ResourceExhausted, Unsupported, ...: what the worker found.
            DeadlineExceeded: no progress for too long.
            WorkerLost: it ended without an answer; with what it said.
        """
        feed = feed or Feed(job.blob_bytes, job.blob_bytes)
        await feed.wait_beyond(0, FEED_BYTES)
        try:
            await self._turns.take(feed)
            while True:
                worker = self._take_idle()
                is_fresh = worker is None
                try:
                    return await self._attempt(
                        worker or await self._start(), job, on_progress, feed
                    )
                except WorkerLost as error:
                    # An idle one may end by itself just when it is asked; a fresh one does not.
                    if is_fresh or error.fields.get("began"):
                        raise
        finally:
            self._turns.leave(feed)

    def _take_idle(self) -> _Worker | None:
        while self._idle:
            worker = self._idle.pop()
            if worker.process.pidfd >= 0:
                return worker
            self._close(worker)
        return None

    async def _attempt(
        self, worker: _Worker, job: Job, on_progress: Callable[[int], None], feed: Feed
    ) -> Done:
        try:
            reply = await self._ask(worker, job, on_progress, feed)
        except BaseException:
            await in_one_piece(self._kill(worker))
            raise
        if self._closed:
            await in_one_piece(self._end(worker))
        else:
            self._idle.append(worker)
        if isinstance(reply, Failed):
            raise _error(reply)
        return reply

    async def _ask(
        self, worker: _Worker, job: Job, on_progress: Callable[[int], None], feed: Feed
    ) -> Done | Failed:
        reader, writer = worker.reader, worker.writer
        began = False
        try:
            job = msgspec.structs.replace(job, available_bytes=feed.available_bytes)
            writer.write(protocol.encode(job))
            await writer.drain()
            while True:
                async with asyncio.timeout(self._no_progress_timeout_s):
                    line = await reader.readline()
                if not line.endswith(b"\n"):
                    raise ConnectionResetError
                reply = protocol.reply_decoder.decode(line)
                if not isinstance(reply, Progress | Hungry):
                    return reply
                began = True
                on_progress(reply.blob_bytes)
                if isinstance(reply, Hungry):
                    await self._more(writer, feed, reply.blob_bytes)
        except TimeoutError as error:
            raise DeadlineExceeded(
                "unpacking made no progress",
                layer=job.diff_id,
                seconds=int(self._no_progress_timeout_s),
            ) from error
        except (ConnectionError, msgspec.MsgspecError, ValueError) as error:
            raise WorkerLost(
                "unpack worker ended without an answer",
                layer=job.diff_id,
                began=int(began),
                stderr=worker.stderr_tail() or None,
            ) from error

    async def _more(self, writer: asyncio.StreamWriter, feed: Feed, read_bytes: int) -> None:
        """Wait for more of the blob, without a turn, and tell the worker."""
        if read_bytes >= feed.total_bytes:
            raise ValueError("the worker asks for more than there will be")
        if feed.available_bytes < min(read_bytes + FEED_BYTES, feed.total_bytes):
            self._turns.pause(feed)
            await feed.wait_beyond(read_bytes, FEED_BYTES)
            await self._turns.take(feed)
        writer.write(protocol.encode(More(available_bytes=feed.available_bytes)))
        await writer.drain()

    def _close(self, worker: _Worker) -> None:
        if worker.close():
            self._alive -= 1

    async def _start(self) -> _Worker:
        self._alive += 1
        try:
            return await self._spawn()
        except BaseException:
            self._alive -= 1
            raise

    async def _spawn(self) -> _Worker:
        ours, theirs = socket.socketpair()
        stderr_fd = os.memfd_create("unpack-stderr", os.MFD_CLOEXEC)
        argv = [sys.executable, "-P", "-s", "-m", "imageservice.unpack.worker", str(self._idle_s)]
        # The package may be on the path by the daemon's environment only, which is not passed on.
        env = {"PYTHONPATH": str(Path(imageservice.__path__[0]).parent)}
        try:
            with theirs:
                process = await self._runner.spawn(
                    argv, env=env, stdin_fd=theirs.fileno(), stderr_fd=stderr_fd
                )
        except BaseException:
            ours.close()
            os.close(stderr_fd)
            raise
        try:
            ours.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=ours, limit=protocol.MAX_LINE_BYTES)
        except BaseException:
            process.kill_group()
            ours.close()
            os.close(stderr_fd)
            raise
        return _Worker(process, reader, writer, stderr_fd)

    async def _end(self, worker: _Worker) -> None:
        """Let it go, kindly first."""
        self._close(worker)
        with suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                await worker.process.wait()
                return
        await self._kill(worker)

    async def _kill(self, worker: _Worker) -> None:
        worker.process.kill_group()
        self._close(worker)
        try:
            async with asyncio.timeout(_KILL_WAIT_S):
                await worker.process.wait()
        except TimeoutError:
            _log.warning("unpack worker does not die", pid=worker.process.pid)


def _error(failed: Failed) -> PodwrightError:
    """The failure as an exception again; a class we do not know is a fault of ours."""
    kind = getattr(image_errors, failed.kind, None) or getattr(host_errors, failed.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, PodwrightError)):
        kind = Internal
    error = kind(failed.message, hint=failed.hint)
    error.fields = failed.fields
    return error
