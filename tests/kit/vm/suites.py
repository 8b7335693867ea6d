"""What `hack/vm test` runs inside, and the table of what came of it.

A suite is one run of pytest, or of critest, in a fresh machine. The short ones are for every run of
CI; all of them are for a release.
"""

from __future__ import annotations

import json
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

Driver = Literal["cgroupfs", "systemd"]
#: Where a suite leaves its report inside.
REPORTS: Final = "/var/tmp/vm-reports"


@dataclass(frozen=True, slots=True)
class Suite:
    """One run.

    Attributes:
        name: what it is about, for the table.
        driver: of control groups.
        argv: of pytest, or of critest if `critest` says so.
        limit_s: how long it may take.
    """

    name: str
    driver: Driver
    argv: tuple[str, ...]
    limit_s: float
    critest: bool = False

    @property
    def command(self) -> list[str]:
        """What is run inside."""
        if self.critest:
            return ["hack/critest", "--reports", REPORTS, *self.argv]
        report = f"--junitxml={REPORTS}/junit.xml"
        return [".venv/bin/python", "-m", "pytest", *_PYTEST, report, *self.argv]


_PYTEST: Final = ("-v", "-p", "no:cacheprovider", "--tb=short", "-o", "faulthandler_timeout=1200")

_HOST: Final = (
    *("tests/host/test_host_cgroups.py", "tests/host/test_runtime_cgroups.py"),
    "tests/host/test_stats_cgroups.py",
)
#: Of everything that the short choice leaves out, what concerns groups, modules and namespaces.
_CRITEST: Final = (
    "AppArmor|resources|Resources|OOM|UserNamespaces|NamespaceOption|SeccompProfile|"
    "runtime info|should support|Container.*stats|PodSandbox"
)


def short() -> list[Suite]:
    """What fits into a few minutes, with both drivers and both runtimes."""
    return [
        Suite("control groups", "systemd", (_GROUPS, "-k", _SHORT_GROUPS), 900.0),
        Suite("control groups of the host", "cgroupfs", _HOST, 600.0),
        Suite("AppArmor", "cgroupfs", (_APPARMOR, "-k", _SHORT_APPARMOR), 600.0),
    ]


_GROUPS: Final = "tests/integration/test_groups.py"
_SHORT_GROUPS: Final = "limits_of_a_container or no_parent"
_APPARMOR: Final = "tests/integration/test_apparmor.py"
_SHORT_APPARMOR: Final = (
    "default_holds and unset or refused_by_name and missing or found_and_enforced and localhost"
)


def every() -> list[Suite]:
    """All that concerns what this kernel may lack."""
    drivers: tuple[Driver, ...] = ("cgroupfs", "systemd")
    suites = [Suite("host", "cgroupfs", (*_HOST, "tests/host/test_check.py"), 900.0)]
    folders = {
        "control groups": (_GROUPS,),
        "containers, pods": (
            "tests/integration/test_containers.py",
            "tests/integration/test_pods.py",
        ),
        "usage, events, resize": ("tests/integration/test_observe.py",),
        "restarts": ("tests/integration/test_restart.py",),
    }
    suites += [
        Suite("AppArmor", "cgroupfs", (_APPARMOR,), 3600.0),
        Suite(
            "user namespaces", "cgroupfs", ("tests/integration/test_user_namespaces.py",), 3600.0
        ),
    ]
    suites += [
        Suite(name, driver, paths, 3600.0) for name, paths in folders.items() for driver in drivers
    ]
    return suites + [
        Suite(
            f"critest, {handler}", driver, ("--handler", handler, "--focus", _CRITEST), 7200.0, True
        )
        for handler in ("crun", "runc")
        for driver in drivers
    ]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a suite.

    Attributes:
        kernel: that it ran on.
        failures: names of the tests that failed; also what kept the suite from its end.
        skips: reason -> how many.
    """

    name: str
    kernel: str
    driver: str
    passed: int
    failures: tuple[str, ...]
    skips: Mapping[str, int]
    took_s: float
    date: str


def outcome(suite: Suite, kernel: str, reports: Path, status: int, took_s: float) -> Outcome:
    """Read the report; a suite that left none has failed as a whole."""
    passed, failures, skips = 0, list[str](), dict[str, int]()
    found = sorted(reports.rglob("junit.xml"))
    for case in ET.parse(found[0]).iter("testcase") if found else ():
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failures.append(name)
        elif skipped is not None:
            reason = (skipped.get("message") or "").splitlines() or ["no reason given"]
            skips[reason[0]] = skips.get(reason[0], 0) + 1
        else:
            passed += 1
    if status and not failures:
        failures.append(f"ended with status {status}")
    return Outcome(
        name=suite.name,
        kernel=kernel,
        driver=suite.driver,
        passed=passed,
        failures=tuple(failures),
        skips=skips,
        took_s=round(took_s, 1),
        date=time.strftime("%Y-%m-%d"),
    )


def table(outcomes: Iterable[Outcome]) -> str:
    """The outcomes as Markdown, with what failed below."""
    lines = [
        "| suite | kernel | driver | passed | failed | left out |",
        "|---|---|---|---:|---:|---:|",
    ]
    below = []
    for each in outcomes:
        lines.append(
            f"| {each.name} | {each.kernel} | {each.driver} | {each.passed} "
            f"| {len(each.failures)} | {sum(each.skips.values())} |"
        )
        below += [f"failed: {each.name}, {each.driver}: {name}" for name in each.failures]
        below += [
            f"left out: {each.name}, {each.driver}: {count} x {reason}"
            for reason, count in each.skips.items()
        ]
    return "\n".join([*lines, "", *below])


def keep(outcomes: Iterable[Outcome], path: Path) -> None:
    """Write them as JSON, beside earlier ones of other suites."""
    path.write_text(json.dumps([asdict(each) for each in outcomes], indent=1) + "\n")
