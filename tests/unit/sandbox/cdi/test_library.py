"""From names to edits: which file counts, in which order, and what is said when none does."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.cdi.document import ContainerEdits, Device, Specification
from sandbox.cdi.library import conflicts, find
from sandbox.cdi.names import parse_name
from sandbox.host.dropins import DropIn, Looked, Problem
from sandbox.host.errors import FailedPrecondition

DIRECTORIES = (Path("/etc/cdi"), Path("/run/cdi"))


def file(rank, name, *devices, kind="v.com/c"):
    specification = Specification(
        cdi_version="1.0.0",
        kind=kind,
        devices=tuple(
            Device(name=each, container_edits=ContainerEdits(env=(f"{name}={each}",)))
            for each in devices
        ),
        container_edits=ContainerEdits(env=(f"{name}=file",)),
    )
    return DropIn(DIRECTORIES[rank] / name, rank, specification)


def found(looked, *names):
    parts = find(looked, [parse_name(f"v.com/c={n}", "test") for n in names], DIRECTORIES)
    return [part.edits.env[0] for part in parts]


def test_a_files_own_edits_come_once_before_its_first_device():
    looked = Looked((file(0, "A", "a", "b"), file(0, "B", "c")), ())
    assert found(looked, "b", "c", "a") == ["A=file", "A=b", "B=file", "B=c", "A=a"]


def test_the_later_directory_wins_for_each_device():
    looked = Looked((file(0, "A", "a", "b"), file(1, "B", "b")), ())
    assert found(looked, "a", "b") == ["A=file", "A=a", "B=file", "B=b"]
    assert conflicts(looked) == ()


def test_equal_rank_is_a_conflict_for_that_device_alone():
    looked = Looked((file(0, "A", "a", "b"), file(0, "B", "b", "d")), ())
    assert found(looked, "a", "d")
    with pytest.raises(FailedPrecondition, match="/etc/cdi/A and /etc/cdi/B"):
        found(looked, "b")
    [problem] = conflicts(looked)
    assert str(problem) == "/etc/cdi/B: v.com/c=b is in /etc/cdi/A too"


def test_an_unknown_device_says_where_it_was_looked_for_and_what_could_be_the_reason():
    problems = tuple(Problem(Path(f"/etc/cdi/{n}.json"), "is bad") for n in range(5))
    looked = Looked((file(0, "A", "a", "b", "c", "d"), file(0, "B", "x", kind="o.com/c")), problems)
    with pytest.raises(FailedPrecondition) as caught:
        found(looked, "x")
    words = str(caught.value)
    assert "CDI device v.com/c=x is not known on this node; looked in /etc/cdi, /run/cdi" in words
    assert "known of v.com/c: a, b, c and 1 more" in words
    assert "/etc/cdi/0.json: is bad, " in words
    assert "and 2 more" in words
    with pytest.raises(FailedPrecondition, match=r"runtime\.cdi_spec_dirs is empty"):
        find(Looked((), ()), [parse_name("v.com/c=x", "test")], ())
