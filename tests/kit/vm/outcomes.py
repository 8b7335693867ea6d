"""What came of the suites: read from their reports, kept in the cache, shown as a table."""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from tests.kit.vm.suites import Suite

#: Exit status of timeout(1) when the time was up, and of pytest and critest when tests failed.
_TIME_WAS_UP: Final = 124
_SOME_FAILED: Final = 1
#: What ginkgo says of a case that was not chosen; one that skips itself says why.
_NOT_CHOSEN: Final = "skipped"
#: In the name of what is a case of ginkgo's; what prepares them all is a "testcase" too.
_CASE: Final = "[It]"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a suite.

    Attributes:
        kernel: that it ran on.
        failures: names of the tests that failed; also what kept the suite from its end.
        skips: reason -> how many.
        tree: the mark of the source that ran, by `disks.tree_mark`.
    """

    name: str
    kernel: str
    driver: str
    passed: int
    failures: tuple[str, ...]
    skips: Mapping[str, int]
    took_s: float
    date: str
    tree: str = field(default="")

    @property
    def key(self) -> tuple[str, str, str]:
        """Of which suite it is; a later outcome takes the place of an earlier one."""
        return self.name, self.kernel, self.driver


def outcome(
    suite: Suite, kernel: str, reports: Path, status: int, took_s: float, tree: str
) -> Outcome:
    """Read the report; a suite that left none, or ran nothing, has failed as a whole."""
    passed, failures, skips = 0, list[str](), dict[str, int]()
    found = sorted(reports.rglob("junit.xml"))
    for case in ET.parse(found[0]).iter("testcase") if found else ():
        if suite.critest and _CASE not in (case.get("name") or ""):
            continue  # a preparation of the whole run; one that fails is in the exit status
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failures.append(name)
        elif skipped is not None:
            reason = [*(skipped.get("message") or "").splitlines(), "no reason given"][0]
            if not (suite.critest and reason == _NOT_CHOSEN):
                skips[reason] = skips.get(reason, 0) + 1
        else:
            passed += 1
    if status == _TIME_WAS_UP:
        failures.append(f"not at its end after {suite.limit_s:.0f} s")
    elif status and not (status == _SOME_FAILED and failures):
        failures.append(f"ended with status {status}")
    if not (passed or failures or skips):
        failures.append("no test was run")
    return _made(suite, kernel, passed, failures, skips, took_s, tree)


def broken(suite: Suite, kernel: str, reason: str, took_s: float, tree: str) -> Outcome:
    """Of a suite whose machine did not live long enough to leave a report."""
    return _made(suite, kernel, 0, [reason], {}, took_s, tree)


def _made(
    suite: Suite,
    kernel: str,
    passed: int,
    failures: list[str],
    skips: dict[str, int],
    took_s: float,
    tree: str,
) -> Outcome:
    return Outcome(
        name=suite.name,
        kernel=kernel,
        driver=suite.driver,
        passed=passed,
        failures=tuple(failures),
        skips=skips,
        took_s=round(took_s, 1),
        date=time.strftime("%Y-%m-%d"),
        tree=tree,
    )


class Kept:
    """The last outcome of every suite, in a file that runs side by side may share."""

    def __init__(self, path: Path) -> None:
        """Keep them in `path`; it need not be there yet."""
        self._path = path

    def all(self) -> list[Outcome]:
        """What is kept, in the order in which the suites first ran."""
        try:
            rows = json.loads(self._path.read_text())
        except FileNotFoundError:
            return []
        return [Outcome(**{**row, "failures": tuple(row["failures"])}) for row in rows]

    def add(self, new: Outcome) -> None:
        """Keep it, in the place of an earlier one of the same suite, kernel and driver."""
        with self._alone():
            by_key = {each.key: each for each in self.all()}
            by_key[new.key] = new
            rows = [asdict(each) for each in by_key.values()]
            fresh = self._path.with_suffix(".new")
            fresh.write_text(json.dumps(rows, indent=1) + "\n")
            fresh.rename(self._path)

    def passed_on(self, suite: Suite, kernel: str, tree: str) -> Outcome | None:
        """The outcome of that suite, if it passed on this very source; None to run it."""
        for each in self.all():
            if each.key == (suite.name, kernel, suite.driver) and each.tree == tree:
                return None if each.failures else each
        return None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def table(outcomes: Iterable[Outcome]) -> str:
    """The outcomes as Markdown, with what failed or was left out below."""
    lines = [
        "| suite | kernel | driver | passed | failed | left out | minutes |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    below = []
    for each in outcomes:
        lines.append(
            f"| {each.name} | {each.kernel} | {each.driver} | {each.passed} "
            f"| {len(each.failures)} | {sum(each.skips.values())} | {each.took_s / 60:.1f} |"
        )
        title = f"{each.name}, {each.driver}, Linux {each.kernel}"
        below += [f"failed: {title}: {name}" for name in each.failures]
        below += [f"left out: {title}: {count} x {why}" for why, count in each.skips.items()]
    return "\n".join([*lines, "", *below])
