import asyncio
import os
import resource
import signal
from contextlib import contextmanager

import pytest

from sandbox.host.errors import NotFound, ResourceExhausted
from sandbox.host.pidfd import Process, boot_id, hold, identify, is_zombie, start_ticks
from sandbox.host.processes import HostProcessRunner
from tests.fakes.clock import FakeClock
from tests.fakes.syscalls import FakeSyscalls


@pytest.fixture
async def child():
    child = await HostProcessRunner().spawn(["sleep", "1000"])
    yield child
    child.kill_group(signal.SIGKILL)
    await child.wait()


def opened(pid):
    who = identify(pid)
    process = Process.open(who.pid, who.start_ticks, who.boot_id)
    assert process is not None
    return process


@contextmanager
def no_descriptor_left():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_without_a_descriptor_nobody_is_called_dead(child):
    who = identify(child.pid)
    with no_descriptor_left(), pytest.raises(ResourceExhausted):
        Process.open(who.pid, who.start_ticks, who.boot_id)


async def test_holding_waits_for_a_descriptor(child):
    who = identify(child.pid)
    clock = FakeClock()
    with no_descriptor_left():
        holding = asyncio.ensure_future(hold(who, clock))
        while len(clock.slept_s) < 3:  # noqa: ASYNC110 - the clock sets no event
            await asyncio.sleep(0)
    process = await holding
    assert process is not None
    with process:
        assert process.alive()
    assert clock.slept_s[:3] == [0.05, 0.1, 0.2]


async def test_a_process_is_held_signalled_and_awaited(child):
    with opened(child.pid) as process:
        assert process.alive()
        waiters = [asyncio.ensure_future(process.wait()) for _ in range(3)]
        waiters[0].cancel()
        await asyncio.sleep(0)
        assert process.send_signal(signal.SIGTERM)
        await asyncio.gather(*waiters[1:])
        assert not process.alive()
        await process.wait()
        await child.wait()
        while process.send_signal(signal.SIGTERM):  # noqa: ASYNC110 - until it is reaped
            await asyncio.sleep(0.001)


async def test_waiting_again_after_everybody_gave_up(child):
    with opened(child.pid) as process:
        first = asyncio.ensure_future(process.wait())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        second = asyncio.ensure_future(process.wait())
        await asyncio.sleep(0)
        process.send_signal(signal.SIGKILL)
        await second


async def test_closing_wakes_who_waits(child):
    process = opened(child.pid)
    waiter = asyncio.ensure_future(process.wait())
    await asyncio.sleep(0)
    process.close()
    process.close()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert not process.alive()


@pytest.mark.parametrize("pid", [0, -1, 1, 2**22 + 1, 2**31, 2**63, -(2**70)])
def test_numbers_that_can_only_be_mistakes_are_nobody(pid):
    calls = FakeSyscalls()
    assert Process.open(pid, start_ticks(1) or 0, boot_id(), syscalls=calls) is None
    assert calls.calls == []


def test_this_process_is_never_held():
    me = identify(os.getpid())
    assert Process.open(me.pid, me.start_ticks, me.boot_id) is None


async def test_another_start_time_or_boot_is_another_process(child):
    who = identify(child.pid)
    assert Process.open(who.pid, who.start_ticks + 1, who.boot_id) is None
    assert Process.open(who.pid, who.start_ticks, "another-boot") is None


async def test_a_number_that_changes_hands_while_being_opened_is_let_go(child, monkeypatch):
    who = identify(child.pid)
    answers = iter([who.start_ticks, who.start_ticks + 7])
    monkeypatch.setattr("sandbox.host.pidfd.start_ticks", lambda _: next(answers))
    assert Process.open(who.pid, who.start_ticks, who.boot_id) is None


async def test_one_that_ended_is_nobody(child):
    who = identify(child.pid)
    child.kill_group(signal.SIGKILL)
    await child.wait()
    while start_ticks(who.pid) is not None:  # noqa: ASYNC110 - until it is reaped
        await asyncio.sleep(0.001)
    assert Process.open(who.pid, who.start_ticks, who.boot_id) is None
    with pytest.raises(NotFound):
        identify(who.pid)


def test_start_times_and_states_of_nobody():
    assert start_ticks(0) is None
    assert start_ticks(2**40) is None
    assert not is_zombie(0)
    assert not is_zombie(os.getpid())


async def test_a_name_with_brackets_and_blanks_does_not_shift_the_fields(tmp_path):
    program = tmp_path / "a) R 1 (b"
    program.symlink_to("/bin/sleep")
    child = await HostProcessRunner().spawn([str(program), "1000"])
    try:
        assert b"a) R 1 (b" in (tmp_path.__class__(f"/proc/{child.pid}/stat")).read_bytes()
        own, its = start_ticks(os.getpid()), start_ticks(child.pid)
        assert own is not None
        assert its is not None
        assert its >= own
    finally:
        child.kill_group(signal.SIGKILL)
        await child.wait()


def test_the_boot_id_is_a_uuid():
    assert len(boot_id().split("-")) == 5
