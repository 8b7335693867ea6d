"""What is to be seen of the daemon and its programs by others on the node, and by its own pods.

Row 66, CVE-2020-15257: sockets without a path, which every pod on the host's network reaches.
Row 67, CVE-2022-42919: Python's forkserver had such a socket and took pickles from it.
Row 68, CVE-2021-41103, CVE-2024-25621, CVE-2021-41091: directories that others could walk through,
to set-user-id programs of images.
Row 69, CVE-2025-4953: files that others could read.
Row 72, CVE-2019-14891: the monitor was killed for memory, and its number reused for a pod's.
Row 73, RUN-007: secrets of an environment in logs.

Tried: with pods of both runtimes running and the umask of 0 inherited: the sockets of the machine,
from the host and from a pod on its network; every file and directory as nobody would find it; the
scores and groups of the monitors; the daemon's log at its most talkative.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit import census
from tests.kit.calls import until
from tests.kit.messages import namespaces
from tests.kit.node import PATIENCE_S, Node
from tests.kit.runtimes import mounts_below
from tests.kit.walks import content_of, files_below
from tests.security.conftest import Hostile

SLEEP = ["sleep", "1000"]
SECRET = "s3cr3t-of-an-environment"
PASSWORD = "p4ssw0rd-of-a-registry"
#: Files of conmon and the OCI runtimes, behind directories that nobody walks through.
BY_HELPERS = ("conmon.pid", "pid", "runtime.log", "ctl", "winsz")
#: What may be seen: the way to a container's root for its own users, walked but never listed.
WALKED = 0o711


@pytest.fixture(scope="module")
def talkative(hostile: Hostile) -> Iterator[Node]:
    """A daemon that logs everything and was started with the umask of 0."""
    before = os.umask(0)
    try:
        with hostile.daemon("talkative", {"daemon.log_level": '"debug"'}) as node:
            yield node
    finally:
        os.umask(before)


@pytest.fixture
def busy(talkative: Node, handler: str) -> Iterator[Node]:
    """It with a pod that runs, a log, a secret, a command and an image that cannot be had."""
    node = talkative
    pod = node.run_pod("busy", handler=handler)
    script = "echo line; sleep 1000"
    container = node.run(pod, "main", ["sh", "-c", script], env={"TOKEN": SECRET}, tty=True)
    assert node.exec(container, "true")[0] == 0
    with pytest.raises(grpc.RpcError):
        node.images.PullImage(
            api.PullImageRequest(
                image=api.ImageSpec(image="hostile.localhost/none:1"),
                auth=api.AuthConfig(username="user", password=PASSWORD),
            ),
            timeout=PATIENCE_S,
        )
    yield node
    node.remove_everything()
    node.assert_clean()


def sockets_without_path(text: str) -> set[str]:
    words = (line.split() for line in text.splitlines()[1:])
    return {word[7] for word in words if len(word) > 7 and word[7].startswith("@")}


def test_no_socket_is_without_a_path(busy: Node, handler: str) -> None:
    """/proc/net/unix names sockets by inode: whose they are is asked of every process of ours."""
    ours = {busy.pid, *busy.processes_doing("")}
    inodes = set()
    for pid in ours:
        for entry in _entries(Path(f"/proc/{pid}/fd")):
            with contextlib.suppress(OSError):  # closed meanwhile
                target = str(entry.readlink())
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    assert [line for line in lines if line[6] in inodes and line[7:] and line[7][0] == "@"] == []
    bound = [line[7] for line in lines if line[6] in inodes and line[7:]]
    assert any(path.startswith(str(busy.run_root)) for path in bound), "it looks where they are"
    # And what a pod on the host's network sees is no more.
    spaces = namespaces(network="NODE")
    pod = busy.run_pod("host", handler=handler, spaces=spaces)
    inside = busy.run(pod, "main", SLEEP, spaces=spaces)
    seen = sockets_without_path(busy.exec(inside, "cat", "/proc/net/unix")[1])
    assert not [name for name in seen if "podwright" in name or "conmon" in name]


def test_no_forkserver_is_used() -> None:
    top = Path(__file__).parents[3]
    found = [
        str(path)
        for folder in ("cri", "sandbox", "imageservice", "cni", "metrics")
        for path in (top / folder).rglob("*.py")
        if "multiprocessing" in path.read_text() or "ProcessPoolExecutor" in path.read_text()
    ]
    assert not found


LOOK = """
import os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for root in sys.argv[1:]:
    for path, names, files in os.walk(root):
        for name in names + files:
            print("listed", os.path.join(path, name))
