"""Disks, inodes, descriptors, processes and memory that run out, under pods that go on."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.calls import until
from tests.kit.faults import PATIENCE_S
from tests.kit.groups import hierarchies, remove_group
from tests.kit.judge import InvariantBroken
from tests.kit.node import Node
from tests.kit.operations import SPARE_IMAGE, Bystander

SLEEP = ["sleep", "1000"]
#: What a client may be told when something has run out.
SHORT = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)


def code_of(error: grpc.RpcError) -> grpc.StatusCode:
    return error.code()  # type: ignore[attr-defined]


@contextlib.contextmanager
def small_disk(place: Path, options: str) -> Iterator[None]:
    """A small file system at `place`, seen by everything that is started from now on."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@contextlib.contextmanager
def full(place: Path, what: str) -> Iterator[None]:
    """Within it there is no more of `what` ("bytes" or "inodes") in the file system."""
    filler = place / "filler"
    filler.mkdir()
    with contextlib.suppress(OSError):
        if what == "bytes":
            with (filler / "file").open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
        else:
            for number in range(1 << 20):
                (filler / str(number)).touch()
    try:
        yield
    finally:
        subprocess.run(["rm", "-r", filler], check=True)


@pytest.fixture
def node_in_small_run(certs_d: Path) -> Iterator[Node]:
    """A node whose run directory is a file system of its own, with little room."""
    with Node.running("small-run", certs_d, images=()) as node:
        node.stop()
        with small_disk(node.run_root, "size=2m,nr_inodes=400,mode=0711"):
            node.start_daemon()
            node.pull("registry.localhost/busybox:latest")
            node.warm_up()
            yield node
            node.stop()


@pytest.mark.cell("DK4")
@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_run_directory_full(node_in_small_run: Node, what: str) -> None:
    """Nothing is made and nothing of it stays, what is there goes, and then all is as before."""
    node = node_in_small_run
    pod = node.run_pod("pod")
    doomed = node.run(pod, "doomed", SLEEP)
    going_on = node.run(pod, "going-on", SLEEP)
    node.settled_census()  # what is about to go would make room
    with full(node.run_root, what):
        before = node.census()["files"]
        for number in range(12):
            with pytest.raises(grpc.RpcError) as refused:
                node.create(pod, f"late-{number}", SLEEP)
            assert code_of(refused.value) in SHORT
            with pytest.raises(grpc.RpcError) as refused:
                node.run_pod(f"late-{number}")
            assert code_of(refused.value) in SHORT
        assert node.census()["files"] == before
        assert {p.id for p in node.pods()} == {pod}
        node.stop_container(doomed)
        node.remove_container(doomed)
        assert node.status(going_on).state == api.CONTAINER_RUNNING
        node.assert_true()
    assert node.exec(node.run(pod, "again", SLEEP), "true")[0] == 0
    node.run_pod("late-0")
    with full(node.run_root, what):
        node.remove_everything()
        assert not node.other_pods()
    node.assert_clean()
    node.assert_honest()


@pytest.mark.cell("DK4")
@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_run_directory_full_at_the_start(node_in_small_run: Node, what: str) -> None:
    """The daemon comes up all the same, or says what it lacks; no pod is lost for it."""
    node = node_in_small_run
    pod = node.run_pod("pod")
    container = node.run(pod, "main", SLEEP)
    pid = node.container_pid(container)
    node.kill()
    with full(node.run_root, what):
        node.start_daemon(wait=False)
        assert node.process is not None
        process = node.process
        until(lambda: process.poll() is not None or _answers(node), "it answers or has ended")
        assert Path(f"/proc/{pid}").exists()
        if process.poll() is not None:
            node.forget_process()
            assert "No space left" in node.log_tail() or "space" in node.log_tail()
    if node.process is None:
        node.start_daemon()
    assert node.status(container).state == api.CONTAINER_RUNNING
    assert node.container_pid(container) == pid
    node.assert_true()
    node.remove_everything()
    node.assert_clean()


def _answers(node: Node) -> bool:
    node.connect()
    with contextlib.suppress(grpc.RpcError):
        node.runtime.Version(api.VersionRequest(), timeout=1)
        return True
    return False


@pytest.mark.cell("DK5")
def test_disk_of_logs_full(node: Node, handler: str) -> None:
    """The container is not held up and its exit code comes; reopening makes no empty file."""
    with small_disk(node.logs / "pod", "size=64k,nr_inodes=8"):
        pod = node.run_pod("pod", handler=handler)
        noisy = "i=0; while [ $i -lt 5000 ]; do echo a line of some length $i; i=$((i+1)); done"
        container = node.run(pod, "noisy", ["sh", "-c", f"{noisy}; exit 7"])
        assert node.wait_exited(container).exit_code == 7
        going_on = node.run(pod, "going-on", SLEEP)
        log = node.logs / "pod" / "going-on_0.log"
        log.rename(log.with_name("rotated"))
        with full(node.logs / "pod", "inodes"):
            with pytest.raises(grpc.RpcError) as refused:
                node.runtime.ReopenContainerLog(
                    api.ReopenContainerLogRequest(container_id=going_on), timeout=PATIENCE_S
                )
            assert code_of(refused.value) in SHORT
            assert not log.exists()
            with pytest.raises(grpc.RpcError) as refused:
                node.create(pod, "late", SLEEP)
            assert code_of(refused.value) in SHORT
        node.runtime.ReopenContainerLog(
            api.ReopenContainerLogRequest(container_id=going_on), timeout=PATIENCE_S
        )
        assert log.exists()
        node.create(pod, "late", SLEEP)
        node.remove_everything()


