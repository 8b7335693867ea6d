"""SIGKILL of the daemon while it forgets a dead container without the runtime (`runtime.deletion`).

The steps where it runs the runtime for that are in `test_kill_points`.
"""

from __future__ import annotations

import pytest

from tests.faults.test_kill_points import REMOVE, STOP_POD, killed
from tests.kit.node import Node
from tests.kit.operations import OPERATIONS, Bystander

FAILPOINTS = True

#: Whichever of the two files goes first: the program, which is asked then, copes with either left.
STEPS = ("^remove status", "^remove config.json")


@pytest.mark.parametrize("match", STEPS)
@pytest.mark.parametrize("what", ["kill", "kill-after"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(REMOVE, marks=pytest.mark.cell("RC1-RC4")),
        pytest.param(STOP_POD, marks=pytest.mark.cell("SP1")),
    ],
)
def test_killed_while_a_dead_container_is_forgotten(
    node: Node, bystander: Bystander, name: str, what: str, match: str
) -> None:
    scene = OPERATIONS[name].prepare(node, "crun")
    killed(node, name, scene, what, match, 1)
    node.start_daemon()
    node.assert_true()
    bystander.assert_untouched()
    OPERATIONS[name].retry(node, scene)
    node.assert_true()
    node.remove_everything()
    node.assert_clean()
