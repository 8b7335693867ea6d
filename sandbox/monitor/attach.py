"""conmon's attach socket: live output of a container, and its standard input.

conmon listens on `<bundle>/attach`, a SOCK_SEQPACKET socket (with --full-attach it is bound inside
the bundle directory; never an abstract socket, which any process of a host-network pod could
reach).

From conmon, one packet per read of a pipe: the first byte names the stream (2 stdout, 3 stderr; a
terminal has only stdout), up to 8192 bytes of data follow. To conmon: standard input, verbatim, at
most 32 KiB a packet (what its buffer holds; the rest of a longer packet is lost). Shutting down
our sending side ends standard input, unless the container was made with --leave-stdin-open.

Two things to know about conmon 2.1.6 (src/conn_sock.c): it *blocks* while writing to a client, so
one that stops reading stops the container's output for all, log included: read on, and drop what
nobody wants. And there is no history: output from before the connection is only in the log.
"""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from sandbox.errors import MonitorGone
from sandbox.host.errors import Corrupt, from_os_error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: conmon's STDIO_BUF_SIZE: most data in a packet from it (src/config.h, v2.1.6).
OUTPUT_LIMIT_BYTES: Final = 8192
#: conmon's CONN_SOCK_BUF_SIZE: most data it takes from one packet (src/config.h, v2.1.6).
INPUT_LIMIT_BYTES: Final = 32 * 1024

_STREAM_OF: Final[dict[int, Literal["stdout", "stderr"]]] = {2: "stdout", 3: "stderr"}
_BYTE_OF: Final = {name: byte for byte, name in _STREAM_OF.items()}


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of what the container wrote."""

    stream: Literal["stdout", "stderr"]
    data: bytes


def decode_packet(packet: bytes) -> Output:
    """One packet from conmon. Raises Corrupt."""
    if not packet:
        raise Corrupt("empty packet from the container monitor's attach socket")
    stream = _STREAM_OF.get(packet[0])
    if stream is None:
        raise Corrupt("packet of an unknown stream from the attach socket", stream=packet[0])
    return Output(stream, packet[1:])


def encode_packet(output: Output) -> bytes:
    """The packet conmon would send; for tests and stand-ins."""
    return bytes([_BYTE_OF[output.stream]]) + output.data


def split_input(data: bytes) -> Iterator[bytes]:
    """Standard input in packets that conmon takes whole."""
    for start in range(0, len(data), INPUT_LIMIT_BYTES):
        yield data[start : start + INPUT_LIMIT_BYTES]


class AttachSocket:
    """A connection to a container's attach socket; `async with` or `close`."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    @classmethod
    async def connect(cls, bundle: Path) -> AttachSocket:
        """Connect to the monitor of the container whose bundle this is.

        Raises:
            MonitorGone: no conmon listens there.
        """
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        link.setblocking(False)
        try:
            # By way of the open directory: sun_path holds 107 bytes, bundle paths may be longer.
            directory = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                await asyncio.get_running_loop().sock_connect(
                    link, f"/proc/self/fd/{directory}/attach"
                )
            finally:
                os.close(directory)
        except (ConnectionRefusedError, FileNotFoundError) as error:
            link.close()
            raise MonitorGone(
                "the container's monitor does not listen on its attach socket",
                bundle=bundle.name,
            ) from error
        except OSError as error:
            link.close()
            raise from_os_error(error, "connect to attach socket", bundle=bundle.name) from error
        except BaseException:
            link.close()
            raise
        return cls(link)

    async def receive(self) -> Output | None:
        """The next piece of output; None when conmon has closed (the container ended)."""
        loop = asyncio.get_running_loop()
        try:
            packet = await loop.sock_recv(self._socket, OUTPUT_LIMIT_BYTES + 2)
        except ConnectionError:
            return None
        return decode_packet(packet) if packet else None

    async def send(self, data: bytes) -> None:
        """Write to standard input. Raises MonitorGone when conmon has closed."""
        loop = asyncio.get_running_loop()
        try:
            for packet in split_input(data):
                await loop.sock_sendall(self._socket, packet)
        except ConnectionError as error:
            raise MonitorGone("the container's monitor closed its attach socket") from error

    def end_input(self) -> None:
        """No more standard input; output goes on."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return  # conmon has closed already

    def hang_up(self) -> None:
        """End both directions: `receive` gives what is there already, and then None."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # conmon has closed already

    def close(self) -> None:
        """Disconnect; idempotent."""
        self._socket.close()

    async def __aenter__(self) -> AttachSocket:
        """The connection itself."""
        return self

    async def __aexit__(self, *_exception: object) -> None:
        """Disconnect."""
        self.close()
