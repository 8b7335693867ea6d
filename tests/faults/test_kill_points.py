"""SIGKILL of the daemon at named steps of every mutating call, and at every step there is.

A step is one thing that the daemon does to the machine: a directory, a mount, a program, a
transaction (`tests.kit.failing_daemon`). The cells of the matrix name some of them; the walk takes
them all, one after the other, until the call gets through. With PODWRIGHT_KILL_EVERY=1 it leaves
none out; in a usual run it takes every ninth. What must hold afterwards is the same everywhere, see
`tests/integration/test_kill_moments.py`.
"""

from __future__ import annotations

import os

import pytest

from protos import api_pb2 as api
from tests.kit import judge
from tests.kit.calls import until
from tests.kit.faults import PATIENCE_S
from tests.kit.node import Node
from tests.kit.operations import OPERATIONS, SPARE_IMAGE, Bystander, Scene, finish, survived

FAILPOINTS = True
EVERY = bool(os.environ.get("PODWRIGHT_KILL_EVERY"))
#: How far apart the steps of the walk are.
STRIDE = 1 if EVERY else 9
RUN, CREATE, START = "RunPodSandbox", "CreateContainer", "StartContainer"
STOP, STOP_POD = "StopContainer", "StopPodSandbox"
REMOVE, REMOVE_POD, REMOVE_IMAGE = "RemoveContainer", "RemovePodSandbox", "RemoveImage"

#: Some steps are those of a runtime that is run to start a container.
SETTINGS = {"runtime.direct_start": "false"}

#: (cell, call, order, step, the how-manieth of such)
POINTS = [
    ("RP1", RUN, "kill", "^commit state.db inserting", 1),
    ("RP2", RUN, "kill-after", "^commit state.db inserting", 1),
    ("RP2", RUN, "kill-after", "^commit state.db updating", 1),
    ("RP3", RUN, "kill", "^run crun create", 1),
    ("RP4", RUN, "kill-after", "^unshare", 1),
    ("RP4", RUN, "kill-after", "^mount RUN/namespaces/ID/net", 1),
    ("RP4", RUN, "kill-after", "^mount RUN/namespaces/ID/uts", 1),
    ("RP6", RUN, "kill", "^make WORK/state/cni/results", 2),
    ("RP7", RUN, "kill-after", "^rename WORK/state/cni/results", 2),
    ("RP8", RUN, "kill-after", "^mount RUN/pods/ID/shm", 1),
    ("RP10", RUN, "kill", "^run crun start", 1),
    ("RP11", RUN, "kill-after", "^mount RUN/namespaces/ID/pid", 1),
    ("RP11", RUN, "kill", "^commit state.db updating", 2),
    ("RP12", RUN, "kill-after", "^commit state.db updating", 2),
    ("CC1-CC3", CREATE, "kill-after", "^commit state.db inserting", 1),
    ("CC1-CC3", CREATE, "kill", "^mount RUN/containers/ID/rootfs", 1),
    ("CC1-CC3", CREATE, "kill-after", "^mount RUN/containers/ID/rootfs", 1),
    ("CC4", CREATE, "kill", "^mount RUN/containers/ID/image-volumes", 1),
    ("CC4", CREATE, "kill-after", "^mount RUN/containers/ID/image-volumes", 1),
    ("CC5", CREATE, "kill", "^rename RUN/containers/ID/config.json", 1),
    ("CC5", CREATE, "kill-after", "^rename RUN/containers/ID/config.json", 1),
    ("CC7", CREATE, "kill", "^commit state.db updating", 1),
    ("CC8", CREATE, "kill-after", "^commit state.db updating", 1),
    ("SC1", START, "kill-after", "^commit state.db updating", 1),
    ("SC1", START, "kill", "^run crun start", 1),
    ("SC2", START, "kill", "^commit state.db updating", 2),
    ("ST2", STOP, "kill-after", "^pidfd_send_signal 9", 1),
    ("ST2", STOP, "kill", "^commit state.db updating", 2),
    ("SP1", STOP_POD, "kill", "^commit state.db updating", 3),
    ("SP1", STOP_POD, "kill-after", "^commit state.db updating", 3),
    ("SP3", STOP_POD, "kill", "^umount2 RUN/namespaces/ID/net", 1),
    ("SP3", STOP_POD, "kill-after", "^umount2 RUN/namespaces/ID/net", 1),
    ("RC1-RC4", REMOVE, "kill-after", "^commit state.db updating", 3),
    ("RC1-RC4", REMOVE, "kill-after", "^umount2 RUN/containers/ID/rootfs", 1),
    ("RC1-RC4", REMOVE, "kill", "^rmdir ID", 1),
    ("RC1-RC4", REMOVE, "kill-after", "^run crun delete", 1),
    ("RC1-RC4", REMOVE, "kill", "^commit state.db deleting", 1),
    ("RM1-RM3", REMOVE_POD, "kill-after", "^umount2 RUN/pods/ID/shm", 1),
    ("RM1-RM3", REMOVE_POD, "kill", "^rmdir bundle", 1),
    ("RM1-RM3", REMOVE_POD, "kill", "^commit state.db deleting", 1),
    ("RI1-RI3", REMOVE_IMAGE, "kill-after", "^commit catalog.db Catalog.erase", 1),
    ("RI1-RI3", REMOVE_IMAGE, "kill-after", "^commit catalog.db Ledger.erase", 1),
    ("RI1-RI3", REMOVE_IMAGE, "kill", r"^rmdir [0-9a-f]{1,8}$", 1),
    ("EX1", "ExecSync", "kill-after", "^rename RUN/containers/ID/RANDOM/process.json", 1),
    ("EX1", "ExecSync", "kill-after", "^run crun exec", 1),
    ("UR1", "UpdateContainerResources", "kill", "^commit state.db", 1),
    ("UR1", "UpdateContainerResources", "kill-after", "^commit state.db", 1),
]


