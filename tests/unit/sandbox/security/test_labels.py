"""AppArmor and SELinux: what was asked for against what the host has."""

from __future__ import annotations

import pytest

from sandbox.host.errors import FailedPrecondition, InvalidArgument, Unsupported
from sandbox.model import ProfileType, SecurityProfile, SELinuxOptions
from sandbox.security.labels import AppArmorHost, SELinuxHost, apparmor_profile, selinux_labels

DEFAULT = SecurityProfile()
UNCONFINED = SecurityProfile(profile_type=ProfileType.UNCONFINED)
HOST = AppArmorHost(
    loaded=frozenset({"podwright-default", "mine"}), default_profile="podwright-default"
)
SELINUX = SELinuxHost(
    process_label="system_u:system_r:container_t:s0:c1,c2",
    mount_label="system_u:object_r:container_file_t:s0:c1,c2",
)


def localhost(name: str) -> SecurityProfile:
    return SecurityProfile(profile_type=ProfileType.LOCALHOST, localhost_ref=name)


@pytest.mark.parametrize(
    ("profile", "host", "privileged", "expected"),
    [
        (None, None, False, ""),
        (DEFAULT, None, False, ""),
        (UNCONFINED, None, False, ""),
        (None, HOST, False, "podwright-default"),
        (DEFAULT, HOST, False, "podwright-default"),
        (DEFAULT, HOST, True, ""),
        (UNCONFINED, HOST, False, "unconfined"),
        (localhost("mine"), HOST, False, "mine"),
        (localhost("localhost/mine"), HOST, False, "mine"),
        (localhost("mine"), HOST, True, "mine"),
        (localhost("any"), AppArmorHost(), False, "any"),
        (None, AppArmorHost(), False, ""),
    ],
)
def test_apparmor(
    profile: SecurityProfile | None, host: AppArmorHost | None, privileged: bool, expected: str
) -> None:
    assert apparmor_profile(profile, host=host, privileged=privileged) == expected


def test_apparmor_that_cannot_be_had() -> None:
    with pytest.raises(Unsupported, match="mine"):
        apparmor_profile(localhost("mine"), host=None, privileged=False)
    with pytest.raises(FailedPrecondition, match="other"):
        apparmor_profile(localhost("other"), host=HOST, privileged=False)
    with pytest.raises(FailedPrecondition):
        apparmor_profile(DEFAULT, host=AppArmorHost(), privileged=False)


@pytest.mark.parametrize(
    "name", ["", "localhost/", "unconfined", "localhost/unconfined", "a\nb", "a b"]
)
def test_apparmor_localhost_needs_a_name(name: str) -> None:
    for host in (None, HOST):
        with pytest.raises(InvalidArgument):
            apparmor_profile(localhost(name), host=host, privileged=False)


def test_selinux_without_selinux_is_checked_and_ignored() -> None:
    options = SELinuxOptions(type="spc_t", level="s0:c1,c2")
    assert selinux_labels(options, host=None, privileged=False) == ("", "")
    assert selinux_labels(None, host=None, privileged=False) == ("", "")


@pytest.mark.parametrize(
    "options",
    [
        SELinuxOptions(type="a:b"),
        SELinuxOptions(user="a b"),
        SELinuxOptions(role="\n"),
        SELinuxOptions(level="gibberish"),
        SELinuxOptions(level="s0:"),
    ],
)
def test_selinux_forms(options: SELinuxOptions) -> None:
    for host in (None, SELINUX):
        with pytest.raises(InvalidArgument):
            selinux_labels(options, host=host, privileged=False)


@pytest.mark.parametrize(
    "level", ["s0", "s0-s15", "s0:c1", "s0:c1,c2", "s0:c0.c1023", "s0-s0:c0.c1023"]
)
def test_selinux_levels(level: str) -> None:
    process, mount = selinux_labels(SELinuxOptions(level=level), host=SELINUX, privileged=False)
    assert process == f"system_u:system_r:container_t:{level}"
    assert mount == f"system_u:object_r:container_file_t:{level}"


def test_selinux_defaults_and_overrides() -> None:
    assert selinux_labels(None, host=SELINUX, privileged=False) == (
        SELINUX.process_label,
        SELINUX.mount_label,
    )
    assert selinux_labels(None, host=SELINUX, privileged=True) == ("", "")
    process, mount = selinux_labels(SELinuxOptions(type="spc_t"), host=SELINUX, privileged=True)
    assert process == "system_u:system_r:spc_t:s0:c1,c2"
    assert mount == SELINUX.mount_label
