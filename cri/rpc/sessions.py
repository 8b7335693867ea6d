"""Commands in containers: ExecSync here, the streaming sessions in a later version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cri import validate
from cri.rpc.later import later
from protos import api_pb2 as pb

if TYPE_CHECKING:
    from cri.rpc.ports import Containers

#: Both outputs together: the message limit of 16 MiB, less what the envelope takes.
OUTPUT_LIMIT_BYTES: Final = 16 * 1024 * 1024 - 64


class SessionCalls:
    """The methods that run something in a container or connect to it."""

    def __init__(self, containers: Containers) -> None:
        self._containers = containers

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
        """Not in this version."""
        later("Exec")

    async def attach(self, request: pb.AttachRequest) -> pb.AttachResponse:
        """Not in this version."""
        later("Attach")

    async def port_forward(self, request: pb.PortForwardRequest) -> pb.PortForwardResponse:
        """Not in this version."""
        later("PortForward")


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
