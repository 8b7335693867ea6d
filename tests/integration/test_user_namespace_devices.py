"""Devices in pods with a user namespace, with both OCI runtimes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.messages import namespaces, user_namespace
from tests.kit.node import PATIENCE_S, Node

#: Different for users and groups, so that one taken for the other shows.
OWN = namespaces(user=user_namespace(200_000, gids=400_000))
PLACE = Path("/run") / f"podwright-test-userns-devices-{os.getpid()}"
SETTINGS = {"runtime.cdi_spec_dirs": json.dumps([str(PLACE)])}
#: Linux Documentation/admin-guide/devices.txt: what reading of it gives tells which it is.
ZERO, KMSG = (1, 5), (1, 11)


@pytest.fixture(autouse=True)
def place(shared_node: Node) -> Iterator[Path]:
    """A directory that only the node's root may pass."""
    PLACE.mkdir(mode=0o700)
    yield PLACE
    subprocess.run(["rm", "-r", str(PLACE)], check=True)


def make_node(name: str, numbers: tuple[int, int] = ZERO, *, mode: int = 0o666) -> Path:
    path = PLACE / name
    os.mknod(path, stat.S_IFCHR, os.makedev(*numbers))
    path.chmod(mode)
    return path


def run(
    node: Node,
    handler: str,
    *devices: api.Device,
    name: str = "pod",
    cdi: str = "",
    privileged: bool = False,
    user: int | None = None,
) -> str:
    pod = node.run_pod(name, handler=handler, spaces=OWN, privileged=privileged)
    request = node.create_request(
        pod, "main", ["sleep", "1000"], spaces=OWN, privileged=privileged, user=user
    )
    request.config.devices.extend(devices)
    if cdi:
        request.config.CDI_devices.add(name=cdi)
    container = node.runtime.CreateContainer(request, timeout=PATIENCE_S).container_id
    node.ids.add(container)
    return node.start(container)


def inside(node: Node, container: str, script: str) -> str:
    code, out, err = node.exec(container, "sh", "-c", script)
    assert code == 0, (out, err)
    return out.strip()


def asked(host: Path | str, path: str, permissions: str = "rwm") -> api.Device:
    return api.Device(host_path=str(host), container_path=path, permissions=permissions)


def reads(node: Node, container: str, path: str) -> str:
    return inside(node, container, f"head -c 2 {path} | od -An -tx1")


@pytest.mark.parametrize("privileged", [False, True])
def test_at_the_same_path_and_at_others(node: Node, handler: str, privileged: bool) -> None:
    zero = make_node("zero")
    container = run(
        node,
        handler,
        asked("/dev/kmsg", "/dev/kmsg"),
        asked(zero, "/dev/mine"),
        asked(zero, "/dev/deep/mine"),
        asked(zero, "/srv/mine"),
        # A node of this name exists on the host, and is another one.
        asked(zero, "/dev/loop-control"),
        privileged=privileged,
    )
    for path in ("/dev/mine", "/dev/deep/mine", "/srv/mine", "/dev/loop-control"):
        assert reads(node, container, path) == "00 00"
        # The owner of the host's node is the node's root, who is nobody inside.
        assert inside(node, container, f"stat -c '%F %t,%T %a %u:%g' {path}") == (
            "character special file 1,5 666 65534:65534"
        )
    assert inside(node, container, "stat -c %t,%T /dev/kmsg") == "1,b"


def test_permissions_hold(node: Node, handler: str) -> None:
    """Of the kernel's messages (mem(4), kmsg): opening for writing alone asks for nothing else."""
    messages = make_node("messages", KMSG)
    container = run(node, handler, asked(messages, "/dev/both", "rw"))
    inside(node, container, ": >/dev/both")
    node.stop_container(container)
    node.remove_container(container)
    container = run(node, handler, asked(messages, "/dev/both", "r"), name="reader")
    code, _, errors = node.exec(container, "sh", "-c", ": >/dev/both")
    assert code != 0
    assert "not permitted" in errors


def test_the_nodes_own_devices_are_not_opened_up(node: Node, handler: str) -> None:
    """Root inside is not the node's root, to whom alone the node of the host is open."""
    container = run(node, handler, asked(make_node("zero", mode=0o600), "/dev/mine"))
    code, _, errors = node.exec(container, "head", "-c", "1", "/dev/mine")
    assert code != 0
    assert "ermission denied" in errors


def test_of_cdi_belong_to_the_containers_user(node: Node, handler: str) -> None:
    zero = make_node("zero", mode=0o600)
    document = {
        "cdiVersion": "1.0.0",
        "kind": "vendor.test/gauge",
        "devices": [
            {
                "name": "g0",
                "containerEdits": {
                    "deviceNodes": [
                        {"path": "/dev/gauge", "hostPath": str(zero)},
                        {"path": "/dev/said", "type": "c", "major": 1, "minor": 5, "uid": 7},
                    ]
                },
            }
        ],
    }
    (PLACE / "vendor.json").write_text(json.dumps(document))
    container = run(node, handler, cdi="vendor.test/gauge=g0", user=1000)
    assert inside(node, container, "stat -c '%t,%T %a %u' /dev/gauge /dev/said").split("\n") == [
        "1,5 600 1000",
        "1,5 666 7",
    ]
    assert reads(node, container, "/dev/gauge") == "00 00"


def test_of_cdi_with_an_owner_who_is_not_in_the_pod_are_refused(node: Node) -> None:
    device = {"path": "/dev/x", "type": "c", "major": 1, "minor": 5, "uid": 70_000}
    document = {
        "cdiVersion": "1.0.0",
        "kind": "vendor.test/gauge",
        "devices": [{"name": "g0", "containerEdits": {"deviceNodes": [device]}}],
    }
    (PLACE / "vendor.json").write_text(json.dumps(document))
    with pytest.raises(grpc.RpcError) as error:
        run(node, "crun", cdi="vendor.test/gauge=g0")
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert "does not exist in the pod's user namespace" in str(error.value)
    assert node.containers() == []
