"""What is asked of systemd, and what becomes of its answers."""

from __future__ import annotations

import pytest

from sandbox.host.errors import InvalidArgument, Unavailable
from sandbox.host.systemd import Property, Systemd
from tests.fakes.processes import FakeProcessRunner

SLICE = "podwright-podx.slice"


def said(runner: FakeProcessRunner) -> list[str]:
    [run] = runner.runs
    assert run.argv[:3] == ("busctl", "--quiet", "call")
    return list(run.argv[6:])


async def test_a_slice_is_made_with_its_limits() -> None:
    runner = FakeProcessRunner()
    properties = [Property("MemoryMax", "t", ("5",)), Property("AllowedCPUs", "ay", ("1", "3"))]
    assert await Systemd(runner).start_slice(SLICE, properties)
    assert said(runner) == [
        *("StartTransientUnit", "ssa(sv)a(sa(sv))", SLICE, "fail", "2"),
        *("MemoryMax", "t", "5", "AllowedCPUs", "ay", "1", "3", "0"),
    ]


async def test_a_slice_that_is_there_is_told() -> None:
    runner = FakeProcessRunner()
    text = f"Call failed: Unit {SLICE} was already loaded or has a fragment file."
    runner.on("busctl", exit_status=1, stderr=text.encode())
    assert not await Systemd(runner).start_slice(SLICE, ())


async def test_limits_are_changed_until_the_next_boot() -> None:
    runner = FakeProcessRunner()
    await Systemd(runner).set_properties(SLICE, [Property("CPUWeight", "t", ("7",))])
    assert said(runner) == [
        *("SetUnitProperties", "sba(sv)", SLICE, "true", "1"),
        *("CPUWeight", "t", "7"),
    ]


async def test_a_value_that_systemd_refuses_is_the_callers_fault() -> None:
    runner = FakeProcessRunner()
    text = b"Call failed: Value specified in CPUWeight is out of range"
    runner.on("busctl", exit_status=1, stderr=text)
    with pytest.raises(InvalidArgument, match="slice"):
        await Systemd(runner).set_properties(SLICE, [Property("CPUWeight", "t", ("0",))])


@pytest.mark.parametrize("text", [b"Call failed: Unit x.slice not loaded.", b"NoSuchUnit"])
async def test_stopping_what_is_not_there_is_success(text: bytes) -> None:
    runner = FakeProcessRunner()
    runner.on("busctl", exit_status=1, stderr=text)
    await Systemd(runner).stop(SLICE)


async def test_a_systemd_that_does_not_answer_is_unavailable() -> None:
    runner = FakeProcessRunner()
    runner.on("busctl", exit_status=1, stderr=b"Failed to connect to bus: No such file")
    systemd = Systemd(runner)
    with pytest.raises(Unavailable):
        await systemd.start_slice(SLICE, ())
    with pytest.raises(Unavailable):
        await systemd.stop(SLICE)
