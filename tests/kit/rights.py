"""What a process may do, as /proc/PID/status says, and requests that ask for rights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from protos import api_pb2 as api
from sandbox.host.host_facts import capability_names
from tests.kit.calls import Calls
from tests.kit.faults import PATIENCE_S

SETS: Final = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")

Change = Callable[[api.LinuxContainerSecurityContext], None]


def status_field(status: str, name: str) -> str:
    """One field of /proc/PID/status."""
    line = next(line for line in status.splitlines() if line.startswith(f"{name}:"))
    return line.partition(":")[2].strip()


def capability_sets(status: str) -> dict[str, frozenset[str]]:
    """The five sets, by the name of their line."""
    return {name: capability_names(int(status_field(status, name), 16)) for name in SETS}


def of_process(pid: int) -> str:
    """/proc/PID/status."""
    return Path(f"/proc/{pid}/status").read_text()


def of_container(node: Calls, container: str) -> str:
    """The same of a container's program."""
    return of_process(node.program_pid(container))


def create_with(
    node: Calls,
    pod: str,
    name: str,
    command: Sequence[str],
    *changes: Change,
    **options: object,
) -> str:
    """CreateContainer with a security context that `changes` have been at; the id."""
    request = node.create_request(pod, name, command, **options)
    for change in changes:
        change(request.config.linux.security_context)
    container = node.runtime.CreateContainer(request, timeout=PATIENCE_S).container_id
    node.ids.add(container)
    return container


def run_with(
    node: Calls,
    pod: str,
    name: str,
    command: Sequence[str],
    *changes: Change,
    **options: object,
) -> str:
    """The same, started."""
    return node.start(create_with(node, pod, name, command, *changes, **options))


def capabilities(
    *, add: Sequence[str] = (), drop: Sequence[str] = (), ambient: Sequence[str] = ()
) -> Change:
    """Ask for capabilities."""

    def change(context: api.LinuxContainerSecurityContext) -> None:
        context.capabilities.add_capabilities.extend(add)
        context.capabilities.drop_capabilities.extend(drop)
        context.capabilities.add_ambient_capabilities.extend(ambient)

    return change


def profile(kind: str, reference: str = "") -> api.SecurityProfile:
    """A profile by the name of its type: RuntimeDefault, Unconfined, Localhost."""
    return api.SecurityProfile(profile_type=kind, localhost_ref=reference)


def seccomp(kind: str, reference: str = "") -> Change:
    """Ask for a seccomp profile."""
    return lambda context: context.seccomp.CopyFrom(profile(kind, reference))


def apparmor(kind: str, reference: str = "") -> Change:
    """Ask for an AppArmor profile."""
    return lambda context: context.apparmor.CopyFrom(profile(kind, reference))
