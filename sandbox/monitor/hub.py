"""One connection to a container's attach socket, shared by everybody who is attached.

Why not a connection for each: conmon 2.1.6 blocks while it writes to a client, log and all, and
with `stdin_once` it takes the end of *any* connection, also of one that only looks on, for the end
of standard input (src/conn_sock.c, terminate_remote_sock). So the hub alone talks to conmon, reads
on always, and hands out copies.

A seat that falls behind by more than SEAT_LIMIT_BYTES makes the container wait, that is the back-
pressure which loses nothing; one that has taken nothing for STALL_S is put out, so that a terminal
that somebody has stopped cannot stop a container.

With `stdin_once` the first seat with standard input that leaves, or finishes it, ends it. A hub of
such a container stays connected after its last onlooker has left, for the reason above.

A seat that finishes its input without that, or on a terminal, wants to leave: that is how clients
detach (containerd does the same). It stays for another DETACH_S, for the answer to its last words.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import PodwrightError, ResourceExhausted
from sandbox.host.journal import get_logger
from sandbox.monitor.attach import AttachSocket

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox.monitor.attach import Output

SEAT_LIMIT_BYTES: Final = 1024 * 1024
STALL_S: Final = 10.0
DETACH_S: Final = 0.5
_READ_BYTES: Final = 64 * 1024

_log = get_logger("attach")


class SeatOutput:
    """One of the container's outputs, as one seat sees it."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self.unread = bytearray()
        self.changed = asyncio.Event()

    async def read(self) -> bytes:
        """What came next; empty once the container has ended or the seat was put out."""
        while not self.unread:
            if self._seat.over.is_set():
                return b""
            self.changed.clear()
            await self.changed.wait()
        data = bytes(self.unread[:_READ_BYTES])
        del self.unread[:_READ_BYTES]
        self._seat.taken.set()
        return data


class SeatInput:
    """The container's standard input, as one seat sees it."""

    def __init__(self, seat: Seat, hub: AttachHub) -> None:
        self._seat = seat
        self._hub = hub
        self._finished = False

    async def write(self, data: bytes) -> bool:
        """Hand it over; False once nobody will read any more."""
        return not self._finished and await self._hub.write(data)

    def finish(self) -> None:
        """This seat has no more. Idempotent."""
        if not self._finished:
            self._finished = True
            self._hub.input_finished(self._seat)


class Seat:
    """Somebody who is attached; `close` it."""

    def __init__(self, hub: AttachHub, *, stdin: bool, stdout: bool, stderr: bool) -> None:
        """Made by `AttachHubs`."""
        self.over = asyncio.Event()
        self.taken = asyncio.Event()
        self.stdin = SeatInput(self, hub) if stdin else None
        self.stdout = SeatOutput(self) if stdout else None
        self.stderr = SeatOutput(self) if stderr else None
        self._hub = hub
        self._put_out = False

    async def wait(self) -> None:
        """Return when the container has ended.

        Raises:
            ResourceExhausted: the seat was put out.
        """
        await self.over.wait()
        if self._put_out:
            raise ResourceExhausted(f"nothing of the output was taken for {STALL_S:g} s")

    async def put(self, output: Output) -> None:
        """For the hub: a piece of output, waiting for room."""
        target = self.stdout if output.stream == "stdout" else self.stderr
        if target is None or self.over.is_set():
            return
        while self._unread_bytes() > SEAT_LIMIT_BYTES:
            self.taken.clear()
            try:
                async with asyncio.timeout(STALL_S):
                    await self.taken.wait()
            except TimeoutError:
                self._put_out = True
                self.end()
                return
        target.unread += output.data
        target.changed.set()

    def _unread_bytes(self) -> int:
        return sum(len(each.unread) for each in (self.stdout, self.stderr) if each is not None)

    def end(self) -> None:
        """For the hub: nothing comes any more."""
        self.over.set()
        for output in (self.stdout, self.stderr):
            if output is not None:
                output.changed.set()

    def close(self) -> None:
        """Leave. Idempotent."""
        self.end()
        self.taken.set()
        if self.stdin is not None:
            self.stdin.finish()
        self._hub.leave(self)


