"""AppArmor and SELinux: what was asked for against what the host has."""

from __future__ import annotations

from dataclasses import replace

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
    process_label="system_u:system_r:container_t:s0",
    mount_label="system_u:object_r:container_file_t:s0",
)

UNCONFINED_LABEL = "system_u:system_r:spc_t:s0"
FREE = UNCONFINED_LABEL.removesuffix(":s0")


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
    with pytest.raises(FailedPrecondition, match="no parser here"):
        apparmor_profile(DEFAULT, host=AppArmorHost(trouble="no parser here"), privileged=False)


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


LEVEL = "s0:c1,c2"


def test_selinux_defaults_and_overrides() -> None:
    process, mount = selinux_labels(None, host=SELINUX, privileged=False, level=LEVEL)
    assert process == "system_u:system_r:container_t:s0:c1,c2"
    assert mount == "system_u:object_r:container_file_t:s0:c1,c2"
    empty = selinux_labels(SELinuxOptions(), host=SELINUX, privileged=False, level=LEVEL)
    assert empty == (process, mount)
    asked = SELinuxOptions(type="spc_t")
    process, same = selinux_labels(asked, host=SELINUX, privileged=True, level=LEVEL)
    assert process == "system_u:system_r:spc_t:s0:c1,c2"
    assert same == mount


@pytest.mark.parametrize("host_processes", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_selinux_of_what_is_not_to_be_held(host_processes: bool, known: bool) -> None:
    """Its files are the pod's all the same: it shares volumes, and layers have no labels."""
    host = replace(SELINUX, unconfined_label=UNCONFINED_LABEL if known else "")

    def labels(options: SELinuxOptions | None) -> tuple[str, str]:
        return selinux_labels(
            options,
            host=host,
            privileged=not host_processes,
            host_processes=host_processes,
            level=LEVEL,
        )

    assert labels(None) == (
        f"{FREE}:{LEVEL}" if known else "",
        f"system_u:object_r:container_file_t:{LEVEL}",
    )
    assert labels(SELinuxOptions(level="s0:c5"))[0] == (f"{FREE}:s0:c5" if known else "")
    asked = SELinuxOptions(type="container_t")
    assert labels(asked)[0] == f"system_u:system_r:container_t:{LEVEL}"


def test_selinux_level_that_is_asked_for_is_of_process_and_files() -> None:
    options = SELinuxOptions(user="other_u", level="s0:c7,c9")
    assert selinux_labels(options, host=SELINUX, privileged=False, level=LEVEL) == (
        "other_u:system_r:container_t:s0:c7,c9",
        "other_u:object_r:container_file_t:s0:c7,c9",
    )


def test_selinux_pod_without_a_level_was_made_without_selinux() -> None:
    assert selinux_labels(None, host=SELINUX, privileged=False) == ("", "")


def test_selinux_on_the_host_network_is_the_operators_choice() -> None:
    def labels(host: SELinuxHost, options: SELinuxOptions | None = None) -> tuple[str, str]:
        return selinux_labels(options, host=host, privileged=False, level=LEVEL, host_network=True)

    off = replace(SELINUX, host_network=False)
    assert labels(SELINUX)[0].endswith(LEVEL)
    assert labels(off) == ("", f"system_u:object_r:container_file_t:{LEVEL}")
    assert labels(replace(off, unconfined_label=UNCONFINED_LABEL))[0] == f"{FREE}:{LEVEL}"
    assert labels(off, SELinuxOptions(type="x_t"))[0] == f"system_u:system_r:x_t:{LEVEL}"


def test_selinux_whose_policy_names_no_labels() -> None:
    """Nobody who asked for a label runs without; others run as they did."""
    host = SELinuxHost(process_label="", mount_label="", trouble="lxc_contexts is not there")
    assert selinux_labels(None, host=host, privileged=False, level=LEVEL) == ("", "")
    with pytest.raises(FailedPrecondition, match="lxc_contexts"):
        selinux_labels(SELinuxOptions(type="spc_t"), host=host, privileged=False)
