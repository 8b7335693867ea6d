"""What CDI devices and hooks change in a container's document."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec.structs import replace as changed

from sandbox import oci
from sandbox.host.errors import InvalidArgument
from sandbox.model import CriMount
from sandbox.spec.build import container_spec
from sandbox.spec.inputs import DeviceNode, Edits, ResolvedMount
from tests.kit.spec_inputs import CONTAINER, container_inputs


def built(**edits):
    return container_spec(replace(container_inputs(), edits=Edits(**edits)))


def test_without_edits_nothing_changes():
    assert built() == container_spec(container_inputs())
    assert b'"hooks"' not in oci.encode(built())


def test_variables_win_in_the_place_of_the_earlier():
    spec = built(env=("COLOUR=red", "NEW=a=b"))
    assert [e for e in spec.process.env if e.startswith("COLOUR")] == ["COLOUR=red"]
    assert spec.process.env[-1] == "NEW=a=b"
    with pytest.raises(InvalidArgument, match="longer than"):
        built(env=("A=" + "x" * 200_000,))


def test_groups_are_added_once():
    assert built(additional_gids=(0, 5, 5)).process.user.additional_gids == (0, 5)


def test_devices_are_made_and_allowed_and_win_over_the_requests():
    asked = DeviceNode(container_path="/dev/x", kind="c", major=1, minor=3)
    mine = DeviceNode(container_path="/dev/x", kind="c", major=9, minor=9, permissions="r")
    inputs = replace(container_inputs(), devices=(asked,), edits=Edits(devices=(mine,)))
    linux = container_spec(inputs).linux
    assert [(d.path, d.major) for d in linux.devices] == [("/dev/x", 9)]
    assert linux.resources is not None
    assert linux.resources.devices[0] == oci.DeviceRule(allow=False, type="a", access="rwm")
    assert linux.resources.devices[-1] == oci.DeviceRule(
        allow=True, type="c", major=9, minor=9, access="r"
    )


def test_mounts_take_their_place_after_their_parents(tmp_path):
    def mount(destination):
        return oci.Mount(destination=destination, type="bind", source="/s", options=("rbind",))

    config = changed(CONTAINER, mounts=(CriMount(container_path="/a/b", host_path="/h"),))
    inputs = replace(
        container_inputs(config),
        mounts=tuple(ResolvedMount(mount=m, source=tmp_path) for m in config.mounts),
        edits=Edits(mounts=(mount("/a/b/c"), mount("/a"), mount("/a/b"))),
    )
    places = [m.destination for m in container_spec(inputs).mounts]
    assert places.count("/a/b") == 1
    assert [p for p in places if p.startswith("/a")] == ["/a", "/a/b", "/a/b/c"]
    assert places.index("/dev") < places.index("/dev/pts")
    assert next(m for m in container_spec(inputs).mounts if m.destination == "/a/b").source == "/s"


def test_hooks_go_to_their_stages():
    hook = oci.Hook(path="/h", args=("h",), timeout=1)
    spec = built(hooks=dict.fromkeys(oci.HOOK_STAGES, (hook,)))
    document = oci.encode(spec)
    for stage in oci.HOOK_STAGES:
        assert f'"{stage}":[{{"path":"/h","args":["h"],"timeout":1}}]'.encode() in document


def test_what_is_newer_states_a_newer_version():
    spec = built(net_devices={"eth1": "net1"})
    assert spec.oci_version == "1.3.0"
    assert b'"netDevices":{"eth1":{"name":"net1"}}' in oci.encode(spec)
    old = built(intel_rdt=oci.IntelRdt(clos_id="fast", l3_cache_schema="L3:0=f"))
    assert old.oci_version == oci.OCI_VERSION
    assert b'"intelRdt":{"closID":"fast","l3CacheSchema":"L3:0=f"}' in oci.encode(old)
    assert built(intel_rdt=oci.IntelRdt(schemata=("MB:0=1",))).oci_version == "1.3.0"
