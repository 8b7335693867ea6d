"""Resource limits from texts, and what the daemon may set."""

from __future__ import annotations

import pytest

from sandbox.host.errors import InvalidArgument
from sandbox.oci import Rlimit
from sandbox.spec.rlimits import UNLIMITED, asked_rlimits, check_settable, merged, parse_rlimit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nofile=1024:4096", ("RLIMIT_NOFILE", 1024, 4096)),
        (" RLIMIT_CORE=0 ", ("RLIMIT_CORE", 0, 0)),
        ("memlock=unlimited", ("RLIMIT_MEMLOCK", UNLIMITED, UNLIMITED)),
        ("stack=8:-1", ("RLIMIT_STACK", 8, UNLIMITED)),
    ],
)
def test_limits(text: str, expected: tuple[str, int, int]) -> None:
    limit = parse_rlimit(text)
    assert (limit.type, limit.soft, limit.hard) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "nofile", "nofile=", "nofile=a", "nofile=-2", "nofile=2:1", "lunch=1"),
        *("nofile=1:2:3", "nofile=unlimited:1", "nofile=1e3", "nofile=٣", f"nofile={2**64}"),
        "nofile=1\n2",
    ],
)
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_rlimit(text)


def test_the_containers_own_annotation_wins() -> None:
    annotations = {
        "podwright.io/rlimits": "nofile=1, core=0,",
        "rlimits.podwright.io/web": "nofile=2",
        "rlimits.podwright.io/db": "nofile=3",
    }
    found = {limit.type: limit.hard for limit in asked_rlimits(annotations, "web")}
    assert found == {"RLIMIT_NOFILE": 2, "RLIMIT_CORE": 0}
    assert asked_rlimits({}, "web") == ()
    with pytest.raises(InvalidArgument, match=r"annotation rlimits\.podwright\.io/web: not a"):
        asked_rlimits({"rlimits.podwright.io/web": "x"}, "web")
    with pytest.raises(InvalidArgument, match="longer than 1024"):
        asked_rlimits({"podwright.io/rlimits": "core=0," * 200}, "web")


def test_later_layers_win() -> None:
    one, two = Rlimit(type="A", soft=1, hard=1), Rlimit(type="A", soft=2, hard=2)
    other = Rlimit(type="B", soft=1, hard=1)
    assert merged((one, other), (two,)) == (two, other)


def test_nothing_above_the_ceiling() -> None:
    ceilings = {"RLIMIT_NOFILE": 100}
    check_settable([Rlimit(type="RLIMIT_NOFILE", soft=1, hard=100)], ceilings, "x")
    check_settable([Rlimit(type="RLIMIT_CORE", soft=1, hard=UNLIMITED)], ceilings, "x")
    with pytest.raises(InvalidArgument, match=r"x: nofile cannot be unlimited, .* at most 100"):
        check_settable([Rlimit(type="RLIMIT_NOFILE", soft=1, hard=UNLIMITED)], ceilings, "x")
