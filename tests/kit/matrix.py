"""Command line of hack/faults: runs cells of the fault matrix and tells what came of them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table

from tests.kit import cells
from tests.kit.cells import Cell
from tests.kit.judge import INVARIANTS
from tests.kit.peers import Outcome, compare

#: Those whose failure is a reason not to release.
BLOCKERS: Final = ("I1", "I2", "I4", "I7")


class Line(msgspec.Struct, frozen=True):
    """What became of one test; see `tests.kit.cells`."""

    test: str
    cells: list[str]
    outcome: str = ""
    reason: str = ""
    invariant: str = ""
    leaks: dict[str, int] = {}
    took_s: float = 0.0
    recoveries_s: list[float] = []
    walks: list[tuple[str, str, int]] = []


@dataclass(slots=True)
class Score:
    """What became of the cells so far."""

    wanted: Sequence[Cell]
    lines: list[Line] = field(default_factory=list)

    def of(self, cell: Cell) -> list[Line]:
        return [line for line in self.lines if cell.name in line.cells]

    def state(self, cell: Cell) -> str:
        """One of: passed, failed, skipped (no test of it could run), and empty (not run)."""
        outcomes = {line.outcome for line in self.of(cell)}
        for outcome in ("failed", "passed", "skipped"):
            if outcome in outcomes:
                return outcome
        return ""

    def count(self, section: str, state: str) -> int:
        return sum(c.section == section and self.state(c) == state for c in self.wanted)


def held() -> dict[str, list[str]]:
    """Cells and the tests that hold them, as pytest collects them."""
    found: dict[str, list[str]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="podwright-cells-") as work:
        report = Path(work, "report")
        process = _pytest(["--collect-only", f"--cells-report={report}"], Path(work, "log"))
        if process.wait() != 0:
            raise SystemExit(Path(work, "log").read_text()[-4000:])
        for line in _read(report, 0)[0]:
            for name in line.cells:
                found[name].append(line.test)
    return dict(found)


def _pytest(arguments: Sequence[str], log: Path, every: bool = False) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "tests.kit.cells", "-p", "no:cacheprovider"]
    files = [str(path.relative_to(cells.TOP)) for path in cells.files()]
    environment = {
        **os.environ,
        "PODWRIGHT_WHOLE_MATRIX": "1",
        **({"PODWRIGHT_KILL_EVERY": "1"} if every else {}),
    }
    with log.open("wb") as output:
        return subprocess.Popen(
            [*argv, *arguments, *files],
            cwd=cells.TOP,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def _read(report: Path, offset: int) -> tuple[list[Line], int]:
    """Whole lines from `offset` bytes on, and where the next begins."""
    if not report.exists():
        return [], offset
    data = report.read_bytes()[offset:]
    whole = data[: data.rfind(b"\n") + 1]
    return [msgspec.json.decode(line, type=Line) for line in whole.splitlines()], offset + len(
        whole
    )


def run(wanted: Sequence[Cell], reports: Path, *, every: bool) -> tuple[Score, int]:
    """Run the tests of these cells with a live table; the score and pytest's exit status."""
    report, log = reports / "tests.jsonl", reports / "pytest.log"
    names = ",".join(cell.name for cell in wanted)
    # Of its own: what others have left mounted in the usual place is none of this run's business.
    base = f"--basetemp={reports / 'work'}"
    process = _pytest([f"--cells={names}", f"--cells-report={report}", base], log, every=every)
    score, offset = Score(wanted), 0
    try:
        with Live(console=Console(stderr=True), refresh_per_second=2) as live:
            while True:
                ended = process.poll() is not None
                new, offset = _read(report, offset)
                score.lines += new
                live.update(progress(score))
                if ended:
                    return score, process.returncode
                time.sleep(0.5)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def sections(wanted: Iterable[Cell]) -> list[str]:
    """The sections of the cells, in the order of the matrix."""
    return list(dict.fromkeys(cell.section for cell in wanted))


def progress(score: Score) -> Table:
    """One line a section."""
    table = Table(box=None, pad_edge=False)
    for head in ("section", "cells", "passed", "failed", "skipped", "to run", "tests", "last"):
        table.add_column(head, justify="left" if head in ("section", "last") else "right")
    for section in sections(score.wanted):
        mine = [cell for cell in score.wanted if cell.section == section]
        names = {cell.name for cell in mine}
        tests = [line for line in score.lines if names.intersection(line.cells)]
        counts = [score.count(section, state) for state in ("passed", "failed", "skipped", "")]
        last = tests[-1].test.rpartition("::")[2][:60] if tests else ""
        table.add_row(section, str(len(mine)), *map(str, counts), str(len(tests)), last)
    return table


