"""Streams of pods with a user namespace, by crictl as a user has it, with both OCI runtimes."""

from __future__ import annotations

import os
import pty
import re
import select
import socket
import subprocess
from pathlib import Path

import pytest

from tests.kit.crictl import Crictl, pipe_of
from tests.kit.messages import namespaces, user_namespace
from tests.kit.node import PATIENCE_S, Node

OWN = namespaces(user=user_namespace(200_000, gids=400_000))
#: Says who it is and what it is told, until it is told "end".
PARROT = 'while read -r line; do echo "$(id -u) said $line"; [ "$line" != end ] || exit 3; done'


@pytest.fixture(scope="module", autouse=True)
def visited(shared_node: Node, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The first forwarded port makes the daemon's thread for visits, which then stays."""
    crictl = Crictl(shared_node.socket, tmp_path_factory.mktemp("crictl"))
    forward_one(shared_node, crictl, "crun")
    shared_node.remove_everything()
    shared_node.take_baseline()


@pytest.fixture
def crictl(node: Node, tmp_path: Path) -> Crictl:
    return Crictl(node.socket, tmp_path)


def test_exec_with_a_terminal(node: Node, crictl: Crictl, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler, spaces=OWN)
    container = node.run(pod, "main", ["sleep", "1000"], spaces=OWN)
    master, slave = pty.openpty()
    words = crictl.argv("exec", "-it", container, "sh", "-c", f"tty; {PARROT}")
    with subprocess.Popen(
        words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    ) as process:
        os.close(slave)
        try:
            read_until(master, b"/dev/pts/")
            os.write(master, b"hello\n")
            read_until(master, b"0 said hello")
            os.write(master, b"end\n")
            said = read_until(master, b"0 said end")
            assert process.wait(PATIENCE_S) != 0, said  # the program's own 3
        finally:
            process.kill()
            os.close(master)


def read_until(master: int, end: bytes) -> bytes:
    said = b""
    while end not in said:
        ready, _, _ = select.select([master], [], [], PATIENCE_S)
        assert ready, said
        said += os.read(master, 4096)
    return said


def test_exec_and_attach_hear_and_speak(node: Node, crictl: Crictl, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler, spaces=OWN)
    request = node.create_request(pod, "main", ["sh", "-c", PARROT], spaces=OWN)
    request.config.stdin = True
    container = node.runtime.CreateContainer(request, timeout=PATIENCE_S).container_id
    node.ids.add(container)
    node.start(container)
    for words in (("exec", "-i", container, "sh", "-c", PARROT), ("attach", "--stdin", container)):
        with crictl.background(*words) as client:
            for text in ("hello", "end"):
                pipe_of(client.stdin).write(f"{text}\n")
                assert pipe_of(client.stdout).readline() == f"0 said {text}\n"
            client.wait(PATIENCE_S)
    assert node.wait_exited(container).exit_code == 3


def echoes(address: tuple[str, int]) -> bool:
    with socket.create_connection(address, timeout=PATIENCE_S) as link:
        link.sendall(b"are you there")
        return link.recv(13, socket.MSG_WAITALL) == b"are you there"


def test_ports_are_forwarded(node: Node, crictl: Crictl, handler: str) -> None:
    forward_one(node, crictl, handler)


def forward_one(node: Node, crictl: Crictl, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler, spaces=OWN)
    server = node.run(pod, "echo", ["nc", "-ll", "-p", "80", "-e", "cat"], spaces=OWN)
    # crictl ends with the first connection that is refused.
    node.wait_listening(server, 80)
    with crictl.background("port-forward", pod, ":80") as forward:
        told = re.match(r"Forwarding from 127.0.0.1:(\d+) ->", pipe_of(forward.stdout).readline())
        assert told
        assert echoes(("127.0.0.1", int(told[1])))
