"""SIGKILL of the daemon at moments spread over every mutating call.

The call is made once undisturbed to learn how long it takes; then again and again, killed a little
later each time. What must hold afterwards does not depend on where that was: nothing listed lies,
the client's unchanged request succeeds, other pods notice nothing, and after stop and remove
everything is as it was.
"""

from __future__ import annotations

import os
import time

import pytest

from tests.kit.node import Node
from tests.kit.operations import OPERATIONS, SPARE_IMAGE, Bystander, finish

#: How many moments there are in each call; a long night may have more of them.
MOMENTS = int(os.environ.get("PODWRIGHT_KILL_MOMENTS", "5"))

_took_s: dict[str, float] = {}


def usual_s(node: Node, name: str) -> float:
    """How long the call takes here."""
    if name not in _took_s:
        operation = OPERATIONS[name]
        scene = operation.prepare(node, "crun")
        began_s = time.monotonic()
        operation.begin(node, scene).result()
        _took_s[name] = time.monotonic() - began_s
        operation.retry(node, scene)
        node.remove_everything()
    return _took_s[name]


@pytest.mark.cell(
    "RP1", "RP3", "CC1-CC3", "SC1", "ST2", "SP1", "RC1-RC4", "RM1-RM3", "RI1-RI3", "EX1", "UR1"
)
@pytest.mark.parametrize("moment", range(MOMENTS))
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_killed_at(node: Node, bystander: Bystander, name: str, moment: int) -> None:
    pause_s = usual_s(node, name) * (moment + 0.5) / MOMENTS
    operation = OPERATIONS[name]
    scene = operation.prepare(node, ["crun", "runc"][moment % 2])
    call = operation.begin(node, scene)
    time.sleep(pause_s)
    node.kill()
    finish(call)
    node.start_daemon()
    node.assert_true()
    bystander.assert_untouched()
    operation.retry(node, scene)
    node.assert_true()
    node.remove_image(SPARE_IMAGE)
