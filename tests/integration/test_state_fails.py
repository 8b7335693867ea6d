"""The stored state is cut, emptied, garbled, or of another boot: no pod is killed for it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from sandbox.host.libc import LibcSyscalls
from sandbox.host.mounts import unmount_tree
from tests.kit import census
from tests.kit.calls import until
from tests.kit.messages import BUSYBOX
from tests.kit.node import Node, NodeFailed
from tests.kit.state import edit_rows

SLEEP = ["sleep", "1000"]


@pytest.fixture
def node(certs_d: Path) -> Iterator[Node]:
    """A node of the test's own: it may break what it wants."""
    with Node.running("state", certs_d) as node:
        yield node


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garble_head(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"this is no database" * 10)


def garble_middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))


DAMAGES: list[Callable[[Path], None]] = [cut, empty, garble_head, garble_middle, Path.unlink]


def closed(node: Node) -> Path:
    """The state file of a daemon that has ended in order, all of it in one file."""
    node.stop()
    path = node.state_root / "state.db"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return path


@pytest.mark.cell("DB2", "DB3", "S6")
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_damaged_state(node: Node, damage: Callable[[Path], None]) -> None:
    """The file is put aside and its rows are made again: every answer is as before."""
    pod = node.run_pod("pod")
    container = node.run(pod, "main", SLEEP)
    pids = [node.pod_pid(pod), node.container_pid(container)]
    path = closed(node)
    damage(path)
    node.start_daemon()
    assert all(Path(f"/proc/{pid}").exists() for pid in pids), "pods were killed"
    assert "state is lost and begun anew" in node.log_tail()
    node.restart()
    assert node.pod_status(pod).state == api.SANDBOX_READY
    assert [node.pod_pid(pod), node.container_pid(container)] == pids
    assert node.exec(container, "echo", "alive")[1] == "alive\n"
    node.remove_everything()
    for left in path.parent.glob("state.db.*"):
        assert left.name  # what was set aside is the operator's to delete
    node.assert_clean()


@pytest.mark.cell("DB7")
def test_one_record_that_cannot_be_read(node: Node) -> None:
    """It is made again from its copy; without that, everything goes that carries its id."""
    good = node.run(node.run_pod("good"), "main", SLEEP)
    bad_pod = node.run_pod("bad")
    node.run(bad_pod, "main", SLEEP)
    path = closed(node)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE pods SET document = '{' WHERE id = ?", (bad_pod,))
    database.close()
    node.start_daemon()
    assert sorted(p.metadata.name for p in node.pods()) == ["bad", "good"]
    path = closed(node)
    (node.run_root / "records" / "pods" / f"{bad_pod}.json").unlink()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE pods SET document = '{' WHERE id = ?", (bad_pod,))
    database.close()
    node.start_daemon()
    assert [p.metadata.name for p in node.pods()] == ["good"]
    assert node.exec(good, "echo", "alive")[1] == "alive\n"
    node.assert_true()


@pytest.mark.cell("DB5")
def test_state_of_a_newer_daemon_is_refused(node: Node) -> None:
    pod = node.run_pod("pod")
    pid = node.pod_pid(pod)
    path = closed(node)
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 4711")
    database.close()
    with pytest.raises(NodeFailed):
        node.start_daemon()
    node.forget_process()
    assert "4711" in node.log_tail()
    assert Path(f"/proc/{pid}").exists()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 1")
    database.close()
    node.start_daemon()
    assert node.pod_status(pod).state == api.SANDBOX_READY


@pytest.mark.cell("DB2")
@pytest.mark.parametrize("damage", [empty, garble_head], ids=lambda d: d.__name__)
def test_damaged_catalog_of_images_is_begun_anew(
    node: Node, damage: Callable[[Path], None]
) -> None:
    container = node.run(node.run_pod("pod"), "main", SLEEP)
    node.stop()
    damage(node.state_root / "images/catalog.db")
    (node.state_root / "images/catalog.db-wal").unlink(missing_ok=True)
    node.start_daemon()
    assert not node.image_id(BUSYBOX)
    assert node.exec(container, "echo", "alive")[1] == "alive\n"
    node.pull(BUSYBOX)
    node.run(node.run_pod("other"), "main", SLEEP)


def reboot(node: Node, signals: signal.Signals) -> None:
    """What a boot takes away: processes, mounts, control groups, and all below the run root."""
    node.kill(signals)
    while found := census.processes_of(node.places):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):  # as a monitor whose container has died
                os.kill(pid, signal.SIGKILL)
    for root in (node.run_root, node.state_root):
        unmount_tree(root, syscalls=LibcSyscalls())
    for entry in node.run_root.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    for top in Path("/sys/fs/cgroup").glob(f"*/{node.tag}"):
        for directory, _, _ in os.walk(top, topdown=False):
            Path(directory).rmdir()
    for link in node.host("ip", "-o", "link", "show", "type", "veth").splitlines():
        subprocess.run(
            ["ip", "-n", node.tag, "link", "delete", link.split(":")[1].split("@")[0].strip()],
            check=False,
        )
    other = "00000000-1111-2222-3333-444444444444"
    for table, key in (("pods", "pause"), ("containers", "init"), ("containers", "monitor")):
        edit_rows(node, table, lambda row, key=key: row.get(key) and row[key].update(boot_id=other))


