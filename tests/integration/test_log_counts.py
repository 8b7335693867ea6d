"""What containers log is counted, over rotations, and who logs too fast is named."""

from __future__ import annotations

import contextlib
import http.client

from protos import api_pb2 as api
from tests.kit.calls import until
from tests.kit.node import PATIENCE_S, Node
from tests.kit.registry import free_port

METRICS_PORT = free_port()
SETTINGS = {
    "metrics.address": f'"127.0.0.1:{METRICS_PORT}"',
    "metrics.log_interval_s": "0.1",
    "metrics.log_rate_warning_bytes": "100000",
    "metrics.log_rate_pods": "3",
}


def metric(name: str) -> float:
    """Value of a metric without labels, or with the labels in `name`; -1 when it is not there."""
    connection = http.client.HTTPConnection("127.0.0.1", METRICS_PORT, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    for line in text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.rpartition(" ")[2])
    return -1


def _warnings(node: Node) -> list[str]:
    lines = node.log.read_text(errors="replace").splitlines()
    return [line for line in lines if "container logs too fast" in line]


def test_logs_are_counted_over_rotations(node: Node, handler: str) -> None:
    total, rotations = (
        "podwright_container_log_bytes_total",
        "podwright_container_log_rotations_total",
    )
    before, rotated = metric(total), metric(rotations)
    assert before >= 0
    pod = node.run_pod("talks", handler=handler)
    script = (
        "for i in $(seq 200); do echo 0123456789012345678901234567890123456789; done; sleep 1000"
    )
    main = node.start(node.create(pod, "main", ["sh", "-c", script]))
    path = node.logs / "talks" / "main_0.log"
    # Lines may be written in parts (P), but each ends once (F).
    until(lambda: path.read_bytes().count(b" stdout F ") == 200, "all lines are there")
    size = path.stat().st_size
    until(lambda: metric(total) - before == size, "the log is counted")
    path.rename(path.with_suffix(".1"))
    request = api.ReopenContainerLogRequest(container_id=main)
    node.runtime.ReopenContainerLog(request, timeout=PATIENCE_S)
    until(lambda: metric(rotations) == rotated + 1, "the rotation is counted")
    assert metric(total) - before == size


def test_who_logs_too_fast_is_named(node: Node) -> None:
    pod = node.run_pod("shouts")
    node.start(node.create(pod, "main", ["sh", "-c", "yes | head -c 3000000; sleep 1000"]))
    until(lambda: any("pod=shouts" in line for line in _warnings(node)), "the log says it")
    [said] = [line for line in _warnings(node) if "pod=shouts" in line]
    assert "namespace=integration" in said
    series = 'podwright_pod_log_bytes_per_second{namespace="integration",pod="shouts"}'
    until(lambda: metric(series) == -1, "a quiet pod has no series")
