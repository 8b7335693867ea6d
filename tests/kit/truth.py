"""Invariant I1 of a daemon: its answers against the processes that there are."""

from __future__ import annotations

import contextlib
from pathlib import Path

from protos import api_pb2 as api
from tests.kit.calls import Calls, until


def assert_true(node: Calls) -> None:
    """Nothing is called ready or running that is not, nor ended that lives."""
    for pod in node.pods():
        if pod.state == api.SANDBOX_READY:
            pid = node.pod_pid(pod.id)
            assert alive(pid), f"pod {pod.id} is ready without its process {pid}"
    for container in node.containers():
        pid = node.container_pid(container.id)
        state = api.ContainerState.Name(container.state)
        if container.state in (api.CONTAINER_CREATED, api.CONTAINER_RUNNING):
            assert alive(pid), f"container {container.id} is {state} without its process {pid}"
            # Before the start it is the runtime's own program that waits there; a moment after it
            # it may still be on its way to become the container's.
            waits = container.state == api.CONTAINER_CREATED
            until(
                lambda pid=pid, waits=waits: waits == _waits(pid),  # type: ignore[misc]
                f"container {container.id} is {state} by its process {pid}",
            )
        else:
            until(
                lambda cid=container.id: not in_cgroup(cid),  # type: ignore[misc]
                f"nothing runs in container {container.id}, which is {state}",
            )


def in_cgroup(container: str) -> list[str]:
    """Numbers of the processes in a control group whose path names the container."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if container in (entry / "cgroup").read_text():
                    found.append(entry.name)
    return found


def alive(pid: int) -> bool:
    """Whether there is such a process that still runs."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return pid > 0 and state not in "ZX"


def _waits(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text().strip() in ("crun", "runc:[2:INIT]")
