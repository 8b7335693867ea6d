"""Many at once, and little of the machine for them.

The numbers are those of a usual run; PODWRIGHT_LOAD multiplies them (10 makes the matrix's own).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.calls import until
from tests.kit.faults import PATIENCE_S
from tests.kit.node import Node
from tests.kit.operations import Bystander, finish

SLEEP = ["sleep", "1000"]
LOAD = int(os.environ.get("PODWRIGHT_LOAD", "1"))


def code_of(error: grpc.RpcError) -> grpc.StatusCode:
    return error.code()  # type: ignore[attr-defined]


@pytest.mark.cell("LD1")
def test_pods_at_once_and_gone_at_once(node: Node, bystander: Bystander) -> None:
    number = 20 * LOAD
    kubelets_s = 240

    def make(n: int) -> str:
        pod = node.run_pod(f"pod-{n}", timeout=kubelets_s)
        return node.run(pod, "main", SLEEP)

    with ThreadPoolExecutor(16) as clients:
        made = [clients.submit(make, n) for n in range(number)]
        while not all(each.done() for each in made):
            node.runtime.Status(api.StatusRequest(), timeout=PATIENCE_S)
            node.pods()
        containers = [each.result() for each in made]
        node.assert_true()
        addresses = {node.pod_status(p.id).network.ip for p in node.pods()}
        assert len(addresses) == number + 1
        assert all(node.status(c).state == api.CONTAINER_RUNNING for c in containers)
        bystander.assert_untouched()
        victims = [p.id for p in node.pods() if p.id not in node.kept]
        list(clients.map(node.stop_pod, victims))
        list(clients.map(node.remove_pod, victims))
    assert len(node.pods()) == 1


@pytest.mark.cell("LD3")
def test_creations_stops_and_removals_in_any_order(node: Node, bystander: Bystander) -> None:
    """Whatever was asked for by many at once, what is answered then is true and all of it goes."""
    choice = random.Random(20261128)
    honest = {
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
    }

    def remove_some() -> None:
        for container in node.containers():
            if container.id != bystander.container:
                node.remove_container(container.id)

    for _ in range(6 * LOAD):
        pod = node.run_pod("pod")
        calls = [
            lambda pod=pod: node.create(pod, "a", SLEEP),
            lambda pod=pod: node.run(pod, "b", SLEEP),
            lambda pod=pod: node.run(pod, "c", ["true"]),
            lambda pod=pod: node.stop_pod(pod),
            lambda pod=pod: node.remove_pod(pod),
            lambda: node.run_pod("pod"),
            lambda: [
                node.remove_container(c.id)
                for c in node.containers()
                if c.id != bystander.container
            ],
        ]
        choice.shuffle(calls)
        with ThreadPoolExecutor(len(calls)) as clients:
            for done in [clients.submit(call) for call in calls]:
                error = done.exception()
                if error is not None:
                    assert isinstance(error, grpc.RpcError), error
                    assert code_of(error) in honest, error
        node.assert_true()
        for pod_id in [p.id for p in node.pods() if p.id not in node.kept]:
            node.remove_pod(pod_id)
        assert [c.id for c in node.containers()] == [bystander.container]
    bystander.assert_untouched()


@pytest.mark.cell("LD5")
def test_graces_fall_one_after_the_other(node: Node) -> None:
    """The shortest counts, whoever asked for it, and none of them kills at once."""
    pod = node.run_pod("pod")
    script = "trap 'echo got TERM' TERM; echo ready; while :; do sleep 0.1; done"
    container = node.run(pod, "main", ["sh", "-c", script])
    node.wait_log("pod", "main", "ready")
    with ThreadPoolExecutor(24) as clients:
        stops = [clients.submit(node.stop_container, container, 3600 - n) for n in range(22)]
        assert node.exec(container, "sleep", "0.5")[0] == 0
        assert node.status(container).state == api.CONTAINER_RUNNING
        node.wait_log("pod", "main", "got TERM")
        node.stop_container(container, 0)
        for stop in stops:
            stop.result()
    assert node.status(container).exit_code == 137
    assert node.log_of("pod", "main").count("got TERM") == 1


@pytest.fixture
def own_node(certs_d: Path) -> Iterator[Node]:
    """A node of the test's own."""
    with Node.running("crowd", certs_d) as node:
        yield node


