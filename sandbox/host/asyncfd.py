"""Pipes and terminals on the event loop, read and written by whoever awaits.

Not asyncio's transports: those buffer on their own, and close some time after they were told to.
Here a read takes what there is, a write returns when the kernel has taken everything, and back-
pressure is that nobody reads. One task at a time may read and one may write.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import from_os_error

if TYPE_CHECKING:
    from sandbox.host.files import Fd

#: A pipe's default capacity (pipe(7)): one read takes all there can be.
READ_BYTES: Final = 64 * 1024
_DOUBLED: Final = re.compile(rb"\r\r\n")


class FdReader:
    """Reads a descriptor, which is made non-blocking; the caller keeps owning it."""

    def __init__(self, fd: Fd) -> None:
        self._fd = fd
        self._limit_s: float | None = None
        self._waiter: asyncio.Future[bool] | None = None
        os.set_blocking(fd.fileno(), False)

    async def read(self) -> bytes:
        """What is there, waiting for at least one byte; empty at the end.

        A terminal whose other side is closed ends as well (EIO).

        Raises:
            PodwrightError: the kernel says something else.
        """
        while True:
            try:
                return os.read(self._fd.fileno(), READ_BYTES)
            except BlockingIOError:
                if not await self._readable():
                    return b""
            except OSError as error:
                if error.errno == errno.EIO:
                    return b""
                raise from_os_error(error, "cannot read from a command's output") from error

    def expire_after(self, seconds: float) -> None:
        """From now on, nothing for so long is the end: somebody else holds it open."""
        self._limit_s = seconds
        if self._waiter is not None:
            asyncio.get_running_loop().call_later(seconds, _give_up, self._waiter)

    async def _readable(self) -> bool:
        loop = asyncio.get_running_loop()
        number = self._fd.fileno()
        waiter: asyncio.Future[bool] = loop.create_future()
        timer = (
            loop.call_later(self._limit_s, _give_up, waiter) if self._limit_s is not None else None
        )
        loop.add_reader(number, _wake, waiter)
        self._waiter = waiter
        try:
            return await waiter
        finally:
            self._waiter = None
            loop.remove_reader(number)
            if timer is not None:
                timer.cancel()


class RelayedReader(FdReader):
    """Reads a terminal behind which another program relays a second one.

    Such programs turn line ends into return and line feed at the outer terminal, and switch that
    off at the inner one a moment too late for a quick command, and never for one that writes both
    itself: two returns then come before the line feed. One of them is left out here.
    """

    def __init__(self, fd: Fd) -> None:
        super().__init__(fd)
        self._returns = DoubledReturns()

    async def read(self) -> bytes:
        """See `FdReader`."""
        while True:
            data = await super().read()
            if not data:
                return self._returns.rest()
            if kept := self._returns.feed(data):
                return kept


class DoubledReturns:
    """Leaves out every return that stands between a return and a line feed, however it is cut."""

    def __init__(self) -> None:
        self._after_return = False
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """`data` without them; one that may be such a return is held back until it is known."""
        before = b"\r" if self._after_return else b""
        text = _DOUBLED.sub(b"\r\n", before + self._held + data)
        self._held = b"\r" if text.endswith(b"\r\r") else b""
        text = text.removesuffix(self._held)
        self._after_return = text.endswith(b"\r")
        return text[len(before) :]

    def rest(self) -> bytes:
        """What was held back, at the end."""
        held, self._held = self._held, b""
        return held


class FdWriter:
    """Writes a descriptor, which is made non-blocking; the caller keeps owning it."""

    def __init__(self, fd: Fd) -> None:
        self._fd = fd
        os.set_blocking(fd.fileno(), False)

    async def write(self, data: bytes) -> bool:
        """Hand all of it to the kernel; False when nobody will read it (EPIPE, a dead terminal).

        Raises:
            PodwrightError: the kernel says something else.
        """
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd.fileno(), view) :]
            except BlockingIOError:
                await self._writable()
            except OSError as error:
                if error.errno in {errno.EPIPE, errno.EIO}:
                    return False
                raise from_os_error(error, "cannot write to a command's input") from error
        return True

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        number = self._fd.fileno()
        waiter: asyncio.Future[bool] = loop.create_future()
        loop.add_writer(number, _wake, waiter)
        try:
            await waiter
        finally:
            loop.remove_writer(number)


def _wake(waiter: asyncio.Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(True)


def _give_up(waiter: asyncio.Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(False)
