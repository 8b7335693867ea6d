"""Power meters tell what other programs compute: every container has them masked.

GHSA-7ww5-4wqc-m92c; kubelets before 1.33 do not send the path, so we add it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from protos import api_pb2 as api
from tests.kit.node import PATIENCE_S, Node
from tests.kit.rights import run_with

METERS = "/sys/devices/virtual/powercap"
#: As a kubelet of 1.30 sends them.
OLD_LIST = ("/proc/kcore", "/proc/keys", "/sys/firmware", "/sys/devices/virtual/net")


def masked(*paths: str):  # type: ignore[no-untyped-def]
    return lambda context: context.masked_paths.extend(paths)


def spec_of(node: Node, container: str) -> dict[str, dict[str, list[str]]]:
    request = api.ContainerStatusRequest(container_id=container, verbose=True)
    info = node.runtime.ContainerStatus(request, timeout=PATIENCE_S).info
    return json.loads(info["info"])["runtimeSpec"]  # type: ignore[no-any-return]


def test_they_are_masked_whatever_list_the_client_has(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = run_with(node, pod, "main", ["sleep", "1000"], masked(*OLD_LIST))
    assert METERS in spec_of(node, container)["linux"]["maskedPaths"]
    # The same way of masking, seen on a directory of that place that every kernel has.
    assert node.exec(container, "ls", "/sys/devices/virtual/net")[:2] == (0, "")


def test_they_are_masked_once(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = run_with(node, pod, "main", ["sleep", "1000"], masked(METERS, "/proc/keys"))
    assert spec_of(node, container)["linux"]["maskedPaths"] == [METERS, "/proc/keys"]


@pytest.mark.skipif(not Path(METERS).exists(), reason=f"this kernel has no {METERS}")
def test_nothing_of_them_is_seen(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = run_with(node, pod, "main", ["sleep", "1000"], masked("/proc/keys"))
    assert node.exec(container, "ls", METERS)[:2] == (0, "")
