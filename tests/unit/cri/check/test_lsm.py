"""Findings about AppArmor and SELinux."""

from __future__ import annotations

from pathlib import Path

import pytest

from cri.check.finding import Finding, Level
from cri.check.lsm import security_modules
from sandbox.lsm import LsmSettings


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "parser").write_text("")
    (tmp_path / "parser").chmod(0o755)
    return tmp_path


def look(base: Path, *, there: bool = True, **changes: bool | Path) -> tuple[Finding, Finding]:
    settings = LsmSettings(**{"parser": base / "parser", **changes})  # type: ignore[arg-type]
    apparmor, selinux = security_modules(
        settings, apparmor=there, sys=base / "sys", proc=base / "proc", etc=base / "etc"
    )
    return apparmor, selinux


def with_profiles(base: Path, text: str = "") -> None:
    directory = base / "sys/kernel/security/apparmor"
    directory.mkdir(parents=True)
    (directory / "profiles").write_text(text)


def with_selinux(base: Path) -> None:
    (base / "sys/fs/selinux").mkdir(parents=True)
    (base / "sys/fs/selinux/enforce").write_text("1")
    (base / "proc/self/attr").mkdir(parents=True)
    (base / "proc/self/attr/current").write_text("system_u:system_r:init_t:s0")


def test_neither_is_here(base: Path) -> None:
    for finding in look(base, there=False):
        assert finding.level is Level.OK
        assert "not here" in finding.detail


def test_apparmor_with_our_profile_and_before_it(base: Path) -> None:
    with_profiles(base)
    assert look(base)[0].detail.endswith("loaded when the daemon starts")
    (base / "sys/kernel/security/apparmor/profiles").write_text("podwright-default (enforce)\n")
    finding = look(base)[0]
    assert finding.level is Level.OK
    assert finding.detail == "enabled; podwright-default loaded"


def test_apparmor_that_is_switched_off_is_a_warning(base: Path) -> None:
    with_profiles(base)
    finding = look(base, apparmor=False)[0]
    assert finding.level is Level.WARNING
    assert "runtime.apparmor" in finding.remedy


def test_apparmor_without_its_files(base: Path) -> None:
    finding = look(base)[0]
    assert finding.level is Level.WARNING
    assert "mount -t securityfs" in finding.remedy


def test_apparmor_without_the_parser(base: Path) -> None:
    with_profiles(base)
    (base / "parser").chmod(0o644)
    finding = look(base)[0]
    assert finding.level is Level.WARNING
    assert "install the package apparmor" in finding.remedy


def test_selinux_with_and_without_labels_for_containers(base: Path) -> None:
    with_selinux(base)
    finding = look(base)[1]
    assert finding.level is Level.WARNING
    assert "container-selinux" in finding.remedy
    contexts = base / "etc/selinux/targeted/contexts"
    contexts.mkdir(parents=True)
    (contexts / "lxc_contexts").write_text('process = "a:b:c:s0"\nfile = "a:b:d:s0"\n')
    finding = look(base)[1]
    assert (finding.level, finding.detail) == (Level.OK, "enabled; containers run as a:b:c:s0")
    assert look(base, selinux=False)[1].level is Level.WARNING


def test_selinux_that_only_logs(base: Path) -> None:
    with_selinux(base)
    contexts = base / "etc/selinux/targeted/contexts"
    contexts.mkdir(parents=True)
    (contexts / "lxc_contexts").write_text('process = "a:b:c:s0"\nfile = "a:b:d:s0"\n')
    (base / "sys/fs/selinux/enforce").write_text("0")
    finding = look(base)[1]
    assert finding.level is Level.WARNING
    assert finding.detail.startswith("permissive: containers run as a:b:c:s0")
    assert "setenforce 1" in finding.remedy
