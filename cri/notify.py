"""Telling systemd how the daemon is doing (sd_notify(3)), and that it still answers.

The watchdog is fed only after a Version call through the daemon's own socket was answered: a
process that lives but whose event loop hangs, or whose server has gone, is what a watchdog is for.
A restart is cheap, since pods do not notice it.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

import grpc

from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from sandbox.host.clock import Clock

#: A call that takes longer than the kubelet's patience with its runtime is no answer (seconds).
ANSWER_S: Final = 10.0
_VERSION: Final = "/runtime.v1.RuntimeService/Version"

_log = get_logger("daemon")


def notify(state: str) -> None:
    """Tell systemd, where it started us (sd_notify(3)); silently nothing elsewhere."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(state.encode(), address)
    except OSError as error:
        _log.warning("systemd was not told", state=state, error=str(error))


def watchdog_interval_s(environment: Mapping[str, str], pid: int) -> float:
    """How often the watchdog wants to be fed: half its limit (sd_watchdog_enabled(3)); 0: never."""
    text = environment.get("WATCHDOG_USEC", "")
    meant = environment.get("WATCHDOG_PID", "")
    if not text.isascii() or not text.isdigit() or (meant and meant != str(pid)):
        return 0.0
    return int(text) / 2 / 1e6


async def answers(socket_path: Path) -> bool:
    """Whether the daemon behind the socket answers Version in time."""
    try:
        async with grpc.aio.insecure_channel(f"unix:{socket_path}") as channel:
            version = channel.unary_unary(_VERSION, None, None)
            return bool(await version(b"", timeout=ANSWER_S))
    except grpc.RpcError as error:
        _log.warning("the daemon does not answer itself", code=error.code().name)
        return False


async def feed(alive: Callable[[], Awaitable[bool]], interval_s: float, clock: Clock) -> None:
    """Feed the watchdog for ever, but only when `alive` says so; return at once without one."""
    while interval_s > 0:
        fed = await alive()
        if fed:
            notify("WATCHDOG=1")
        # One answer that is late must not be the end: the limit is two intervals.
        await clock.sleep(interval_s if fed else min(1.0, interval_s))
