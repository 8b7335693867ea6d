"""CDI's words completed by what the machine has."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox import oci
from sandbox.cdi import document as cdi
from sandbox.cdi.edits import container_edits
from sandbox.cdi.library import Part
from sandbox.host.errors import FailedPrecondition, Unsupported
from sandbox.users import ResolvedUser

USER = ResolvedUser(uid=1000, gid=2000, additional_gids=(2000,))


def made(*edits, runtime_spec=(1, 0), **options):
    parts = [Part(each, "CDI device v/c=d") for each in edits]
    return container_edits(parts, user=USER, runtime_spec=runtime_spec, **options)


def node(**fields):
    return made(cdi.ContainerEdits(device_nodes=(cdi.DeviceNode(**fields),))).devices[0]


def test_a_node_is_completed_from_the_hosts():
    # mem(4): every Linux has /dev/null, 1:3.
    found = node(path="/dev/x", host_path="/dev/null")
    status = Path("/dev/null").stat()
    assert (found.container_path, found.kind, found.major, found.minor) == ("/dev/x", "c", 1, 3)
    assert found.mode == status.st_mode & 0o7777
    assert (found.uid, found.gid, found.permissions) == (1000, 2000, "rwm")
    assert node(path="/dev/null").major == 1


def test_what_the_file_says_wins_and_needs_no_node_on_the_host():
    found = node(
        path="/dev/nowhere-here",
        type="u",
        major=195,
        minor=7,
        file_mode=0o640,
        uid=0,
        gid=5,
        permissions="r",
    )
    assert (found.kind, found.major, found.minor, found.mode) == ("c", 195, 7, 0o640)
    assert (found.uid, found.gid, found.permissions) == (0, 5, "r")
    assert (node(path="/nowhere", type="p").kind, node(path="/nowhere", type="p").major) == (
        "p",
        -1,
    )
    assert node(path="/nowhere", type="b", major=8).mode == 0o666


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"path": "/dev/nowhere-here"}, "not on this node"),
        ({"path": "/dev/x", "host_path": "/dev/null", "type": "b"}, "another kind of file"),
        ({"path": "/dev/x", "host_path": "/etc/passwd"}, "another kind of file"),
    ],
)
def test_a_node_that_cannot_be_had(fields, what):
    with pytest.raises(FailedPrecondition, match=f"CDI device v/c=d needs .*{what}"):
        node(**fields)


def test_mounts_are_bound_unless_they_say_otherwise(tmp_path):
    def mount(**fields):
        whole = {"host_path": str(tmp_path), "container_path": "/x//y/", **fields}
        return made(cdi.ContainerEdits(mounts=(cdi.Mount(**whole),))).mounts[0]

    assert mount(options=("ro",)) == oci.Mount(
        destination="/x/y", type="bind", source=str(tmp_path), options=("rbind", "ro")
    )
    assert mount(options=("bind", "ro")).options == ("bind", "ro")
    assert mount(type="tmpfs", host_path="tmpfs", options=("size=1m",)) == oci.Mount(
        destination="/x/y", type="tmpfs", source="tmpfs", options=("size=1m",)
    )
    with pytest.raises(FailedPrecondition, match=r"mounts .*/none, which is not on this node"):
        mount(host_path=str(tmp_path / "none"))


def test_parts_add_up():
    first = cdi.ContainerEdits(
        env=("A=1",),
        additional_gids=(0, 7),
        hooks=(cdi.Hook(hook_name="prestart", path="/a", args=("a",), timeout=2),),
    )
    second = cdi.ContainerEdits(
        env=("A=2",),
        additional_gids=(7, 8),
        hooks=(
            cdi.Hook(hook_name="prestart", path="/b"),
            cdi.Hook(hook_name="poststop", path="/c"),
        ),
    )
    found = made(first, second)
    assert found.env == ("A=1", "A=2")
    assert found.additional_gids == (7, 8)
    assert found.hooks == {
        "prestart": [oci.Hook(path="/a", args=("a",), timeout=2), oci.Hook(path="/b")],
        "poststop": [oci.Hook(path="/c")],
    }


def test_resctrl_must_be_mounted_and_the_runtime_new_enough(tmp_path):
    old = cdi.ContainerEdits(intel_rdt=cdi.IntelRdt(clos_id="fast", l3_cache_schema="L3:0=f"))
    new = cdi.ContainerEdits(intel_rdt=cdi.IntelRdt(schemata=("MB:0=10",)))
    with pytest.raises(Unsupported, match="resctrl is not mounted"):
        made(old, resctrl=tmp_path)
    (tmp_path / "schemata").touch()
    assert made(old, resctrl=tmp_path).intel_rdt == oci.IntelRdt(
        clos_id="fast", l3_cache_schema="L3:0=f"
    )
    with pytest.raises(Unsupported, match=r"knows runtime-spec 1\.0, 1\.3 is needed"):
        made(new, resctrl=tmp_path)
    assert made(new, resctrl=tmp_path, runtime_spec=(1, 3)).intel_rdt is not None


def test_moving_an_interface_needs_a_newer_runtime():
    moving = cdi.ContainerEdits(
        net_devices=(cdi.NetDevice(host_interface_name="eth1", name="net1"),)
    )
    with pytest.raises(Unsupported, match="moves a network interface"):
        made(moving, runtime_spec=(1, 2))
    assert made(moving, runtime_spec=(1, 3)).net_devices == {"eth1": "net1"}
