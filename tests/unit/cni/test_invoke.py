"""One run of a plugin: what it is given, and what becomes of each way to end."""

from __future__ import annotations

from pathlib import Path

import pytest

from cni.errors import PluginExhausted, PluginFailed, PluginMissing, PluginTimedOut
from cni.invoke import BUSY_RETRY_DELAYS_S, Command, PluginCall, PluginPrograms, find_plugin
from sandbox.host.errors import (
    Busy,
    DeadlineExceeded,
    Denied,
    Internal,
    NotFound,
    PodwrightError,
    ResourceExhausted,
)
from tests.fakes.clock import FakeClock
from tests.fakes.cni_plugins import ScriptedRunner, error, finished

CALL = PluginCall(
    command=Command.ADD,
    plugin="bridge",
    path=Path("/bin/dir/bridge"),
    environment={"CNI_COMMAND": "ADD", "CNI_NETNS": "/run/n", "API_KEY": "k"},
    stdin=b'{"token": "t"}',
    timeout_s=7.0,
)


class Bench:
    def __init__(self) -> None:
        self.runner = ScriptedRunner()
        self.clock = FakeClock()
        self.observed: list[tuple] = []
        self.programs = PluginPrograms(
            self.runner,
            self.clock,
            directories=(Path("/bin/dir"),),
            output_limit_bytes=1000,
            observer=lambda *seen: self.observed.append(seen),
        )

    async def fails(self, *answers, call: PluginCall = CALL) -> PluginFailed:
        self.runner.answer("bridge", *answers)
        with pytest.raises(PluginFailed) as caught:
            await self.programs.execute(call)
        return caught.value


@pytest.fixture
def bench():
    return Bench()


async def test_a_plugin_that_succeeds(bench):
    bench.runner.answer("bridge", finished({"a": 1}))

    assert await bench.programs.execute(CALL) == b'{"a": 1}'

    run = bench.runner.runs[0]
    assert run.env == CALL.environment
    assert run.config == {"token": "t"}
    assert (run.timeout_s, run.output_limit_bytes) == (7.0, 1000)
    assert bench.observed == [("ADD", "bridge", 0.0, True)]


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (error(7, "bad"), "bad (code=7)"),
        (finished(b'{"code": 3, "msg": null}', exit_status=1), "no message (code=3)"),
        (finished(b'a log line\n{"code": 9, "msg": "m"}\n', exit_status=1), "m (code=9)"),
        (finished(b"", exit_status=3), "exit status 3, no message"),
        (finished(b"out", b"err", 1), "exit status 1: err | out"),
        (finished(b"\xff\xfe", exit_status=1), "exit status 1: \ufffd\ufffd"),
        (finished(b'{"code": "x"}', exit_status=1), 'exit status 1: {"code": "x"}'),
        (finished(exit_status=-9), "killed by SIGKILL, no message"),
        (finished(exit_status=-77), "killed by signal 77, no message"),
        (Internal("exec format error"), "exec format error"),
    ],
)
async def test_how_a_plugin_fails(bench, answer, shown):
    failure = await bench.fails(answer)
    assert str(failure) == f"network plugin bridge failed ADD: {shown}"
    assert bench.observed == [("ADD", "bridge", 0.0, False)]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (DeadlineExceeded("x"), PluginTimedOut),
        (ResourceExhausted("x"), PluginExhausted),
        (NotFound("x"), PluginMissing),
        (Denied("x"), PluginMissing),
    ],
)
async def test_what_the_runner_says_becomes_the_plugins_failure(bench, answer, kind):
    failure = await bench.fails(answer)
    assert isinstance(failure, kind)
    assert not isinstance(failure, NotFound)
    assert isinstance(failure.__cause__, PodwrightError)


async def test_a_plugin_without_a_program_is_never_run(bench):
    call = PluginCall(Command.DEL, "bridge", None, {}, b"", 1.0)
    failure = await bench.fails(finished(), call=call)
    assert isinstance(failure, PluginMissing)
    assert "/bin/dir" in str(failure)
    assert bench.runner.runs == []


async def test_a_plugin_without_time_is_never_run(bench):
    call = PluginCall(Command.ADD, "bridge", Path("/bin/dir/bridge"), {}, b"", 0.0)
    assert isinstance(await bench.fails(finished(), call=call), PluginTimedOut)
    assert bench.runner.runs == []


async def test_a_file_that_is_being_written_is_tried_again(bench):
    bench.runner.answer("bridge", Busy("text file busy"), Busy("text file busy"), finished(b"ok"))

    assert await bench.programs.execute(CALL) == b"ok"
    assert bench.clock.slept_s == list(BUSY_RETRY_DELAYS_S[:2])


async def test_a_file_that_is_written_for_ever_ends_in_a_failure(bench):
    failure = await bench.fails(Busy("text file busy"))

    assert isinstance(failure, PluginMissing)
    assert len(bench.runner.runs) == len(BUSY_RETRY_DELAYS_S) + 1
    assert bench.clock.slept_s == list(BUSY_RETRY_DELAYS_S)


async def test_the_line_to_repeat_it_holds_no_document_and_no_foreign_variable(bench):
    failure = await bench.fails(error(7))
    assert failure.replay == (
        "env CNI_COMMAND=ADD CNI_NETNS=/run/n /bin/dir/bridge < plugin-config.json"
    )


def test_the_first_directory_with_an_executable_file_has_the_plugin(tmp_path):
    first, second, third = (tmp_path / name for name in "abc")
    for directory in (first, second, third):
        directory.mkdir()
    (first / "bridge").mkdir()
    (second / "bridge").write_text("not executable")
    program = third / "bridge"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)

    assert find_plugin("bridge", (first, second, third)) == program
    assert find_plugin("bridge", (first, second)) is None
    assert find_plugin("bridge", (tmp_path / "absent",)) is None
