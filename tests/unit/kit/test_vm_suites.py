"""What hack/vm runs and what it makes of the reports, without any machine."""

import subprocess

import pytest

from tests.kit.vm import recipe
from tests.kit.vm.disks import tree_mark
from tests.kit.vm.outcomes import Kept, broken, outcome, table
from tests.kit.vm.suites import Suite, every, short

SUITE = Suite("pods", "systemd", ("tests/integration/test_pods.py",), 60.0)
CRITEST = Suite("critest, crun", "systemd", (), 60.0, critest=True)
FAILED = '<testcase classname="tests.a.test_b" name="fails"><failure message="x"/></testcase>'
BROKE = '<testcase classname="tests.a.test_b" name="breaks"><error message="x"/></testcase>'
PASSED = '<testcase classname="tests.a.test_b" name="passes"/>'


def skipped(reason):
    return f'<testcase classname="tests.a.test_b" name="s"><skipped message="{reason}"/></testcase>'


def read(tmp_path, *cases, suite=SUITE, status=0):
    reports = tmp_path / "vm-reports"
    reports.mkdir(exist_ok=True)
    (reports / "junit.xml").write_text(f"<testsuites>{''.join(cases)}</testsuites>")
    return outcome(suite, "6.12", tmp_path, status, 90.0, "mark")


def test_a_report_is_counted_by_what_became_of_each_test(tmp_path):
    seen = read(tmp_path, PASSED, PASSED, FAILED, BROKE, skipped("no disk"), status=1)
    assert seen.passed == 2
    assert seen.failures == ("test_b::fails", "test_b::breaks")
    assert seen.skips == {"no disk": 1}


def test_what_critest_was_not_asked_for_is_not_left_out(tmp_path):
    case = '<testcase classname="c" name="{0}">{1}</testcase>'
    skip = '<skipped message="{0}"/>'
    cases = (
        case.format("[SynchronizedBeforeSuite]", ""),
        case.format("[It] runs", ""),
        case.format("[It] not chosen", skip.format("skipped")),
        case.format("[It] left out", skip.format("skipped - no AppArmor")),
    )
    seen = read(tmp_path, *cases, suite=CRITEST)
    assert (seen.passed, seen.skips) == (1, {"skipped - no AppArmor": 1})
    seen = read(tmp_path, *cases)
    assert (seen.passed, seen.skips) == (2, {"skipped": 1, "skipped - no AppArmor": 1})


@pytest.mark.parametrize(
    ("cases", "status", "words"),
    [
        ((PASSED,), 124, "not at its end after 60 s"),
        ((PASSED,), 1, "ended with status 1"),
        ((PASSED, FAILED), 2, "ended with status 2"),
        ((), 0, "no test was run"),
        ((), 5, "ended with status 5"),
    ],
)
def test_a_suite_that_did_not_come_to_its_end_has_failed(tmp_path, cases, status, words):
    assert words in read(tmp_path, *cases, status=status).failures


def test_a_suite_without_a_report_has_failed(tmp_path):
    seen = outcome(SUITE, "6.12", tmp_path, 0, 1.0, "mark")
    assert seen.failures == ("no test was run",)


def test_outcomes_take_the_place_of_earlier_ones_of_the_same_run(tmp_path):
    kept = Kept(tmp_path / "kept.json")
    assert kept.all() == []
    kept.add(broken(SUITE, "6.12", "the machine has ended", 1.0, "old"))
    kept.add(broken(SUITE, "6.1", "the machine has ended", 1.0, "old"))
    kept.add(better := read(tmp_path, PASSED))
    assert [(each.kernel, each.tree) for each in kept.all()] == [("6.12", "mark"), ("6.1", "old")]
    assert Kept(tmp_path / "kept.json").all()[0] == better


def test_only_what_passed_on_this_very_tree_need_not_run_again(tmp_path):
    kept = Kept(tmp_path / "kept.json")
    kept.add(read(tmp_path, PASSED))
    assert kept.passed_on(SUITE, "6.12", "mark")
    assert not kept.passed_on(SUITE, "6.12", "other")
    assert not kept.passed_on(SUITE, "6.1", "mark")
    assert not kept.passed_on(CRITEST, "6.12", "mark")
    kept.add(read(tmp_path, PASSED, FAILED, status=1))
    assert not kept.passed_on(SUITE, "6.12", "mark")


def test_the_table_names_what_failed_and_why_something_was_left_out(tmp_path):
    text = table([read(tmp_path, PASSED, FAILED, skipped("no disk"), status=1)])
    assert "| pods | 6.12 | systemd | 1 | 1 | 1 | 1.5 |" in text
    assert "failed: pods, systemd, Linux 6.12: test_b::fails" in text
    assert "left out: pods, systemd, Linux 6.12: 1 x no disk" in text


def test_no_two_suites_share_a_place_in_the_table():
    for kernel in recipe.KERNELS:
        titles = [suite.title for suite in every(kernel)]
        assert len(titles) == len(set(titles))


def test_every_file_and_choice_of_the_suites_exists():
    files = {
        word for suite in (*short(), *every("6.12")) for word in suite.argv if word.endswith(".py")
    }
    assert all((recipe.HERE.parents[2] / file).is_file() for file in files), files


def test_the_older_kernel_has_a_choice_of_what_the_newest_has():
    newest, older = every("6.12"), every("6.1")
    assert older
    assert set(older) < set(newest)


def test_prose_does_not_change_the_mark_of_the_tree(tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "README.md").write_text("one")
    (tmp_path / "a.py").write_text("one")
    first = tree_mark(tmp_path)
    (tmp_path / "README.md").write_text("two")
    assert tree_mark(tmp_path) == first
    (tmp_path / "a.py").write_text("two")
    assert tree_mark(tmp_path) != first
