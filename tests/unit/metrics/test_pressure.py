"""Which files of pressure are read, and that what is not read would have said the same."""

import os

import pytest

from metrics.cgroup_stats import UsageReader
from metrics.followed import Target
from metrics.pressure import FILES, SETTLED_NS, Look, PressureReader, machine_files
from metrics.sampler import Sampler
from metrics.settings import SamplerSettings
from sandbox.host.cgroupfs import CgroupLayout
from tests.fakes.clock import FakeClock

S = 1_000_000_000


def text(total, average="0.00"):
    line = f"avg10={average} avg60=0.00 avg300=0.00 total={total}\n"
    return f"some {line}full {line}".encode()


class Group:
    """Files of pressure, and which of them were read."""

    def __init__(self):
        self.texts = {f"{name}.pressure": text(0) for name in ("cpu", "memory", "io")}
        self.asked = []
        self.pressure = PressureReader(self.read)

    def read(self, names):
        self.asked += [name for _, name in names]
        return [self.texts.get(name) for _, name in names]

    def stall(self, name, total, average="0.00"):
        self.texts[f"{name}.pressure"] = text(total, average)

    def total(self, name):
        return getattr(self.pressure.value, name)["some"].total_usec


class Tree:
    """A machine with one group, looked at in rounds."""

    def __init__(self):
        self.now_ns = 1000 * S
        self.machine, self.group = Group(), Group()

    def look(self, after_s=10):
        """One round, `after_s` after the one before; what was read of the group."""
        self.now_ns += after_s * S
        look = Look(self.now_ns)
        self.group.asked.clear()
        self.machine.pressure.look(look)
        self.group.pressure.look(look, self.machine.pressure)
        return self.group.asked

    def settle(self):
        assert self.look() == [name for _, name in FILES[-1]]
        assert len(self.look()) == 3, "its averages had not caught up with what moved above"
        assert self.look() == []


@pytest.fixture
def tree():
    return Tree()


def test_a_group_is_left_alone_while_nobody_waits_anywhere(tree):
    tree.settle()
    before = tree.group.pressure.value
    assert tree.look() == []
    assert tree.group.pressure.value is before
    assert tree.group.total("cpu") == 0


def test_what_moved_above_is_read_below_and_nothing_else(tree):
    tree.settle()
    tree.machine.stall("io", 7)
    tree.group.stall("io", 5)
    assert tree.look() == ["io.pressure"]
    assert (tree.group.total("io"), tree.group.total("memory")) == (5, 0)


def test_a_group_is_read_until_its_averages_have_caught_up(tree):
    """They are brought up to date at moments of the group's own, also after those above."""
    tree.settle()
    tree.machine.stall("cpu", 7)
    tree.group.stall("cpu", 7)
    assert tree.look() == ["cpu.pressure"]
    tree.group.stall("cpu", 7, average="0.30")
    assert tree.look(after_s=SETTLED_NS / S - 1) == ["cpu.pressure"]
    assert tree.group.pressure.value.cpu["full"].avg10_percent == 0.3


def test_a_group_is_read_until_its_averages_have_decayed(tree):
    tree.settle()
    tree.machine.stall("cpu", 7)
    tree.group.stall("cpu", 7, average="0.02")
    for _ in range(3):
        assert tree.look() == ["cpu.pressure"]
    tree.group.stall("cpu", 7)
    assert tree.look() == ["cpu.pressure"]
    assert tree.group.pressure.value.cpu["some"].avg10_percent == 0
    assert tree.look() == []


def test_where_the_machine_tells_nothing_every_group_is_read(tree):
    tree.machine.texts.clear()
    for _ in range(4):
        assert len(tree.look()) == 3


def test_a_group_without_files_has_no_pressure_and_is_asked_again(tree):
    tree.group.texts.clear()
    for _ in range(4):
        assert len(tree.look()) == 3
    assert tree.group.pressure.value is None
    tree.group.stall("cpu", 4)
    tree.look()
    assert tree.group.total("cpu") == 4


def test_a_group_is_read_once_in_a_round(tree):
    look = Look(tree.now_ns)
    for _ in range(2):
        tree.group.pressure.look(look)
    assert len(tree.group.asked) == 3
    assert tree.group.pressure.is_of(look)


