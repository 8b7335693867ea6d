"""The program that unpacks layers: `python -m imageservice.unpack.worker IDLE_SECONDS`.

Everything that parses or writes bytes of an image happens here, in a process that holds no state,
serves nobody else and can be killed at any moment: a layer that hangs, eats memory or crashes a
decompressor costs one worker and fails one pull. It speaks `protocol` on its standard input, which
is a socket. When the other end goes away it exits on the spot, in the middle of a layer too: a new
daemon that clears the staging directory must not find an old worker still filling it.

Limits: no core dumps (they would hold image contents), `MEMORY_BYTES` of address space, so that a
crafted layer runs into MemoryError here and not into the node's OOM killer, which would take this
process before others all the same.
"""

from __future__ import annotations

import itertools
import os
import resource
import select
import signal
import socket
import sys
import threading
from typing import Final

import msgspec

from imageservice.unpack import protocol
from imageservice.unpack.layer import unpack_layer
from imageservice.unpack.protocol import Failed, Hungry, Progress
from sandbox.host import oom
from sandbox.host.errors import Corrupt, PodwrightError, ResourceExhausted

#: Address space of a worker: twelve times what an honest layer with a 128 MiB zstd window needs.
MEMORY_BYTES: Final = 2 << 30
#: Chunks of plain bytes (each at most 512 KiB) for one Progress line. Not a time: the clock module
#: brings asyncio, which would double the time a worker takes to start.
_CHUNKS_PER_REPORT: Final = 8


def main() -> int:
    """Serve jobs until the socket ends or nothing is asked for the idle time; an exit status."""
    # A terminal's Ctrl-C is for the daemon, which then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0)
    # The daemon's protection is not for who handles an image's bytes.
    oom.expose_self()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    threading.Thread(target=_end_with_daemon, name="watch", daemon=True).start()
    idle_s = float(sys.argv[1])
    with socket.socket(fileno=os.dup(0)) as channel:
        channel.settimeout(idle_s)
        daemon = _Daemon(channel)
        try:
            while line := daemon.hear():
                # In the middle of a layer there is no idle time: a download may take for ever.
                channel.settimeout(None)
                daemon.tell(_answer(line, daemon))
                channel.settimeout(idle_s)
        except (TimeoutError, BrokenPipeError, ConnectionResetError):
            pass  # idle, or the daemon is gone: either way there is nobody to tell
    return 0


class _Daemon:
    """The other end. Two threads of a layer speak to it: progress is told beside the reading."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._lines = channel.makefile("rb")
        self._telling = threading.Lock()

    def hear(self) -> bytes:
        """The next line; b"" when the daemon is gone."""
        return self._lines.readline(protocol.MAX_LINE_BYTES)

    def tell(self, message: protocol.Reply) -> None:
        with self._telling:
            self._channel.sendall(protocol.encode(message))

    def more(self, read_bytes: int) -> int:
        """Wait for more of the blob than was read; how much there is."""
        self.tell(Hungry(blob_bytes=read_bytes))
        line = self.hear()
        if not line:
            os._exit(0)  # as `_end_with_daemon`
        return protocol.more_decoder.decode(line).available_bytes


def _end_with_daemon() -> None:
    """Wait for the end of the socket and leave without ceremony."""
    watch = select.poll()
    watch.register(0, select.POLLRDHUP)
    watch.poll()
    os._exit(0)


def _answer(line: bytes, daemon: _Daemon) -> protocol.Reply:
    chunks = itertools.count(1)

    def report(blob_bytes: int) -> None:
        if next(chunks) % _CHUNKS_PER_REPORT == 0:
            daemon.tell(Progress(blob_bytes=blob_bytes))

    try:
        return unpack_layer(protocol.job_decoder.decode(line), report, daemon.more)
    except PodwrightError as error:
        return _failed(error)
    except MemoryError:
        return _failed(ResourceExhausted("layer needs too much memory to unpack"))
    except msgspec.MsgspecError as error:
        return _failed(Corrupt(f"unpack job is malformed: {error}"))


def _failed(error: PodwrightError) -> Failed:
    return Failed(
        kind=type(error).__name__,
        message=error.message[:4096],
        hint=error.hint[:4096],
        fields={k: v[:4096] if isinstance(v, str) else v for k, v in error.fields.items()},
    )


if __name__ == "__main__":
    sys.exit(main())
