"""The decisions of recovery, pair by pair: what is recorded against what is seen."""

from __future__ import annotations

import pytest

from sandbox.model import Container, ContainerConfig, PodConfig, PodMetadata, PodSandbox, ProcessRef
from sandbox.recovery import Action, Observed, plan
from sandbox.states import ContainerState, PodState

BOOT = "boot-1"
ALIVE = ProcessRef(pid=42, start_ticks=7, boot_id=BOOT)
OTHER_BOOT = ProcessRef(pid=42, start_ticks=7, boot_id="boot-0")


def pod(state: PodState, pause: ProcessRef | None = ALIVE) -> PodSandbox:
    metadata = PodMetadata(name="n", uid="u", namespace="ns")
    return PodSandbox(
        id="p1", config=PodConfig(metadata=metadata), state=state, created_at_ns=1, pause=pause
    )


def container(state: ContainerState, init: ProcessRef | None = ALIVE) -> Container:
    return Container(
        id="c1",
        pod_id="p1",
        config=ContainerConfig(name="c"),
        state=state,
        created_at_ns=1,
        init=init,
    )


def seen(
    living: set[str] = frozenset(), running: set[str] = frozenset(), traces: set[str] = frozenset()
) -> Observed:
    return Observed(boot_id=BOOT, living=living, running=running, traces=traces)


@pytest.mark.parametrize(
    ("state", "pause", "living", "action"),
    [
        (PodState.CREATING, None, set(), Action.UNDO),
        (PodState.CREATING, ALIVE, {"p1"}, Action.UNDO),
        (PodState.REMOVING, ALIVE, {"p1"}, Action.FINISH),
        (PodState.READY, ALIVE, {"p1"}, Action.WATCH),
        (PodState.READY, ALIVE, set(), Action.MARK_STOPPED),
        (PodState.READY, OTHER_BOOT, set(), Action.MARK_STOPPED),
        (PodState.NOT_READY, ALIVE, set(), Action.KEEP),
    ],
)
def test_pods(state, pause, living, action):
    (decision,) = plan([pod(state, pause)], [], seen(living))
    assert decision.action is action


def test_the_reason_tells_a_reboot_from_a_dead_pause():
    (rebooted,) = plan([pod(PodState.READY, OTHER_BOOT)], [], seen())
    (dead,) = plan([pod(PodState.READY, ALIVE)], [], seen())
    assert rebooted.reason == "the node was restarted"
    assert dead.reason == "its pause process is gone"


@pytest.mark.parametrize(
    ("state", "init", "living", "running", "action"),
    [
        (ContainerState.CREATING, None, set(), set(), Action.UNDO),
        (ContainerState.REMOVING, ALIVE, set(), set(), Action.FINISH),
        (ContainerState.EXITED, ALIVE, set(), set(), Action.KEEP),
        (ContainerState.CREATED, ALIVE, {"c1"}, set(), Action.WATCH),
        (ContainerState.CREATED, ALIVE, {"c1"}, {"c1"}, Action.ADOPT_RUNNING),
        (ContainerState.RUNNING, ALIVE, {"c1"}, set(), Action.WATCH),
        (ContainerState.RUNNING, ALIVE, set(), set(), Action.WATCH),
        (ContainerState.RUNNING, OTHER_BOOT, set(), set(), Action.MARK_LOST),
        (ContainerState.CREATED, OTHER_BOOT, set(), set(), Action.MARK_LOST),
        (ContainerState.RUNNING, None, set(), set(), Action.MARK_LOST),
        (ContainerState.UNKNOWN, ALIVE, {"c1"}, set(), Action.WATCH),
    ],
)
def test_containers(state, init, living, running, action):
    (decision,) = plan([], [container(state, init)], seen(living, running))
    assert decision.action is action


def test_a_trace_without_a_record_is_swept_and_one_with_a_record_is_not():
    decisions = plan([pod(PodState.READY)], [], seen({"p1"}, traces={"p1", "ghost"}))
    assert [(d.id, d.action) for d in decisions] == [
        ("p1", Action.WATCH),
        ("ghost", Action.SWEEP),
    ]


def test_every_state_is_decided():
    for pod_state in PodState:
        assert len(plan([pod(pod_state)], [], seen())) == 1
    for container_state in ContainerState:
        assert len(plan([], [container(container_state)], seen())) == 1


def test_a_dead_container_that_the_runtime_still_has_is_cleaned_up():
    dead = container(ContainerState.EXITED)
    observed = Observed(boot_id=BOOT, living=(), running=(), traces=(), held={"c1"})
    (decision,) = plan([], [dead], observed)
    assert decision.action is Action.CLEAN_UP
