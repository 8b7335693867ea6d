"""When the sampler looks, how it reckons rates, what it lets go of. The group is a directory."""

import asyncio
import os
from pathlib import Path

import pytest

from metrics.followed import Target
from metrics.network_stats import NetworkPlace
from metrics.sampler import Sampler
from metrics.settings import SamplerSettings
from sandbox.host.cgroupfs import CgroupLayout
from sandbox.host.errors import Unavailable
from sandbox.host.pidfd import start_ticks
from tests.fakes.clock import FakeClock, HeldClock

S = 1_000_000


class Group:
    """A version 2 group of plain files; a file that is read leaves no mark, so they are changed."""

    def __init__(self, root, name="c1"):
        self.path = root / name
        self.path.mkdir()
        self.target = Target(name, f"/{name}")
        self.use(0)
        self.write("memory.current", 1000)
        self.write("pids.current", 3)
        self.write("cgroup.procs", f"{os.getpid()}\n{os.getppid()}")

    def write(self, name, value):
        (self.path / name).write_text(f"{value}\n")

    def use(self, usage_usec):
        self.write("cpu.stat", f"usage_usec {usage_usec}")


class RoundClock(HeldClock):
    """Tells when the background loop has done a round; the sampler's thread takes real time."""

    def __init__(self):
        super().__init__()
        self._rest = asyncio.Event()

    async def sleep(self, seconds):
        self._rest.set()
        await super().sleep(seconds)

    async def rests(self):
        await self._rest.wait()
        self._rest.clear()


def descriptors():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def make(tmp_path, clock):
    made = []

    def make(clock=clock, **settings):
        values = {"interval_s": 10.0, "min_age_s": 0.5} | settings
        layout = CgroupLayout(2, {}, tmp_path, frozenset({"cpu", "memory", "pids"}))
        made.append(Sampler(layout, SamplerSettings(**values), clock=clock, descriptor_limit=100))
        return made[-1]

    yield make
    for sampler in made:
        sampler.close()


@pytest.fixture
def group(tmp_path):
    return Group(tmp_path)


async def one(sampler, group, **options):
    return (await sampler.sample([group.target], **options)).get(group.target.id)


async def test_a_sample_has_what_the_files_say(make, group, clock):
    sample = await one(make(), group)
    assert sample.stats.memory.usage_bytes == 1000
    assert (sample.stats.tasks, sample.processes) == (3, 2)
    assert sample.taken_at_ns == clock.wall_ns()
    assert sample.detail is None


async def test_two_samples_make_a_rate_and_one_does_not(make, group, clock):
    sampler = make()
    assert (await one(sampler, group)).usage_nano_cores is None
    clock.advance(2)
    group.use(1 * S)
    assert (await one(sampler, group)).usage_nano_cores == 500_000_000


async def test_a_rate_is_over_a_second_at_least(make, group, clock):
    """Two clients that ask in turn must not get a rate over the moment between them."""
    sampler = make(min_age_s=0)
    await one(sampler, group)
    clock.advance(0.6)
    group.use(1 * S)
    assert (await one(sampler, group)).usage_nano_cores is None
    clock.advance(0.4)
    assert (await one(sampler, group)).usage_nano_cores == 1_000_000_000
    clock.advance(0.1)
    group.use(9 * S)
    assert (await one(sampler, group)).usage_nano_cores == 1_000_000_000


async def test_what_is_young_enough_is_not_looked_at_again(make, group, clock):
    sampler = make()
    first = await one(sampler, group)
    group.write("memory.current", 2000)
    clock.advance(0.4)
    assert await one(sampler, group) is first
    clock.advance(0.2)
    assert (await one(sampler, group)).stats.memory.usage_bytes == 2000


async def test_detail_is_looked_for_even_when_the_sample_is_young(make, group):
    sampler = make()
    await one(sampler, group)
    sample = await one(sampler, group, detail=True)
    assert sample.detail.processes.file_descriptors > 0
    assert await one(sampler, group) is sample


async def test_a_group_that_is_gone_has_no_sample_and_no_old_rate(make, group, clock):
    sampler = make()
    await one(sampler, group)
    clock.advance(2)
    for file in group.path.iterdir():
        file.unlink()
    sampler._followed["c1"].close()  # what ENODEV does in a real group
    assert await one(sampler, group) is None
    clock.advance(2)
    group.use(5 * S)
    assert (await one(sampler, group)).usage_nano_cores is None


async def test_a_group_that_appears_is_seen_at_once(make, group):
    """With systemd it may come a moment after its container; nothing found is no answer."""
    sampler = make()
    usage = group.path / "memory.current"
    held = {file: file.read_text() for file in group.path.iterdir()}
    for file in held:
        file.unlink()
    assert await one(sampler, group) is None
    for file, text in held.items():
        file.write_text(text)
    assert (await one(sampler, group)).stats.memory.usage_bytes == int(usage.read_text())


async def test_a_counter_that_goes_back_begins_anew(make, group, clock):
    sampler = make()
    group.use(9 * S)
    await one(sampler, group)
    clock.advance(2)
    group.use(1 * S)
    assert (await one(sampler, group)).usage_nano_cores is None
    clock.advance(2)
    group.use(2 * S)
    assert (await one(sampler, group)).usage_nano_cores == 500_000_000


