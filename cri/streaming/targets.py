"""What a token stands for: small frozen values, made from the CRI request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sandbox.host.errors import InvalidArgument

#: A port-forward request names a handful; in the WebSocket channel form two channels belong to
#: each, and a channel number is one byte, 255 being reserved.
PORTS_LIMIT: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecTarget:
    """A command in a container, and the streams the client will open."""

    container_id: str
    command: tuple[str, ...]
    tty: bool = False
    stdin: bool = False
    stdout: bool = False
    stderr: bool = False

    def __post_init__(self) -> None:
        """Check the combination. Raises InvalidArgument."""
        if not self.command or not self.command[0]:
            raise InvalidArgument("cmd: must not be empty")
        check_streams(tty=self.tty, stdin=self.stdin, stdout=self.stdout, stderr=self.stderr)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachTarget:
    """A container's own streams."""

    container_id: str
    tty: bool = False
    stdin: bool = False
    stdout: bool = False
    stderr: bool = False

    def __post_init__(self) -> None:
        """Check the combination. Raises InvalidArgument."""
        check_streams(tty=self.tty, stdin=self.stdin, stdout=self.stdout, stderr=self.stderr)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortForwardTarget:
    """A pod's loopback; `ports` only matters to clients that name them beforehand."""

    pod_id: str
    ports: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the ports. Raises InvalidArgument."""
        if len(self.ports) > PORTS_LIMIT:
            raise InvalidArgument(f"port: has {len(self.ports)} entries, {PORTS_LIMIT} are allowed")
        for port in self.ports:
            check_port(port)


Target = ExecTarget | AttachTarget | PortForwardTarget

#: First part of the URL's path; a token is good for the one it was issued for.
KINDS: Final[dict[type[Target], str]] = {
    ExecTarget: "exec",
    AttachTarget: "attach",
    PortForwardTarget: "portforward",
}


def check_streams(*, tty: bool, stdin: bool, stdout: bool, stderr: bool) -> None:
    """Refuse combinations that mean nothing. Raises InvalidArgument."""
    if not (stdin or stdout or stderr):
        raise InvalidArgument("one of stdin, stdout and stderr must be asked for")
    if tty and stderr:
        raise InvalidArgument("stderr: a terminal has only one output, stdout")


def check_port(port: int) -> int:
    """`port` itself. Raises InvalidArgument."""
    if not 1 <= port <= 65_535:
        raise InvalidArgument(f"port {port} is not between 1 and 65535")
    return port
