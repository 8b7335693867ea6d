"""What the sweep decides about each pair of a record and what is seen of it."""

from __future__ import annotations

import pytest

from sandbox.drift import Look, Repair, expected_pins, find
from sandbox.model import (
    Container,
    ContainerConfig,
    NamespaceMode,
    NamespaceOptions,
    PodConfig,
    PodMetadata,
    PodSandbox,
    PodSecurity,
)
from sandbox.states import ContainerState, PodState

ALL_PINS = {"p1": {"net", "uts", "ipc", "pid"}}


def pod(state: PodState, **spaces: NamespaceMode) -> PodSandbox:
    metadata = PodMetadata(name="n", uid="u", namespace="ns")
    security = PodSecurity(namespaces=NamespaceOptions(**spaces))
    config = PodConfig(metadata=metadata, security=security)
    return PodSandbox(id="p1", config=config, state=state, created_at_ns=1)


def container(state: ContainerState) -> Container:
    config = ContainerConfig(name="c")
    return Container(id="c1", pod_id="p1", config=config, state=state, created_at_ns=1)


@pytest.mark.parametrize(
    ("state", "look", "repair"),
    [
        (PodState.READY, Look(living={"p1"}, pins=ALL_PINS), None),
        (PodState.READY, Look(pins=ALL_PINS), Repair.POD_DEAD),
        (PodState.READY, Look(living={"p1"}, pins={"p1": {"net"}}), Repair.PIN_LOST),
        (PodState.READY, Look(busy={"p1"}), None),
        (PodState.NOT_READY, Look(), None),
        (PodState.NOT_READY, Look(traces={"p1"}, pins=ALL_PINS), None),
        (PodState.CREATING, Look(), Repair.POD_UNFINISHED),
        (PodState.CREATING, Look(busy={"p1"}), None),
        (PodState.REMOVING, Look(), Repair.POD_UNFINISHED),
    ],
)
def test_pods(state, look, repair):
    found = find({"p1": pod(state)}, {}, look)
    assert [drift.repair for drift in found] == ([] if repair is None else [repair])


@pytest.mark.parametrize(
    ("state", "look", "repairs"),
    [
        (ContainerState.RUNNING, Look(living={"c1"}), set()),
        (ContainerState.RUNNING, Look(living={"c1"}, holding={"c1"}, traces={"c1"}), set()),
        (ContainerState.RUNNING, Look(), {Repair.CONTAINER_DEAD}),
        (ContainerState.CREATED, Look(), {Repair.CONTAINER_DEAD}),
        (ContainerState.EXITED, Look(traces={"c1"}, leased={"c1"}), set()),
        (ContainerState.EXITED, Look(holding={"c1"}), {Repair.CONTAINER_HOLDS}),
        (ContainerState.EXITED, Look(monitored={"c1"}), {Repair.MONITOR_STAYS}),
        (ContainerState.EXITED, Look(holding={"c1"}, busy={"c1"}), set()),
        (ContainerState.CREATING, Look(), {Repair.CONTAINER_UNFINISHED}),
        (ContainerState.REMOVING, Look(), {Repair.CONTAINER_UNFINISHED}),
        (ContainerState.REMOVING, Look(busy={"c1"}), set()),
    ],
)
def test_containers(state, look, repairs):
    assert {drift.repair for drift in find({}, {"c1": container(state)}, look)} == repairs


@pytest.mark.parametrize(
    ("look", "repair"),
    [
        (Look(traces={"x"}), Repair.TRACE),
        (Look(leased={"x"}), Repair.LEASE),
        (Look(addressed={"x"}), Repair.ADDRESS),
        (Look(cgroups={"x"}), Repair.CGROUP),
    ],
)
def test_what_carries_an_unknown_id(look, repair):
    assert [(drift.repair, drift.id) for drift in find({}, {}, look)] == [(repair, "x")]


def test_pins_are_expected_of_what_the_pod_does_not_share_with_the_node():
    assert expected_pins(pod(PodState.READY)) == {"net", "uts", "ipc", "pid"}
    shared = pod(
        PodState.READY,
        network=NamespaceMode.NODE,
        ipc=NamespaceMode.NODE,
        pid=NamespaceMode.CONTAINER,
    )
    assert expected_pins(shared) == {"pid"}
