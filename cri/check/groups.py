"""Findings about control groups."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cri.check.finding import Finding, Level
from sandbox.host.errors import PodwrightError

if TYPE_CHECKING:
    from sandbox.host.cgroupfs import CgroupLayout
    from sandbox.settings import CgroupDriver

GROUP: Final = "control groups"

#: What limits of pods are made of; without the first three no limit of Kubernetes works.
NEEDED: Final = ("cpu", "memory", "pids")
USEFUL: Final = ("cpuset", "hugetlb")


def control_groups(
    layout: CgroupLayout | None,
    driver: CgroupDriver,
    *,
    systemd_runs: bool,
    uses_crun: bool,
    privileged: bool,
) -> list[Finding]:
    """What the control groups of this node can do for the chosen driver."""
    if layout is None:
        remedy = "mount -t cgroup2 cgroup2 /sys/fs/cgroup"
        return [Finding(GROUP, "hierarchy", Level.ERROR, "none is mounted", remedy)]
    return [
        _hierarchy(layout),
        *_controllers(layout),
        *_hugetlb(layout, uses_crun=uses_crun),
        _driver(driver, systemd_runs=systemd_runs),
        _writable(layout, privileged=privileged),
    ]


def _hierarchy(layout: CgroupLayout) -> Finding:
    name = f"version {layout.version}" + (" with version 2 beside it" if layout.hybrid else "")
    return Finding(GROUP, "hierarchy", Level.OK, name)


def _controllers(layout: CgroupLayout) -> list[Finding]:
    findings = []
    for names, level in ((NEEDED, Level.ERROR), (USEFUL, Level.WARNING)):
        absent = [name for name in names if name not in layout.available]
        if not absent:
            continue
        if layout.version == 2:
            remedy = "enable them at boot (cgroup_enable=, cgroup_disable= of the kernel line)"
        else:
            remedy = f"mount each: mount -t cgroup -o {absent[0]} cgroup /sys/fs/cgroup/{absent[0]}"
        findings.append(
            Finding(GROUP, "controllers", level, f"missing: {', '.join(absent)}", remedy)
        )
    if not findings:
        there = ", ".join(sorted(layout.available))
        findings.append(Finding(GROUP, "controllers", Level.OK, there))
    return findings


def _hugetlb(layout: CgroupLayout, *, uses_crun: bool) -> list[Finding]:
    """In a hybrid node crun looks for hugetlb among the version 1 controllers and fails without.

    The kernel gives a controller that is not mounted as version 1 to the version 2 tree, where crun
    does not look as long as others are version 1.
    """
    if not uses_crun or not layout.hybrid or layout.root is None:
        return []
    try:
        in_second = "hugetlb" in (layout.root / "cgroup.controllers").read_text().split()
    except OSError:
        return []
    if not in_second or "hugetlb" in layout.controllers:
        return []
    at = next(iter(layout.controllers.values()), Path("/sys/fs/cgroup/x")).parent / "hugetlb"
    return [
        Finding(
            GROUP,
            "hugetlb for crun",
            Level.ERROR,
            "belongs to version 2 while other controllers are version 1: crun makes no container",
            f"mkdir {at} && mount -t cgroup -o hugetlb hugetlb {at}",
        )
    ]


def _driver(driver: CgroupDriver, *, systemd_runs: bool) -> Finding:
    name = "driver"
    if driver == "systemd" and not systemd_runs:
        remedy = 'set runtime.cgroup_driver = "cgroupfs"'
        return Finding(GROUP, name, Level.ERROR, "systemd, which does not run here", remedy)
    if driver == "cgroupfs" and systemd_runs:
        return Finding(
            GROUP,
            name,
            Level.WARNING,
            "cgroupfs, while systemd runs this node: both write to one tree",
            'set runtime.cgroup_driver = "systemd"; a current kubelet follows by itself',
        )
    return Finding(GROUP, name, Level.OK, driver)


def _writable(layout: CgroupLayout, *, privileged: bool) -> Finding:
    """Make a control group in every hierarchy and remove it."""
    name = "new groups"
    if not privileged:
        return Finding(GROUP, name, Level.WARNING, "not tried", "run the check as root")
    path = f"/podwright-check-{os.getpid()}"
    try:
        layout.create(path)
        layout.remove(path)
    except PodwrightError as error:
        remedy = "remount /sys/fs/cgroup writable; in a container, give it its own control groups"
        return Finding(GROUP, name, Level.ERROR, str(error), remedy)
    return Finding(GROUP, name, Level.OK, "can be made and removed")
