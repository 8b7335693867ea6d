"""The documents of pods with a user namespace of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace as changed

from sandbox import oci
from sandbox.host.errors import InvalidArgument, Unsupported
from sandbox.model import (
    CriMount,
    IdMapping,
    MountPropagation,
    NamespaceMode,
    NamespaceOptions,
    PodConfig,
    PodSecurity,
    UserNamespace,
)
from sandbox.spec.build import container_spec, pause_spec
from sandbox.spec.linux import check_namespaces, check_same_user_namespace
from sandbox.spec.mounts import check_mount, default_mounts
from tests.kit.spec_inputs import CONTAINER, PINS, POD, container_inputs, pod_inputs


def user(first: int = 131_072, length: int = 65_536) -> UserNamespace:
    lines = (IdMapping(host_id=first, container_id=0, length=length),)
    return UserNamespace(mode=NamespaceMode.POD, uids=lines, gids=lines)


def spaces(own: UserNamespace | None = None, **modes: NamespaceMode) -> NamespaceOptions:
    return NamespaceOptions(user=own or user(), **modes)


def pod(**modes: NamespaceMode) -> PodConfig:
    return changed(POD, security=PodSecurity(namespaces=spaces(**modes)))


def test_joined_by_its_pin_before_all_others_and_mapped_as_asked() -> None:
    for spec in (pause_spec(pod_inputs(pod())), container_spec(container_inputs(pod=pod()))):
        joined = [(n.type, n.path) for n in spec.linux.namespaces if n.path]
        assert joined[0] == ("user", str(PINS["user"]))
        document = json.loads(oci.encode(spec))["linux"]
        mapping = {"containerID": 0, "hostID": 131_072, "size": 65_536}
        assert document["uidMappings"] == document["gidMappings"] == [mapping]


def test_absent_on_the_nodes_user_namespace() -> None:
    for spec in (pause_spec(pod_inputs()), container_spec(container_inputs())):
        assert "user" not in {n.type for n in spec.linux.namespaces}
        assert b"uidMappings" not in oci.encode(spec)


@pytest.mark.parametrize("kind", ["pid", "ipc"])
def test_never_beside_the_nodes(kind: str) -> None:
    with pytest.raises(InvalidArgument, match=f"node's {kind} namespace"):
        check_namespaces(pod(**{kind: NamespaceMode.NODE}))


def test_a_container_has_the_pods_or_says_nothing() -> None:
    check_same_user_namespace(spaces(), spaces())
    check_same_user_namespace(spaces(), NamespaceOptions())
    check_same_user_namespace(NamespaceOptions(), NamespaceOptions(user=UserNamespace()))
    for asked in (user(1), user(length=10), UserNamespace(mode=NamespaceMode.NODE)):
        with pytest.raises(InvalidArgument, match="not the pod's"):
            check_same_user_namespace(spaces(), NamespaceOptions(user=asked))
    with pytest.raises(InvalidArgument, match="not the pod's"):
        check_same_user_namespace(NamespaceOptions(), spaces())


def test_a_container_cannot_see_the_nodes_processes() -> None:
    own = changed(
        CONTAINER,
        security=changed(CONTAINER.security, namespaces=NamespaceOptions(pid=NamespaceMode.NODE)),
    )
    with pytest.raises(InvalidArgument, match="pid"):
        container_spec(container_inputs(own, pod=pod()))


def test_sysfs_of_the_hosts_network_is_bound_and_wholly_read_only() -> None:
    host = spaces(network=NamespaceMode.NODE)
    for privileged in (False, True):
        (sys,) = (
            m
            for m in default_mounts(privileged=privileged, namespaces=host)
            if m.destination == "/sys"
        )
        assert (sys.type, sys.source) == ("bind", "/sys")
        assert {"rbind", "rro", "nosuid", "noexec", "nodev"} <= set(sys.options)
    (own,) = (
        m for m in default_mounts(privileged=False, namespaces=spaces()) if m.destination == "/sys"
    )
    assert own.type == "sysfs"


@pytest.mark.parametrize(("length", "there"), [(5, False), (6, True), (65_536, True)])
def test_terminals_have_their_group_where_it_exists(length: int, there: bool) -> None:
    options = spaces(user(length=length))
    (pts,) = (
        m
        for m in default_mounts(privileged=False, namespaces=options)
        if m.destination == "/dev/pts"
    )
    assert ("gid=5" in pts.options) == there


def mount(**fields: object) -> CriMount:
    return CriMount(container_path="/data", host_path="/srv", **fields)  # type: ignore[arg-type]


def test_owners_of_a_mount_are_mapped_as_the_pods_or_not_at_all() -> None:
    pods = user()
    for asked in (mount(), mount(uid_mappings=pods.uids, gid_mappings=pods.gids)):
        assert check_mount(asked, recursive_read_only=True, pod_user=pods) == "/data"
    other = user(1)
    for asked in (
        mount(uid_mappings=pods.uids),
        mount(gid_mappings=pods.gids),
        mount(uid_mappings=other.uids, gid_mappings=other.gids),
    ):
        with pytest.raises(Unsupported, match="as the pod's user namespace"):
            check_mount(asked, recursive_read_only=True, pod_user=pods)


def test_mounts_made_inside_are_not_promised_to_the_node() -> None:
    both = mount(propagation=MountPropagation.BIDIRECTIONAL)
    with pytest.raises(InvalidArgument, match="bidirectional"):
        check_mount(both, recursive_read_only=True, pod_user=user())
    check_mount(both, recursive_read_only=True)


def test_the_pin_is_the_one_of_the_pod() -> None:
    spec = container_spec(container_inputs(pod=pod()))
    (joined,) = (n for n in spec.linux.namespaces if n.type == "user")
    assert Path(joined.path).name == "user"