def test_a_group_that_was_made_anew_is_read_whatever_is_above(tree):
    tree.settle()
    files = {"cpuacct.usage": b"900\n", "memory.usage_in_bytes": b"1\n"}
    group = tree.group

    def read(names):
        return [files.get(name) or group.texts.get(name) for _, name in names]

    usage = UsageReader(1, read)

    def pressure(tree):
        tree.now_ns += 10 * S
        look = Look(tree.now_ns)
        tree.machine.pressure.look(look)
        stats = usage.read(tasks=False, look=look, above=tree.machine.pressure)
        return stats.pressure.memory["some"].total_usec

    group.stall("memory", 50)
    for _ in range(3):
        assert pressure(tree) == 50
    group.stall("memory", 0)
    files["cpuacct.usage"] = b"3\n"
    assert pressure(tree) == 0


def test_the_machines_files_are_those_of_proc():
    texts = machine_files(FILES[-1])
    for name, found in zip(("cpu", "memory", "io"), texts, strict=True):
        assert (found is None) or found.startswith(b"some avg10="), name
    assert machine_files((("unified", "no.pressure"),)) == [None]


class World:
    """A pod and two containers of plain files below one directory."""

    def __init__(self, root):
        self.root = root
        self.machine = Group()
        for path in ("pod", "pod/a", "pod/b", "podlike"):
            directory = root / path
            directory.mkdir()
            (directory / "cpu.stat").write_text("usage_usec 1\n")
            (directory / "cgroup.procs").write_text(f"{os.getpid()}\n")
            (directory / "pids.current").write_text("1\n")
            self.stall(path, 0)
        self.clock = FakeClock()
        layout = CgroupLayout(2, {}, root, frozenset({"cpu", "memory", "pids"}))
        settings = SamplerSettings(interval_s=0, min_age_s=0)
        self.sampler = Sampler(layout, settings, clock=self.clock, machine=self.machine.read)

    def stall(self, path, total):
        for name in ("cpu", "memory", "io"):
            (self.root / path / f"{name}.pressure").write_bytes(text(total))

    async def totals(self, *targets):
        self.clock.advance(10)
        samples = await self.sampler.sample(targets)
        return [samples[t.id].stats.pressure.memory["some"].total_usec for t in targets]


POD = Target("pod", "/pod", members=False)
A, B = (Target(name, f"/pod/{name}", pod="pod", members=False) for name in "ab")


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.sampler.close()


@pytest.mark.parametrize("targets", [(POD, A, B), (A, B, POD)], ids=["before", "after"])
async def test_containers_are_asked_where_their_pod_has_moved(world, targets):
    for _ in range(3):
        assert await world.totals(*targets) == [0, 0, 0]
    world.stall("pod/a", 3)
    assert await world.totals(*targets) == [0, 0, 0], "no kernel's doing: its pod says otherwise"
    world.machine.stall("memory", 9)
    assert await world.totals(*targets) == [0, 0, 0]
    world.stall("pod", 3)
    assert sorted(await world.totals(*targets)) == [0, 3, 3]


async def test_a_pods_files_are_read_for_several_containers_only(world):
    await world.totals(POD, A, B)
    for _ in range(2):
        await world.totals(A)
    world.machine.stall("memory", 9)
    world.stall("pod/a", 3)
    assert await world.totals(A) == [3], "of one the machine is asked, and then itself"
    world.stall("pod", 4)
    world.stall("pod/b", 4)
    world.machine.stall("memory", 10)
    assert await world.totals(A, B) == [3, 4]


async def test_another_group_is_not_above_for_its_name(world):
    like = Target("like", "/podlike", pod="pod", members=False)
    for _ in range(3):
        await world.totals(POD, like, A)
    world.machine.stall("memory", 9)
    world.stall("podlike", 3)
    assert await world.totals(POD, like, A) == [0, 3, 0]


async def test_tasks_are_counted_again_when_the_group_has_run(world):
    """Who forks or ends runs."""
    whole = Target("a", "/pod/a", pod="pod")
    sample = (await world.sampler.sample([whole]))["a"]
    assert (sample.processes, sample.stats.tasks) == (1, 1)
    (world.root / "pod/a/pids.current").write_text("2\n")
    (world.root / "pod/a/cgroup.procs").write_text(f"{os.getpid()}\n{os.getppid()}\n")
    world.clock.advance(1)
    assert (await world.sampler.sample([whole]))["a"].processes == 1
    (world.root / "pod/a/cpu.stat").write_text("usage_usec 2\n")
    world.clock.advance(1)
    assert (await world.sampler.sample([whole]))["a"].processes == 2