@pytest.mark.cell("DK1", "DK2", "DK3")
def test_disk_of_the_state_full(certs_d: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Pulling and creating are refused, what is there lives and can be removed, and then again."""
    place = tmp_path_factory.mktemp("small-state")
    with (
        small_disk(place, "size=48m,mode=0711"),
        Node.running("small-state", certs_d, state_root=place / "state") as node,
    ):
        pod = node.run_pod("pod")
        container = node.run(pod, "main", SLEEP)
        with full(place, "bytes"):
            with pytest.raises(grpc.RpcError) as refused:
                node.pull(SPARE_IMAGE)
            assert code_of(refused.value) in SHORT
            assert not node.image_id(SPARE_IMAGE)
            with pytest.raises(grpc.RpcError) as refused:
                node.create(pod, "late", SLEEP)
            assert code_of(refused.value) in SHORT
            with pytest.raises(grpc.RpcError) as refused:
                node.run_pod("late")
            assert code_of(refused.value) in SHORT
            node.assert_true()
            assert node.status(container).state == api.CONTAINER_RUNNING
            node.stop_container(container)
            node.remove_container(container)
            node.stop_pod(pod)
            node.remove_pod(pod)
            assert not node.other_pods()
        node.pull(SPARE_IMAGE)
        node.run(node.run_pod("late"), "late", SLEEP, image=SPARE_IMAGE)
        node.remove_everything()
        node.remove_image(SPARE_IMAGE)
        node.assert_clean()
        node.assert_honest()
        node.stop()


@pytest.mark.cell("FD1")
def test_descriptors_run_out(node: Node, bystander: Bystander) -> None:
    """Calls fail in words and leave nothing; what was watched before is still watched."""
    pod = node.run_pod("pod")
    watched = node.run(pod, "watched", SLEEP)
    victim = node.container_pid(watched)
    soft, hard = resource.prlimit(node.pid, resource.RLIMIT_NOFILE)
    used = len(list(Path(f"/proc/{node.pid}/fd").iterdir()))
    for spare in (1, 3, 6, 10, 16):
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (used + spare, hard))
        with ThreadPoolExecutor(4) as clients:
            outcomes = list(
                clients.map(lambda n, s=spare: _attempt(node, pod, f"{s}-{n}"), range(8))
            )
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert all(code in (grpc.StatusCode.OK, *SHORT) for code in outcomes), outcomes
        for container in node.containers():
            if container.metadata.name.startswith("late"):
                node.remove_container(container.id)
    resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (used + 1, hard))
    os.kill(victim, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{victim}").exists(), "it is dead")
    resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert node.wait_exited(watched).exit_code == 137
    assert node.exec(node.run(pod, "again", SLEEP), "true")[0] == 0
    bystander.assert_untouched()
    node.assert_true()


def _attempt(node: Node, pod: str, name: str) -> grpc.StatusCode:
    try:
        container = node.create(pod, f"late-{name}", SLEEP)
        node.exec(node.start(container), "true")
    except grpc.RpcError as error:
        return code_of(error)
    return grpc.StatusCode.OK


@pytest.mark.cell("FD3")
def test_no_more_processes_or_threads(node: Node, bystander: Bystander) -> None:
    pod = node.run_pod("pod")
    [root] = [
        path for path in hierarchies() if (path / "cgroup.procs").exists() and path.name == "pids"
    ] or pytest.skip("no hierarchy of the pids controller alone")
    group = root / f"{node.tag}-daemon"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(node.pid))
        for spare in (0, 1, 2, 4, 8):
            now = int((group / "pids.current").read_text())
            (group / "pids.max").write_text(str(now + spare))
            outcomes = [_attempt(node, pod, f"{spare}-{n}") for n in range(3)]
            (group / "pids.max").write_text("max")
            assert all(code in (grpc.StatusCode.OK, *SHORT) for code in outcomes), (
                f"{outcomes}: {node.log_tail()}"
            )
            for container in node.containers():
                if container.metadata.name.startswith("late"):
                    node.remove_container(container.id)
        assert node.exec(node.run(pod, "again", SLEEP), "true")[0] == 0
        bystander.assert_untouched()
        node.assert_true()
        node.remove_everything()
    finally:
        remove_group(group)


@pytest.mark.cell("FD5")
def test_many_lives_leave_the_daemon_as_it_was(node: Node) -> None:
    """A choice of the hundred thousand; PODWRIGHT_LIVES says how many."""
    lives = int(os.environ.get("PODWRIGHT_LIVES", "150"))
    pod = node.run_pod("pod")

    def live(number: int) -> None:
        container = node.run(pod, f"short-{number}", ["true"])
        node.wait_exited(container)
        node.remove_container(container)

    with ThreadPoolExecutor(4) as clients:
        list(clients.map(live, range(20)))
        before = (_descriptors(node), _resident_kib(node.pid))
        list(clients.map(live, range(20, 20 + lives)))
    try:
        until(
            lambda: _descriptors(node).total() <= before[0].total() + 2,
            "no more descriptors",
        )
    except AssertionError:
        raise InvariantBroken("I5", f"more: {_descriptors(node) - before[0]}") from None
    grown_kib = _resident_kib(node.pid) - before[1]
    if grown_kib > max(8 << 10, before[1] // 10):
        raise InvariantBroken("I5", f"{grown_kib} KiB more than {before[1]}")


def _descriptors(node: Node) -> Counter[str]:
    there = [c.id for c in node.containers()]
    kinds: Counter[str] = Counter()
    for link in list(Path(f"/proc/{node.pid}/fd").iterdir()):
        with contextlib.suppress(OSError):
            target = str(link.readlink())
            # Those of what is there are kept open for its statistics, from some moment on.
            named = re.search(r"[0-9a-f]{64}", target)
            if "/sys/fs/cgroup/" not in target or (named and named[0] not in there):
                kinds[target.partition(":[")[0]] += 1
    return kinds


def _resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])
