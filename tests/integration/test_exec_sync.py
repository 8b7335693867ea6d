"""ExecSync with both OCI runtimes: what comes back, what ends it, and that nothing stays."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.calls import until
from tests.kit.messages import namespaces
from tests.kit.node import PATIENCE_S, Node

SLEEP = ["sleep", "1000"]
OUTPUT_LIMIT_BYTES = 16 << 20


@pytest.fixture(params=["CONTAINER", "POD"])
def container(request: pytest.FixtureRequest, node: Node, handler: str) -> str:
    """A container, in a process namespace of its own and in its pod's."""
    spaces = namespaces(pid=request.param)
    pod = node.run_pod("pod", handler=handler, spaces=spaces)
    return node.run(pod, "main", SLEEP, spaces=spaces)


@pytest.fixture(autouse=True)
def nothing_stays(node: Node) -> Iterator[None]:
    """The container goes on and nothing but it."""
    yield
    until(lambda: len(node.census()["processes"]) <= 3, "only pause, conmon and sleep are left")
    bundles = [node.run_root / "containers" / container.id for container in node.containers()]
    until(
        lambda: not [path for bundle in bundles for path in bundle.glob("exec-*")],
        "nothing is left of commands",
    )


def code_of(error: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    return error.value.code()  # type: ignore[attr-defined]


def test_outputs_and_exit_code(node: Node, container: str) -> None:
    assert node.exec(container, "sh", "-c", "echo out; echo err >&2; exit 5") == (
        5,
        "out\n",
        "err\n",
    )
    assert node.exec(container, "sh", "-c", "kill -9 $$")[0] == 137
    assert node.exec(container, "cat") == (0, "", "")


@pytest.mark.cell("ES1")
def test_time_over_kills_the_command_and_its_children(node: Node, container: str) -> None:
    script = "setsid sleep 2222 & sleep 2223 & trap '' TERM; echo told; sleep 2224"
    with pytest.raises(grpc.RpcError) as late:
        node.exec(container, "sh", "-c", script, timeout_s=1)
    assert code_of(late) is grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: not node.processes_doing("sleep 222"), "nothing of it is left")
    assert node.exec(container, "echo", "alive")[1] == "alive\n"


@pytest.mark.cell("ES3")
def test_output_is_cut_and_fits_a_message(node: Node, container: str) -> None:
    script = "head -c 20000000 /dev/zero"
    request = api.ExecSyncRequest(container_id=container, cmd=["sh", "-c", script])
    answer = node.runtime.ExecSync(request, timeout=PATIENCE_S)
    assert answer.exit_code == 0
    assert OUTPUT_LIMIT_BYTES - (1 << 20) < len(answer.stdout) < OUTPUT_LIMIT_BYTES


@pytest.mark.cell("ES2")
def test_background_child_does_not_hold_the_call(node: Node, handler: str, container: str) -> None:
    if handler == "crun":
        assert node.exec(container, "sh", "-c", "sleep 2225 & echo told")[:2] == (0, "told\n")
    else:
        # runc keeps the exit code to itself for as long as the pipe is open.
        with pytest.raises(grpc.RpcError) as withheld:
            node.exec(container, "sh", "-c", "sleep 2225 & echo told")
        assert code_of(withheld) is grpc.StatusCode.DEADLINE_EXCEEDED
    # It lives on: it is the container's now.
    until(lambda: len(node.processes_doing("sleep 2225")) == 1, "it alone is left")
    [child] = node.processes_doing("sleep 2225")
    os.kill(child, signal.SIGKILL)


def test_command_that_is_not_there(node: Node, container: str) -> None:
    with pytest.raises(grpc.RpcError) as missing:
        node.exec(container, "/no/such/program")
    assert "no such" in missing.value.details().lower()  # type: ignore[attr-defined]
    assert code_of(missing) is not grpc.StatusCode.UNKNOWN
    with pytest.raises(grpc.RpcError) as empty:
        node.exec(container)
    assert code_of(empty) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.cell("ES4")
def test_end_of_the_container_ends_the_command(node: Node, container: str) -> None:
    with ThreadPoolExecutor(1) as client:
        running = client.submit(node.exec, container, "sh", "-c", "echo $$ > /tmp/pid; sleep 2226")
        until(lambda: node.processes_doing("sleep 2226"), "the command runs")
        node.stop_container(container)
        failure = running.exception()
        if failure is None:
            assert running.result()[0] in (137, 255)
        else:
            assert isinstance(failure, grpc.RpcError)
            assert failure.code() is not grpc.StatusCode.UNKNOWN  # type: ignore[attr-defined]
    with pytest.raises(grpc.RpcError) as ended:
        node.exec(container, "true")
    assert code_of(ended) is grpc.StatusCode.FAILED_PRECONDITION


def test_client_that_goes_away_leaves_no_command(node: Node, container: str) -> None:
    request = api.ExecSyncRequest(container_id=container, cmd=["sleep", "2227"])
    call = node.runtime.ExecSync.future(request, timeout=PATIENCE_S)
    until(lambda: node.processes_doing("sleep 2227"), "the command runs")
    call.cancel()
    until(lambda: not node.processes_doing("sleep 2227"), "the command is gone")


def test_many_commands_at_once(node: Node, container: str) -> None:
    with ThreadPoolExecutor(10) as clients:

        def ask(number: int) -> bool:
            answer = node.exec(container, "sh", "-c", f"echo {number}; exit {number}")
            return answer == (number, f"{number}\n", "")

        assert all(clients.map(ask, range(40)))


@pytest.mark.cell("ES4")
def test_created_container_has_no_commands(node: Node, handler: str) -> None:
    created = node.create(node.run_pod("pod", handler=handler), "main", SLEEP)
    with pytest.raises(grpc.RpcError) as refused:
        node.exec(created, "true")
    assert code_of(refused) is grpc.StatusCode.FAILED_PRECONDITION