def killed(node: Node, name: str, scene: Scene, what: str, match: str, nth: int) -> None:
    """The call, during which the daemon dies at that step."""
    assert node.failpoints is not None
    with node.failpoints.ordered(what, match=match, nth=nth):
        call = OPERATIONS[name].begin(node, scene)
        assert not finish(call), f"no such step: {match}; there were {node.failpoints.steps()}"
    node.forget_process()


@pytest.mark.parametrize(
    ("name", "what", "match", "nth"),
    [
        pytest.param(*point, marks=pytest.mark.cell(cell), id=f"{cell}-{point[1]}-{point[2]}")
        for cell, *point in POINTS
    ],
)
def test_killed_at_a_named_step(
    node: Node, bystander: Bystander, name: str, what: str, match: str, nth: int
) -> None:
    scene = OPERATIONS[name].prepare(node, "crun")
    killed(node, name, scene, what, match, nth)
    node.start_daemon()
    node.assert_true()
    bystander.assert_untouched()
    OPERATIONS[name].retry(node, scene)
    node.assert_true()
    node.remove_image(SPARE_IMAGE)


@pytest.mark.cell("RP12", "CC8")
@pytest.mark.parametrize("name", [RUN, CREATE])
def test_what_was_made_and_not_answered_is_answered_by_the_retry(
    node: Node, bystander: Bystander, name: str
) -> None:
    """The record was written, so the same request gets the object that is there."""
    scene = OPERATIONS[name].prepare(node, "crun")
    nth = 2 if name == RUN else 1
    killed(node, name, scene, "kill-after", "^commit state.db updating", nth)
    node.start_daemon()

    def there() -> list[str]:
        objects = node.pods() if name == RUN else node.containers()
        return [o.id for o in objects if o.id not in (bystander.pod, bystander.container)]

    [made] = there()
    node.ids.add(made)
    OPERATIONS[name].retry(node, scene)
    assert there() == [made]


