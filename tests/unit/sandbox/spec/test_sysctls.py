"""Which sysctls a pod may set."""

from __future__ import annotations

import pytest
from msgspec.structs import replace as changed

from sandbox.host.errors import InvalidArgument
from sandbox.model import (
    IdMapping,
    NamespaceMode,
    NamespaceOptions,
    PodConfig,
    PodSecurity,
    UserNamespace,
)
from sandbox.spec.sysctls import check_sysctls, pod_sysctls
from tests.kit.spec_inputs import POD

NODE = NamespaceMode.NODE


def pod(sysctls: dict[str, str], **modes: NamespaceMode) -> PodConfig:
    security = PodSecurity(namespaces=NamespaceOptions(**modes))
    return changed(POD, sysctls=sysctls, security=security)


def test_defaults_and_overrides() -> None:
    assert pod_sysctls(pod({})) == {
        "net.ipv4.ip_unprivileged_port_start": "0",
        "net.ipv4.ping_group_range": "0 2147483647",
    }
    start = "net.ipv4.ip_unprivileged_port_start"
    assert pod_sysctls(pod({start: "80"}))[start] == "80"
    slashed = pod_sysctls(pod({"net/ipv4/ip_unprivileged_port_start": "80"}))
    assert start not in slashed
    assert pod_sysctls(pod({}, network=NODE)) == {}


def test_ping_is_for_the_groups_of_the_user_namespace() -> None:
    """The kernel takes no range with a group that does not exist there."""
    line = (IdMapping(host_id=100_000, container_id=0, length=65_536),)
    user = UserNamespace(mode=NamespaceMode.POD, uids=line, gids=line)
    config = changed(POD, security=PodSecurity(namespaces=NamespaceOptions(user=user)))
    assert pod_sysctls(config)["net.ipv4.ping_group_range"] == "0 65535"


@pytest.mark.parametrize(
    "key",
    ["net.core.somaxconn", "kernel.shmmax", "kernel.msgmnb", "kernel.sem", "fs.mqueue.msg_max"],
)
def test_namespaced_ones_are_accepted(key: str) -> None:
    check_sysctls(pod({key: "1"}))


@pytest.mark.parametrize(
    ("key", "modes"),
    [
        ("net.core.somaxconn", {"network": NODE}),
        ("kernel.domainname", {"network": NODE}),
        ("kernel.shmmax", {"ipc": NODE}),
        ("kernel.shm_rmid_forced", {"ipc": NODE}),
        ("kernel.msgmax", {"ipc": NODE}),
        ("kernel.sem", {"ipc": NODE}),
        ("fs.mqueue.msg_max", {"ipc": NODE}),
    ],
)
def test_those_of_the_host_are_refused(key: str, modes: dict[str, NamespaceMode]) -> None:
    """CVE-2022-0532."""
    with pytest.raises(InvalidArgument, match=key):
        pod_sysctls(pod({key: "1"}, **modes))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kernel.core_pattern", "|/evil"),
        ("kernel.panic", "1"),
        ("vm.swappiness", "1"),
        ("kernel.shmmax+kernel.core_pattern", "1"),
        ("kernel.shm_rmid_forced", "1\nkernel.core_pattern=x"),
        ("kernel.shm_rmid_forced", "1\0"),
        ("net.ipv4.x=1", "1"),
        ("net.//.//.kernel.core_pattern", "1"),
        ("net/../kernel/core_pattern", "1"),
        ("net..kernel", "1"),
        ("../net.core.x", "1"),
        ("", "1"),
        ("net.core.somaxconn", "1" * 5000),
    ],
)
def test_attacks_are_refused(key: str, value: str) -> None:
    """CVE-2022-0811 and relatives."""
    with pytest.raises(InvalidArgument):
        pod_sysctls(pod({key: value}))
