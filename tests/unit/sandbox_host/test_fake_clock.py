import asyncio

from tests.fakes.clock import FakeClock, HeldClock, settle


async def test_sleepers_wake_in_the_order_of_their_deadlines():
    clock, woken = HeldClock(), []

    async def sleeper(name: str, *seconds: float) -> None:
        for each in seconds:
            await clock.sleep(each)
            woken.append((name, clock.monotonic_ns()))

    start = clock.monotonic_ns()
    async with asyncio.TaskGroup() as group:
        group.create_task(sleeper("long", 3.0))
        group.create_task(sleeper("twice", 1.0, 1.0))
        await clock.advance_s(2.5)
        assert [name for name, _ in woken] == ["twice", "twice"]
        assert [at - start for _, at in woken] == [1_000_000_000, 2_000_000_000]
        assert clock.sleeping == 1
        await clock.advance_s(0.5)
    assert woken[-1][0] == "long"
    assert clock.monotonic_ns() - start == 3_000_000_000


async def test_a_cancelled_sleeper_is_forgotten():
    clock = HeldClock()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(clock.sleep(1.0))
        await settle()
        task.cancel()
    assert clock.sleeping == 0
    await clock.advance_s(2.0)


async def test_sleeping_takes_no_time_and_is_written_down():
    clock = FakeClock()
    before = clock.monotonic_ns()
    await clock.sleep(2.5)
    clock.sleep_blocking(0.5)
    assert clock.slept_s == [2.5, 0.5]
    assert clock.monotonic_ns() - before == 3_000_000_000


def test_a_jump_of_the_wall_clock_moves_no_duration():
    clock = FakeClock(wall_s=10.0)
    before = clock.monotonic_ns()
    clock.jump_wall_s(-5.0)
    assert clock.wall_ns() == 5_000_000_000
    assert clock.monotonic_ns() == before
