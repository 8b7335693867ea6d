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
from imageservice.unpack.protocol import Failed, Progress
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
    with socket.socket(fileno=os.dup(0)) as channel:
        channel.settimeout(float(sys.argv[1]))
        lines = channel.makefile("rb")
        try:
            while line := lines.readline(protocol.MAX_LINE_BYTES):
                channel.sendall(protocol.encode(_answer(line, channel)))
        except (TimeoutError, BrokenPipeError, ConnectionResetError):
            pass  # idle, or the daemon is gone: either way there is nobody to tell
    return 0


def _end_with_daemon() -> None:
    """Wait for the end of the socket and leave without ceremony."""
    watch = select.poll()
    watch.register(0, select.POLLRDHUP)
    watch.poll()
    os._exit(0)


def _answer(line: bytes, channel: socket.socket) -> protocol.Reply:
    chunks = itertools.count(1)

    def report(blob_bytes: int) -> None:
        if next(chunks) % _CHUNKS_PER_REPORT == 0:
            channel.sendall(protocol.encode(Progress(blob_bytes=blob_bytes)))

    try:
        return unpack_layer(protocol.job_decoder.decode(line), report)
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