def summary(score: Score) -> Iterator[str]:
    """A page for people."""
    for line in score.lines:
        if line.outcome == "failed":
            broken = line.invariant or "what the cell asks for"
            yield f"FAILED   {' '.join(line.cells)}: {broken}: {line.test}"
        elif line.outcome == "skipped":
            yield f"skipped  {' '.join(line.cells)}: {line.test}: {line.reason}"
    by_number = Counter(line.invariant for line in score.lines if line.invariant)
    leaks: Counter[str] = Counter()
    recoveries = [each for line in score.lines for each in line.recoveries_s]
    walks: Counter[tuple[str, str]] = Counter()
    for line in score.lines:
        leaks.update(line.leaks)
        for call, kind, killed in line.walks:
            walks[call, kind] = max(walks[call, kind], killed)
    states = Counter(score.state(cell) for cell in score.wanted)
    yield "cells: {} wanted, {} passed, {} failed, {} could not run, {} not run".format(
        len(score.wanted), *(states[state] for state in ("passed", "failed", "skipped", ""))
    )
    tests = Counter(line.outcome for line in score.lines)
    yield f"tests: {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped"
    told = ", ".join(f"{n} {INVARIANTS[n]}: {by_number[n]}" for n in INVARIANTS if by_number[n])
    yield f"invariants broken: {told or 'none'}"
    yield f"left behind: {', '.join(f'{k}: {n}' for k, n in sorted(leaks.items())) or 'nothing'}"
    if recoveries:
        middle = sorted(recoveries)[len(recoveries) // 2]
        yield (
            f"restarts: {len(recoveries)}; until every answer was found true:"
            f" worst {max(recoveries):.1f} s, median {middle:.1f} s"
        )
    for (call, kind), killed in sorted(walks.items()):
        yield f"walked: {call}: killed at {killed} of its steps of the kind {kind!r}"


def listing(known: Sequence[Cell], tests: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Every cell and what holds it, and the numbers of each section."""
    numbers: dict[str, Counter[str]] = defaultdict(Counter)
    for cell in known:
        mine = tests.get(cell.name, ())
        what = f"{len(mine)} tests" if mine else ""
        state = "held" if mine else "impossible" if cell.impossible else "open"
        numbers[cell.section][state] += 1
        why = cell.impossible and f"impossible here: {cell.impossible}"
        why = why or (cell.open and f"open: {cell.open}")
        told = "; ".join(filter(None, (what, why)))
        yield f"{cell.section:5} {cell.name:8} {cell.fault}: {told}"
    for section, counts in numbers.items():
        found = (f"{counts[s]} {s}" for s in ("held", "open", "impossible") if counts[s])
        yield f"section {section}: {', '.join(found)}"
    total = sum(numbers.values(), Counter[str]())
    yield f"all: {total['held']} held, {total['open']} open, {total['impossible']} impossible here"


def choose(options: argparse.Namespace) -> list[Cell]:
    """The cells that the options name."""
    known = cells.register()
    names = {name.upper() for name in options.cell}
    if unknown := names - {cell.name for cell in known}:
        raise SystemExit(f"no such cell: {', '.join(sorted(unknown))}")
    if unknown := set(options.section) - {cell.section for cell in known}:
        raise SystemExit(f"no such section: {', '.join(sorted(unknown))}")
    if names or options.section:
        known = [c for c in known if c.name in names or c.section in options.section]
    return [cell for cell in known if cell.quick or not options.quick]


def beside(options: argparse.Namespace) -> int:
    """The cells that need nothing of ours inside the daemon, against ours and another."""
    outcomes: list[Outcome] = []
    for outcome in compare(["podwright", options.peer], options.storage):
        outcomes.append(outcome)
        told = f"broken: {outcome.broken}" if outcome.broken else "held"
        line = f"{outcome.peer:12} {outcome.cell:8} {told} ({outcome.took_s:.1f} s)"
        print(line, file=sys.stderr)
    table = Table(box=None, pad_edge=False)
    for head in ("cell", "fault", "podwright", options.peer):
        table.add_column(head)
    by_cell: dict[str, dict[str, Outcome]] = defaultdict(dict)
    for outcome in outcomes:
        by_cell[outcome.cell][outcome.peer] = outcome
    for name, both in by_cell.items():
        words = (both[peer].broken[:60] or "held" for peer in ("podwright", options.peer))
        table.add_row(name, both["podwright"].what, *words)
    Console(width=180).print(table)
    for peer in ("podwright", options.peer):
        mine = [outcome for outcome in outcomes if outcome.peer == peer]
        print(f"{peer}: {sum(not o.broken for o in mine)} of {len(mine)} cells held")
    document = [dataclasses.asdict(outcome) for outcome in outcomes]
    (options.reports / "peers.json").write_text(json.dumps(document, indent=1) + "\n")
    return 1 if any(o.broken for o in outcomes if o.peer == "podwright") else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="hack/faults")
    parser.add_argument("--section", action="append", default=[])
    parser.add_argument("--cell", action="append", default=[])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--every", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--peer", default="", choices=["", "containerd"])
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--reports", type=Path, required=True)
    options = parser.parse_args()
    wanted = choose(options)
    if options.list:
        print("\n".join(listing(wanted, held())))
        return 0
    options.reports.mkdir(parents=True, exist_ok=True)
    if options.peer:
        return beside(options)
    began = datetime.now(UTC)
    score, status = run(wanted, options.reports, every=options.every)
    lines = list(summary(score))
    print("\n".join(lines))
    document = {
        "began": began.isoformat(timespec="seconds"),
        "took_s": round((datetime.now(UTC) - began).total_seconds(), 1),
        "cells": {cell.name: score.state(cell) or "not run" for cell in wanted},
        "summary": lines,
        "tests": [msgspec.to_builtins(line) for line in score.lines],
    }
    (options.reports / "faults.json").write_text(json.dumps(document, indent=1) + "\n")
    print(f"report: {options.reports}", file=sys.stderr)
    return 0 if status == 0 and score.lines else 1


if __name__ == "__main__":
    sys.exit(main())
