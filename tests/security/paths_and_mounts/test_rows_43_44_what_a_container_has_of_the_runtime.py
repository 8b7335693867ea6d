"""Descriptors and programs of the runtime, as a container could reach them.

Row 43, CVE-2024-21626, CVE-2016-9962: a descriptor of the runtime was still open in the container,
and a working directory or a path led through it to the host.
Row 44, CVE-2019-5736: the runtime's program was overwritten through /proc/self/exe.

Tried: the descriptors of first processes and of commands, of conmon's and the daemon's own; working
directories that name one; entry points that are /proc/self/exe, and a container that writes to the
program of every process it sees, while commands are run in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.calls import until
from tests.kit.messages import namespaces
from tests.kit.node import PATIENCE_S, Node
from tests.kit.tars import Tar
from tests.security.conftest import Hostile, code_of

SLEEP = ["sleep", "1000"]


def test_only_the_three_streams_are_open(node: Node, handler: str) -> None:
    pod = node.run_pod(handler=handler)
    container = node.run(pod, "main", SLEEP)
    terminal = node.run(pod, "terminal", SLEEP, tty=True)
    for each in (container, terminal):
        assert _descriptors(node.program_pid(each)) == {"0", "1", "2"}
    request = api.ExecSyncRequest(container_id=container, cmd=["sleep", "1002"])
    call = node.runtime.ExecSync.future(request, timeout=PATIENCE_S)

    def commands() -> list[int]:
        found = node.processes_doing("sleep 1002")
        return [pid for pid in found if Path(f"/proc/{pid}/comm").read_text() == "sleep\n"]

    [pid] = until(commands, "the command runs")
    assert _descriptors(pid) == {"0", "1", "2"}
    call.cancel()
    until(lambda: not node.processes_doing("sleep 1002"), "the command is gone")


def test_every_descriptor_of_the_daemon_ends_with_an_exec(node: Node) -> None:
    """Whatever it starts gets what it is given and nothing else."""
    node.run(node.run_pod(), "main", SLEEP)
    open_after_exec = []
    for entry in Path(f"/proc/{node.pid}/fdinfo").iterdir():
        if entry.name in ("0", "1", "2"):
            continue
        with contextlib.suppress(FileNotFoundError):
            flags = next(
                int(line.split()[1], 8)
                for line in entry.read_text().splitlines()
                if line.startswith("flags:")
            )
            if not flags & os.O_CLOEXEC:
                target = Path(f"/proc/{node.pid}/fd/{entry.name}").readlink()
                open_after_exec.append(f"{entry.name} -> {target}")
    assert not open_after_exec


@pytest.mark.parametrize("path", ["/proc/self/fd/7", "/proc/self/fd/8/../../../..", "/proc/1/cwd"])
def test_a_working_directory_of_a_request_never_leads_through_a_process(
    node: Node, path: str
) -> None:
    request = node.create_request(node.run_pod(), "main", SLEEP)
    request.config.working_dir = path
    with pytest.raises(grpc.RpcError) as refused:
        node.runtime.CreateContainer(request, timeout=PATIENCE_S)
    assert code_of(refused) is grpc.StatusCode.INVALID_ARGUMENT


def test_programs_are_what_they_were(node: Node, hostile: Hostile, handler: str) -> None:
    before = _hashes()
    tar = (
        Tar()
        .symlink("entry", "/proc/self/exe")
        .file("script", b"#!/proc/self/exe\n", mode=0o755)
        .symlink("again", "/proc/self/fd/3")
    )
    image = hostile.push("self-exe", tar)
    node.pull(image)
    spaces = namespaces(pid="POD")
    pod = node.run_pod(handler=handler, spaces=spaces)
    writer = (
        "while :; do for exe in /proc/[0-9]*/exe; do "
        "(echo overwritten >> $exe) 2>/dev/null; done; done"
    )
    container = node.run(pod, "writer", ["sh", "-c", writer], image=image, spaces=spaces)
    for number, command in enumerate((["/entry", "init"], ["/script"], ["/again"])):
        with contextlib.suppress(grpc.RpcError):
            node.run(pod, f"c{number}", command, image=image, spaces=spaces)

    def command(program: str) -> None:
        with contextlib.suppress(grpc.RpcError):
            node.exec(container, program, timeout_s=5)

    with ThreadPoolExecutor(4) as clients:
        list(clients.map(command, ["/entry", "/script", "/again", "true"] * 3))
    assert _hashes() == before
    # And they still work.
    assert node.exec(node.run(pod, "after", SLEEP), "true")[0] == 0


def _hashes() -> dict[str, str]:
    paths = [shutil.which(name) for name in ("crun", "runc", "conmon", "catatonit", "busybox")]
    return {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths if path}


def _descriptors(pid: int) -> set[str]:
    return {entry.name for entry in Path(f"/proc/{pid}/fd").iterdir()}
