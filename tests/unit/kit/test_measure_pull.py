"""What the measurement of pulls takes for granted about the kernel, and how it counts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.measure import Target
from tests.kit.measure_pull import (
    CASES,
    children_of,
    note_answers,
    quantile,
    status_bytes,
)

#: Has a child of its own, started by a thread that is not the first; tells its pid; waits.
PARENT = """
import subprocess, sys, threading
def run():
    child = subprocess.Popen(["sleep", "100"])
    print(child.pid, flush=True)
    sys.stdin.read()
    child.kill()
    child.wait()
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""
#: Takes 64 MiB and gives them back; says when; takes 8 when told.
PEAK = """
import mmap, sys
def take(mib):
    area = mmap.mmap(-1, mib << 20)
    area.write(b"x" * (mib << 20))
    area.close()
take(64)
print("gone", flush=True)
sys.stdin.readline()
take(8)
print("gone", flush=True)
sys.stdin.readline()
"""


def test_children_of_threads_are_found() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert children_of(parent.pid) == [child]
        assert child in children_of(os.getpid())
        assert status_bytes(child, "VmRSS") > 0
        assert parent.stdin is not None
        parent.stdin.close()
    assert children_of(parent.pid) == []
    assert status_bytes(parent.pid, "VmRSS") == 0


def test_a_peak_can_be_set_back() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PEAK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        before = status_bytes(process.pid, "VmRSS")
        assert status_bytes(process.pid, "VmHWM") - before > 64 << 20
        try:
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")
        except OSError as error:
            pytest.skip(f"peaks cannot be set back here: {error}")
        finally:
            process.stdin.write("on\n")
            process.stdin.flush()
            process.stdout.readline()
            after = status_bytes(process.pid, "VmHWM")
            process.stdin.close()
        assert after - before < 64 << 20


@pytest.mark.parametrize(
    ("part", "expected"), [(0.5, 2.0), (0.75, 3.0), (0.76, 4.0), (0.99, 4.0), (1.0, 4.0)]
)
def test_quantiles_are_values_that_were_seen(part: float, expected: float) -> None:
    assert quantile([4.0, 1.0, 3.0, 2.0], part) == expected


def test_answers_become_three_rows_and_none_become_no_row() -> None:
    target = Target(name="one", socket=Path("/none"))
    note_answers(target, CASES[0], [])
    assert target.samples == {}
    note_answers(target, CASES[0], [1.0, 9.0, 2.0])
    assert list(target.samples.values()) == [[2.0], [9.0], [9.0]]


def test_every_case_has_a_row_of_its_own_and_starts_without_what_it_pulls() -> None:
    assert len({case.row for case in CASES}) == len(CASES)
    assert all(case.row.startswith("pull, ") for case in CASES)  # "remove, " is made of it
