"""The register of the fault matrix's cells, and the pytest plugin that reports of them.

`tests/faults/cells.json` has one entry a cell; which tests hold it is said by the tests alone:

    @pytest.mark.cell("HD1", "LG4")

With `-p tests.kit.cells --cells=HD1,LG4 --cells-report=FILE` only those tests run, and what came of
each goes into FILE, one line of JSON a test, as soon as it has ended.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.kit import judge
from tests.kit.judge import InvariantBroken

TOP: Final = Path(__file__).parents[2]
REGISTER: Final = TOP / "tests/faults/cells.json"


@dataclass(frozen=True, slots=True)
class Cell:
    """An entry of the register.

    Attributes:
        name: as in the matrix, such as "RP4".
        section: of the matrix, such as "3.2".
        fault: what is done, in a few words.
        open: what is still missing where no test holds it.
        impossible: why one machine cannot do it.
        quick: whether it belongs to the short choice.
    """

    name: str
    section: str
    fault: str
    open: str = ""
    impossible: str = ""
    quick: bool = False


def register() -> list[Cell]:
    """All cells, in the order of the matrix."""
    return [_cell(entry) for entry in json.loads(REGISTER.read_text())]


def _cell(entry: Mapping[str, object]) -> Cell:
    return Cell(
        name=str(entry["cell"]),
        section=str(entry["section"]),
        fault=str(entry["fault"]),
        open=str(entry.get("open", "")),
        impossible=str(entry.get("impossible", "")),
        quick=bool(entry.get("quick", False)),
    )


def files() -> list[Path]:
    """Files of tests that hold cells."""
    found = (TOP / "tests").glob("**/test_*.py")
    return sorted(path for path in found if "mark.cell(" in path.read_text())


def cells_of(item: pytest.Item) -> list[str]:
    """The cells that a test holds."""
    return [str(name) for mark in item.iter_markers("cell") for name in mark.args]


# The plugin.


def pytest_addoption(parser: pytest.Parser) -> None:
    """See pytest."""
    group = parser.getgroup("cells of the fault matrix")
    group.addoption("--cells", default="", help="names with commas; empty: all")
    group.addoption("--cells-report", default="", help="a file to append one line a test to")


def pytest_configure(config: pytest.Config) -> None:
    """See pytest."""
    wanted = set(filter(None, str(config.getoption("--cells")).split(",")))
    config.pluginmanager.register(_Reporter(wanted, str(config.getoption("--cells-report"))))


class _Reporter:
    def __init__(self, wanted: set[str], report: str) -> None:
        self._wanted = wanted
        self._report = Path(report) if report else None
        self._failure: BaseException | None = None
        self._outcome = ""
        self._reason = ""
        self._took_s = 0.0

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leave out what holds none of the wanted cells."""
        kept = [item for item in items if self._is_wanted(cells_of(item))]
        left_out = [item for item in items if not self._is_wanted(cells_of(item))]
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept
        if config.option.collectonly:
            for item in items:
                self._tell({"test": item.nodeid, "cells": cells_of(item)})

    def _is_wanted(self, names: Iterable[str]) -> bool:
        names = set(names)
        return bool(names & self._wanted) if self._wanted else bool(names)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Put together what the three phases of a test have shown."""
        report = yield
        if report.when == "setup":
            self._failure, self._outcome, self._reason, self._took_s = None, "passed", "", 0.0
        self._took_s += report.duration
        if report.skipped:
            self._outcome, self._reason = "skipped", _skip_reason(report)
        elif report.failed and self._outcome != "failed":
            self._outcome, self._reason = "failed", report.longreprtext[-2000:]
            self._failure = call.excinfo.value if call.excinfo else None
        if report.when == "teardown":
            self._finish(item)
        return report

    def _finish(self, item: pytest.Item) -> None:
        notes = judge.collected()
        broken = self._failure if isinstance(self._failure, InvariantBroken) else None
        self._tell(
            {
                "test": item.nodeid,
                "cells": cells_of(item),
                "outcome": self._outcome,
                "reason": self._reason,
                "invariant": broken.invariant if broken else "",
                "leaks": broken.leaks if broken else {},
                "took_s": round(self._took_s, 3),
                "recoveries_s": [round(each, 3) for each in notes.recoveries_s],
                "walks": notes.walks,
            }
        )

    def _tell(self, line: Mapping[str, object]) -> None:
        if self._report is not None:
            with self._report.open("a") as report:
                report.write(json.dumps(line) + "\n")


def _skip_reason(report: pytest.TestReport) -> str:
    where = report.longrepr
    return str(where[2]) if isinstance(where, tuple) else str(where)
