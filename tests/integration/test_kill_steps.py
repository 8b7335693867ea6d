"""SIGKILL of the daemon while a program that it has called is at work.

Each step of a call that is some program's work is stopped before or after that work, and there the
daemon is killed. The program then either still hangs when the daemon comes back, or has finished
behind its back. What must hold afterwards is the same everywhere, see `test_kill_moments`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet

from tests.kit import census
from tests.kit.calls import until
from tests.kit.faults import Order
from tests.kit.node import Node
from tests.kit.operations import OPERATIONS, Bystander, finish

#: A program that is not called cannot be stopped at its work.
SETTINGS = {"runtime.direct_start": "false"}
#: (call, program, what it is asked for); RUNTIME stands for crun and runc.
RUNTIME = "RUNTIME"
STEPS = [
    ("RunPodSandbox", "bridge", "ADD"),
    ("RunPodSandbox", "host-local", "ADD"),
    ("RunPodSandbox", "portmap", "ADD"),
    ("RunPodSandbox", RUNTIME, "create"),
    ("RunPodSandbox", RUNTIME, "start"),
    ("StopPodSandbox", "portmap", "DEL"),
    ("StopPodSandbox", "bridge", "DEL"),
    ("StopPodSandbox", "host-local", "DEL"),
    ("StopPodSandbox", RUNTIME, "delete"),
    ("RemovePodSandbox", "bridge", "DEL"),
    ("RemovePodSandbox", RUNTIME, "delete"),
    ("CreateContainer", "conmon", "run"),
    ("CreateContainer", RUNTIME, "create"),
    ("StartContainer", RUNTIME, "start"),
    ("StopContainer", RUNTIME, "delete"),
    ("RemoveContainer", RUNTIME, "delete"),
    ("ExecSync", RUNTIME, "exec"),
    ("UpdateContainerResources", RUNTIME, "update"),
]

#: Cells of the fault matrix by (call, program); the rest are no cells of their own.
CELLS = {
    ("RunPodSandbox", "bridge"): ["RP5", "RP6"],
    ("RunPodSandbox", "host-local"): ["RP5"],
    ("RunPodSandbox", "portmap"): ["RP5", "RP6"],
    ("RunPodSandbox", RUNTIME): ["RP9", "RP10", "RP11"],
    ("StopPodSandbox", "portmap"): ["SP2"],
    ("StopPodSandbox", "bridge"): ["SP2"],
    ("StopPodSandbox", "host-local"): ["SP2"],
    ("StopPodSandbox", RUNTIME): ["SP3"],
    ("RemovePodSandbox", "bridge"): ["RM1-RM3"],
    ("RemovePodSandbox", RUNTIME): ["RM1-RM3"],
    ("CreateContainer", "conmon"): ["CC6"],
    ("CreateContainer", RUNTIME): ["CC6", "CC7"],
    ("StartContainer", RUNTIME): ["SC1", "SC2"],
    ("StopContainer", RUNTIME): ["ST2"],
    ("RemoveContainer", RUNTIME): ["RC1-RC4"],
    ("ExecSync", RUNTIME): ["EX1"],
    ("UpdateContainerResources", RUNTIME): ["UR1"],
}

#: Calls that make something: what they have started must not go on after a restart.
MAKES = {"RunPodSandbox", "CreateContainer", "ExecSync"}


def cases() -> Iterator[ParameterSet]:
    """(call, program, verb, handler, order, afterwards), with its cells."""
    for call, program, verb in STEPS:
        mark = pytest.mark.cell(*CELLS[call, program])
        for case in _cases_of(call, program, verb):
            yield pytest.param(*case, marks=mark)


def _cases_of(
    call: str, program: str, verb: str
) -> Iterator[tuple[str, str, str, str, Order, str]]:
    makes = call in MAKES
    for handler in ("crun", "runc") if program == RUNTIME else ("crun",):
        named = handler if program == RUNTIME else program
        yield call, named, verb, handler, "hold-before", "finishes"
        if handler == "crun":
            yield call, named, verb, handler, "hold-after", "hangs"
            if makes:
                yield call, named, verb, handler, "hold-before", "hangs"


@pytest.mark.parametrize(
    ("name", "program", "verb", "handler", "order", "afterwards"), list(cases())
)
def test_killed_in(
    node: Node,
    bystander: Bystander,
    name: str,
    program: str,
    verb: str,
    handler: str,
    order: Order,
    afterwards: str,
) -> None:
    operation = OPERATIONS[name]
    scene = operation.prepare(node, handler)
    node.faults.order(program, verb, order)
    call = operation.begin(node, scene)
    node.faults.wait_reached(program, verb)
    node.kill()
    finish(call)
    if afterwards == "finishes":
        assert node.faults.release(program, verb)
        until(lambda: not _at_work(node), "the program has finished")
    node.start_daemon()
    node.assert_true()
    bystander.assert_untouched()
    if name in MAKES:
        assert not node.faults.release(program, verb), "it is left running"
    operation.retry(node, scene)
    node.assert_true()


@pytest.mark.cell("SC2", "UR1")
@pytest.mark.parametrize(
    ("name", "verb"), [("StartContainer", "start"), ("UpdateContainerResources", "update")]
)
def test_program_that_finishes_after_the_restart(
    node: Node, bystander: Bystander, handler: str, name: str, verb: str
) -> None:
    """What it does late must not make an answer untrue that was given before."""
    operation = OPERATIONS[name]
    scene = operation.prepare(node, handler)
    node.faults.order(handler, verb, "hold-before")
    call = operation.begin(node, scene)
    node.faults.wait_reached(handler, verb)
    node.kill()
    finish(call)
    node.start_daemon()
    told = node.status(scene.container)
    node.faults.release(handler, verb)
    until(lambda: not _at_work(node), "the program has finished")
    node.assert_true()
    assert node.status(scene.container) == told
    operation.retry(node, scene)


def _at_work(node: Node) -> list[str]:
    """Programs of this node that are neither monitors nor in control groups of pods.

    A stand-in is at work before it becomes the real program, and that is until it ends.
    """
    found = census.processes_of(node.places, node.process.pid if node.process else None)
    return [
        text
        for pid, text in found.items()
        if "conmon" not in text and f"{node.places.cgroup_parent}/" not in _groups(pid)
    ]


def _groups(pid: int) -> str:
    """Its control groups; of one that has just ended, none."""
    try:
        return Path(f"/proc/{pid}/cgroup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
