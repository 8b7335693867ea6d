"""Commands in containers and connections to them.

ExecSync is answered here; the others with the URL of the streaming server, once it is known that
the object exists and runs, so that a client learns about a wrong id from the call it made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from cri import validate
from cri.streaming.targets import AttachTarget, ExecTarget, PortForwardTarget
from protos import api_pb2 as pb

if TYPE_CHECKING:
    from cri.rpc.ports import Containers

#: Both outputs together: the message limit of 16 MiB, less what the envelope takes.
OUTPUT_LIMIT_BYTES: Final = 16 * 1024 * 1024 - 64


class Streaming(Protocol):
    """Hands out URLs for one client each.

    Every method raises NotFound for an unknown id, FailedPrecondition for an object that does not
    run, and ResourceExhausted when too many URLs wait for their clients.
    """

    def exec_url(self, target: ExecTarget) -> str:
        """Where a client runs a command."""
        ...

    def attach_url(self, target: AttachTarget) -> str:
        """Where a client attaches to a container."""
        ...

    def portforward_url(self, target: PortForwardTarget) -> str:
        """Where a client reaches the ports of a pod."""
        ...


class SessionCalls:
    """The methods that run something in a container or connect to it."""

    def __init__(self, containers: Containers, streaming: Streaming) -> None:
        self._containers = containers
        self._streaming = streaming

    async def exec_sync(self, request: pb.ExecSyncRequest) -> pb.ExecSyncResponse:
        """Run a command and return its output; a timeout of 0 is no limit."""
        container_id = validate.object_id(request.container_id, "container_id")
        command = validate.arguments(request.cmd, "cmd")
        if not command or not command[0]:
            validate.refuse("cmd", "must not be empty")
        if request.timeout < 0:
            validate.refuse("timeout", f"{request.timeout} is negative")
        timeout_s = min(request.timeout, validate.SECONDS_LIMIT)
        result = await self._containers.exec_sync(container_id, command, timeout_s)
        stdout, stderr = fit(result.stdout, result.stderr, OUTPUT_LIMIT_BYTES)
        return pb.ExecSyncResponse(stdout=stdout, stderr=stderr, exit_code=result.exit_code)

    async def exec(self, request: pb.ExecRequest) -> pb.ExecResponse:
        """Where to run a command with its streams connected."""
        target = ExecTarget(
            container_id=validate.object_id(request.container_id, "container_id"),
            command=validate.arguments(request.cmd, "cmd"),
            tty=request.tty,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
        )
        return pb.ExecResponse(url=self._streaming.exec_url(target))

    async def attach(self, request: pb.AttachRequest) -> pb.AttachResponse:
        """Where to connect to the streams of a running container."""
        target = AttachTarget(
            container_id=validate.object_id(request.container_id, "container_id"),
            tty=request.tty,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
        )
        return pb.AttachResponse(url=self._streaming.attach_url(target))

    async def port_forward(self, request: pb.PortForwardRequest) -> pb.PortForwardResponse:
        """Where to connect to ports of a pod."""
        target = PortForwardTarget(
            pod_id=validate.object_id(request.pod_sandbox_id, "pod_sandbox_id"),
            ports=tuple(request.port),
        )
        return pb.PortForwardResponse(url=self._streaming.portforward_url(target))


def fit(stdout: bytes, stderr: bytes, limit_bytes: int) -> tuple[bytes, bytes]:
    """Cut both outputs so that they fit together; the shorter one is kept as whole as possible."""
    if len(stdout) + len(stderr) <= limit_bytes:
        return stdout, stderr
    half = limit_bytes // 2
    if len(stderr) <= half:
        return stdout[: limit_bytes - len(stderr)], stderr
    if len(stdout) <= half:
        return stdout, stderr[: limit_bytes - len(stdout)]
    return stdout[: limit_bytes - half], stderr[:half]
