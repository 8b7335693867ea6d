"""The wall clock jumps, under a daemon that must not believe it for how long things take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.faults import PATIENCE_S
from tests.kit.node import Node

SLEEP = ["sleep", "1000"]
FAILPOINTS = True
DAY_S = 24 * 3600
JUMPS = pytest.mark.parametrize("jump_s", [-DAY_S, 3650 * DAY_S], ids=["day-back", "ten-years-on"])


@pytest.fixture
def clock(node: Node) -> Iterator[Path]:
    """A file with the seconds that the daemon's wall clock is wrong by."""
    assert node.failpoints is not None
    path = node.failpoints.directory / "clock"
    yield path
    path.unlink(missing_ok=True)


@pytest.mark.cell("TM1")
@JUMPS
def test_in_the_grace_of_a_stop(node: Node, clock: Path, jump_s: int) -> None:
    pod = node.run_pod("pod")
    script = "trap 'echo got TERM' TERM; echo ready; while :; do sleep 0.1; done"
    container = node.run(pod, "main", ["sh", "-c", script])
    node.wait_log("pod", "main", "ready")
    request = api.StopContainerRequest(container_id=container, timeout=3600)
    call = node.runtime.StopContainer.future(request, timeout=PATIENCE_S)
    node.wait_log("pod", "main", "got TERM")
    clock.write_text(str(jump_s))
    assert node.exec(container, "sleep", "1")[0] == 0
    assert node.status(container).state == api.CONTAINER_RUNNING
    began_s = time.monotonic()
    node.stop_container(container, 1)
    assert time.monotonic() - began_s >= 1  # the grace that was asked for, whatever the clock says
    call.result()
    status = node.status(container)
    assert status.exit_code == 137
    assert status.finished_at >= status.started_at >= status.created_at


@pytest.mark.cell("TM1")
@JUMPS
def test_between_url_and_session(node: Node, clock: Path, jump_s: int) -> None:
    """A URL is as old as it is."""
    container = node.run(node.run_pod("pod"), "main", SLEEP)
    request = api.ExecRequest(container_id=container, cmd=["true"], stdout=True)
    url = node.runtime.Exec(request, timeout=PATIENCE_S).url
    clock.write_text(str(jump_s))
    import urllib.error
    import urllib.request

    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.urlopen(url, timeout=PATIENCE_S)
    # No upgrade was asked for, which is only said of a URL that is good.
    with answer.value as body:
        assert answer.value.code == 400, body.read()


@pytest.mark.cell("TM2")
@JUMPS
def test_between_start_and_end(node: Node, clock: Path, jump_s: int) -> None:
    pod = node.run_pod("pod")
    by_stop = node.run(pod, "by-stop", SLEEP)
    by_itself = node.run(pod, "by-itself", ["sleep", "2"])
    clock.write_text(str(jump_s))
    node.stop_container(by_stop)
    for container in (by_stop, by_itself):
        status = node.wait_exited(container)
        assert status.finished_at >= status.started_at >= status.created_at
    node.restart()
    for container in (by_stop, by_itself):
        status = node.status(container)
        assert status.finished_at >= status.started_at >= status.created_at


@pytest.mark.cell("TM3")
@pytest.mark.parametrize(
    "then_s",
    [-DAY_S, 0, 2**31 - 2, 2**31 + DAY_S],
    ids=["before-1970", "1970", "2038", "after-2038"],
)
def test_times_at_the_ends_of_what_clocks_know(node: Node, clock: Path, then_s: int) -> None:
    """Whole lives in such times, and a restart in the middle of one."""
    clock.write_text(str(then_s - int(time.time())))
    pod = node.run_pod("pod")
    container = node.run(pod, "main", SLEEP)
    assert node.exec(container, "echo", "alive")[1] == "alive\n"
    node.restart()
    assert node.status(container).state == api.CONTAINER_RUNNING
    node.stop_container(container)
    status = node.status(container)
    assert status.finished_at >= status.started_at >= status.created_at
    node.runtime.ListContainerStats(api.ListContainerStatsRequest(), timeout=PATIENCE_S)
    clock.unlink()
    node.restart()
    assert node.status(container).state == api.CONTAINER_EXITED
    try:
        node.remove_pod(pod)
    except grpc.RpcError:
        node.remove_pod(pod)
