from pathlib import Path

import pytest

from cri.check.finding import Level
from cri.check.groups import control_groups
from sandbox.host.cgroupfs import CgroupLayout

V1 = ("cpu", "memory", "pids", "cpuset", "hugetlb")


def first(names, root=None):
    at = Path("/sys/fs/cgroup")
    return CgroupLayout(1, {n: at / n for n in names}, root, frozenset(names))


def found(layout, name, *, driver="cgroupfs", systemd=False, crun=True):
    findings = control_groups(
        layout, driver, systemd_runs=systemd, uses_crun=crun, privileged=False
    )
    return [f for f in findings if f.name == name]


def test_no_hierarchy_at_all():
    [finding] = control_groups(
        None, "cgroupfs", systemd_runs=False, uses_crun=True, privileged=False
    )
    assert finding.level is Level.ERROR
    assert "mount" in finding.remedy


def test_all_controllers():
    [finding] = found(first(V1), "controllers")
    assert (finding.level, finding.detail) == (Level.OK, "cpu, cpuset, hugetlb, memory, pids")


def test_missing_controllers_by_how_much_they_matter():
    [finding] = found(first(("cpu", "memory", "pids", "hugetlb")), "controllers")
    assert (finding.level, finding.detail) == (Level.WARNING, "missing: cpuset")
    assert "mount -t cgroup -o cpuset" in finding.remedy
    [finding] = found(CgroupLayout(2, {}, Path("/x"), frozenset(V1) - {"pids"}), "controllers")
    assert (finding.level, finding.detail) == (Level.ERROR, "missing: pids")
    assert "kernel line" in finding.remedy


@pytest.fixture
def second(tmp_path):
    (tmp_path / "cgroup.controllers").write_text("hugetlb rdma\n")
    return tmp_path


def test_hugetlb_that_version_two_has_in_a_hybrid_node(second):
    without = tuple(name for name in V1 if name != "hugetlb")
    [finding] = found(first(without, second), "hugetlb for crun")
    assert finding.level is Level.ERROR
    assert finding.remedy.endswith("mount -t cgroup -o hugetlb hugetlb /sys/fs/cgroup/hugetlb")
    # runc does not care, and neither does crun where it is in its place.
    assert found(first(without, second), "hugetlb for crun", crun=False) == []
    assert found(first(V1, second), "hugetlb for crun") == []
    assert found(CgroupLayout(2, {}, second, frozenset(V1)), "hugetlb for crun") == []


@pytest.mark.parametrize(
    ("driver", "systemd", "level"),
    [
        ("cgroupfs", False, Level.OK),
        ("systemd", True, Level.OK),
        ("systemd", False, Level.ERROR),
        ("cgroupfs", True, Level.WARNING),
    ],
)
def test_driver_and_who_runs_the_node(driver, systemd, level):
    [finding] = found(first(V1), "driver", driver=driver, systemd=systemd)
    assert finding.level is level


def test_nothing_is_tried_without_root():
    [finding] = found(first(V1), "new groups")
    assert (finding.level, finding.detail) == (Level.WARNING, "not tried")
