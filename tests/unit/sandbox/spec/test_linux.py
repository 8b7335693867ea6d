"""Namespaces, devices, guarded paths; and what container_spec refuses as a whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from msgspec.structs import replace as changed

from sandbox import oci
from sandbox.host.errors import FailedPrecondition, InvalidArgument
from sandbox.model import (
    CriMount,
    NamespaceMode,
    NamespaceOptions,
    PodSecurity,
)
from sandbox.spec.build import container_spec, pause_spec
from sandbox.spec.inputs import DeviceNode, ResolvedMount
from sandbox.spec.linux import (
    check_namespaces,
    container_namespaces,
    device_permissions,
    devices,
    guarded_paths,
    pause_namespaces,
)
from tests.kit.spec_inputs import (
    CONTAINER,
    HOST_V1,
    HOST_V2,
    IMAGE,
    PINS,
    POD,
    container_inputs,
    pod_inputs,
)

NODE, OWN, SHARED, TARGET = (
    NamespaceMode.NODE,
    NamespaceMode.CONTAINER,
    NamespaceMode.POD,
    NamespaceMode.TARGET,
)


def pod(**modes: NamespaceMode) -> object:
    return changed(POD, security=PodSecurity(namespaces=NamespaceOptions(**modes)))


def kinds(namespaces: tuple[oci.Namespace, ...]) -> dict[str, str]:
    return {item.type: Path(item.path).name for item in namespaces}


@pytest.mark.parametrize(
    ("pod_modes", "own", "expected"),
    [
        ({}, OWN, {"network": "net", "ipc": "ipc", "uts": "uts", "pid": ""}),
        ({}, SHARED, {"network": "net", "ipc": "ipc", "uts": "uts", "pid": "pid"}),
        ({}, NODE, {"network": "net", "ipc": "ipc", "uts": "uts"}),
        ({}, TARGET, {"network": "net", "ipc": "ipc", "uts": "uts", "pid": "target"}),
        ({"network": NODE}, OWN, {"ipc": "ipc", "pid": ""}),
        ({"ipc": NODE}, OWN, {"network": "net", "uts": "uts", "pid": ""}),
        ({"pid": NODE}, SHARED, {"network": "net", "ipc": "ipc", "uts": "uts"}),
        ({"pid": NODE, "network": NODE, "ipc": NODE}, NODE, {}),
    ],
)
def test_container_namespaces(
    pod_modes: dict[str, NamespaceMode], own: NamespaceMode, expected: dict[str, str]
) -> None:
    namespaces = container_namespaces(
        pod(**pod_modes),  # type: ignore[arg-type]
        NamespaceOptions(pid=own),
        PINS,
        target_pid=Path("/pins/target"),
        privileged=False,
        cgroup_version=1,
    )
    assert kinds(namespaces) == {"mount": "", **expected}


def test_pause_namespaces() -> None:
    for mode in (SHARED, OWN):
        config = pod(pid=mode)
        assert kinds(pause_namespaces(config, PINS, cgroup_version=1))["pid"] == ""  # type: ignore[arg-type]
    config = pod(pid=NODE)
    assert "pid" not in kinds(pause_namespaces(config, PINS, cgroup_version=1))  # type: ignore[arg-type]


def test_own_cgroup_namespace_only_on_v2_and_not_privileged() -> None:
    security = PodSecurity(privileged=True)
    for version, privileged, expected in ((1, False, False), (2, False, True), (2, True, False)):
        spec = pause_spec(
            pod_inputs(
                changed(POD, security=security) if privileged else POD,
                host=HOST_V2 if version == 2 else HOST_V1,
            )
        )
        assert ("cgroup" in kinds(spec.linux.namespaces)) == expected


def test_missing_pin_is_an_error_never_the_hosts() -> None:
    for missing in ("net", "ipc", "uts"):
        pins = {kind: path for kind, path in PINS.items() if kind != missing}
        for build in (
            lambda pins=pins: pause_spec(replace(pod_inputs(), pins=pins)),
            lambda pins=pins: container_spec(replace(container_inputs(), pins=pins)),
        ):
            with pytest.raises(FailedPrecondition, match=missing):
                build()
    shared = changed(
        CONTAINER, security=changed(CONTAINER.security, namespaces=NamespaceOptions(pid=SHARED))
    )
    pins = {kind: path for kind, path in PINS.items() if kind != "pid"}
    with pytest.raises(FailedPrecondition, match="pid"):
        container_spec(replace(container_inputs(shared), pins=pins))


def test_namespaces_are_not_joined_through_proc() -> None:
    """CVE-2019-14891."""
    pins = {**PINS, "net": Path("/proc/1/ns/net")}
    with pytest.raises(InvalidArgument):
        container_spec(replace(container_inputs(), pins=pins))


def test_target_needs_a_target() -> None:
    config = changed(
        CONTAINER, security=changed(CONTAINER.security, namespaces=NamespaceOptions(pid=TARGET))
    )
    with pytest.raises(InvalidArgument, match="TARGET"):
        container_spec(container_inputs(config))


@pytest.mark.parametrize(
    "options",
    [
        NamespaceOptions(pid=TARGET),
        NamespaceOptions(network=OWN),
        NamespaceOptions(network=TARGET),
        NamespaceOptions(ipc=OWN),
    ],
)
def test_modes_without_a_meaning_for_pods(options: NamespaceOptions) -> None:
    config = changed(POD, security=PodSecurity(namespaces=options))
    with pytest.raises(InvalidArgument):
        check_namespaces(config)
    with pytest.raises(InvalidArgument):
        pause_spec(pod_inputs(config))


def test_devices_begin_with_deny_all() -> None:
    """GHSA-g54h-m393-cpwq."""
    nodes, rules = devices((), (DeviceNode(container_path="/dev/sda", kind="b"),), privileged=False)
    assert nodes == ()
    assert rules[0] == oci.DeviceRule(allow=False, type="a", access="rwm")
    for rule in rules[1:]:
        assert rule.type == "c" or rule.access == "m"
        assert rule.access == "m" or rule.major is not None
    assert b'{"allow":false,"type":"a","access":"rwm"}' in oci.encode(oci.Resources(devices=rules))


def test_asked_devices() -> None:
    node = DeviceNode(
        container_path="/dev//fuse", kind="c", major=10, minor=229, mode=0o20660, permissions="wr"
    )
    fifo = DeviceNode(container_path="/run/fifo", kind="p")
    nodes, rules = devices((node, fifo), (), privileged=False)
    assert nodes[0].path == "/dev/fuse"
    assert nodes[0].file_mode == 0o660
    assert rules[-1] == oci.DeviceRule(allow=True, type="c", major=10, minor=229, access="rw")


def test_privileged_has_every_device_and_its_own_on_top() -> None:
    host = (DeviceNode(container_path="/dev/sda", kind="b", major=8, minor=0),)
    own = (DeviceNode(container_path="/dev/sda", kind="b", major=9, minor=0, permissions="r"),)
    nodes, rules = devices(own, host, privileged=True)
    assert [node.major for node in nodes] == [9]
    assert rules[-1] == oci.DeviceRule(allow=True, type="a", access="rwm")


def test_a_node_at_a_place_is_bound_from_there_and_not_made() -> None:
    placed = DeviceNode(
        container_path="/dev/mine", kind="c", major=1, minor=5, permissions="r", place=Path("/p/0")
    )
    host = (DeviceNode(container_path="/dev/mine", kind="b", major=8, minor=0),)
    [mount], rules = devices((placed,), host, privileged=True)
    assert isinstance(mount, oci.Mount)
    assert (mount.destination, mount.source) == ("/dev/mine", "/p/0")
    _, rules = devices((placed,), (), privileged=False)
    assert rules[-1] == oci.DeviceRule(allow=True, type="c", major=1, minor=5, access="r")
    inputs = replace(container_inputs(), devices=(placed,))
    assert container_spec(inputs).mounts[-1] == mount
    assert container_spec(inputs).linux.devices == ()


@pytest.mark.parametrize("text", ["", "x", "rr", "rwmx", "RWM", "r w", "a"])
def test_device_permissions_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        device_permissions(text)


@pytest.mark.parametrize(
    "node",
    [
        DeviceNode(container_path="dev/x", kind="c", major=1, minor=1),
        DeviceNode(container_path="/dev/x", kind="c"),
        DeviceNode(container_path="/dev/x", kind="b", major=-1, minor=0),
        DeviceNode(container_path="/dev/x", kind="d", major=1, minor=1),  # type: ignore[arg-type]
    ],
)
def test_devices_refused(node: DeviceNode) -> None:
    with pytest.raises(InvalidArgument):
        devices((node,), (), privileged=False)


def test_bound_dev_gets_no_nodes() -> None:
    """They would be made in the host's /dev."""
    mount = CriMount(container_path="/dev", host_path="/dev")
    inputs = replace(
        container_inputs(changed(CONTAINER, mounts=(mount,))),
        mounts=(ResolvedMount(mount=mount, source=Path("/dev")),),
        devices=(
            DeviceNode(container_path="/dev/x", kind="c", major=1, minor=3),
            DeviceNode(container_path="/srv/x", kind="c", major=1, minor=3),
        ),
    )
    assert [device.path for device in container_spec(inputs).linux.devices] == ["/srv/x"]