@pytest.mark.cell("LD8", "S14")
def test_twenty_thousand_ended_containers(own_node: Node) -> None:
    """Both forms of the list say the same, of all of them, and the plain one fits a message."""
    node = own_node
    number = 20_000
    pod = node.run_pod("pod")
    ended = node.run(pod, "main", ["true"])
    node.wait_exited(ended)
    node.kill()
    with contextlib.closing(sqlite3.connect(node.state_root / "state.db")) as database, database:
        [(name, text)] = database.execute("SELECT name, document FROM containers").fetchall()
        document = json.loads(text)
        for n in range(1, number):
            other = f"{n:064x}"
            document["id"] = other
            document["config"]["attempt"] = n
            database.execute(
                "INSERT INTO containers (id, pod_id, name, document) VALUES (?, ?, ?, ?)",
                (other, pod, f"{name}-{n}", json.dumps(document).encode()),
            )
    node.start_daemon()
    answer = node.runtime.ListContainers(api.ListContainersRequest(), timeout=PATIENCE_S)
    assert len(answer.containers) == number
    assert answer.ByteSize() < 16 << 20
    streamed: list[str] = []
    for part in node.runtime.StreamContainers(api.StreamContainersRequest(), timeout=PATIENCE_S):
        streamed += [c.id for c in getattr(part, "containers", [])] or [part.container.id]
    assert sorted(streamed) == sorted(c.id for c in answer.containers)
    node.run(pod, "fresh", SLEEP)
    node.stop()
    with contextlib.closing(sqlite3.connect(node.state_root / "state.db")) as database, database:
        database.execute("DELETE FROM containers WHERE id LIKE '000000000000%'")
    # Their second copies as well, or they are taken for lost and come back.
    for copy in (node.run_root / "records" / "containers").glob("000000000000*"):
        copy.unlink()
    node.start_daemon()
    node.remove_everything()
    node.assert_clean()


@pytest.mark.cell("LD10")
def test_restart_with_pods_and_calls_in_flight(node: Node, bystander: Bystander) -> None:
    pods = []
    with ThreadPoolExecutor(8) as clients:
        pods = list(clients.map(lambda n: node.run_pod(f"pod-{n}"), range(12 * LOAD)))
        containers = list(clients.map(lambda p: node.run(p, "main", SLEEP), pods))
    calls = [
        node.runtime.ExecSync.future(
            api.ExecSyncRequest(container_id=container, cmd=["sleep", "3331"]), timeout=PATIENCE_S
        )
        for container in containers
    ]
    calls += [
        node.runtime.RunPodSandbox.future(
            api.RunPodSandboxRequest(config=node.pod_config(f"late-{n}")), timeout=PATIENCE_S
        )
        for n in range(10)
    ]
    until(lambda: node.processes_doing("sleep 3331"), "commands run")
    node.kill()
    ended = [finish(call) for call in calls]
    assert not all(ended)
    for call in calls:
        assert call.code() in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
    node.start_daemon()
    node.assert_true()
    assert {p.id for p in node.pods()} >= set(pods)
    assert all(node.status(c).state == api.CONTAINER_RUNNING for c in containers)
    until(lambda: not node.processes_doing("sleep 3331"), "no command is left")
    bystander.assert_untouched()
    with ThreadPoolExecutor(8) as clients:
        list(clients.map(lambda n: node.run_pod(f"late-{n}"), range(10)))
        list(clients.map(node.remove_pod, [p.id for p in node.pods() if p.id not in node.kept]))


@pytest.mark.cell("LD11")
def test_starved_of_processor_and_disk(node: Node, bystander: Bystander) -> None:
    """Slow is not dead: nobody is given up, and nothing stays behind."""
    # Not below the node's directory, or the census would take it for its own.
    noise = f"/var/tmp/podwright-noise-{os.getpid()}"
    write = f"while :; do dd if=/dev/zero of={noise} bs=1M count=64 conv=fsync 2>/dev/null; done"
    scripts = [*["while :; do :; done"] * 4 * (os.cpu_count() or 1), write]
    hungry = [subprocess.Popen(["sh", "-c", script], start_new_session=True) for script in scripts]
    try:

        def live(n: int) -> None:
            pod = node.run_pod(f"pod-{n}")
            container = node.run(pod, "main", ["sh", "-c", "sleep 1; exit 3"])
            assert node.wait_exited(container).exit_code == 3
            node.stop_pod(pod)
            node.remove_pod(pod)

        with ThreadPoolExecutor(6) as clients:
            list(clients.map(live, range(12)))
        bystander.assert_untouched()
        node.assert_true()
    finally:
        for each in hungry:
            os.killpg(each.pid, signal.SIGKILL)
            each.wait()
        Path(noise).unlink(missing_ok=True)
