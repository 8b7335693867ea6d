"""SIGHUP under pods: handlers come, change and go, the network moves, what is wrong is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.calls import until
from tests.kit.faults import PATIENCE_S
from tests.kit.node import Node

SLEEP = ["sleep", "1000"]
READ = re.compile(r"configuration (read again|refused)")


@pytest.fixture
def usual(node: Node) -> Iterator[str]:
    """The configuration as it was, and is again afterwards."""
    text = node.config.read_text()
    yield text
    node.config.write_text(text)
    if node.process is not None:
        reload(node)


def reload(node: Node) -> dict[str, object]:
    """SIGHUP; what came of it."""
    assert node.process is not None
    before = len(READ.findall(node.log.read_text()))
    node.process.send_signal(signal.SIGHUP)
    until(lambda: len(READ.findall(node.log.read_text())) > before, "it was read")
    answer = node.runtime.Status(api.StatusRequest(verbose=True), timeout=PATIENCE_S)
    return dict(json.loads(answer.info["reload"]))


def with_handler(node: Node, usual: str, name: str, program: Path, *more: str) -> None:
    node.config.write_text("\n".join((usual, f"[runtimes.{name}]", f'path = "{program}"', *more)))


def handlers(node: Node) -> set[str]:
    answer = node.runtime.Status(api.StatusRequest(), timeout=PATIENCE_S)
    return {handler.name for handler in answer.runtime_handlers}


@pytest.mark.cell("UP2")
def test_a_handler_comes_and_goes_under_its_pods(node: Node, usual: str) -> None:
    """No restart, no pod lost: those that have it are run, stopped and removed with it."""
    with pytest.raises(grpc.RpcError, match="not configured"):
        node.run_pod("early", handler="third")
    with_handler(node, usual, "third", node.faults.programs / "runc")
    assert reload(node)["changed"] == ["runtimes.third"]
    assert "third" in handlers(node)
    pod = node.run_pod("pod", handler="third")
    created = node.create(pod, "created", SLEEP)
    running = node.run(pod, "running", SLEEP)
    node.config.write_text(usual)
    assert reload(node)["changed"] == ["runtimes.third"]
    assert "third" not in handlers(node)
    with pytest.raises(grpc.RpcError, match="not configured"):
        node.run_pod("late", handler="third")
    assert node.exec(node.start(created), "echo", "alive")[1] == "alive\n"
    assert node.exec(running, "echo", "alive")[1] == "alive\n"
    node.run(pod, "new", SLEEP)
    node.stop_container(running)
    node.stop_pod(pod)
    node.remove_pod(pod)
    place = node.run_root / "runtime" / "third"
    assert not list(place.iterdir())
    place.rmdir()


@pytest.mark.cell("UP2")
def test_a_handler_gets_another_program_and_its_root_waits(node: Node, usual: str) -> None:
    with_handler(node, usual, "third", node.faults.programs / "crun")
    reload(node)
    pod = node.run_pod("pod", handler="third")
    container = node.run(pod, "main", SLEEP)
    copy = node.faults.programs / "crun-2"
    shutil.copy(node.faults.programs / "crun", copy)
    with_handler(node, usual, "third", copy)
    assert reload(node)["changed"] == ["runtimes.third"]
    assert node.exec(container, "echo", "alive")[1] == "alive\n"
    with_handler(node, usual, "third", copy, f'root = "{node.run_root}/runtime/elsewhere"')
    report = reload(node)
    assert report["outcome"] == "restart needed"
    assert report["needsRestart"] == ["runtimes.third"]
    assert node.exec(container, "echo", "alive")[1] == "alive\n"
    node.remove_pod(pod)
    assert reload(node)["changed"] == ["runtimes.third"], "nobody is there any more"
    node.remove_pod(node.run_pod("elsewhere", handler="third"))
    for name in ("third", "elsewhere"):
        (node.run_root / "runtime" / name).rmdir()


@pytest.mark.cell("UP2")
def test_a_configuration_with_a_mistake_is_refused_whole(node: Node, usual: str) -> None:
    """In its words or in what they mean on this machine: not the smallest part of it is taken."""
    pod = node.run_pod("pod")
    container = node.run(pod, "main", SLEEP)
    before = handlers(node)
    root = node.run_root / "runtime" / "stranger"
    root.mkdir()
    os.chown(root, 1000, 1000)
    louder = usual.replace('log_level = "info"', 'log_level = "debug"')
    program = node.faults.programs / "crun"
    for text in (
        f'{louder}\n[runtimes.stranger]\npath = "{program}"\n',
        f'{louder}\n[runtimes.other]\npath = "relative"\n',
        f"{louder}\n[nonsense]\na = 1\n",
        "[daemon\n",
    ):
        node.config.write_text(text)
        report = reload(node)
        assert report["outcome"] == "refused"
        assert report["problems"]
        assert handlers(node) == before
        assert " debug " not in node.log_tail()
    root.rmdir()
    node.config.write_text(usual)
    assert reload(node)["outcome"] == "ok"
    assert node.exec(container, "echo", "alive")[1] == "alive\n"


@pytest.mark.cell("CN10")
def test_the_directories_of_the_network_move(node: Node, usual: str) -> None:
    """New pods get what is in the new directory, which is followed; old ones go as they came."""
    ports = [api.PortMapping(container_port=80, host_port=18084)]
    old = node.run_pod("old", ports=ports)
    moved = node.work / "other.d"
    moved.mkdir()
    node.config.write_text(usual.replace(str(node.conf_dir), str(moved)))
    assert node.config.read_text() != usual
    assert reload(node)["changed"] == ["cni.conf_dir"]
    until(lambda: not _network(node), "there is no network in the new directory")
    with pytest.raises(grpc.RpcError) as refused:
        node.run_pod("none")
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
    document = json.loads((node.conf_dir / "10-test.conflist").read_text())
    document["name"] = "moved-net"
    (moved / "10.conflist").write_text(json.dumps(document))
    until(lambda: _network(node) == "moved-net", "it is followed")
    new = node.run_pod("new")
    assert any(line.startswith("moved-net/") for line in node.census()["addresses"])
    node.stop_pod(old)
    assert not [rule for rule in node.census()["packet rules"] if "18084" in rule]
    node.remove_pod(new)
    assert not node.census()["addresses"]


def _network(node: Node) -> str:
    answer = node.runtime.Status(api.StatusRequest(verbose=True), timeout=PATIENCE_S)
    return str(json.loads(answer.info["network"]).get("network", ""))
