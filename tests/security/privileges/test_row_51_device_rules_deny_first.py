"""Device rules are a list of what is allowed after "nothing is".

GHSA-g54h-m393-cpwq: runc took rules for exceptions from "everything" on control groups version 2,
and so let a container use every device that no rule named.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from protos import api_pb2 as api
from tests.kit.node import PATIENCE_S, Node

SLEEP = ["sleep", "1000"]

#: Devices of every Linux that no container has; making the node is allowed, using it is not.
STRANGERS = {
    "mem": "c 1 1",
    "kmsg": "c 1 11",
    "fuse": "c 10 229",
    "loop-control": "c 10 237",
    "loop0": "b 7 0",
    "first-disk": "b 254 0",
    "never-seen": "c 4000 4000",
}
#: Two that open for reading as for writing, wherever they are; one is given to a container.
GIVEN = next(name for name in ("fuse", "loop-control") if Path("/dev", name).exists())
OWN = ("null", "zero", "full", "random", "urandom", "tty", "ptmx")


def tried(node: Node, container: str, *modes: str) -> dict[str, str]:
    """What opening each stranger says, by name and mode."""
    told = {}
    for name, numbers in STRANGERS.items():
        for mode in modes:
            sign = {"r": "<", "w": ">", "rw": "<>"}[mode]
            script = (
                f"[ -e /tmp/{name} ] || mknod /tmp/{name} {numbers} || exit 99; : {sign}/tmp/{name}"
            )
            code, _, words = node.exec(container, "sh", "-c", script)
            told[f"{name} {mode}"] = "open" if code == 0 else f"{code} {words.strip()}"
    return told


def test_what_no_rule_names_cannot_be_opened(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", SLEEP)
    for told in tried(node, container, "r", "w", "rw").values():
        assert "not permitted" in told


def test_the_standard_devices_work(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", SLEEP, tty=True)
    script = "for d in null zero random urandom; do head -c 1 /dev/$d >/dev/null || exit 1; done; :"
    assert node.exec(container, "sh", "-c", script)[0] == 0
    assert node.exec(container, "sh", "-c", "echo x > /dev/null && ls /dev/pts")[0] == 0
    present = node.exec(container, "ls", "/dev")[1].split()
    assert set(OWN) <= set(present)


def test_other_limits_leave_the_devices_denied(node: Node, handler: str) -> None:
    """An update rewrites the group's controllers; the devices must not come open with it."""
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", SLEEP)
    before = tried(node, container, "rw")
    for megabytes in (64, 128):
        request = api.UpdateContainerResourcesRequest(
            container_id=container,
            linux=api.LinuxContainerResources(memory_limit_in_bytes=megabytes << 20),
        )
        node.runtime.UpdateContainerResources(request, timeout=PATIENCE_S)
    assert tried(node, container, "rw") == before
    assert all("not permitted" in told for told in before.values())


@pytest.mark.parametrize("mode", ["r", "w"])
def test_a_device_that_was_given_opens_as_it_was_given(node: Node, handler: str, mode: str) -> None:
    """One rule more is one device more: the rest stays as it was."""
    pod = node.run_pod("pod", handler=handler)
    request = node.create_request(pod, "main", SLEEP)
    request.config.devices.add(
        container_path="/dev/given", host_path=f"/dev/{GIVEN}", permissions=mode
    )
    answer = node.runtime.CreateContainer(request, timeout=PATIENCE_S)
    container = node.start(answer.container_id)
    opened = {
        way: node.exec(container, "sh", "-c", f": {sign}/dev/given")[0] == 0
        for way, sign in (("r", "<"), ("w", ">"))
    }
    assert opened == {"r": mode == "r", "w": mode == "w"}
    told = tried(node, container, "rw")
    assert told.pop(f"{GIVEN} rw") != "open"
    assert all("not permitted" in words for words in told.values())
