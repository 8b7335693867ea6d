"""The fakes keep to what the real ones promise."""

import asyncio
import errno
import inspect
import os

import pytest

from sandbox.host.errors import Busy, NotFound, PodwrightError
from sandbox.host.processes import Finished, HostProcessRunner, ProcessRunner
from sandbox.host.syscalls import errno_of
from tests.fakes.processes import FakeProcessRunner, FakeSpawned
from tests.fakes.syscalls import FakeSyscalls


class ToolFailed(PodwrightError):
    pass


@pytest.mark.parametrize("method", ["run", "spawn"])
def test_runners_take_the_same_arguments(method):
    wanted = inspect.signature(getattr(ProcessRunner, method)).parameters
    for runner in (HostProcessRunner, FakeProcessRunner):
        found = inspect.signature(getattr(runner, method)).parameters
        assert list(found) == list(wanted)
        assert [p.default for p in found.values()] == [p.default for p in wanted.values()]


@pytest.fixture(params=["real", "fake"])
def runner(request):
    if request.param == "real":
        return HostProcessRunner()
    fake = FakeProcessRunner()
    fake.on("false", exit_status=1, stderr=b"said no\n")
    fake.on("sh -c", exit_status=1, stderr=b"said no\n")
    fake.on("such", NotFound("no such program"))
    return fake


async def test_both_report_failures_alike(runner):
    done = await runner.run(["sh", "-c", "echo said no >&2; exit 1"])
    assert (done.exit_status, done.stderr) == (1, b"said no\n")
    with pytest.raises(ToolFailed, match="said no"):
        await runner.run(["sh", "-c", "echo said no >&2; exit 1"], check=ToolFailed)
    assert (await runner.run(["true"], check=ToolFailed)).exit_status == 0
    with pytest.raises(NotFound):
        await runner.run(["/no/such"])


async def test_both_spawn_what_can_be_killed_once(runner):
    child = await runner.spawn(["sleep", "1000"])
    assert child.kill_group(9)
    assert await child.wait() == -9
    assert not child.kill_group(9)


async def test_a_script_answers_by_the_longest_last_rule_and_everything_is_recorded():
    runner = FakeProcessRunner()
    runner.on("crun", exit_status=1)
    runner.on("crun state", stdout=b"{}")
    runner.on("crun delete", lambda run: Finished(run.argv, 0, run.stdin, b"", took_ns=1))
    assert (await runner.run(["/usr/bin/crun", "state", "c1"])).stdout == b"{}"
    assert (await runner.run(["crun", "delete"], stdin=b"x", env={"A": "b"})).stdout == b"x"
    assert (await runner.run(["crun", "kill"])).exit_status == 1
    assert runner.commands() == ["crun state c1", "crun delete", "crun kill"]
    assert runner.runs[1].env == {"A": "b"}
    child = await runner.spawn(["conmon"])
    assert isinstance(child, FakeSpawned)
    waiter = asyncio.ensure_future(child.wait())
    child.finish(3)
    assert await waiter == 3


def test_system_calls_are_recorded_with_their_names_and_fail_in_order():
    calls = FakeSyscalls(fail={"umount2": [errno.EBUSY, None]}, results={"openat2": 77})
    with pytest.raises(Busy) as caught:
        calls.umount2("/x")
    assert errno_of(caught.value) == errno.EBUSY
    calls.umount2("/x", flags=2)
    calls.umount2("/x")
    assert [call.flags for call in calls.named("umount2")] == [0, 2, 0]
    assert calls.openat2(-100, "/x", 0) == 77
    fd = calls.pidfd_open(5)
    os.close(fd)
    assert calls.names == ["umount2"] * 3 + ["openat2", "pidfd_open"]


def test_what_does_not_exist_cannot_be_scripted_or_called():
    with pytest.raises(AssertionError, match="no such system call"):
        FakeSyscalls(fail={"umount3": []})
    with pytest.raises(TypeError):
        FakeSyscalls().umount2()
    with pytest.raises(AttributeError):
        FakeSyscalls().umount3()
