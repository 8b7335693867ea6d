"""Control groups of the real kernel, whichever version this machine has."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from sandbox.host.cgroupfs import CgroupLayout
from sandbox.host.errors import Busy, InvalidArgument, NotFound, Unsupported
from sandbox.host.processes import HostProcessRunner
from tests import probes
from tests.fakes.clock import FakeClock
from tests.kit.faults import PATIENCE_S

pytestmark = pytest.mark.root


@pytest.fixture
def layout():
    if reason := probes.no_cgroup_write():
        pytest.skip(reason)
    return CgroupLayout.detect()


@pytest.fixture
def version_2(layout):
    """A version 2 tree even where its controllers are version 1: processes are real in it."""
    if layout.root is None:
        pytest.skip("cgroup2 is not mounted")
    return CgroupLayout(2, {}, layout.root, frozenset())


@pytest.fixture
def group_2(version_2, cgroup_path):
    version_2.create(cgroup_path)
    yield cgroup_path
    version_2.kill_all(cgroup_path)
    version_2.remove(cgroup_path)


async def test_version_2_lists_freezes_and_kills(version_2, group_2, child):
    inner = f"{group_2}/inner"
    version_2.create(inner)
    put(version_2, inner, child.pid)
    assert version_2.procs(group_2, recursive=True) == {child.pid}
    version_2.write(group_2, "cgroup", "cgroup.freeze", "1")
    with pytest.raises(Busy):
        version_2.remove(group_2, clock=FakeClock())
    assert version_2.kill_all(group_2) == 1
    assert await child.wait() == -signal.SIGKILL
    assert version_2.remove(group_2)


async def test_version_2_threaded_groups_list_no_processes_of_their_own(version_2, group_2, child):
    inner = f"{group_2}/inner"
    # Made by the container itself: below `create` controllers are on that refuse threaded groups.
    for directory in version_2.dirs(inner):
        directory.mkdir()
    version_2.write(inner, "cgroup", "cgroup.type", "threaded")
    put(version_2, group_2, child.pid)
    assert version_2.procs(inner) == set()
    assert version_2.procs(group_2, recursive=True) == {child.pid}
    version_2.kill_all(group_2)
    assert await child.wait() == -signal.SIGKILL


@pytest.fixture
def group(layout, cgroup_path):
    layout.create(cgroup_path)
    yield cgroup_path
    layout.kill_all(cgroup_path)
    layout.remove(cgroup_path)


@pytest.fixture
async def child():
    """A process that can be put into a group."""
    child = await HostProcessRunner().spawn(["sleep", "1000"])
    yield child
    child.kill_group()
    await child.wait()


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - the kernel sets no Event
            await asyncio.sleep(0.001)


def put(layout, path, pid):
    for directory in layout.dirs(path):
        (directory / "cgroup.procs").write_text(str(pid))


def test_groups_are_made_everywhere_and_ready_for_processes(layout, cgroup_path):
    path = f"{cgroup_path}/pod/inner"
    made = layout.create(path)
    assert layout.create(path) == []
    roots = len(layout.dirs("/"))
    assert len(made) == 3 * roots
    assert all(directory.is_dir() for directory in layout.dirs(path))
    if layout.version == 1 and "cpuset" in layout.available:
        cpus = layout.read(path, "cpuset", "cpuset.cpus")
        assert cpus == layout.read("/", "cpuset", "cpuset.cpus") != ""
    if layout.version == 2:
        assert set((layout.read(path, "cgroup", "cgroup.controllers") or "").split()) >= {"pids"}
    assert layout.remove(cgroup_path)
    assert not layout.remove(cgroup_path)
    assert not any(directory.exists() for directory in layout.dirs(cgroup_path))


async def test_processes_are_listed_and_a_group_with_some_is_busy(layout, group, child):
    inner = f"{group}/inner"
    layout.create(inner)
    put(layout, inner, child.pid)
    assert layout.procs(inner) == {child.pid}
    assert layout.procs(group) == set()
    assert layout.procs(group, recursive=True) == {child.pid}
    with pytest.raises(Busy, match=str(child.pid)):
        layout.remove(group, clock=FakeClock())
    assert layout.kill_all(group) == 1
    assert await child.wait() == -signal.SIGKILL
    assert layout.procs(group, recursive=True) == set()


async def test_a_group_can_be_asked_to_end(layout, group, child):
    put(layout, group, child.pid)
    assert layout.kill_all(group, signal.SIGTERM) == 1
    assert await child.wait() == -signal.SIGTERM


async def test_a_group_that_forks_all_the_time_dies(layout, group):
    # Both numbers change with every step, so signalling what was listed is always too late.
    script = "read go; f() { while :; do sh -c : & sh -c :; done; }; f & f & f"
    read, write = os.pipe()
    child = await HostProcessRunner().spawn(["sh", "-c", script], stdin_fd=read)
    os.close(read)
    put(layout, group, child.pid)
    os.write(write, b"go\n")
    os.close(write)
    await until(lambda: len(layout.procs(group)) >= 5)
    await asyncio.to_thread(layout.kill_all, group)
    await until(lambda: not layout.procs(group, recursive=True))
    assert await child.wait() == -signal.SIGKILL


async def test_a_frozen_group_dies(layout, group, child):
    put(layout, group, child.pid)
    if layout.version == 1:
        layout.write(group, "freezer", "freezer.state", "FROZEN")
    else:
        layout.write(group, "cgroup", "cgroup.freeze", "1")
    layout.kill_all(group)
    assert await child.wait() == -signal.SIGKILL


def test_values_are_read_and_written(layout, group):
    layout.write(group, "pids", "pids.max", "77")
    assert layout.read(group, "pids", "pids.max") == "77"
    with pytest.raises(InvalidArgument, match=r"pids\.max"):
        layout.write(group, "pids", "pids.max", "many")
    assert layout.read(group, "pids", "pids.nothing") is None
    assert layout.read(f"{group}/none", "pids", "pids.max") is None
    with pytest.raises(NotFound):
        layout.write(f"{group}/none", "pids", "pids.max", "1")
    if layout.version == 1:
        with pytest.raises(Unsupported):
            layout.write(group, "nosuchcontroller", "x", "1")


@pytest.mark.slow
async def test_oom_kills_are_counted(layout, group):
    limit = "memory.max" if layout.version == 2 else "memory.limit_in_bytes"
    layout.write(group, "memory", limit, str(16 * 1024 * 1024))
    assert layout.oom_kills(group) == 0
    join = "; ".join(f"echo $$ > {each}/cgroup.procs" for each in layout.dirs(group))
    done = await HostProcessRunner().run(
        ["sh", "-c", f"{join}; head -c 200m /dev/zero | tail | cat"], truncate=True
    )
    assert done.exit_status != 99
    assert (layout.oom_kills(group) or 0) >= 1


def test_every_group_there_is(layout, group):
    found = layout.walk()
    assert group in found
    assert "/" not in found


def test_groups_of_others_are_not_touched(layout, cgroup_path):
    """Those of this machine come and go; of two that were made here one begins like ours."""
    others = (f"{cgroup_path}0", f"{cgroup_path}-other")
    mine = Path("/proc/self/cgroup").read_text()
    try:
        for other in others:
            layout.create(f"{other}/a")
        layout.create(f"{cgroup_path}/a/b")
        layout.remove(cgroup_path)
        assert layout.walk() >= {path for other in others for path in (other, f"{other}/a")}
        assert Path("/proc/self/cgroup").read_text() == mine
    finally:
        for other in others:
            layout.remove(other)
