"""The conformance runner's own judgement: a kit that cannot say no proves nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kit.critest import Case, Outcome, Skip, read_report, read_skips, summary

TOP = Path(__file__).resolve().parents[3]


def outcome(*cases: Case, stale: tuple[Skip, ...] = (), left: tuple[str, ...] = ()) -> Outcome:
    return Outcome(cases=cases, stale_skips=stale, leftovers=left)


PASSED = Case("a", "passed", "", 0.1)


def test_good_needs_something_that_passed() -> None:
    assert outcome(PASSED).good
    assert not outcome().good
    assert not outcome(Case("a", "skipped", "", 0.0)).good


@pytest.mark.parametrize("state", ["failed", "panicked", "interrupted", "timedout", "aborted"])
def test_every_state_that_is_not_passed_or_skipped_is_a_failure(state: str) -> None:
    assert not outcome(PASSED, Case("b", state, "why", 0.1)).good


def test_a_stale_skip_or_a_leftover_is_a_failure() -> None:
    assert not outcome(PASSED, stale=(Skip("x", "y"),)).good
    assert not outcome(PASSED, left=("mount /run/x",)).good


def test_summary_ends_with_the_numbers_and_names_failures() -> None:
    page = summary(outcome(PASSED, Case("b", "failed", "why\nand how", 0.1)), [])
    assert page.splitlines()[-1] == "1 passed, 1 failed, 0 skipped"
    assert "FAILED  b (0.1 s): why and how" in page


def test_summary_counts_our_reason_before_that_of_critest() -> None:
    skipped = Case("Streaming attach", "skipped", "", 0.0)
    own = Case("userns", "skipped", "no support\nmore", 0.0)
    page = summary(outcome(skipped, own), [Skip("Streaming", "later")])
    assert "skipped   1  later" in page
    assert "skipped   1  critest says: no support" in page


def test_report_keeps_failures_of_the_set_up_and_drops_benchmarks(tmp_path: Path) -> None:
    specs = [
        {"LeafNodeType": "BeforeSuite", "State": "failed", "Failure": {"Message": "no socket"}},
        {"LeafNodeType": "ReportAfterSuite", "State": "passed"},
        {
            "LeafNodeType": "It",
            "ContainerHierarchyTexts": ["[k8s.io] X"],
            "LeafNodeText": "works",
            "State": "passed",
            "RunTime": 1_500_000_000,
        },
        {
            "LeafNodeType": "It",
            "ContainerHierarchyTexts": ["benchmark"],
            "LeafNodeText": "is fast",
            "State": "skipped",
        },
    ]
    report = tmp_path / "report.json"
    report.write_text(json.dumps([{"SpecReports": specs}]))
    assert read_report(report) == (
        Case("BeforeSuite", "failed", "no socket", 0.0),
        Case("[k8s.io] X works", "passed", "", 1.5),
    )


def test_skips_are_those_of_the_runtime_and_of_all(tmp_path: Path) -> None:
    path = tmp_path / "skips"
    path.write_text("# words\n[all]\nA -- because\n\n[podwright]\nB.* -- later\n[other]\nC -- no\n")
    assert read_skips(path, "podwright") == [Skip("A", "because"), Skip("B.*", "later")]


def test_a_skip_without_a_reason_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "skips"
    path.write_text("[all]\nA -- because\nB\n")
    with pytest.raises(ValueError, match="skips:3: no reason given"):
        read_skips(path, "podwright")


def test_the_list_in_the_tree_can_be_read() -> None:
    assert read_skips(TOP / "hack/critest-skips", "podwright")
