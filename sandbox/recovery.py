"""At start: hold what is recorded against what the kernel has, decide, then act.

`plan` is pure: rows and observations in, a list of decisions out; the log, the tests and the
carrying out read the same values. Nothing is assumed about how the last life ended: a planned
restart, SIGKILL in the middle of any step, and a reboot all take this one way, and being killed
during recovery leaves a state that recovery takes again.

| recorded                   | seen                             | decision                      |
|----------------------------|----------------------------------|-------------------------------|
| pod CREATING               | anything                         | undo it: nobody has its id    |
| pod READY                  | pause lives, same boot           | keep, watch                   |
| pod READY                  | else                             | NOTREADY                      |
| pod REMOVING               | anything                         | finish taking it apart        |
| pod whose creation failed  | anything                         | finish undoing it             |
| pod whose stop failed      | anything                         | stop it again                 |
| container CREATING         | anything                         | undo it                       |
| container CREATED          | init lives, runtime says running | RUNNING since the intent      |
| container CREATED, RUNNING | init lives                       | keep, watch                   |
| container CREATED, RUNNING | init gone, same boot             | watch: the exit file tells    |
| container CREATED, RUNNING | other boot                       | EXITED 255                    |
| container EXITED           | a mount or the runtime has it    | clean up what it holds        |
| container REMOVING         | anything                         | finish removing it            |
| container, creation failed | anything                         | finish undoing it             |
| no record                  | directory, pin, cgroup, lease    | sweep it                      |
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbox.states import ContainerState, PodState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from sandbox.model import Container, PodSandbox


class Action(enum.Enum):
    """What recovery does about one object."""

    KEEP = "keep"
    UNDO = "undo"
    FINISH = "finish"
    MARK_STOPPED = "mark stopped"
    WATCH = "watch"
    ADOPT_RUNNING = "adopt as running"
    MARK_LOST = "mark lost"
    CLEAN_UP = "clean up"
    STOP = "stop again"
    SWEEP = "sweep"


@dataclass(frozen=True, slots=True)
class Decision:
    """One object, what to do, and why (for the log)."""

    kind: str
    id: str
    action: Action
    reason: str


@dataclass(frozen=True, slots=True)
class Observed:
    """What the machine says, gathered before anything is decided.

    Attributes:
        boot_id: the kernel's boot id now.
        living: ids of pods and containers whose recorded first process lives.
        running: ids of containers whose runtime says running (asked for CREATED ones only).
        traces: ids that name a directory, pin, exit file or lease of ours.
        held: ids that are mounted or in the books of the OCI runtimes.
    """

    boot_id: str
    living: Collection[str]
    running: Collection[str]
    traces: Collection[str]
    held: Collection[str] = ()


def plan(
    pods: Iterable[PodSandbox], containers: Iterable[Container], seen: Observed
) -> list[Decision]:
    """Decide about every recorded object and every trace without a record."""
    decisions = []
    known = set()
    for container in containers:
        known.add(container.id)
        decisions.append(_decide_container(container, seen))
    for pod in pods:
        known.add(pod.id)
        decisions.append(_decide_pod(pod, seen))
    decisions += [
        Decision("trace", object_id, Action.SWEEP, "no record of it")
        for object_id in sorted(set(seen.traces) - known)
    ]
    return decisions


def _decide_pod(pod: PodSandbox, seen: Observed) -> Decision:
    if pod.state is PodState.CREATING:
        return Decision("pod", pod.id, Action.UNDO, "its creation was interrupted")
    if pod.state is PodState.REMOVING:
        return Decision("pod", pod.id, Action.FINISH, "its removal was interrupted")
    if pod.failed:
        return Decision("pod", pod.id, Action.FINISH, "its creation could not be undone")
    if pod.state is PodState.NOT_READY and pod.trouble:
        return Decision("pod", pod.id, Action.STOP, "its stop was not finished")
    if pod.state is PodState.READY and pod.id not in seen.living:
        same_boot = pod.pause is not None and pod.pause.boot_id == seen.boot_id
        reason = "its pause process is gone" if same_boot else "the node was restarted"
        return Decision("pod", pod.id, Action.MARK_STOPPED, reason)
    if pod.state is PodState.READY:
        return Decision("pod", pod.id, Action.WATCH, "its pause process lives")
    return Decision("pod", pod.id, Action.KEEP, "stopped")


def _decide_container(container: Container, seen: Observed) -> Decision:
    state = container.state
    if state is ContainerState.CREATING:
        return Decision("container", container.id, Action.UNDO, "its creation was interrupted")
    if state is ContainerState.REMOVING:
        return Decision("container", container.id, Action.FINISH, "its removal was interrupted")
    if container.failed:
        reason = "its creation could not be undone"
        return Decision("container", container.id, Action.FINISH, reason)
    if state is ContainerState.EXITED and container.id in seen.held:
        return Decision("container", container.id, Action.CLEAN_UP, "its cleaning was interrupted")
    if state is ContainerState.EXITED:
        return Decision("container", container.id, Action.KEEP, "exited")
    if container.init is None or container.init.boot_id != seen.boot_id:
        return Decision("container", container.id, Action.MARK_LOST, "the node was restarted")
    if state is ContainerState.CREATED and container.id in seen.running:
        return Decision(
            "container", container.id, Action.ADOPT_RUNNING, "the runtime had started it"
        )
    reason = "its process lives" if container.id in seen.living else "it ended meanwhile"
    return Decision("container", container.id, Action.WATCH, reason)
