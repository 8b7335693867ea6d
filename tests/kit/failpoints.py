"""Orders to a daemon that runs with `tests.kit.failing_daemon`: die, fail or dawdle at a step.

    points = node.failpoints                    # of Node.running(..., failpoints=True)
    with points.ordered("kill", match=r"^commit state.db", nth=2):
        ...RunPodSandbox...                     # the daemon dies before its second commit
    points.steps()                              # what it did until then

| order        | what happens at the step                                         |
|--------------|------------------------------------------------------------------|
| kill         | SIGKILL before it                                                |
| kill-after   | SIGKILL after it, or before the next step where that is unknown  |
| fail:ERRNO   | it is not taken and fails with that error                        |
| delay:N      | it waits so many seconds first                                   |
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path


class FailPoints:
    """The orders for one node's daemon."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory

    @contextlib.contextmanager
    def ordered(
        self, what: str, *, match: str = "", nth: int = 1, times: int = 1, number: int = 0
    ) -> Iterator[None]:
        """Within it, `what` happens at a step.

        Args:
            what: see the module text.
            match: a regular expression for the step's line.
            nth: the how-manieth of the steps that match.
            times: how many from that one on.
            number: instead of those, the how-manieth of all steps.
        """
        order = {"do": what, "match": match, "from": nth, "times": times}
        with self.watched({"do": what, "number": number} if number else order):
            yield

    @contextlib.contextmanager
    def watched(self, order: dict[str, object] | None = None) -> Iterator[None]:
        """Within it, steps are written down; without an order nothing happens at them."""
        (self.directory / "trace").unlink(missing_ok=True)
        new = self.directory / "order.new"
        new.write_text(json.dumps(order or {}))
        new.rename(self.directory / "order")
        try:
            yield
        finally:
            (self.directory / "order").unlink()

    def steps(self) -> list[str]:
        """What was written down since the last order was given."""
        trace = self.directory / "trace"
        return trace.read_text().splitlines() if trace.exists() else []
