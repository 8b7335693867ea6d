import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cri.check.versions import is_before, release_of, series, upstream_of

ORDERED = [
    "1.0.0~rc93+ds1-5+deb11u3",
    "1.0.0~rc95",
    "1.0.0",
    "1.1.5",
    "1.1.5+ds1-1",
    "1.1.5+ds1-1+deb12u1",
    "1.1.12",
    "1.4.0~rc.2",
    "1.4.0~rc.3",
    "1.4.0",
    "1.10",
    "1:0.1",
]


@pytest.mark.parametrize("at", range(len(ORDERED) - 1))
def test_the_order_of_versions(at):
    assert is_before(ORDERED[at], ORDERED[at + 1])
    assert not is_before(ORDERED[at + 1], ORDERED[at])
    assert not is_before(ORDERED[at], ORDERED[at])


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="dpkg, which knows the order, is not here")
@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.from_regex(r"([0-9]:)?[0-9][0-9a-z.+~]{0,8}(-[0-9a-z.+~]{1,5})?", fullmatch=True),
        min_size=2,
        max_size=2,
    )
)
def test_the_order_is_that_of_dpkg(pair):
    left, right = pair
    dpkg = subprocess.run(["dpkg", "--compare-versions", left, "lt", right], capture_output=True)
    assert is_before(left, right) == (dpkg.returncode == 0), dpkg.stderr


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("v1.4.0-rc.3", "1.4.0~rc.3"),
        ("1.0.0-rc95", "1.0.0~rc95"),
        ("1.1.5+ds1", "1.1.5"),
        ("3.14.0rc2", "3.14.0~rc2"),
        ("1.28", "1.28"),
    ],
)
def test_what_upstreams_write(text, release):
    assert release_of(text) == release


@pytest.mark.parametrize(
    ("package", "release"),
    [
        ("1.1.5+ds1-1+deb12u1", "1.1.5"),
        ("1:2.3-4", "2.3"),
        ("1.0.0~rc93+ds1-5+deb11u3", "1.0.0~rc93"),
        ("1.8.1", "1.8.1"),
    ],
)
def test_what_is_in_a_package(package, release):
    assert upstream_of(package) == release


def test_a_line_of_releases_is_named_by_two_numbers():
    assert series("1.4.0~rc.3") == series("1.4.7") == "1.4"
    assert series("1.28") == "1.28"