@pytest.mark.cell("RL1")
@pytest.mark.parametrize("what", ["kill", "kill-after"])
def test_killed_while_a_log_is_reopened(node: Node, what: str) -> None:
    """Every line is in one of the two files, once."""
    assert node.failpoints is not None
    pod = node.run_pod("pod")
    script = "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done"
    container = node.run(pod, "main", ["sh", "-c", script])
    node.wait_log("pod", "main", "line 3\n")
    log = node.logs / "pod" / "main_0.log"
    request = api.ReopenContainerLogRequest(container_id=container)
    log.rename(log.with_name("rotated"))
    with node.failpoints.watched():
        node.runtime.ReopenContainerLog(request, timeout=PATIENCE_S)
    steps = len(node.failpoints.steps())
    assert steps
    for number in range(1, steps + 1):
        log.rename(log.with_name(f"rotated.{number}"))
        with node.failpoints.ordered(what, number=number):
            finish(node.runtime.ReopenContainerLog.future(request, timeout=PATIENCE_S))
        node.restart()  # where it lives on because there was no next step
        node.runtime.ReopenContainerLog(request, timeout=PATIENCE_S)
        until(log.exists, "the log is there again")
    seen = len(log.read_text().splitlines())
    until(lambda: len(log.read_text().splitlines()) > seen + 3, "it goes on")
    node.stop_container(container)
    files = sorted(log.parent.glob("*"), key=lambda path: path.stat().st_mtime_ns)
    lines = [line.split(" ", 3)[3] for path in files for line in path.read_text().splitlines()]
    assert lines == [f"line {number}" for number in range(len(lines))]


@pytest.mark.cell("BOOT1")
def test_killed_at_the_steps_of_its_recovery(node: Node, bystander: Bystander) -> None:
    """Half of everything lies about; the daemon dies again at each step of putting it in order."""
    assert node.failpoints is not None
    pod = node.run_pod("others")
    doomed = node.run(pod, "doomed", ["sleep", "1000"])
    killed(node, REMOVE, Scene("crun", pod, doomed), "kill", "^umount2 RUN/containers", 1)
    node.start_daemon()
    last = 0
    for number in range(1, 200, 1 if EVERY else 4):
        scene = OPERATIONS[RUN].prepare(node, "crun")
        killed(node, RUN, scene, "kill", "^commit state.db updating", 2)
        with node.failpoints.ordered("kill", number=number):
            node.start_daemon(wait=False)
            ended = until(lambda: node.process is not None and _ended_or_answering(node))
        # One of the last steps may have killed it beside its answer.
        if ended == "answers" and survived(node):
            break
        last = number
        node.forget_process()
        node.start_daemon()
        node.assert_true()
        bystander.assert_untouched()
        OPERATIONS[RUN].retry(node, scene)
        node.remove_pod(next(p.id for p in node.pods() if p.metadata.name == "victim"))
    assert last, "it was never killed"
    judge.notes.walks.append(("recovery", "step", last))


def _ended_or_answering(node: Node) -> str:
    assert node.process is not None
    if node.process.poll() is not None:
        return "ended"
    node.connect()
    try:
        node.runtime.Version(api.VersionRequest(), timeout=0.5)
    except Exception:
        return ""
    return "answers"


@pytest.mark.cell("RP1", "CC1-CC3", "SC1", "ST2", "SP1", "RC1-RC4", "RM1-RM3", "RI1-RI3")
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_killed_at_every_step(node: Node, bystander: Bystander, name: str) -> None:
    assert node.failpoints is not None
    operation = OPERATIONS[name]
    killed_at = 0
    for number in range(1, 1000, STRIDE):
        scene = operation.prepare(node, "crun")
        with node.failpoints.ordered("kill", number=number):
            answered = finish(operation.begin(node, scene))
        # It may have died of a step that it took after its answer.
        if answered and survived(node):
            break
        killed_at += 1
        node.forget_process()
        node.start_daemon()
        node.assert_true()
        bystander.assert_untouched()
        operation.retry(node, scene)
        node.remove_image(SPARE_IMAGE)
        node.remove_everything()
        node.assert_clean()
    node.remove_image(SPARE_IMAGE)
    assert killed_at, "it was never killed"
    judge.notes.walks.append((name, "step", killed_at))