async def test_an_id_with_another_group_is_another_thing(make, group, tmp_path):
    sampler = make()
    await one(sampler, group)
    other = Group(tmp_path, "c2")
    other.write("memory.current", 7)
    moved = Target("c1", "/c2")
    assert (await sampler.sample([moved]))["c1"].stats.memory.usage_bytes == 7


async def test_a_network_is_counted_also_without_a_group(make):
    own = NetworkPlace(os.getpid(), start_ticks(os.getpid()))
    target = Target("p1", "", network=own, members=False)
    sample = (await make().sample([target]))["p1"]
    assert sample.network is not None
    assert (sample.stats.memory, sample.processes) == (None, None)


async def test_networks_are_counted_alone(make, group, clock):
    """A scrape has a pod's network and nothing of its group; that is no sample of the group."""
    sampler = make()
    own = NetworkPlace(os.getpid(), start_ticks(os.getpid()))
    pod = Target("c1", group.target.cgroup, network=own, members=False)
    alone = (await sampler.networks([pod]))["c1"]
    assert alone.network is not None
    assert (alone.stats.memory, alone.processes, alone.taken_at_ns) == (None, None, clock.wall_ns())
    whole = (await sampler.sample([pod]))["c1"]
    assert (whole.network, whole.stats.memory.usage_bytes) == (alone.network, 1000)
    assert (await sampler.networks([pod]))["c1"] is whole, "young enough, so not looked at again"


async def test_processes_are_counted_for_who_wants_them(make, group):
    sampler = make()
    without = Target("c1", group.target.cgroup, members=False)
    assert (await sampler.sample([without]))["c1"].processes is None
    counted = await one(sampler, group)
    assert (counted.processes, counted.stats.tasks) == (2, 3)
    assert (await sampler.sample([without]))["c1"] is counted


async def test_files_stay_open_until_the_target_is_let_go(make, group):
    clock = RoundClock()
    sampler = make(clock)
    held = {"c1": group.target}
    before = descriptors()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(sampler.run(lambda: list(held.values())))
        await clock.rests()
        assert descriptors() > before
        held.clear()
        await clock.advance_s(10)
        await clock.rests()
        assert descriptors() == before
        running.cancel()


async def test_files_of_what_ended_are_closed_at_once(make, group, clock):
    sampler = make()
    before = descriptors()
    await one(sampler, group)
    sampler.forget("c1")
    sampler.forget("unknown")
    await sampler.sample([Target("other", "/other")])  # comes after it in the thread
    assert descriptors() == before
    clock.advance(1)
    assert await one(sampler, group) is not None
    sampler.close()
    sampler.forget("c1")


async def test_beyond_the_budget_files_are_opened_each_time(tmp_path, group, clock):
    layout = CgroupLayout(2, {}, tmp_path, frozenset({"cpu", "memory", "pids"}))
    sampler = Sampler(layout, SamplerSettings(min_age_s=0), clock=clock, descriptor_limit=1)
    before = descriptors()
    try:
        for usage in (5, 6):
            group.write("memory.current", usage)
            clock.advance(0.1)
            assert (await one(sampler, group)).stats.memory.usage_bytes == usage
        assert descriptors() == before + 1
    finally:
        sampler.close()
    assert descriptors() == before


async def test_the_background_gives_a_rate_to_who_asks_first(make, group):
    clock = RoundClock()
    sampler = make(clock)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(sampler.run(lambda: [group.target]))
        for usage_usec in (1 * S, 6 * S):
            await clock.rests()
            group.use(usage_usec)
            await clock.advance_s(10)
        await clock.rests()
        assert (await one(sampler, group)).usage_nano_cores == 500_000_000
        running.cancel()


async def test_the_background_leaves_alone_what_a_client_has_just_asked_for(make, group):
    clock = RoundClock()
    sampler = make(clock)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(sampler.run(lambda: [group.target]))
        await clock.rests()
        await clock.advance_s(6)
        group.use(1 * S)
        asked = await one(sampler, group)
        group.use(7 * S)
        await clock.advance_s(4)  # the round: what was asked for is four seconds old
        await clock.rests()
        assert sampler._followed["c1"].sample is asked
        await clock.advance_s(10)
        await clock.rests()
        assert sampler._followed["c1"].sample.stats.cpu_usage_ns == 7 * S * 1000
        running.cancel()


async def test_trouble_in_the_background_is_not_the_end(make, group, caplog):
    clock = RoundClock()
    sampler = make(clock)
    broken = [Target("bad", "/../etc")]
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(sampler.run(lambda: broken))
        await clock.rests()
        assert "sampling failed" in caplog.text
        broken[:] = [group.target]
        await clock.advance_s(10)
        await clock.rests()
        assert (await one(sampler, group)) is not None
        running.cancel()


async def test_after_the_end_nothing_is_measured(make, group):
    sampler = make()
    sampler.close()
    sampler.close()
    with pytest.raises(Unavailable):
        await one(sampler, group)


async def test_the_highest_number_of_pages_seen_stands_in_for_the_kernels(make, group, clock):
    sampler = make()
    sampler._page_sizes = ("2MB",)
    for usage, most in ((4, 4), (9, 9), (5, 9)):
        group.write("hugetlb.2MB.current", usage)
        clock.advance(1)
        [pages] = (await one(sampler, group, detail=True)).detail.cgroup.hugetlb
        assert (pages.usage_bytes, pages.max_usage_bytes) == (usage, most)
