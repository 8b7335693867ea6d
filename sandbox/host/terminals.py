"""Pseudo-terminals: made by us, or handed over by an OCI runtime; sizes.

`crun exec --console-socket=PATH` connects to a socket of ours and sends the terminal's master side
as a descriptor (runc's terminals.md describes the exchange): from then on nobody stands between us
and the terminal, and closing it hangs up on whoever runs there, even when it is the kernel that
closes it because we were killed. Runtimes that cannot wait for the command at the same time
(`runc exec`) relay between a terminal that we give them as standard streams and their own.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import socket
import struct
import termios
import tty
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import Corrupt, from_os_error, map_os_errors
from sandbox.host.files import Fd

if TYPE_CHECKING:
    from pathlib import Path

_SOCKET_NAME: Final = "console"
#: The message that comes with the descriptor is the terminal's name, or nothing of meaning.
_MESSAGE_BYTES: Final = 4096
_WINDOW: Final = struct.Struct("HHHH")


def open_raw_pair() -> tuple[Fd, Fd]:
    """(master, slave) of a terminal that passes every byte on as it is.

    Raises:
        ResourceExhausted: no descriptor or no terminal is left.
    """
    with map_os_errors("cannot make a pseudo-terminal"):
        master_number, slave_number = pty.openpty()
    master, slave = Fd(master_number), Fd(slave_number)
    # Before anybody writes: a line typed ahead would be echoed here and again in the container.
    tty.setraw(slave_number)
    return master, slave


def set_size(terminal: Fd, columns: int, rows: int) -> None:
    """Tell the terminal its size; whoever runs in its foreground gets SIGWINCH.

    A terminal that is gone, or that is none, is no error.
    """
    with suppress(OSError, ValueError):
        window = _WINDOW.pack(rows, columns, 0, 0)
        fcntl.ioctl(terminal.fileno(), termios.TIOCSWINSZ, window)


#: Control-D, what ends the input unless somebody has chosen another character (termios(3), VEOF).
END_OF_INPUT: Final = b"\x04"


def end_of_input(terminal: Fd) -> bytes:
    """What ends the input of a program that reads lines from this terminal.

    A terminal has no half-closed state; in line mode a character stands for it (termios(3), VEOF).
    A program that reads keys has no end of input: empty.
    """
    try:
        _, _, _, local, _, _, special = termios.tcgetattr(terminal.fileno())
    except (termios.error, ValueError):
        return b""
    character = special[termios.VEOF]
    return character if local & termios.ICANON and isinstance(character, bytes) else b""


class ConsoleSocket:
    """Where a runtime delivers a terminal's master side; close it in any case."""

    def __init__(self, directory: Path) -> None:
        """Listen in `directory`, which is private to us.

        Raises:
            PodwrightError: as the kernel says.
        """
        with map_os_errors("cannot listen for a terminal"):
            self._directory = Fd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self._listener.setblocking(False)
                self._listener.bind(self.path)
                self._listener.listen(1)
            except BaseException:
                self.close()
                raise

    @property
    def path(self) -> str:
        """For the runtime. By way of our descriptor: sun_path holds 107 bytes (unix(7))."""
        return f"/proc/{os.getpid()}/fd/{self._directory.fileno()}/{_SOCKET_NAME}"

    async def receive(self) -> Fd:
        """The terminal's master side, once the runtime has sent it.

        Raises:
            Corrupt: it sent something else.
        """
        with map_os_errors("cannot take over a terminal"):
            # Not loop.sock_accept: cancelled in the wrong moment it loses the connection (3.11).
            await _readable(self._listener)
            connection, _ = self._listener.accept()
        try:
            connection.setblocking(False)
            return await _receive(connection)
        finally:
            connection.close()

    def close(self) -> None:
        """Listen no more. Idempotent."""
        self._listener.close()
        self._directory.close()


async def _readable(link: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def ready() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(link, ready)
    try:
        await readable
    finally:
        loop.remove_reader(link)


async def _receive(connection: socket.socket) -> Fd:
    await _readable(connection)
    try:
        _, numbers, _, _ = socket.recv_fds(connection, _MESSAGE_BYTES, 8)
    except OSError as error:
        raise from_os_error(error, "cannot take over a terminal") from error
    received = [Fd(number) for number in numbers]
    for each in received:
        # Python 3.11 does not pass MSG_CMSG_CLOEXEC on; a program started in between gets nothing
        # either, since ours are started with every other descriptor closed.
        os.set_inheritable(each.fileno(), False)
    for each in received[1:]:
        each.close()
    if not received or not os.isatty(received[0].fileno()):
        raise Corrupt("the container's runtime sent no terminal")
    return received[0]
