"""Runs critest against a daemon of its own and tells what came of it.

Used by hack/critest and by tests/conformance. The images come from the kit's registry, so nothing
goes out to a network.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.kit.images import make_sets
from tests.kit.registry import running_registry
from tests.kit.runtimes import Runtime, running

#: Without these, critest streams over SPDY.
WEBSOCKET = ("-websocket-exec", "-websocket-attach", "-websocket-portforward")


@dataclass(frozen=True, slots=True)
class Skip:
    """A line of the skip list."""

    pattern: str
    reason: str


@dataclass(frozen=True, slots=True)
class Case:
    """What became of one case. `state` is ginkgo's word: passed, failed, skipped, panicked, …"""

    name: str
    state: str
    message: str
    took_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything a run found."""

    cases: tuple[Case, ...]
    stale_skips: tuple[Skip, ...]
    leftovers: tuple[str, ...]

    @property
    def failed(self) -> list[Case]:
        """Every case that ran and did not pass, however ginkgo calls it."""
        return [case for case in self.cases if case.state not in ("passed", "skipped", "pending")]

    @property
    def passed(self) -> list[Case]:
        return [case for case in self.cases if case.state == "passed"]

    @property
    def skipped(self) -> list[Case]:
        return [case for case in self.cases if case.state in ("skipped", "pending")]

    @property
    def good(self) -> bool:
        """Something ran, nothing failed, nothing was left behind, the skip list is honest."""
        return bool(self.passed) and not (self.failed or self.stale_skips or self.leftovers)


def read_skips(path: Path, runtime: str) -> list[Skip]:
    """The skips that hold for `runtime`. Raises ValueError naming a line without a reason."""
    section = "all"
    skips: list[Skip] = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if text.startswith("["):
            section = text.strip("[]")
            continue
        pattern, separator, reason = text.partition(" -- ")
        if not separator or not reason.strip():
            raise ValueError(f"{path.name}:{number}: no reason given")
        if section in ("all", runtime):
            skips.append(Skip(pattern=pattern.strip(), reason=reason.strip()))
    return skips


def run_critest(
    program: Path,
    runtime: Runtime,
    skips: list[Skip],
    reports: Path,
    *,
    handler: str = "",
    focus: str = "",
    websocket: bool = False,
) -> tuple[Case, ...]:
    """Run all cases that `focus` matches and `skips` does not; ginkgo's own report is passed on."""
    report = reports / "critest.json"
    argv = [
        str(program),
        *("-config", "/nonexistent/crictl.yaml"),
        *("-runtime-endpoint", runtime.endpoint, "-image-endpoint", runtime.endpoint),
        *("-runtime-handler", handler),
        "-ginkgo.no-color",
        *("-ginkgo.json-report", str(report)),
        *("-ginkgo.junit-report", str(reports / "junit.xml")),
        *(f"-ginkgo.skip={skip.pattern}" for skip in skips),
        *([f"-ginkgo.focus={focus}"] if focus else []),
        *(WEBSOCKET if websocket else ()),
    ]
    # The client library inside critest repeats every expected error on stderr: into a file with it.
    with (reports / "critest.err").open("wb") as noise:
        subprocess.run(argv, check=False, stdout=sys.stderr, stderr=noise)
    return read_report(report)


def read_report(report: Path) -> tuple[Case, ...]:
    """The cases in ginkgo's JSON report, and failures of suite set-up as cases of their own."""
    cases: list[Case] = []
    for suite in json.loads(report.read_text()):
        for spec in suite["SpecReports"] or []:
            texts = [*(spec.get("ContainerHierarchyTexts") or []), spec.get("LeafNodeText", "")]
            name = " ".join(texts).strip()
            is_case = spec["LeafNodeType"] == "It"
            if not is_case and spec["State"] == "passed":
                continue
            message = (spec.get("Failure") or {}).get("Message", "")
            took_s = spec.get("RunTime", 0) / 1e9
            state = spec["State"]
            cases.append(Case(name or spec["LeafNodeType"], state, message, took_s))
    return tuple(case for case in cases if "benchmark" not in case.name)


def conformance(
    runtime_name: str,
    *,
    critest: Path,
    storage: Path,
    skips_file: Path,
    reports: Path,
    handler: str = "",
    focus: str = "",
    extra_skips: tuple[str, ...] = (),
    websocket: bool = False,
) -> Outcome:
    """Start registry and daemon, run critest, remove everything again."""
    skips = read_skips(skips_file, runtime_name)
    extra = [Skip(pattern=pattern, reason="--skip") for pattern in extra_skips]
    registry = make_sets(storage, ["critest"])
    reports.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="podwright-critest-") as work,
        running_registry(registry, Path(work)) as port,
    ):
        with running(runtime_name, port) as runtime:
            try:
                cases = run_critest(
                    critest,
                    runtime,
                    [*skips, *extra],
                    reports,
                    handler=handler,
                    focus=focus,
                    websocket=websocket,
                )
            finally:
                shutil.copy(runtime.log, reports / runtime.log.name)
        leftovers = tuple(runtime.leftovers)
    names = [case.name for case in cases]
    stale = tuple(s for s in skips if not any(re.search(s.pattern, name) for name in names))
    return Outcome(cases=cases, stale_skips=stale, leftovers=leftovers)


def summary(outcome: Outcome, skips: list[Skip]) -> str:
    """A page for people: what was left out and why, then what failed, then the numbers."""
    lines: list[str] = []
    reasons: Counter[str] = Counter()
    for case in outcome.skipped:
        ours = next((s.reason for s in skips if re.search(s.pattern, case.name)), "")
        theirs = f"critest says: {case.message.splitlines()[0]}" if case.message else ""
        reasons[ours or theirs or "not in focus, or --skip"] += 1
    lines += [f"skipped {count:3}  {reason}" for reason, count in sorted(reasons.items())]
    for case in outcome.failed:
        head = " ".join(case.message.split())[:300]
        lines.append(f"FAILED  {case.name} ({case.took_s:.1f} s): {head}")
    lines += [f"STALE   no case matches: {skip.pattern}" for skip in outcome.stale_skips]
    lines += [f"LEFT    {leftover}" for leftover in outcome.leftovers]
    counts = (len(outcome.passed), len(outcome.failed), len(outcome.skipped))
    lines.append("{} passed, {} failed, {} skipped".format(*counts))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="hack/critest")
    parser.add_argument("--critest", type=Path, required=True)
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--skips", type=Path, required=True)
    parser.add_argument("--against", default="podwright", choices=["podwright", "containerd"])
    parser.add_argument("--handler", default="")
    parser.add_argument("--focus", default="")
    parser.add_argument("--skip", action="append", default=[])
    parser.add_argument("--websocket", action="store_true")
    parser.add_argument("--reports", type=Path, required=True)
    options = parser.parse_args()
    outcome = conformance(
        options.against,
        critest=options.critest,
        storage=options.storage,
        skips_file=options.skips,
        reports=options.reports,
        handler=options.handler,
        focus=options.focus,
        extra_skips=tuple(options.skip),
        websocket=options.websocket,
    )
    print(summary(outcome, read_skips(options.skips, options.against)))
    print(f"reports and log of the daemon: {options.reports}", file=sys.stderr)
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
