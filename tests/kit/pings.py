"""Asks a runtime for its version again and again, in a process of its own.

A thread beside eight clients would wait for the interpreter lock that they share, and take that for
the runtime's time: of a daemon of which 99 answers of 100 came within 25 ms it told 48.

`python -m tests.kit.pings SOCKET`: each line of its input is the pause between two calls from now
on, in seconds; each line of its output is what a call took in ms, or what it failed with. It ends
with its input.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import grpc

from protos import api_pb2 as api
from protos import api_pb2_grpc as rpc
from tests.kit.measure import CALL_PATIENCE_S
from tests.kit.registry import bound_to_parent
from tests.kit.runtimes import connect

_TOP: Final = Path(__file__).parents[2]
_READY: Final = "ready"


class Pings:
    """The process, and what it tells."""

    def __init__(
        self, socket: Path, note: Callable[[float | str], None], *, pause_s: float
    ) -> None:
        """Returns when it has begun.

        Args:
            socket: whom to ask.
            note: gets what a call took (ms) or what it failed with, in a thread.
            pause_s: between two calls (seconds).

        Raises:
            RuntimeError: there was no answer to the first call.
        """
        self._note = note
        self._process = subprocess.Popen(
            bound_to_parent([sys.executable, "-m", "tests.kit.pings", socket]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=_TOP,
        )
        self.every(pause_s)
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != _READY:
            with self._process:  # closes its pipes
                self._process.kill()
            raise RuntimeError(f"{socket}: nothing answers to Version")
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def every(self, pause_s: float) -> None:
        """Wait so long between two calls from now on (seconds)."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{pause_s}\n")

    def close(self) -> None:
        """End the process after the call it makes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._reader.join()
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                self._note(float(line))
            except ValueError:
                self._note(line.strip())


class _Pause:
    """As the last line of standard input says; a new one holds at once."""

    def __init__(self) -> None:
        self._seconds = float(sys.stdin.readline() or "inf")
        self._over = False
        self._news = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def passed(self) -> bool:
        """Wait; False when it is all over."""
        if self._news.wait(self._seconds):
            self._news.clear()
        return not self._over

    def _read(self) -> None:
        for line in sys.stdin:
            self._seconds = float(line)
            self._news.set()
        self._over = True
        self._news.set()


def main() -> int:
    pause = _Pause()
    with connect(Path(sys.argv[1])) as channel:
        runtime = rpc.RuntimeServiceStub(channel)
        runtime.Version(api.VersionRequest(), timeout=CALL_PATIENCE_S)  # connects
        print(_READY, flush=True)
        while pause.passed():
            began_ns = time.monotonic_ns()
            try:
                runtime.Version(api.VersionRequest(), timeout=CALL_PATIENCE_S)
            except grpc.RpcError as error:
                print(" ".join(f"failed: {error.details()}".split()), flush=True)
            else:
                print((time.monotonic_ns() - began_ns) / 1e6, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
