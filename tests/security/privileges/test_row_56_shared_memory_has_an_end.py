"""What containers leave in a pod's IPC namespace outlives them, is no process's, and fills memory.

CVE-2024-3056: memory in a shared namespace was counted for a member that the memory killer had
ended, and stayed. Nobody can prevent that a namespace outlives a member; so it has a size, and it
goes with the pod.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from protos import api_pb2 as api
from tests.kit.node import Node

SLEEP = ["sleep", "1000"]
#: A pod's /dev/shm (bytes), as everywhere in the field.
SHM_BYTES = 64 << 20


def fill(megabytes: int, name: str) -> str:
    return f"dd if=/dev/zero of=/dev/shm/{name} bs=1M count={megabytes} 2>&1"


def shm_mounts(node: Node) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if str(node.run_root) in line and "/shm " in line]


def test_shared_memory_of_a_pod_has_a_size_and_goes_with_the_pod(node: Node, handler: str) -> None:
    before = shm_mounts(node)
    pod = node.run_pod("pod", handler=handler)
    limits = api.LinuxContainerResources(memory_limit_in_bytes=32 << 20)
    stays, other = node.run(pod, "stays", SLEEP), node.run(pod, "other", SLEEP)
    # One is ended by the memory killer while it writes.
    writing = ["dd", "if=/dev/zero", "of=/dev/shm/killed", "bs=1M", "count=60"]
    killed = node.run(pod, "killed", writing, resources=limits)
    assert node.wait_exited(killed).reason == "OOMKilled"
    node.remove_container(killed)
    # What it wrote is still there for the others, and it counts: the size is for all together.
    script = f"{fill(50, 'a')}; {fill(50, 'b')}; du -k /dev/shm | tail -n 1"
    code, told, _ = node.exec(stays, "sh", "-c", script)
    assert code == 0
    assert "No space left" in told
    assert int(told.splitlines()[-1].split()[0]) <= SHM_BYTES // 1024
    assert node.exec(other, "ls", "/dev/shm/a")[0] == 0
    node.stop_pod(pod)
    assert shm_mounts(node) == before


def test_objects_of_system_v_go_with_the_pod(node: Node, handler: str) -> None:
    before = _segments()
    pod = node.run_pod("pod", handler=handler)
    root = api.Mount(host_path="/", container_path="/host", readonly=True)
    container = node.run(pod, "main", SLEEP, mounts=[root])
    code, told, errors = node.exec(container, "chroot", "/host", "ipcmk", "-M", "1048576")
    assert code == 0, (told, errors)
    node.remove_container(container)
    # It outlived the container, in the pod's namespace and nowhere else.
    pinned = next(Path(node.run_root).rglob("ipc"))
    inside = subprocess.run(
        ["nsenter", f"--ipc={pinned}", "cat", "/proc/sysvipc/shm"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert len(inside.splitlines()) == 2
    assert _segments() == before
    node.stop_pod(pod)
    assert not pinned.exists()
    assert _segments() == before


def _segments() -> list[str]:
    """Of the host: key, id and size of each."""
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return [" ".join(line.split()[:4]) for line in lines]
