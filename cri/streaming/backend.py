"""What the streaming server needs of the node; the daemon hands in the real thing.

A session is a `Command` in both cases: for exec the command itself, for attach a seat at the
container's own streams, which has no exit code. Worked example:

    command = await sessions.exec(target)
    try:
        while data := await command.stdout.read(): ...
        code = await command.wait()
    finally:
        await command.close()          # ends what still runs, frees everything
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import socket

    from cri.streaming.targets import AttachTarget, ExecTarget


class Source(Protocol):
    """An output of a command."""

    async def read(self) -> bytes:
        """What came next; empty at the end, which comes soon after the command's."""
        ...


class Sink(Protocol):
    """The input of a command."""

    async def write(self, data: bytes) -> bool:
        """Hand it over; False once nobody will read any more."""
        ...

    def finish(self) -> None:
        """No more input. Idempotent."""
        ...


class Command(Protocol):
    """Something with streams that runs in a container."""

    @property
    def stdin(self) -> Sink | None:
        """None where there is no input."""
        ...

    @property
    def stdout(self) -> Source | None:
        """None where it is not wanted."""
        ...

    @property
    def stderr(self) -> Source | None:
        """None where it is not wanted, and on a terminal."""
        ...

    def resize(self, columns: int, rows: int) -> None:
        """Set the terminal's size; nothing where there is none. Never raises."""
        ...

    async def wait(self) -> int | None:
        """The exit code once it has ended; None where there is none to tell.

        Raises:
            PodwrightError: it could not be run.
        """
        ...

    async def close(self) -> None:
        """End it if it still runs and free everything. Idempotent."""
        ...


class Sessions(Protocol):
    """The node's containers and pods."""

    def check_container(self, container_id: str) -> str:
        """The full id of a running container.

        Raises:
            NotFound, InvalidArgument: no such container, or an ambiguous prefix.
            FailedPrecondition: it does not run.
        """
        ...

    def check_pod(self, pod_id: str) -> str:
        """The full id of a pod that is ready. Raises as `check_container`."""
        ...

    async def exec(self, target: ExecTarget) -> Command:
        """Run a command. Raises PodwrightError when it could not be started."""
        ...

    async def attach(self, target: AttachTarget) -> Command:
        """Take a seat at a container's streams. Raises PodwrightError."""
        ...

    async def connect(self, pod_id: str, port: int) -> socket.socket:
        """A non-blocking connection to a port of the pod's loopback.

        Raises:
            PodwrightError: the pod is gone, or nobody listens there.
        """
        ...
