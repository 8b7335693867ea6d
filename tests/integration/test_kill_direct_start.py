"""The daemon dies within a start that runs no program: the record, the byte, and the next record.

Steps of a runtime that is run are in `tests/faults/test_kill_points.py`; here the settings are as
they come.
"""

from __future__ import annotations

import pytest

from protos import api_pb2 as api
from tests.kit.node import Node
from tests.kit.operations import OPERATIONS, Bystander, finish

FAILPOINTS = True
START = OPERATIONS["StartContainer"]


@pytest.mark.parametrize(
    ("what", "nth", "started"),
    [
        pytest.param("kill", 1, False, marks=pytest.mark.cell("SC1"), id="before the intent"),
        pytest.param("kill", 2, True, marks=pytest.mark.cell("SC2"), id="started, no record"),
        pytest.param(
            "kill-after", 2, True, marks=pytest.mark.cell("SC2"), id="recorded, no answer"
        ),
    ],
)
def test_killed_at_a_record_of_a_direct_start(
    node: Node, bystander: Bystander, what: str, nth: int, started: bool
) -> None:
    assert node.failpoints is not None
    scene = START.prepare(node, "crun")
    with node.failpoints.ordered(what, match="^commit state.db updating", nth=nth):
        assert not finish(START.begin(node, scene)), node.failpoints.steps()
        assert not [step for step in node.failpoints.steps() if step.startswith("run ")]
    node.forget_process()
    node.start_daemon()
    node.assert_true()
    bystander.assert_untouched()
    status = node.status(scene.container)
    assert status.state == (api.CONTAINER_RUNNING if started else api.CONTAINER_CREATED)
    assert bool(status.started_at) == started
    START.retry(node, scene)
    node.assert_true()
