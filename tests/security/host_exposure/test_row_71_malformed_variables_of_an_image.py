"""A variable without `=`, or `*`, in an image's configuration took the value of the daemon's own.

CVE-2026-57231, CVE-2021-3602: `FOO` means "FOO as it is here" to several programs, and `*` all of
them. The daemon's environment has canaries here; nothing that it starts may have them, nor any
document or log.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.calls import until
from tests.kit.node import Node
from tests.kit.spec_files import document_of, environment_of, text_of
from tests.security.conftest import Hostile

CANARY = f"canary-{secrets.token_hex(8)}"
NAMES = ("FOO", "AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY_PASSWORD", "LD_CANARY", "HOME_CANARY")
MALFORMED = [
    "FOO",
    "*",
    "=x",
    "",
    "=",
    "AWS_SECRET_ACCESS_KEY",
    "LD_*",
    "$FOO",
    "A=${FOO}",
    "B=$FOO",
]


@pytest.fixture(scope="module")
def shared_canary_node(hostile: Hostile) -> Iterator[Node]:
    """A daemon that was started with secrets in its environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            patch.setenv(name, CANARY)
        with hostile.daemon("row-71") as node:
            assert f"FOO={CANARY}".encode() in environment_of(node.pid)
            yield node


@pytest.fixture
def canary_node(shared_canary_node: Node) -> Iterator[Node]:
    """The same, empty after each test."""
    yield shared_canary_node
    shared_canary_node.remove_everything()


def test_nothing_that_is_started_has_it(canary_node: Node, hostile: Hostile, handler: str) -> None:
    node = canary_node
    image = hostile.push("row-71", env=["PATH=/bin", *MALFORMED])
    node.pull(image)
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", ["sh", "-c", "env; echo done; exec sleep 1000"], image=image)
    node.wait_log("pod", "main", "done")
    code, told, _ = node.exec(container, "env")
    assert code == 0
    assert CANARY not in told + node.log_of("pod", "main")
    # What is malformed is left out; what only looks as if a shell had to read it stays as it is.
    process = document_of(node, container)["process"]
    assert isinstance(process, dict)
    assert sorted(process["env"]) == sorted(["PATH=/bin", "HOSTNAME=pod", "A=${FOO}", "B=$FOO"])
    for each in (container, pod):
        assert CANARY not in text_of(node, each)
    # conmon, the pause process, the container's own: everything of this node but the daemon.
    started = [pid for pid in node.processes_doing("") if pid != node.pid]
    assert len(started) >= 2
    for pid in started:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended by now
            for entry in environment_of(pid):
                assert CANARY.encode() not in entry, (pid, entry)
    assert CANARY not in node.log.read_text()


def test_a_request_can_not_ask_for_it_either(canary_node: Node, handler: str) -> None:
    node = canary_node
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", ["sleep", "1000"], env={"X": "$FOO", "Y": "*", "Z": ""})
    told = node.exec(container, "env")[1]
    assert CANARY not in told
    assert "X=$FOO" in told.splitlines()
    until(lambda: Path(f"/proc/{node.container_pid(container)}").exists())
