"""Names of cgroups, and pod-level limits, for both drivers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.cgroups import (
    Cgroups,
    limited_path,
    pod_limits,
    real_path,
    shares_to_weight,
    slice_path,
)
from sandbox.host.cgroupfs import CgroupLayout
from sandbox.host.errors import InvalidArgument, NotFound, Unsupported
from sandbox.host.systemd import Systemd
from sandbox.model import LinuxResources
from tests.fakes.clock import FakeClock
from tests.fakes.processes import FakeProcessRunner

POD, CID = "p" * 64, "c" * 64


def cgroups(driver: str = "cgroupfs", layout: CgroupLayout | None = None) -> Cgroups:
    nowhere = CgroupLayout(2, {}, Path("/nowhere"), frozenset({"cpu", "memory"}))
    return Cgroups(layout or nowhere, driver, clock=FakeClock())  # type: ignore[arg-type]


def test_cgroupfs_puts_ids_below_the_parent() -> None:
    groups = cgroups()
    assert groups.pod_cgroup("/kubepods/besteffort/pod1", POD) == f"/kubepods/besteffort/pod1/{POD}"
    assert groups.container_cgroup("/a/", POD, CID) == f"/a/{CID}"
    assert groups.container_cgroup("a//b", POD, CID) == f"/a/b/{CID}"
    assert groups.parent_path("/kubepods/x", POD) == "/kubepods/x"
    assert groups.container_cgroup("/", POD, CID) == f"/{CID}"
    assert groups.parent_path("/", POD) == "/"


def test_a_pod_without_parent_gets_its_own() -> None:
    groups = cgroups()
    assert groups.pod_cgroup("", POD) == f"/podwright/pod{POD}/{POD}"
    assert groups.container_cgroup("", POD, CID) == f"/podwright/pod{POD}/{CID}"
    assert groups.parent_path("", POD) == f"/podwright/pod{POD}"


def test_cgroupfs_takes_a_slice_as_a_name_like_any_other() -> None:
    assert cgroups().container_cgroup("/a.slice", POD, CID) == f"/a.slice/{CID}"


def test_systemd_says_slice_prefix_and_id() -> None:
    groups = cgroups("systemd")
    parent = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice"
    name = "kubepods-burstable-pod1_2.slice"
    assert groups.container_cgroup(parent, POD, CID) == f"{name}:podwright:{CID}"
    assert groups.container_cgroup(name, POD, CID) == f"{name}:podwright:{CID}"
    assert groups.parent_path(name, POD) == parent
    assert real_path(f"{name}:podwright:{CID}") == f"{parent}/podwright-{CID}.scope"


def test_systemd_without_parent() -> None:
    groups = cgroups("systemd")
    assert groups.pod_cgroup("", POD) == f"podwright-pod{POD}.slice:podwright:{POD}"
    assert groups.parent_path("", POD) == f"/podwright.slice/podwright-pod{POD}.slice"


@pytest.mark.parametrize("parent", ["/k/pod1", "x.scope", ".slice", "a--b.slice", "-a.slice"])
def test_systemd_needs_a_slice(parent: str) -> None:
    with pytest.raises(InvalidArgument, match="slice"):
        cgroups("systemd").pod_cgroup(parent, POD)


@pytest.mark.parametrize("parent", ["/a/../b", "/./a", "a:b:c", "/a\0b", ".."])
@pytest.mark.parametrize("driver", ["cgroupfs", "systemd"])
def test_parents_that_are_no_plain_paths(parent: str, driver: str) -> None:
    with pytest.raises(InvalidArgument):
        cgroups(driver).pod_cgroup(parent, POD)


def test_slices_nest_by_their_names() -> None:
    assert slice_path("a.slice") == "/a.slice"
    assert slice_path("a-b-c.slice") == "/a.slice/a-b.slice/a-b-c.slice"
    assert slice_path("-.slice") == "/"
    assert real_path(f"-.slice:podwright:{CID}") == f"/podwright-{CID}.scope"


@given(st.text(max_size=60))
def test_no_parent_leads_out_of_the_tree(parent: str) -> None:
    for driver in ("cgroupfs", "systemd"):
        try:
            path = real_path(cgroups(driver).container_cgroup(parent, POD, CID))
        except InvalidArgument:
            continue
        assert path.startswith("/")
        assert not {".", "..", ""} & set(path[1:].split("/"))
        assert CID in path.rpartition("/")[2]


def test_weights_of_shares() -> None:
    assert [shares_to_weight(shares) for shares in (0, 2, 1024, 262_144, 10**9)] == [
        1,
        1,
        39,
        10_000,
        10_000,
    ]


ASKED = LinuxResources(
    cpu_shares=1024, cpu_quota_usec=50_000, cpu_period_usec=100_000, memory_limit_bytes=1 << 20
)


def test_limits_of_both_versions() -> None:
    assert pod_limits(ASKED, version=1) == [
        ("cpu", "cpu.shares", "1024"),
        ("cpu", "cpu.cfs_period_us", "100000"),
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("memory", "memory.limit_in_bytes", "1048576"),
    ]
    assert pod_limits(ASKED, version=2) == [
        ("cpu", "cpu.weight", "39"),
        ("cpu", "cpu.max", "50000 100000"),
        ("memory", "memory.max", "1048576"),
    ]


def test_an_unlimited_quota_and_nothing_asked_for() -> None:
    assert pod_limits(LinuxResources(cpu_quota_usec=-1), version=2) == [
        ("cpu", "cpu.max", "max 100000")
    ]
    assert pod_limits(LinuxResources(), version=1) == []
    assert pod_limits(LinuxResources(), version=2) == []


def test_what_else_a_pod_may_be_limited_in() -> None:
    asked = LinuxResources(
        memory_limit_bytes=100, memory_swap_limit_bytes=150, cpuset_cpus="0", cpuset_mems="1"
    )
    sets = [("cpuset", "cpuset.cpus", "0"), ("cpuset", "cpuset.mems", "1")]
    assert pod_limits(asked, version=1) == [
        ("memory", "memory.limit_in_bytes", "100"),
        ("memory", "memory.memsw.limit_in_bytes", "150"),
        *sets,
    ]
    assert pod_limits(asked, version=2) == [
        ("memory", "memory.max", "100"),
        ("memory", "memory.swap.max", "50"),
        *sets,
    ]
    unlimited = LinuxResources(memory_limit_bytes=-1, memory_swap_limit_bytes=-1)
    assert [value for _, _, value in pod_limits(unlimited, version=2)] == ["max", "max"]


def test_unified_limits_need_version_2() -> None:
    asked = LinuxResources(unified={"memory.high": "7"})
    assert pod_limits(asked, version=2) == [("memory", "memory.high", "7")]
    with pytest.raises(Unsupported):
        pod_limits(asked, version=1)


async def test_limits_of_a_pod_hold_all_or_none(tmp_path: Path) -> None:
    layout = CgroupLayout(2, {}, tmp_path, frozenset({"cpu", "memory"}))
    groups = cgroups(layout=layout)
    own = tmp_path / "podwright" / f"pod{POD}"
    own.mkdir(parents=True)
    (own / "cpu.weight").write_text("100")
    (own / "memory.max").write_text("max")
    with pytest.raises(NotFound, match=r"cpu\.max"):
        await groups.limit_pod("", POD, ASKED)
    assert (own / "cpu.weight").read_text().startswith("100")
    (own / "cpu.max").write_text("max 100000")
    await groups.limit_pod("", POD, ASKED)
    assert (own / "memory.max").read_text().startswith("1048576")
    assert (own / "cpu.max").read_text().startswith("50000 100000")


async def test_swap_is_left_where_it_is_not_accounted(tmp_path: Path) -> None:
    layout = CgroupLayout(2, {}, tmp_path, frozenset({"memory"}))
    own = tmp_path / "podwright" / f"pod{POD}"
    own.mkdir(parents=True)
    (own / "memory.max").write_text("max")
    asked = LinuxResources(memory_limit_bytes=5, memory_swap_limit_bytes=9, cpu_shares=3)
    await cgroups(layout=layout).limit_pod("", POD, asked)
    assert (own / "memory.max").read_text().startswith("5")


def names(directory: Path) -> list[str]:
    return [entry.name for entry in directory.iterdir()]


async def test_only_a_parent_of_ours_is_limited_and_removed(tmp_path: Path) -> None:
    layout = CgroupLayout(2, {}, tmp_path, frozenset({"cpu", "memory"}))
    groups = cgroups(layout=layout)
    foreign = tmp_path / "kubepods" / "pod1"
    foreign.mkdir(parents=True)
    (foreign / POD).mkdir()
    await groups.limit_pod("/kubepods/pod1", POD, ASKED)
    await groups.remove_pod(f"/kubepods/pod1/{POD}", "/kubepods/pod1", POD)
    assert names(foreign) == []
    own = tmp_path / "podwright" / f"pod{POD}"
    (own / POD).mkdir(parents=True)
    await groups.remove_pod(groups.pod_cgroup("", POD), "", POD)
    assert not own.exists()


async def test_systemd_makes_its_own_slices(tmp_path: Path) -> None:
    groups = cgroups("systemd", CgroupLayout(2, {}, tmp_path, frozenset()))
    await groups.prepare(groups.pod_cgroup("", POD), "")
    assert names(tmp_path) == []


async def test_systemd_makes_limits_and_forgets_the_slice_of_a_pod_without_parent(
    tmp_path: Path,
) -> None:
    layout = CgroupLayout(2, {}, tmp_path, frozenset({"cpu", "memory"}))
    runner = FakeProcessRunner()
    groups = Cgroups(layout, "systemd", clock=FakeClock(), systemd=Systemd(runner))
    cgroup = groups.pod_cgroup("", POD)
    name = f"podwright-pod{POD}.slice"
    await groups.prepare(cgroup, "")
    await groups.limit_pod("", POD, ASKED)
    await groups.remove_pod(cgroup, "", POD)
    assert [(run.argv[6], name in run.argv) for run in runner.runs] == [
        ("StartTransientUnit", True),
        ("SetUnitProperties", True),
        ("StopUnit", True),
    ]
    assert "MemoryMax" in runner.runs[1].argv
    runner.runs.clear()
    theirs = "kubepods-pod1.slice"
    await groups.prepare(groups.pod_cgroup(theirs, POD), theirs)
    await groups.limit_pod(theirs, POD, ASKED)
    await groups.remove_pod(groups.pod_cgroup(theirs, POD), theirs, POD)
    assert runner.runs == []


async def test_a_sweep_forgets_a_slice_by_its_path(tmp_path: Path) -> None:
    layout = CgroupLayout(2, {}, tmp_path, frozenset())
    runner = FakeProcessRunner()
    groups = Cgroups(layout, "systemd", clock=FakeClock(), systemd=Systemd(runner))
    await groups.remove(f"/podwright.slice/podwright-pod{POD}.slice/podwright-{CID}.scope")
    assert runner.runs == []
    await groups.remove(f"/podwright.slice/podwright-pod{POD}.slice")
    assert [run.argv[6:8] for run in runner.runs] == [("StopUnit", "ss")]


def test_limits_are_in_the_group_that_crun_makes_below_a_scope(tmp_path: Path) -> None:
    cgroup = f"a.slice:podwright:{CID}"
    scope = f"/a.slice/podwright-{CID}.scope"
    two = CgroupLayout(2, {}, tmp_path, frozenset())
    assert limited_path(two, cgroup) == scope
    (tmp_path / scope[1:] / "container").mkdir(parents=True)
    assert limited_path(two, cgroup) == f"{scope}/container"
    assert limited_path(CgroupLayout(1, {"memory": tmp_path}), cgroup) == scope
    (tmp_path / "x/container").mkdir(parents=True)
    assert limited_path(two, "/x") == "/x"
