"""Runtime handlers that cannot be used harm nobody but the pods that ask for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.calls import until
from tests.kit.node import PATIENCE_S, Node

SETTINGS: Final = {
    # Not there at all, there but no program, there but broken.
    "runtimes.ghost.path": '"/usr/bin/podwright-no-such-runtime"',
    "runtimes.dumb.path": '"/etc/hostname"',
    "runtimes.broken.path": '"/bin/false"',
}
UNUSABLE: Final = ("ghost", "dumb", "broken")


def test_unusable_handlers_are_told_in_status(node: Node) -> None:
    answer = node.runtime.Status(api.StatusRequest(verbose=True), timeout=PATIENCE_S)
    conditions = {each.type: each.status for each in answer.status.conditions}
    assert conditions["RuntimeReady"], "the default handler is there"
    handlers = {each.name: each.features for each in answer.runtime_handlers}
    assert {"", "crun", "runc"} <= handlers.keys()
    told = json.loads(answer.info["runtimes"])
    assert told["crun"].startswith("crun ")
    assert told["runc"].startswith("runc ")
    assert "podwright-no-such-runtime" in told["ghost"]
    assert "/etc/hostname" in told["dumb"]
    assert "/bin/false" in told["broken"]
    for name in UNUSABLE:
        # Nothing is promised of what cannot be used.
        assert not handlers.get(name, api.RuntimeHandlerFeatures()).recursive_read_only_mounts


@pytest.mark.parametrize("name", UNUSABLE)
def test_only_its_own_pods_fail_and_leave_nothing(node: Node, name: str) -> None:
    good = node.run_pod("good")
    container = node.run(good, "main", ["sleep", "1000"])
    with pytest.raises(grpc.RpcError) as failed:
        node.run_pod("bad", handler=name)
    assert failed.value.code() not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.OK)
    # By its path where there is nothing to run, else by the name of its own.
    words = str(failed.value.details())
    assert name in words or json.loads(SETTINGS[f"runtimes.{name}.path"]) in words
    assert [pod.id for pod in node.pods()] == [good]
    assert node.exec(container, "echo", "alive")[1] == "alive\n"
    assert node.run_pod("other", handler="runc")


def test_handler_that_goes_away_and_comes_back(node: Node) -> None:
    program = Path(node.faults.stand_in("crun", ["/usr/bin/crun"]))
    old = node.run_pod("old", handler="crun")
    container = node.run(old, "main", ["sleep", "1000"])
    away = program.with_name("crun.away")
    program.rename(away)
    try:
        with pytest.raises(grpc.RpcError):
            node.run_pod("new", handler="crun")
        # What runs is not touched, and other handlers do not care.
        assert node.status(container).state == api.CONTAINER_RUNNING
        other = node.run_pod("other", handler="runc")
        assert node.pod_status(other).state == api.SANDBOX_READY
    finally:
        away.rename(program)
    assert node.exec(container, "echo", "alive")[1] == "alive\n"
    new = node.run_pod("newer", handler="crun")
    until(lambda: node.pod_status(new).state == api.SANDBOX_READY, "crun is back")
