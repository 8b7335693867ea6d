"""The streaming server as the RPC classes see it, and the node as the streaming server sees it."""

from __future__ import annotations

import asyncio
import socket

from cri.streaming.targets import KINDS, AttachTarget, ExecTarget, PortForwardTarget, Target
from sandbox.host.errors import NotFound, Unavailable


class FakeStreaming:
    """URLs that name what was asked for; raises `fail` where it is set."""

    def __init__(self) -> None:
        self.targets: list[Target] = []
        self.fail: Exception | None = None

    def _url(self, target: Target) -> str:
        if self.fail is not None:
            raise self.fail
        self.targets.append(target)
        return f"http://127.0.0.1:1/{KINDS[type(target)]}/{len(self.targets)}"

    def exec_url(self, target: ExecTarget) -> str:
        return self._url(target)

    def attach_url(self, target: AttachTarget) -> str:
        return self._url(target)

    def portforward_url(self, target: PortForwardTarget) -> str:
        return self._url(target)


class FakeOutput:
    """An output that the test feeds; `None` is its end."""

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.reads = 0

    def put(self, *pieces: bytes | None) -> None:
        for piece in pieces:
            self._pieces.put_nowait(piece)

    async def read(self) -> bytes:
        self.reads += 1
        return await self._pieces.get() or b""


class FakeInput:
    """An input that records; `stuck` makes it take nothing, `broken` refuse."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.finished = asyncio.Event()
        self.changed = asyncio.Event()
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.broken = False

    async def write(self, data: bytes) -> bool:
        await self.flowing.wait()
        if self.broken:
            return False
        self.received += data
        self.changed.set()
        return True

    def finish(self) -> None:
        self.finished.set()


class FakeCommand:
    """A command whose every side the test plays."""

    def __init__(self) -> None:
        self.stdin = FakeInput()
        self.stdout = FakeOutput()
        self.stderr = FakeOutput()
        self.sizes: list[tuple[int, int]] = []
        self.resized = asyncio.Event()
        self.ended: asyncio.Future[int | None] = asyncio.Future()
        self.closed = asyncio.Event()

    def resize(self, columns: int, rows: int) -> None:
        self.sizes.append((columns, rows))
        self.resized.set()

    async def wait(self) -> int | None:
        return await asyncio.shield(self.ended)

    async def close(self) -> None:
        self.closed.set()

    def end(self, code: int | None = 0) -> None:
        self.stdout.put(None)
        self.stderr.put(None)
        self.ended.set_result(code)

    def fail(self, error: Exception) -> None:
        self.stdout.put(None)
        self.stderr.put(None)
        self.ended.set_exception(error)


class FakeSessions:
    """A node with one container "c" and one pod "p"."""

    def __init__(self) -> None:
        self.started: asyncio.Queue[FakeCommand] = asyncio.Queue()
        self.targets: list[Target] = []
        self.fail: Exception | None = None
        #: Where a port of the pod leads: an address, or an error.
        self.ports: dict[int, tuple[str, int] | Exception] = {}

    def check_container(self, container_id: str) -> str:
        if container_id != "c":
            raise NotFound(f"no container {container_id}")
        return "c" * 64

    def check_pod(self, pod_id: str) -> str:
        if pod_id != "p":
            raise NotFound(f"no pod {pod_id}")
        return "p" * 64

    async def exec(self, target: ExecTarget) -> FakeCommand:
        return self._start(target)

    async def attach(self, target: AttachTarget) -> FakeCommand:
        return self._start(target)

    def _start(self, target: ExecTarget | AttachTarget) -> FakeCommand:
        self.targets.append(target)
        if self.fail is not None:
            raise self.fail
        command = FakeCommand()
        self.started.put_nowait(command)
        return command

    async def connect(self, pod_id: str, port: int) -> socket.socket:
        leads_to = self.ports.get(port, Unavailable(f"port {port} of the pod cannot be reached"))
        if isinstance(leads_to, Exception):
            raise leads_to
        link = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        link.setblocking(False)
        await asyncio.get_running_loop().sock_connect(link, leads_to)
        return link
