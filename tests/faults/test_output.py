"""What containers write and what is run in them over and over."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from protos import api_pb2 as api
from tests.kit import census
from tests.kit.calls import until
from tests.kit.faults import PATIENCE_S
from tests.kit.node import Node

SLEEP = ["sleep", "1000"]


def pieces(path: Path) -> bytes:
    """What was written, put together again; every line of the log has a head and a tag."""
    whole = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        stamp, stream, tag, text = line.split(b" ", 3)
        assert stamp[4:5] == b"-"
        assert stamp[10:11] == b"T"
        assert stream in (b"stdout", b"stderr")
        assert tag in (b"F", b"P")
        whole.append(text + (b"\n" if tag == b"F" else b""))
    return b"".join(whole)


@pytest.mark.cell("LG5")
@pytest.mark.parametrize(
    ("script", "size"),
    [
        ("head -c 300000 /dev/zero", 300_000),
        ("head -c 33554432 /dev/zero | tr '\\0' x", 33_554_432),
        ("printf 'no end'", 6),
        ("printf '\\000\\377\\001'; echo; printf '\\n\\n\\n'", 7),
    ],
    ids=["zeros", "one-line", "no-end", "no-text"],
)
def test_output_that_is_no_text(node: Node, handler: str, script: str, size: int) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", ["sh", "-c", script])
    assert node.wait_exited(container).exit_code == 0
    found = pieces(node.logs / "pod" / "main_0.log")
    # A last line without an end gets one in the log.
    assert len(found.removesuffix(b"\n")) in (size, size - 1)


@pytest.mark.cell("LG6")
def test_reopened_by_many_at_once(node: Node) -> None:
    pod = node.run_pod("pod")
    script = "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done"
    container = node.run(pod, "main", ["sh", "-c", script])
    node.wait_log("pod", "main", "line 1\n")
    request = api.ReopenContainerLogRequest(container_id=container)
    with ThreadPoolExecutor(16) as clients:
        list(
            clients.map(
                lambda _: node.runtime.ReopenContainerLog(request, timeout=PATIENCE_S), range(300)
            )
        )
    seen = node.log_of("pod", "main").count("line")
    node.wait_log("pod", "main", f"line {seen + 2}\n")
    node.stop_container(container)
    lines = node.log_of("pod", "main").splitlines()
    assert lines == [f"line {n}" for n in range(len(lines))]


@pytest.mark.cell("LG7")
def test_last_words_are_there_when_the_end_is_told(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)

    def live(n: int) -> None:
        container = node.run(pod, f"short-{n}", ["sh", "-c", "echo first; echo last words"])
        node.wait_exited(container)
        assert node.log_of("pod", f"short-{n}").endswith("last words\n")

    with ThreadPoolExecutor(6) as clients:
        list(clients.map(live, range(40)))


@pytest.mark.cell("ES5")
def test_probes_leave_nothing(node: Node, handler: str) -> None:
    """A choice of the hour of fifty containers: what one leaves, a few hundred show."""
    pod = node.run_pod("pod", handler=handler)
    containers = [node.run(pod, f"main-{n}", SLEEP) for n in range(6)]
    with ThreadPoolExecutor(6) as clients:
        list(clients.map(lambda c: node.exec(c, "true"), containers * 2))
        before = (node.settled_census(), census.threads(node.pid))
        codes = [a[0] for a in clients.map(lambda c: node.exec(c, "true"), containers * 30)]
    assert set(codes) == {0}
    left = census.difference(before[0], node.settled_census())
    assert not left, left
    until(lambda: census.threads(node.pid) <= before[1] + 8, "threads are as before")