def test_guarded_paths_are_the_clients() -> None:
    assert guarded_paths(("/proc/kcore", "/b/"), "it", privileged=False) == ("/proc/kcore", "/b")
    assert guarded_paths(("/proc/kcore",), "it", privileged=True) == ()
    assert guarded_paths((), "it", privileged=False) == ()
    with pytest.raises(InvalidArgument):
        guarded_paths(("proc/kcore",), "it", privileged=False)


def test_privileged_container_needs_a_privileged_pod() -> None:
    config = changed(CONTAINER, security=changed(CONTAINER.security, privileged=True))
    with pytest.raises(InvalidArgument, match="privileged"):
        container_spec(container_inputs(config))


def test_missing_image_volume_is_an_error() -> None:
    with pytest.raises(InvalidArgument, match="/data"):
        container_spec(container_inputs(image=changed(IMAGE, volumes=("/data",))))


def test_equal_inputs_give_equal_bytes_and_nothing_is_shared() -> None:
    """CVE-2021-21334: the environment of one container must not reach another's."""
    first = container_spec(container_inputs())
    other = container_spec(container_inputs(changed(CONTAINER, envs=(("SECRET", "x"),))))
    assert oci.encode(first) == oci.encode(container_spec(container_inputs()))
    assert "SECRET=x" in other.process.env
    assert not any("SECRET" in entry for entry in first.process.env)


def test_text_that_is_no_utf8_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        oci.encode(changed(container_spec(container_inputs()), annotations={"a": "\ud800"}))
