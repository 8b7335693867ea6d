"""What hack/bench --trace reads out of strace's lines."""

from __future__ import annotations

import pytest

from tests.kit.trace import Span, covered_ms, report, spans

LINES = """\
10 100.000000 execve("/x/.venv/bin/podwright", ["podwright", "serve"], 0x7f) = 0 <0.000300>
10 101.000000 fdatasync(7) = 0 <0.000500>
10 101.000600 mount("a", "b", "", MS_BIND, NULL) = 0 <0.000010>
11 101.001000 execve("/usr/bin/conmon", ["conmon", "-v", "x"], 0x7f <unfinished ...>
12 101.001100 umount2("/x", MNT_DETACH <unfinished ...>
11 101.001300 <... execve resumed>) = 0 <0.000300>
12 101.003100 <... umount2 resumed>) = 0 <0.002000>
11 101.002000 mount("proc", "/proc", "proc", 0, NULL) = 0 <0.001000>
13 101.004000 execve("/nowhere/crun", ["crun"], 0x7f) = -1 ENOENT <0.000100>
13 101.005000 execve("/usr/bin/crun", ["crun", "--root=/r", "create", "x"], 0x7f) = 0 <0.000200>
13 101.009000 execve("/bin/sleep", ["sleep", "1"], 0x7f) = 0 <0.000500>
11 101.010000 +++ exited with 0 +++
13 101.020000 +++ killed by SIGKILL +++
not a line of strace
"""


def test_programs_and_long_stays_in_the_kernel_are_found() -> None:
    found = {
        (s.who, s.what): (round(s.begin_s, 4), round(s.end_s, 4)) for s in spans(LINES.splitlines())
    }
    assert found == {
        ("", "fdatasync"): (101.0, 101.0005),
        ("", "umount2"): (101.0011, 101.0031),
        ("conmon", "x"): (101.0013, 101.01),
        ("crun", "create"): (101.0052, 101.0095),
        ("sleep", "1"): (101.0095, 101.02),
    }


@pytest.mark.parametrize(
    ("parts", "expected_ms"),
    [
        ([], 0),
        ([(1.0, 1.5), (1.2, 1.6)], 600),
        ([(0.0, 9.0)], 1000),
        ([(1.8, 5.0), (0.5, 1.1)], 300),
    ],
)
def test_what_overlaps_counts_once(parts: list[tuple[float, float]], expected_ms: float) -> None:
    found = covered_ms([Span("p", "", *part) for part in parts], 1.0, 2.0)
    assert found == pytest.approx(expected_ms)


def test_a_call_is_taken_apart() -> None:
    call = Span("", "CreateContainer", 101.0, 101.020)
    text = report([call], spans(LINES.splitlines())).splitlines()
    assert text[0] == ("CreateContainer: 20.0 ms; programs 18.7, kernel besides 0.7, the rest 0.6")
    assert text[1].split() == ["0.0", "0.5", "kernel:", "fdatasync"]
    assert text[-1].split() == ["9.5", "10.5", "sleep", "1"]


def test_a_worker_that_was_there_before_and_stays_is_no_part_of_a_call() -> None:
    call = Span("", "StopContainer 0", 101.0, 101.010)
    parts = [Span("python", "worker", 90.0, 120.0), Span("crun", "kill", 101.002, 101.004)]
    text = report([call], parts).splitlines()
    assert text[0] == "StopContainer 0: 10.0 ms; programs 2.0, kernel besides 0.0, the rest 8.0"
    assert len(text) == 2
