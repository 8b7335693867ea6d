"""Cgroups of pods on the real hierarchies: made, limited, emptied and removed."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from sandbox.cgroups import Cgroups
from sandbox.host.cgroupfs import CgroupLayout
from sandbox.host.clock import SystemClock
from sandbox.host.errors import Busy
from sandbox.host.processes import HostProcessRunner
from sandbox.model import LinuxResources
from tests.kit.faults import PATIENCE_S

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture
def cgroups() -> Cgroups:
    return Cgroups(CgroupLayout.detect(), "cgroupfs", clock=SystemClock(), kill_s=PATIENCE_S)


async def test_a_process_finds_its_prepared_cgroup_in_every_hierarchy(
    cgroups: Cgroups, cgroup_path: str
) -> None:
    group = f"{cgroup_path}/c1"
    await cgroups.prepare(group, cgroup_path)
    await cgroups.prepare(group, cgroup_path)
    child = await HostProcessRunner().spawn(("/bin/sleep", "1000"))
    await cgroups.enter(group, child.pid)
    assert await cgroups.processes(group) == {child.pid}
    assert all(line.endswith(group) for line in membership(child.pid))
    with pytest.raises(Busy):
        await cgroups.remove(group)
    assert await cgroups.kill(group)
    assert await child.wait() == -signal.SIGKILL
    await cgroups.remove(group)
    await cgroups.remove(group)
    await cgroups.remove(cgroup_path)
    assert not any(directory.exists() for directory in cgroups.directories(cgroup_path))


async def test_a_fork_bomb_is_outrun(cgroups: Cgroups, cgroup_path: str) -> None:
    group = f"{cgroup_path}/bomb"
    await cgroups.prepare(group, "")
    script = "kill -STOP $$; while true; do (sleep 1000 &); done"
    child = await HostProcessRunner().spawn(("/bin/sh", "-c", script))
    await cgroups.enter(group, child.pid)
    cgroups.layout.write(group, "pids", "pids.max", "200")
    while state(child.pid) != "T":  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    child.kill_group(signal.SIGCONT)
    while len(await cgroups.processes(group)) < 20:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert await cgroups.kill(group)
    await child.wait()
    await cgroups.remove(group)
    await cgroups.remove(cgroup_path)


def membership(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cgroup").read_text().splitlines()


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_pod_limits_are_set_on_a_parent_of_ours(cgroups: Cgroups, cgroup_path: str) -> None:
    pod = cgroup_path.strip("/")
    group = cgroups.pod_cgroup("", pod)
    await cgroups.prepare(group, "")
    try:
        await cgroups.limit_pod(
            "",
            pod,
            LinuxResources(
                cpu_shares=512,
                cpu_quota_usec=20_000,
                cpu_period_usec=100_000,
                memory_limit_bytes=64 << 20,
            ),
        )
        above = cgroups.parent_path("", pod)
        read = cgroups.layout.read
        if cgroups.layout.version == 1:
            assert read(above, "memory", "memory.limit_in_bytes") == str(64 << 20)
            assert read(above, "cpu", "cpu.cfs_quota_us") == "20000"
            assert read(above, "cpu", "cpu.shares") == "512"
        else:
            assert read(above, "memory", "memory.max") == str(64 << 20)
            assert read(above, "cpu", "cpu.max") == "20000 100000"
    finally:
        await cgroups.remove_pod(group, "", pod)
    assert not any(directory.exists() for directory in cgroups.directories(above))
