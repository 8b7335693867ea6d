"""The sampler and the limits against the kernel's own control groups, whichever version."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from metrics.cgroup_files import CgroupFiles, DescriptorBudget
from metrics.followed import Target
from metrics.sampler import Sampler
from metrics.settings import SamplerSettings
from sandbox import limits
from sandbox.host.cgroupfs import CgroupLayout
from sandbox.host.clock import SystemClock
from sandbox.host.errors import PodwrightError
from sandbox.limits import Limit
from tests import probes
from tests.fakes.clock import FakeClock

pytestmark = pytest.mark.root

MIB = 1 << 20
BUSY = "while True: pass"
#: On the first processor that it may use, where the next one waits for it.
CROWDED = "\n".join(
    ["os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})", "print('up', flush=True)", BUSY]
)
HOLDS = "import sys; held = bytearray(30 << 20); print('up', flush=True); sys.stdin.read()"


@pytest.fixture
def layout():
    if reason := probes.no_cgroup_write():
        pytest.skip(reason)
    return CgroupLayout.detect()


@pytest.fixture
def group(layout, cgroup_path):
    layout.create(cgroup_path)
    yield cgroup_path
    layout.kill_all(cgroup_path, signal.SIGKILL)
    layout.remove(cgroup_path)


@pytest.fixture
def start(layout, group):
    """Start Python code in the group or in one below it; it is in before the code runs."""
    running = []

    def start(code, path=group):
        files = [str(directory / "cgroup.procs") for directory in layout.dirs(path)]
        enter = f"import os\nfor f in {files!r}: open(f, 'w').write(str(os.getpid()))\n"
        process = subprocess.Popen(
            [sys.executable, "-c", enter + code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        running.append(process)
        return process

    yield start
    layout.kill_all(group, signal.SIGKILL)
    for process in running:
        process.communicate()


@pytest.fixture
def sampler(layout):
    made = Sampler(layout, SamplerSettings(min_age_s=0), clock=SystemClock())
    yield made
    made.close()


async def test_what_a_process_uses_is_seen(sampler, group, start):
    process = start(HOLDS)
    assert process.stdout.readline() == b"up\n"
    target = Target("c", group, first_pid=process.pid)
    sample = (await sampler.sample([target], detail=True))["c"]
    assert sample.stats.cpu_usage_ns > 0
    assert sample.stats.memory.rss_bytes >= 30 * MIB
    assert sample.stats.memory.working_set_bytes >= 30 * MIB
    assert sample.stats.memory.limit_bytes is None
    assert (sample.stats.tasks, sample.processes) == (1, 1)
    assert sample.detail.processes.file_descriptors >= 3
    assert sample.detail.processes.open_files_soft > 0
    assert sample.detail.cgroup.memory.max_usage_bytes >= 30 * MIB
    if sample.stats.pressure is not None:
        assert set(sample.stats.pressure.memory) == {"some", "full"}


async def test_a_busy_process_has_a_rate(sampler, group, start):
    start(BUSY)
    clock = SystemClock()
    target = Target("c", group)
    await sampler.sample([target])
    began_ns = clock.monotonic_ns()
    rate = None
    while not rate:  # version 2 counts whole ticks, of which two looks may see none
        rate = (await sampler.sample([target]))["c"].usage_nano_cores
        assert clock.monotonic_ns() - began_ns < 60 * 10**9
    assert 0 < rate < 2 * 10**9  # the machine may be busy with others; one process has one core


async def test_processes_below_the_group_are_counted(sampler, layout, group, start):
    inner = f"{group}/inner/deeper"
    layout.create(inner)
    # Beside, not in the group itself: version 2 has no processes above groups with controllers.
    layout.create(f"{group}/beside")
    outer, below = start(HOLDS, f"{group}/beside"), start(HOLDS, inner)
    assert outer.stdout.readline() == below.stdout.readline() == b"up\n"
    assert (await sampler.sample([Target("c", group)]))["c"].processes == 2


def test_open_files_of_a_group_that_was_made_again_tell_of_the_new_one(layout, group, start):
    files = CgroupFiles(layout, group, DescriptorBudget())
    name = ("memory", "memory.max" if layout.version == 2 else "memory.limit_in_bytes")
    names = (("pids", "pids.current"), name, ("pids", "none"))
    before = files.read(names)
    layout.remove(group, clock=FakeClock())
    assert files.read(names) == [None, None, None]
    layout.create(group)
    layout.write(group, *name, str(8 * MIB))
    assert files.read(names) == [b"0\n", f"{8 * MIB}\n".encode(), None] != before
    layout.remove(group, clock=FakeClock())
    layout.create(group)
    assert files.read(names) == before
    files.close()


def test_an_open_file_does_not_keep_a_group(layout, group):
    files = CgroupFiles(layout, group, DescriptorBudget())
    assert files.read((("pids", "pids.current"),)) == [b"0\n"]
    layout.remove(group, clock=FakeClock())
    assert not any(directory.exists() for directory in layout.dirs(group))
    files.close()


@pytest.mark.parametrize("order", [1, -1])
def test_memory_and_swap_move_up_and_down_in_any_order(layout, group, order):
    names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    if layout.version != 1 or layout.read(group, "memory", names[1]) is None:
        pytest.skip("only version 1 with swap accounting limits both together")
    for memory, both in ((64, 64), (128, 256), (16, 16), (64, 128)):
        wanted = [
            Limit("memory", name, str(size * MIB))
            for name, size in zip(names, (memory, both), strict=True)
        ]
        limits.set_limits(layout, group, wanted[::order])
        assert [layout.read(group, "memory", name) for name in names] == [
            str(memory * MIB),
            str(both * MIB),
        ]


def test_a_refusal_by_the_kernel_is_undone(layout, group):
    share = ("cpu.shares", "777") if layout.version == 1 else ("cpu.weight", "77")
    before = limits.read_limits(layout, group, [None])
    with pytest.raises(PodwrightError):
        limits.set_limits(
            layout,
            group,
            [Limit("cpu", *share), Limit("cpuset", "cpuset.cpus", "4000-4095")],
        )
    assert limits.read_limits(layout, group, [None]) == before


def test_all_processes_get_the_score_and_no_other(layout, group, start):
    process = start(
        "import os, time\nfor _ in range(3): os.fork()\nos.write(1, b'up\\n'); time.sleep(60)"
    )
    for _ in range(8):
        assert process.stdout.readline() == b"up\n"
    limits.set_oom_scores(layout, group, 432)
    pids = layout.procs(group)
    assert len(pids) == 8
    assert {Path(f"/proc/{pid}/oom_score_adj").read_text() for pid in pids} == {"432\n"}
    assert Path(f"/proc/{os.getpid()}/oom_score_adj").read_text() != "432\n"


async def test_a_wait_after_a_long_rest_is_seen(layout, group, start):
    """What keeps files from being read is that nothing above moves: here the kernel moves it."""
    inner = f"{group}/inner"
    layout.create(inner)
    file = None if layout.root is None else layout.root / inner[1:] / "cpu.pressure"
    if file is None or not file.exists():
        pytest.skip("this kernel tells no pressure of control groups")
    clock = FakeClock()
    sampler = Sampler(layout, SamplerSettings(interval_s=0, min_age_s=0), clock=clock)
    targets = [Target("outer", group, members=False), Target("c", inner, pod="outer")]

    async def waited_usec():
        clock.advance(10)
        sample = (await sampler.sample(targets))["c"]
        return sample.stats.pressure.cpu["some"].total_usec

    def told_usec():
        return int(file.read_text().partition("total=")[2].partition("\n")[0])

    try:
        rested = [await waited_usec() for _ in range(4)]
        assert rested[1:] == rested[:-1]
        for process in [start(CROWDED, inner) for _ in range(2)]:
            assert process.stdout.readline() == b"up\n"
        while (told := told_usec()) <= rested[-1]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await waited_usec() >= told
        assert await waited_usec() >= told
    finally:
        sampler.close()