class AttachHub:
    """The connection of one container."""

    def __init__(self, hubs: AttachHubs, bundle: Path, *, stdin_once: bool, terminal: bool) -> None:
        """Made by `AttachHubs`."""
        self._hubs = hubs
        self._bundle = bundle
        self._stdin_once = stdin_once
        self._terminal = terminal
        self._input_ended = False
        self._socket: AttachSocket | None = None
        self._seats: list[Seat] = []
        self._connecting = asyncio.Lock()
        self._writing = asyncio.Lock()

    @property
    def deserted(self) -> bool:
        """Nobody has ever got a connection, and nobody waits for one."""
        return self._socket is None and not self._connecting.locked()

    async def join(self, *, stdin: bool, stdout: bool, stderr: bool) -> Seat:
        """A seat from now on. Raises MonitorGone."""
        async with self._connecting:
            if self._socket is None:
                self._socket = connection = await AttachSocket.connect(self._bundle)
                reading = self._hubs.group.create_task(self._read(connection), name="attach")
                # A task that is cancelled before its first step closes nothing itself. It must not
                # be waited for here: called off, a connection would be left that nobody has a seat
                # at, and so nobody leaves.
                reading.add_done_callback(lambda _ended: connection.close())
            seat = Seat(self, stdin=stdin, stdout=stdout, stderr=stderr)
            self._seats.append(seat)
            return seat

    async def _read(self, connection: AttachSocket) -> None:
        try:
            while (output := await connection.receive()) is not None:
                for seat in list(self._seats):
                    await seat.put(output)
        except PodwrightError as error:
            _log.warning("attach socket failed", container=self._bundle.name, error=str(error))
        finally:
            self._hubs.forget(self._bundle, self)
            for seat in self._seats:
                seat.end()
            # A write that still waits is told by conmon's end; closing under it would leave it.
            async with self._writing:
                self._socket = None
                connection.close()

    async def write(self, data: bytes) -> bool:
        """For seats: standard input; False once nobody will read any more."""
        async with self._writing:
            if self._socket is None or self._input_ended:
                return False
            try:
                await self._socket.send(data)
            except PodwrightError:
                return False
            return True

    def input_finished(self, seat: Seat) -> None:
        """For seats: one of them has no more standard input."""
        if self._stdin_once and not self._input_ended and self._socket is not None:
            self._input_ended = True
            self._socket.end_input()
        if (self._terminal or not self._stdin_once) and not seat.over.is_set():
            asyncio.get_running_loop().call_later(DETACH_S, seat.end)

    def leave(self, seat: Seat) -> None:
        """For seats."""
        if seat in self._seats:
            self._seats.remove(seat)
        parked = self._stdin_once and not self._input_ended
        if not self._seats and not parked and self._socket is not None:
            self._hubs.forget(self._bundle, self)
            self._socket.hang_up()  # its reader closes it


class AttachHubs:
    """The hubs of a node."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self.group = group
        self._hubs: dict[Path, AttachHub] = {}

    async def attach(
        self,
        bundle: Path,
        *,
        stdin_once: bool,
        terminal: bool = False,
        stdin: bool = False,
        stdout: bool = False,
        stderr: bool = False,
    ) -> Seat:
        """A seat at the container whose bundle this is; only output from now on is seen.

        Args:
            bundle: the container's.
            stdin_once: what the container was made with.
            terminal: likewise.
            stdin: the seat writes to standard input.
            stdout: the seat sees standard output; on a terminal that is all.
            stderr: likewise.

        Raises:
            MonitorGone: no conmon listens there.
        """
        hub = self._hubs.get(bundle)
        if hub is None:
            hub = self._hubs[bundle] = AttachHub(
                self, bundle, stdin_once=stdin_once, terminal=terminal
            )
        try:
            return await hub.join(stdin=stdin, stdout=stdout, stderr=stderr)
        except BaseException:
            if hub.deserted:
                self.forget(bundle, hub)
            raise

    def forget(self, bundle: Path, hub: AttachHub) -> None:
        """For hubs: the next one to attach connects anew."""
        if self._hubs.get(bundle) is hub:
            del self._hubs[bundle]
