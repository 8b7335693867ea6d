import re
from importlib.metadata import requires

import pytest

from cri.check.finding import Level
from cri.check.holes import HOLES, findings, holes_of, libraries

ESCAPE = "CVE-2025-31133"
LEAK = "CVE-2024-21626"


def names(component, release, package=""):
    return {name for hole in holes_of(component, release, package) for name in hole.advisories}


@pytest.mark.parametrize(
    ("release", "has"),
    [
        ("1.1.15", True),
        ("1.2.7", True),
        ("1.2.8", False),
        ("1.2.9", False),
        ("1.3.2", True),
        ("1.3.3", False),
        ("1.4.0-rc.2", True),
        ("1.4.0-rc.3", False),
        ("1.5.0", False),
        ("2.0.0", False),
    ],
)
def test_each_line_of_releases_was_mended_by_itself(release, has):
    assert (ESCAPE in names("runc", release)) == has


def test_a_package_may_have_what_its_release_has_not():
    assert LEAK in names("runc", "1.1.5")
    assert LEAK in names("runc", "1.1.5", "1.1.5+ds1-1")
    assert LEAK not in names("runc", "1.1.5", "1.1.5+ds1-1+deb12u1")
    assert LEAK not in names("runc", "1.1.5", "1.1.5+ds1-1+deb12u2")
    assert ESCAPE in names("runc", "1.1.5", "1.1.5+ds1-1+deb12u1")


def test_a_hole_that_came_with_a_release_is_not_in_older_ones():
    assert "CVE-2025-67499" not in names("cni-plugins", "1.1.1")
    assert "CVE-2025-67499" in names("cni-plugins", "1.8.0")
    assert "CVE-2025-67499" not in names("cni-plugins", "1.9.0")


def test_an_unknown_version_is_not_judged():
    assert holes_of("runc", "") == []
    assert holes_of("somebody else's", "0.1") == []


def test_a_serious_hole_for_every_pod_is_an_error_one_for_few_a_warning():
    def levels(**kind):
        return {f.level for f in findings("runc", "1.2.0", **kind) if ESCAPE in f.detail}

    assert levels() == {Level.ERROR}
    assert levels(reached_by_all=False) == {Level.WARNING}
    assert {f.level for f in findings("crun", "1.27")} == {Level.WARNING}


def test_what_the_operator_accepts_is_told_but_not_held_against_the_node():
    hole = next(hole for hole in HOLES if ESCAPE in hole.advisories)
    said = findings("runc", "1.3.2", accepted=hole.advisories)
    assert [f.level for f in said if ESCAPE in f.detail] == [Level.OK]
    partly = findings("runc", "1.3.2", accepted=[ESCAPE])
    assert [f.level for f in partly if ESCAPE in f.detail] == [Level.ERROR]


def test_the_remedy_names_releases_as_their_makers_do():
    said = next(f for f in findings("runc", "1.2.0") if ESCAPE in f.detail)
    assert "1.2.8 or 1.3.3 or 1.4.0-rc.3" in said.remedy
    assert said.detail.startswith("1.2.0 has CVE-2025-31133")


def test_what_is_installed_here_has_no_known_hole():
    assert {f.level for f in libraries()} == {Level.OK}


def test_the_table_is_well_formed():
    programs = {"runc", "crun", "cni-plugins", "linux"}
    ours = {re.split(r"[><=]", need)[0].lower() for need in requires("podwright")}
    for hole in HOLES:
        assert hole.component in programs | ours, hole
        assert all(re.fullmatch(r"CVE-\d{4}-\d{4,}", name) for name in hole.advisories)
        assert hole.mended
        assert hole.words
        assert not hole.words.endswith(".")
