"""Files of the daemon that somebody else has put there, taken away, or written nonsense into."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from protos import api_pb2 as api
from tests.kit.calls import until
from tests.kit.node import Node, NodeFailed
from tests.kit.truth import alive, in_cgroup

SLEEP = ["sleep", "1000"]


@pytest.fixture
def own_node(certs_d: Path) -> Iterator[Node]:
    """A node of the test's own: it may break what it wants."""
    with Node.running("files", certs_d) as node:
        yield node


@pytest.mark.cell("DB4")
@pytest.mark.parametrize("how", ["log lost", "log of another", "log without database"])
def test_log_of_the_database(own_node: Node, how: str) -> None:
    """Whatever is believed of it, nothing is claimed that is not, and nothing is stuck."""
    node = own_node
    state = node.state_root / "state.db"
    log = state.with_name("state.db-wal")
    first = node.run(node.run_pod("first"), "main", SLEEP)
    node.stop()
    node.start_daemon()
    second = node.run(node.run_pod("second"), "main", SLEEP)
    pids = {c: node.container_pid(c) for c in (first, second)}
    node.kill()
    if how == "log lost":
        log.unlink()
    elif how == "log of another":
        foreign = node.work / "foreign.db"
        database = sqlite3.connect(foreign)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE pods (id TEXT)")
        database.commit()
        shutil.copyfile(f"{foreign}-wal", log)
        database.close()
    else:
        state.unlink()
    try:
        node.start_daemon()
    except NodeFailed:
        # It refuses, and then it has touched nothing.
        node.forget_process()
        assert str(state) in node.log_tail()
        assert all(alive(pid) for pid in pids.values())
        return
    node.assert_true()
    listed = {c.id for c in node.containers()}
    for container, pid in pids.items():
        if container in listed:
            assert node.status(container).state == api.CONTAINER_RUNNING
            assert alive(pid)
        else:
            until(lambda c=container: not in_cgroup(c), "what is not listed does not run")
    node.run(node.run_pod("third"), "main", SLEEP)
    node.remove_everything()


@pytest.mark.cell("DB8")
@pytest.mark.parametrize("text", ["", "garbage", "-1", "0", "1", "SELF", "99999999999999999999"])
def test_number_of_a_process_that_is_nonsense(node: Node, text: str) -> None:
    """Nobody is signalled for it, and the container's state is what it is."""
    pod = node.run_pod("pod")
    lives = node.run(pod, "lives", SLEEP)
    dead = node.run(pod, "dead", SLEEP)
    node.kill()
    for container in (lives, dead):
        bundle = node.run_root / "containers" / container
        if container == dead:
            for name in ("pid", "conmon.pid"):
                os.kill(int((bundle / name).read_text()), 9)
        for name in ("pid", "conmon.pid"):
            (bundle / name).write_text(text.replace("SELF", str(os.getpid())))
    until(lambda: not in_cgroup(dead), "it is dead")
    node.start_daemon()
    assert node.status(lives).state == api.CONTAINER_RUNNING
    assert node.wait_exited(dead).exit_code in (137, 255)
    node.assert_true()
    node.stop_container(lives)
    assert node.status(lives).state == api.CONTAINER_EXITED
    node.remove_container(dead)


@pytest.mark.cell("DB12")
@pytest.mark.parametrize("kind", ["file", "link", "directory", "foreign socket"])
def test_something_else_where_the_socket_was(node: Node, kind: str) -> None:
    """It is replaced or the start is refused in words; what it leads to is not touched."""
    victim = node.work / "victim"
    victim.write_text("of somebody\n")
    container = node.run(node.run_pod("pod"), "main", SLEEP)
    node.kill()
    node.socket.unlink()
    if kind == "file":
        node.socket.write_text("no socket")
    elif kind == "link":
        node.socket.symlink_to(victim)
    elif kind == "directory":
        node.socket.mkdir()
    else:
        subprocess.run(
            [
                sys.executable,
                "-c",
                "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])",
                node.socket,
            ],
            check=True,
        )
    try:
        node.start_daemon()
    except NodeFailed:
        node.forget_process()
        assert str(node.socket) in node.log_tail()
        if node.socket.is_dir():
            node.socket.rmdir()
        else:
            node.socket.unlink()
        node.start_daemon()
    assert victim.read_text() == "of somebody\n"
    victim.unlink()
    assert node.exec(container, "true")[0] == 0


@pytest.mark.cell("DB12")
@pytest.mark.parametrize("which", ["run_root", "state_root"])
@pytest.mark.parametrize("kind", ["link", "owner"])
def test_root_directory_that_is_not_ours(own_node: Node, which: str, kind: str) -> None:
    """Nothing is served from where somebody else could have written."""
    node = own_node
    root: Path = getattr(node, which)
    node.stop()
    aside = root.with_name(f"{root.name}.aside")
    elsewhere = node.work / "elsewhere"
    if kind == "link":
        root.rename(aside)
        elsewhere.mkdir()
        os.chown(elsewhere, 1000, 1000)
        root.symlink_to(elsewhere)
    else:
        os.chown(root, 1000, 1000)
    try:
        node.start_daemon()
    except NodeFailed:
        node.forget_process()
        assert str(root) in node.log_tail()
    else:
        about = root.stat()
        assert not root.is_symlink(), "it serves from where the link leads"
        assert (about.st_uid, about.st_mode & 0o022) == (0, 0), "it serves, and others may write"
        node.stop()
    if kind == "link":
        root.unlink()
        aside.rename(root)
        assert not list(elsewhere.iterdir())
    os.chown(root, 0, 0)
    node.start_daemon()
