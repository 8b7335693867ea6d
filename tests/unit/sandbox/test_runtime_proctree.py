"""Who belongs to a command."""

from __future__ import annotations

import os

from sandbox.runtime.proctree import ProcessInfo, family, parse_stat, snapshot


def info(pid: int, parent: int, session: int, *, dead: bool = False) -> ProcessInfo:
    return ProcessInfo(pid, parent, session, 0, dead)


def pids(found: list[ProcessInfo]) -> set[int]:
    return {each.pid for each in found}


def test_a_name_may_hold_brackets_and_blanks() -> None:
    text = b"42 (a) b (c)) Z 7 42 41 0 -1 4 1 0 0 0 1 2 0 0 20 0 1 0 12345 0 0\n"
    assert parse_stat(text) == ProcessInfo(42, 7, 41, 12345, dead=True)


def test_text_that_is_none() -> None:
    assert parse_stat(b"") is None
    assert parse_stat(b"42 (x) S 1 2") is None
    assert parse_stat(b"x (x) S " + b"y " * 30) is None


def test_our_own_process_is_found() -> None:
    (own,) = snapshot([os.getpid(), 2**22])
    assert (own.pid, own.parent, own.session) == (os.getpid(), os.getppid(), os.getsid(0))
    assert not own.dead
    assert os.getpid() in pids(snapshot())


def test_descendants_sessions_and_orphans_of_sessions() -> None:
    processes = [
        info(1, 0, 1),  # the container's init
        info(10, 9, 10),  # the runtime, in a session of its own
        info(12, 10, 11),  # the command, in a session made by a helper that has ended
        info(13, 12, 11),  # its child
        info(14, 1, 11),  # a child that lost its parent
        info(15, 13, 15),  # a child with its own session
        info(16, 1, 15),  # orphan of that session
        info(20, 1, 20),  # somebody else
        info(21, 20, 20),
    ]
    for order in (processes, processes[::-1]):
        assert pids(family(order, {10})) == {10, 12, 13, 14, 15, 16}
        assert pids(family(order, {12})) == {12, 13, 14, 15, 16}
        assert pids(family(order, {99})) == set()


def test_the_dead_lead_to_the_living_but_are_not_returned() -> None:
    processes = [info(12, 10, 12, dead=True), info(13, 12, 12), info(14, 1, 12)]
    assert pids(family(processes, {12})) == {13, 14}
