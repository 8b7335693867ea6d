"""The measurements that make and break pods by hand: they run, and nothing of theirs stays."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sandbox.host.mountinfo import list_mounts
from tests.kit.floor import BRIDGE, floor_under
from tests.kit.grow import CLIENTS, PROBES, Filling
from tests.kit.measure import STEPS, Target
from tests.kit.node import Node


def left_behind() -> list[str]:
    """Mounts, files, groups and links of a floor."""
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    groups = [m.target for m in list_mounts() if m.type.startswith("cgroup")]
    return [
        *(str(m.target) for m in list_mounts() if "podwright-floor" in str(m.target)),
        *(str(path) for path in Path("/var/tmp").glob("podwright-floor-*")),
        *(str(path) for group in groups for path in group.glob("podwright-floor-*")),
        *([BRIDGE] if BRIDGE in links else []),
    ]


@pytest.fixture
def target(node: Node) -> Target:
    # Its image is where the measurements expect it.
    return Target(name="podwright", socket=node.socket)


def test_a_floor_has_every_step_and_leaves_nothing(target: Target) -> None:
    noted = Target(name="floor", socket=Path("/none"))
    with floor_under(target, noted) as floor:
        floor.life("one")
    assert all(len(noted.samples[step]) == 1 for step in (*STEPS, "pod to running"))
    assert all(noted.samples[step][0] > 0 for step in STEPS)
    assert left_behind() == []


def test_a_floor_that_fails_in_the_middle_leaves_nothing(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr("tests.kit.floor._wait", fail)
    noted = Target(name="floor", socket=Path("/none"))
    with pytest.raises(InterruptedError), floor_under(target, noted):
        pass
    assert left_behind() == []


def test_a_node_is_filled_and_emptied_again(target: Target, node: Node) -> None:
    growth = Filling(target, lambda _: None).run([2, CLIENTS + 1], hold_s=1.5, last_hold_s=1.5)
    assert [stage.pods for stage in growth.stages] == [2, CLIENTS + 1]
    for stage in growth.stages:
        assert not stage.filling.failed
        assert not stage.holding.failed
        assert not stage.probing.failed
        assert len(stage.probing.took_ms["pod to running"]) == PROBES
        assert stage.holding.took_ms["ListPodSandbox"]
        assert stage.processes["conmon"] == stage.pods
        assert stage.pss_mib["daemon"] > 0
        assert stage.floor.took_ms["pod to running"]
    assert not growth.emptying.failed
    # Asked by a process of its own, which may be late: in some stage it has been heard.
    assert any(
        "Version" in samples.took_ms
        for stage in growth.stages
        for samples in (stage.filling, stage.holding)
    )
    assert not node.pods()
