"""Findings about AppArmor and SELinux."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from cri.check.finding import Finding, Level
from sandbox.host import lsm_files
from sandbox.host.errors import PodwrightError
from sandbox.host.selinux_policy import SelinuxPolicy, container_labels
from sandbox.security.apparmor_text import DEFAULT_PROFILE

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox.lsm import LsmSettings

GROUP: Final = "kernel"


def security_modules(
    settings: LsmSettings,
    *,
    apparmor: bool,
    sys: Path = lsm_files.SYS,
    proc: Path = lsm_files.PROC,
    etc: Path = lsm_files.ETC,
) -> list[Finding]:
    """What confines containers besides seccomp; `apparmor`: the kernel has it switched on."""
    return [
        _apparmor(settings, there=apparmor, sys=sys),
        _selinux(settings, sys=sys, proc=proc, etc=etc),
    ]


def _apparmor(settings: LsmSettings, *, there: bool, sys: Path) -> Finding:
    name = "AppArmor"
    if not there:
        return Finding(
            GROUP, name, Level.OK, "not here; pods that ask for a profile by name are refused"
        )
    if not settings.apparmor:
        return Finding(
            GROUP,
            name,
            Level.WARNING,
            "enabled, but switched off for containers",
            'set runtime.apparmor = "auto"',
        )
    directory = lsm_files.apparmor_directory(sys)
    profiles = lsm_files.apparmor_profiles(sys)
    if profiles is None:
        mounted = directory.is_dir()
        return Finding(
            GROUP,
            name,
            Level.WARNING,
            f"enabled, but {directory}/profiles cannot be read: containers run unconfined by it",
            "run the check as root"
            if mounted
            else "mount -t securityfs securityfs /sys/kernel/security",
        )
    parser = settings.parser
    if not (parser.is_file() and os.access(parser, os.X_OK)):
        return Finding(
            GROUP,
            name,
            Level.WARNING,
            f"enabled, but there is no {parser}: containers have no default profile, and pods that"
            " ask for RuntimeDefault are refused",
            "install the package apparmor, or set runtime.apparmor_parser_path",
        )
    # A daemon that has not run yet has loaded nothing; that is no fault.
    state = "loaded" if DEFAULT_PROFILE in profiles else "loaded when the daemon starts"
    return Finding(GROUP, name, Level.OK, f"enabled; {DEFAULT_PROFILE} {state}")


def _selinux(settings: LsmSettings, *, sys: Path, proc: Path, etc: Path) -> Finding:
    name = "SELinux"
    if not lsm_files.selinux_running(sys, proc):
        return Finding(GROUP, name, Level.OK, "not here; labels that pods ask for have no effect")
    if not settings.selinux:
        return Finding(
            GROUP,
            name,
            Level.WARNING,
            "enabled, but switched off for containers",
            'set runtime.selinux = "auto"',
        )
    try:
        policy = SelinuxPolicy(sys / "fs/selinux")
        labels = container_labels(policy, etc)
    except PodwrightError as error:
        return Finding(
            GROUP,
            name,
            Level.WARNING,
            f"enabled, but the policy names no labels for containers: {error}",
            "install container-selinux, or load a policy module that declares them",
        )
    if not policy.enforces():
        return Finding(
            GROUP,
            name,
            Level.WARNING,
            f"permissive: containers run as {labels.process}, but what that may not do is only"
            " logged",
            "setenforce 1, and SELINUX=enforcing in /etc/selinux/config",
        )
    return Finding(GROUP, name, Level.OK, f"enabled; containers run as {labels.process}")
