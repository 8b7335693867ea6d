"""Telling systemd how the daemon is doing (sd_notify(3))."""

from __future__ import annotations

import os
import socket

from sandbox.host.journal import get_logger

_log = get_logger("daemon")


def notify(state: str) -> None:
    """Tell systemd, where it started us (sd_notify(3)); silently nothing elsewhere."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), address)
        except OSError as error:
            _log.warning("systemd was not told", state=state, error=str(error))
