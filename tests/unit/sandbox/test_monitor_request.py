"""conmon's argument list and its report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.host.errors import InvalidArgument
from sandbox.monitor.request import MonitorRequest, conmon_argv, parse_report
from tests.fakes.runtime import FakeRuntime

CID = "b" * 64
REQUEST = MonitorRequest(
    container_id=CID,
    runtime=FakeRuntime(),
    bundle=Path("/run/p/containers") / CID,
    exit_dir=Path("/run/p/exits"),
    cgroup_path=f"/p/{CID}",
    log_path="/var/log/pods/x/0.log",
)


def argv(request: MonitorRequest = REQUEST, *, log: Path | None = None, systemd: bool = False):
    return conmon_argv(Path("/usr/bin/conmon"), request, log=log, systemd_cgroup=systemd)


def test_the_runtime_gets_its_own_options() -> None:
    words = argv()
    assert "--runtime=/usr/bin/fake" in words
    assert "--runtime-arg=--root=/run/fake" in words
    assert f"--runtime-arg=--log=/run/p/containers/{CID}/runtime.log" in words
    assert "--runtime-arg=--log-format=json" in words


def test_the_log_is_the_checked_path_or_none() -> None:
    assert "--log-path=k8s-file:/real/0.log" in argv(log=Path("/real/0.log"))
    assert "--log-path=none" in argv()


def test_standard_input_stays_open_unless_it_is_for_one_client() -> None:
    assert not {"--stdin", "--leave-stdin-open"} & set(argv())
    assert {"--stdin", "--leave-stdin-open"} <= set(argv(replace(REQUEST, stdin=True)))
    once = set(argv(replace(REQUEST, stdin=True, stdin_once=True)))
    assert "--stdin" in once
    assert "--leave-stdin-open" not in once


def test_terminal_and_systemd() -> None:
    assert "--terminal" in argv(replace(REQUEST, terminal=True))
    assert argv(systemd=True).count("--systemd-cgroup") == 1
    assert "--systemd-cgroup" not in argv()


def test_nothing_follows_an_option_as_a_separate_word() -> None:
    assert all(word.startswith("--") for word in argv()[1:])


def test_an_id_that_is_an_option() -> None:
    with pytest.raises(InvalidArgument):
        argv(replace(REQUEST, container_id="--help"))


@pytest.mark.parametrize(
    ("line", "report"),
    [
        (b'{"data": 4711}\n', (4711, "")),
        (b'{"data": -1, "message": "it broke"}\n', (-1, "it broke")),
        (b'{"data": 0}\n', (-1, "")),
        (b'{"data": 1}\n', (-1, "")),
        (b'{"data": -1, "message": "cut off', (-1, '{"data": -1, "message": "cut off')),
        (b'{"data": -1, "message": "a\x1fb\xff"}', (-1, "ab\N{REPLACEMENT CHARACTER}")),
        (b'{"data": -1, "message": "{\\"msg\\":\\"why\\",\\"level\\":\\"error\\"}"}', (-1, "why")),
    ],
)
def test_reports(line: bytes, report: tuple[int, str]) -> None:
    assert parse_report(line) == report


@given(st.binary(max_size=200))
def test_any_report_is_a_process_or_a_failure(line: bytes) -> None:
    pid, words = parse_report(line)
    assert pid == -1 or (pid > 1 and words == "")
