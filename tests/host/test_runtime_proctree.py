"""Killing all of a session while it grows, with real processes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from sandbox.runtime import proctree
from sandbox.runtime.proctree import ProcessInfo
from tests.kit.calls import until


@pytest.fixture
def forker() -> Iterator[subprocess.Popen[str]]:
    """The leader of a session who forks a child for each line it is told."""
    script = "echo ready; while read line; do sleep 1000 & echo forked; done"
    with subprocess.Popen(
        ["/bin/sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as leader:
        assert leader.stdout is not None
        assert leader.stdout.readline() == "ready\n"
        yield leader
        proctree.kill(session_of(leader))


def session_of(leader: subprocess.Popen[str]) -> list[ProcessInfo]:
    return [one for one in proctree.snapshot() if one.session == leader.pid and not one.dead]


def fork(leader: subprocess.Popen[str]) -> None:
    assert leader.stdin is not None
    assert leader.stdout is not None
    leader.stdin.write("\n")
    leader.stdin.flush()
    assert leader.stdout.readline() == "forked\n"


def test_who_was_forked_after_the_look_is_killed_too(forker: subprocess.Popen[str]) -> None:
    looks: list[list[ProcessInfo]] = []

    def find() -> list[ProcessInfo]:
        looks.append(session_of(forker))
        if len(looks) == 1:
            fork(forker)
        return looks[-1]

    proctree.kill_all(find)
    assert [one.pid for one in looks[0]] == [forker.pid]
    assert len(looks[1]) > 0
    until(lambda: not session_of(forker), "nobody of the session lives")


def test_one_who_is_always_there_is_killed_once(
    forker: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What sleeps in the kernel ends later; nobody waits for it here."""
    [seen] = session_of(forker)
    killed: list[ProcessInfo] = []
    monkeypatch.setattr(proctree, "kill", killed.extend)
    proctree.kill_all(lambda: [seen])
    assert killed == [seen]


def test_it_ends_although_there_is_always_somebody_new(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter(range(2**22 + 1, 2**23))
    killed: list[ProcessInfo] = []
    monkeypatch.setattr(proctree, "kill", killed.extend)
    proctree.kill_all(lambda: [ProcessInfo(next(numbers), 1, 2, 3, dead=False)])
    assert len(killed) == len(set(killed)) > 10