for path in sys.stdin.read().split("\\0"):
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except OSError:
        continue
    print("opened", path)
"""


def test_nobody_lists_or_opens_anything(busy: Node) -> None:
    """A user of the node, who has guessed every path: by listing and by opening."""
    roots = [str(busy.run_root), str(busy.state_root)]
    # Asked of the kernel: os.path.ismount sees no bind mount of a file of the same file system.
    mounted = set(mounts_below(*roots))
    paths, loose = [], []
    for root in roots:
        for directory, names, files in os.walk(root):
            # What is mounted there is the image's own, or a runtime's, behind directories that
            # are not.
            names[:] = [name for name in names if f"{directory}/{name}" not in mounted]
            for name in (*names, *files):
                path = Path(directory, name)
                paths.append(str(path))
                if path.is_symlink() or _is_of_an_image(path) or str(path) in mounted:
                    continue
                try:
                    about = path.lstat().st_mode
                except FileNotFoundError:
                    continue  # one that the daemon had for a moment
                mode = stat.S_IMODE(about) & 0o777
                allowed = WALKED if stat.S_ISDIR(about) else 0o600
                allowed = 0o660 if stat.S_ISSOCK(about) else allowed
                # Runtimes make their status files executable for their owner; nobody else's say.
                if mode & 0o077 & ~allowed and not _is_for_the_pod(path):
                    loose.append(f"{mode:o} {path}")
    # Test directories stand in for /run and /var/lib, whose modes are the daemon's business.
    output = subprocess.run(
        [sys.executable, "-c", LOOK, *roots],
        input="\0".join(paths),
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert len(paths) > 20
    found = [line for line in output.splitlines() if not _is_for_the_pod(Path(line.split()[1]))]
    assert found == []
    # What conmon and the runtimes write has modes of theirs; it was not to be opened just now.
    assert [line for line in loose if Path(line).name not in BY_HELPERS] == []


def _is_of_an_image(path: Path) -> bool:
    """Below a layer or a root: modes are those of the image, behind a directory of 0700."""
    return bool({"layers", "rootfs", "upper", "work", "pause", "fs"}.intersection(path.parts))


def _is_for_the_pod(path: Path) -> bool:
    """What is mounted into containers must be readable there, by whatever user they run as."""
    return path.name in ("resolv.conf", "hostname", "hosts")


def test_monitors_outlive_their_containers(busy: Node) -> None:
    """The kernel takes others first, and the container's memory is not theirs."""
    # Of each container there is one; what it is started by has gone by now.
    monitors = until(lambda: _monitors(busy), "what started the monitors has gone")
    assert monitors
    for pid in monitors:
        assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) <= 0
        assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) <= int(
            Path(f"/proc/{busy.pid}/oom_score_adj").read_text()
        )
        groups = Path(f"/proc/{pid}/cgroup").read_text()
        ids = [container.id for container in busy.containers()]
        assert not any(each in groups for each in ids)
    [container] = busy.containers()
    pid = busy.container_pid(container.id)
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) >= 0


def test_secrets_are_in_no_log(busy: Node) -> None:
    said = busy.log.read_text()
    assert "debug" in said.lower(), "it logs everything"
    assert SECRET not in said
    assert PASSWORD not in said
    # The password of a pull is kept nowhere at all; a variable only where the container's spec is.
    for path, about in files_below(busy.run_root, busy.state_root):
        if not os.path.ismount(path) and not _is_of_an_image(path):
            content = content_of(path)
            assert PASSWORD.encode() not in content, path
            if SECRET.encode() in content:
                assert about.st_mode & 0o077 == 0, path


def _monitors(node: Node) -> list[int]:
    """The monitors that stay; none while a program of the daemon runs, which may become one."""
    if census.children(node.pid):
        return []
    return [pid for pid in node.processes_doing("conmon") if _comm(pid) == "conmon"]


def _comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _entries(directory: Path) -> list[Path]:
    """What is in a directory of /proc; nothing when the process has ended."""
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []
