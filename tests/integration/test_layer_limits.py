"""Limits of writable layers, with the daemon's state on a file system that keeps project quota."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from sandbox.host.project_quota import use_of
from sandbox.layer_limits import ANNOTATION, FIRST_PROJECT
from tests.kit.calls import until
from tests.kit.node import PATIENCE_S, Node
from tests.kit.quota import quota_mount

MIB = 1 << 20


@pytest.fixture(scope="module")
def shared_node(certs_d: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with quota_mount(tmp_path_factory.mktemp("quota"), size_mib=128) as disk:
        settings = {
            "runtime.writable_layer_bytes": str(8 * MIB),
            "runtimes.crun.allowed_annotations": '["podwright.io/*"]',
            "runtimes.runc.allowed_annotations": '["podwright.io/*"]',
            "metrics.layer_age_s": "0",
        }
        with Node.running("quota", certs_d, settings=settings, state_root=disk / "state") as node:
            yield node


def layer_of(node: Node, container: str) -> api.WritableLayerUsage:
    request = api.ContainerStatsRequest(container_id=container)
    answer = node.runtime.ContainerStats(request, timeout=PATIENCE_S)
    return answer.stats.writable_layer  # type: ignore[no-any-return]


def test_a_container_fills_its_layer_and_nothing_else(node: Node, handler: str) -> None:
    pod = node.run_pod("limited", handler=handler)
    one = node.start(node.create(pod, "one", ["sleep", "1000"]))
    two = node.start(node.create(pod, "two", ["sleep", "1000"]))
    script = "dd if=/dev/zero of=/filled bs=65536 count=512"
    code, _, said = node.exec(one, "sh", "-c", script)
    assert code != 0
    assert "quota" in said
    assert node.exec(two, "sh", "-c", "dd if=/dev/zero of=/filled bs=65536 count=16")[0] == 0
    used = until(lambda: _near(layer_of(node, one).used_bytes.value, 8 * MIB), "usage is seen")
    assert used <= 8 * MIB
    node.restart()
    code, _, said = node.exec(one, "sh", "-c", script)
    assert code != 0
    assert "quota" in said


def test_an_annotation_asks_for_less(node: Node, handler: str) -> None:
    pod = node.run_pod("asks", handler=handler, annotations={ANNOTATION: "2Mi"})
    main = node.start(node.create(pod, "main", ["sleep", "1000"]))
    script = "dd if=/dev/zero of=/filled bs=65536 count=48"
    assert node.exec(main, "sh", "-c", script)[0] != 0
    assert node.exec(main, "sh", "-c", "rm /filled; echo x > /small")[0] == 0


@pytest.mark.parametrize("wanted", ["1Gi", "lots"])
def test_an_annotation_that_cannot_be_followed(node: Node, wanted: str) -> None:
    pod = node.run_pod("refused", annotations={ANNOTATION: wanted})
    with pytest.raises(grpc.RpcError) as failure:
        node.create(pod, "main", ["sleep", "1000"])
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert ANNOTATION in failure.value.details()


def test_projects_go_with_their_containers(node: Node) -> None:
    pod = node.run_pod("goes")
    node.start(node.create(pod, "main", ["sleep", "1000"]))
    assert use_of(node.state_root, FIRST_PROJECT).limit_bytes == 8 * MIB
    node.remove_everything()
    assert use_of(node.state_root, FIRST_PROJECT).limit_bytes == 0


def _near(value: int, wanted: int) -> int:
    return value if value > wanted * 0.9 else 0