@pytest.mark.cell("RB1", "S7")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["crash", "order"])
def test_reboot(node: Node, how: signal.Signals) -> None:
    pod = node.run_pod("pod", ports=[api.PortMapping(container_port=80, host_port=18083)])
    running = node.run(pod, "running", SLEEP)
    created = node.create(pod, "created", SLEEP)
    exited = node.run(pod, "exited", ["sh", "-c", "exit 3"])
    node.wait_exited(exited)
    stopped = node.run_pod("stopped")
    node.stop_pod(stopped)
    before = node.status(exited)
    image = node.image_id(BUSYBOX)
    reboot(node, how)
    node.start_daemon()
    assert node.pod_status(pod).state == api.SANDBOX_NOTREADY
    for container in (running, created):
        status = node.status(container)
        assert (status.state, status.exit_code) == (api.CONTAINER_EXITED, 255)
        assert status.reason
        assert status.message
    assert node.status(exited) == before
    assert node.image_id(BUSYBOX) == image
    # Addresses come back by themselves: nobody may ever ask for these pods again.
    until(lambda: not node.census()["addresses"], "addresses of the last boot are free")
    assert not node.census()["packet rules"]
    fresh = node.run_config(node.pod_config("pod", attempt=1))
    assert node.exec(node.run(fresh, "main", SLEEP), "echo", "alive")[1] == "alive\n"
    node.remove_everything()
    node.assert_clean()


@pytest.mark.cell("RB2", "S7")
def test_reboot_while_the_network_is_not_there_yet(node: Node) -> None:
    pod = node.run_pod("pod")
    node.run(pod, "main", SLEEP)
    reboot(node, signal.SIGKILL)
    node.faults.order("bridge", "DEL", "fail-before")
    node.remove_network()
    node.start_daemon()
    until(lambda: node.faults.taken("bridge", "DEL"), "detaching was tried")
    until(lambda: not node.census()["addresses"], "it was tried again")
    node.write_network()
    node.remove_everything()
    node.assert_clean()


@pytest.mark.cell("RB4")
def test_reboot_in_the_middle_of_a_creation(node: Node) -> None:
    node.faults.order("crun", "create", "hold-before")
    call = node.runtime.RunPodSandbox.future(
        api.RunPodSandboxRequest(config=node.pod_config("pod")), timeout=60
    )
    node.faults.wait_reached("crun", "create")
    reboot(node, signal.SIGKILL)
    assert isinstance(call.exception(), grpc.RpcError)
    node.start_daemon()
    assert not node.pods()
    until(lambda: not node.census()["addresses"], "the address is free")
    assert node.pod_status(node.run_pod("pod")).state == api.SANDBOX_READY
    node.remove_everything()
    node.assert_clean()


@pytest.mark.cell("UP2")
def test_handler_is_not_configured_any_more(node: Node) -> None:
    """Its pods are listed, and go with all that they have."""
    usual = node.config.read_text()
    with node.config.open("a") as file:
        file.write(f'\n[runtimes.third]\npath = "{node.faults.programs / "runc"}"\n')
    node.restart()
    pod = node.run_pod("pod", handler="third")
    created = node.create(pod, "created", SLEEP)
    running = node.run(pod, "running", SLEEP)
    node.kill()
    node.config.write_text(usual)
    node.start_daemon()
    with pytest.raises(grpc.RpcError) as unknown:
        node.run_pod("late", handler="third")
    assert "not configured" in unknown.value.details()  # type: ignore[attr-defined]
    assert node.pod_status(pod).state == api.SANDBOX_READY
    assert node.status(created).state == api.CONTAINER_CREATED
    assert node.status(running).state == api.CONTAINER_RUNNING
    node.stop_pod(pod)
    node.remove_pod(pod)
    # What only that runtime's program could tidy is left to whoever takes it away.
    shutil.rmtree(node.run_root / "runtime" / "third")
    node.remove_everything()
    node.assert_clean()


@pytest.mark.cell("DB13")
def test_rows_that_were_lost_are_taken_from_their_copies(node: Node) -> None:
    """As when the log beside the database is deleted: what runs is known, nothing is killed."""
    pod = node.run_pod("pod")
    container = node.run(pod, "main", SLEEP)
    pids = [node.pod_pid(pod), node.container_pid(container)]
    path = closed(node)
    with sqlite3.connect(path) as database:
        for table in ("pods", "containers"):
            database.execute(f"DELETE FROM {table}")
    database.close()
    node.start_daemon()
    assert [node.pod_pid(pod), node.container_pid(container)] == pids
    assert node.exec(container, "echo", "alive")[1] == "alive\n"
    node.remove_everything()
    node.assert_clean()


@pytest.mark.cell("DB13")
def test_traces_of_nobody_are_swept(node: Node) -> None:
    """Directories, pins, mounts, exit files and runtime state that no record explains."""
    pod = node.run_pod("pod")
    container = node.run(pod, "main", SLEEP)
    path = closed(node)
    with sqlite3.connect(path) as database:
        for table in ("pods", "containers"):
            database.execute(f"DELETE FROM {table}")
            shutil.rmtree(node.run_root / "records" / table)
    database.close()
    nobody = "f" * 64
    (node.run_root / "containers" / nobody / "rootfs").mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "none", node.run_root / "containers" / nobody / "rootfs"],
        check=True,
    )
    (node.run_root / "exits" / nobody).write_text("0")
    node.start_daemon()
    assert not node.pods()
    assert container not in {c.id for c in node.containers()}
    node.remove_pod_cgroups()
    node.assert_clean()
