"""The end of the line inside the machine: runs what it is told, one command after the other.

Over the virtio port come lines of JSON: {"argv": [...], "env": {...}, "cwd": "..."}. Back go lines
{"out": BASE64} while the command writes (its two outputs are one) and {"exit": STATUS} at its end,
128 + signal if one ended it. This file is copied into the machine and started by systemd; it is
part of its saved state, so it costs no start. Only the standard library is there.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Final

#: The only port there is; its first number is that of the device among all virtio devices.
PORT: Final = "vport*p1"
CHUNK_BYTES: Final = 48 << 10


def serve(port: int) -> None:
    """Answer until the machine is switched off."""
    say(port, {"ready": True})
    pending = b""
    while True:
        piece = os.read(port, CHUNK_BYTES)
        if not piece:  # nobody holds the other end at the moment
            time.sleep(0.02)
            continue
        pending += piece
        while b"\n" in pending:
            line, _, pending = pending.partition(b"\n")
            say(port, {"exit": run(port, json.loads(line))})


def run(port: int, order: dict[str, object]) -> int:
    """Run one command; its exit status."""
    argv, env = order["argv"], order.get("env")
    assert isinstance(argv, list)
    assert isinstance(env, dict)
    try:
        process = subprocess.Popen(
            argv,
            env={**os.environ, **env},
            cwd=str(order.get("cwd") or "/"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        say(port, {"out": base64.b64encode(f"{argv[0]}: {error}\n".encode()).decode()})
        return 127
    assert process.stdout is not None
    output = process.stdout.fileno()
    while piece := os.read(output, CHUNK_BYTES):
        say(port, {"out": base64.b64encode(piece).decode()})
    status = process.wait()
    return status if status >= 0 else 128 - status


def say(port: int, message: dict[str, object]) -> None:
    """Write one line whole."""
    data = memoryview(json.dumps(message).encode() + b"\n")
    while data:
        data = data[os.write(port, data) :]


if __name__ == "__main__":
    (port_path,) = Path("/dev").glob(PORT)
    serve(os.open(port_path, os.O_RDWR))
