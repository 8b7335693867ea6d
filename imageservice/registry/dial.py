"""A connection to a name, to whichever of its addresses answers first (RFC 8305).

Not asyncio's own `happy_eyeballs_delay`: of several failures it keeps the text alone, and one that
is cancelled in the moment of success leaves an open socket behind (Python 3.11).
"""

from __future__ import annotations

import asyncio
import socket
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

#: What the first address has before the next is tried beside it (RFC 8305, 5, recommends it).
NEXT_AFTER_S: Final = 0.25


class NoneAnswers(OSError):
    """No address could be reached; `errors` has each one's reason."""

    def __init__(self, errors: Sequence[OSError]) -> None:
        super().__init__()
        self.errors = tuple(errors)


async def dial(host: str, port: int) -> socket.socket:
    """Connect by TCP.

    Raises:
        socket.gaierror: the name cannot be resolved.
        UnicodeError: it is none that DNS could have.
        NoneAnswers: see there.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    preferred = [one for one in found if one[0] == found[0][0]]
    others = [one for one in found if one[0] != found[0][0]]
    in_turn = chain.from_iterable(zip_longest(preferred, others))
    waiting = [one for one in in_turn if one is not None]
    running: set[asyncio.Task[socket.socket]] = set()
    errors: list[OSError] = []
    try:
        while waiting or running:
            if waiting:
                family, _, _, _, address = waiting.pop(0)
                running.add(loop.create_task(_connect(family, address), name="dial"))
            done, _ = await asyncio.wait(
                running,
                timeout=NEXT_AFTER_S if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                error = task.exception()
                if error is None:
                    running.discard(task)
                    return task.result()
                if not isinstance(error, OSError):
                    raise error
                running.discard(task)
                errors.append(error)
    finally:
        for task in running:
            task.cancel()
            task.add_done_callback(_close_unwanted)
    raise NoneAnswers(errors)


async def _connect(family: socket.AddressFamily, address: tuple[object, ...]) -> socket.socket:
    connecting = socket.socket(family, socket.SOCK_STREAM)
    try:
        connecting.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connecting, address)
    except BaseException:
        connecting.close()
        raise
    return connecting


def _close_unwanted(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()
