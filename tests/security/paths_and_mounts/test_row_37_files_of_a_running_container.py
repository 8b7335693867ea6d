"""The node's hands off the tree of a container that runs.

Row 37, CVE-2018-15664, CVE-2026-41567, CVE-2026-41568, CVE-2026-42306: a daemon worked in a
running container's tree (`docker cp`), where the container exchanges directories for links
meanwhile; or ran a program that it found there, such as a decompressor, as the node's root.

Tried: everything that can be asked of a running container, and a restart of the daemon; its tree is
the same afterwards, to the change time of each file. And an image with programs of its own under
the names of those that a daemon runs: of all that the daemon and its children execute meanwhile,
only what a client ordered is the container's. Sub paths of image volumes, which are resolved in the
image, are in tests/integration/test_image_volumes.py.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from protos import api_pb2 as api
from sandbox.host.mountinfo import list_mounts
from tests.kit.calls import until
from tests.kit.node import PATIENCE_S, Node
from tests.kit.tars import Tar
from tests.security.conftest import Hostile

OWN = "/only-inside"
SLEEP = [f"{OWN}/sleep", "1000"]
TRUE = f"{OWN}/true"
#: What a daemon of this kind runs, or once ran, for a container.
BAIT = ("crun", "runc", "conmon", "nsenter", "mount", "tar", "unpigz", "gzip", "nft", "iptables")


def _image(hostile: Hostile) -> str:
    tar = Tar().directory("only-inside")
    for name in ("sleep", "true"):
        tar = tar.symlink(f"only-inside/{name}", f"/bin/{name}")
    for name in BAIT:
        tar = tar.file(f"usr/sbin/{name}", b"#!/bin/sh\necho taken > /taken\n", mode=0o755)
    return hostile.push("bait", tar)


def _tree(container: str) -> dict[str, tuple[int, ...]]:
    """The container's root as the node has it mounted: without what is mounted inside."""
    targets = [mount.target for mount in list_mounts()]
    [root] = [path for path in targets if container in path.parts and path.name == "rootfs"]
    found = {}
    for path in (root, *root.rglob("*")):
        about = path.lstat()
        found[str(path.relative_to(root))] = (
            *(about.st_ino, about.st_mode, about.st_uid, about.st_gid, about.st_nlink),
            *(about.st_size, about.st_mtime_ns, about.st_ctime_ns),
        )
    return found


def _ask_everything(node: Node, container: str) -> None:
    """What a client may ask of a running container without giving it something to write."""
    assert node.exec(container, TRUE)[0] == 0
    for verbose in (False, True):
        request = api.ContainerStatusRequest(container_id=container, verbose=verbose)
        node.runtime.ContainerStatus(request, timeout=PATIENCE_S)
    node.runtime.ContainerStats(
        api.ContainerStatsRequest(container_id=container), timeout=PATIENCE_S
    )
    node.runtime.ListContainerStats(api.ListContainerStatsRequest(), timeout=PATIENCE_S)
    node.runtime.ReopenContainerLog(
        api.ReopenContainerLogRequest(container_id=container), timeout=PATIENCE_S
    )
    limits = api.LinuxContainerResources(cpu_shares=100)
    node.runtime.UpdateContainerResources(
        api.UpdateContainerResourcesRequest(container_id=container, linux=limits),
        timeout=PATIENCE_S,
    )
    for stream in (
        api.ExecRequest(container_id=container, cmd=[TRUE], stdout=True),
        api.AttachRequest(container_id=container, stdout=True),
    ):
        ask = node.runtime.Exec if isinstance(stream, api.ExecRequest) else node.runtime.Attach
        assert ask(stream, timeout=PATIENCE_S).url


@contextlib.contextmanager
def _programs_of(pid: int, record: Path) -> Iterator[None]:
    """Write down what a process and all that it starts from now on try to execute."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("no strace on this node, which writes down what is executed")
    argv = [strace, "-f", "-qq", "-s", "4096", "-e", "trace=execve,execveat", "-o", record]
    tracer = subprocess.Popen([*argv, "-p", str(pid)])

    def attached() -> bool:
        assert tracer.poll() is None, "strace could not attach"
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return all(f"TracerPid:\t{tracer.pid}\n" in (t / "status").read_text() for t in threads)

    try:
        until(attached, "strace has attached")
        yield
    finally:
        tracer.terminate()
        tracer.wait(PATIENCE_S)


def test_the_tree_is_not_worked_in(node: Node, hostile: Hostile, handler: str) -> None:
    image = _image(hostile)
    node.pull(image)
    container = node.run(node.run_pod(handler=handler), "main", SLEEP, image=image)
    before = _tree(container)
    assert "usr/sbin/tar" in before
    _ask_everything(node, container)
    node.restart()
    _ask_everything(node, container)
    assert _tree(container) == before


def test_nothing_of_it_is_executed_but_what_was_ordered(
    node: Node, hostile: Hostile, handler: str, tmp_path: Path
) -> None:
    image = _image(hostile)
    node.pull(image)
    pod = node.run_pod(handler=handler)
    with _programs_of(node.pid, tmp_path / "executed"):
        container = node.run(pod, "main", SLEEP, image=image)
        _ask_everything(node, container)
        assert "taken" not in _tree(container)
        node.stop_container(container)
        node.remove_container(container)
    text = (tmp_path / "executed").read_text()
    # A runtime that runs a copy of itself by its descriptor alone names no path.
    executed = re.findall(r'^\d+ +execve(?:at\(\d+, |\()"([^"]+)"', text, re.MULTILINE)
    inside = [path for path in executed if path.startswith(OWN)]
    assert sorted(inside) == [SLEEP[0], TRUE]
    # The rest is the node's: programs by their whole path, none of them below a container's root.
    rest = sorted(set(executed) - set(inside))
    assert any(Path(path).name == handler for path in rest), rest
    ours = re.compile(rf"/proc/self/(exe|fd/\d+)|{node.faults.programs}/[\w/-]+")
    for path in rest:
        assert ours.fullmatch(path) or Path(path).is_file(), path
        assert "/rootfs/" not in path, path
        assert not re.match(r"/proc/\d+/root", path), path
        assert not Path(path).is_relative_to(node.state_root), path
