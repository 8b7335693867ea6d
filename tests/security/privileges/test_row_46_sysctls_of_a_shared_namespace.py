"""A sysctl of a namespace that the pod shares with the node changed the node.

CVE-2022-0532, GHSA-w2j5-3rcx-vx7x: the list of safe sysctls was asked, but not whether the pod has
a network or IPC namespace of its own.
"""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from tests.kit.messages import namespaces
from tests.kit.node import Node

SHARED = [
    ("network", "net.ipv4.ip_unprivileged_port_start", "7"),
    ("network", "net.ipv4.ip_forward", "x"),
    ("network", "net/ipv4/tcp_syncookies", "x"),
    ("network", "net.core.somaxconn", "7"),
    ("ipc", "kernel.shmmax", "4096"),
    ("ipc", "kernel.shm_rmid_forced", "x"),
    ("ipc", "kernel/msgmax", "77"),
    ("ipc", "fs.mqueue.msg_max", "3"),
]


@pytest.mark.parametrize(("space", "key", "value"), SHARED)
def test_it_is_refused_and_the_node_keeps_its_value(
    node: Node, handler: str, space: str, key: str, value: str
) -> None:
    file = Path("/proc/sys", key.replace(".", "/"))
    if not file.exists():
        pytest.skip(f"this kernel has no {file}")
    before = file.read_text()
    # A switch is tried with what it is not.
    tried = value if value != "x" else ("0" if before.strip() == "1" else "1")
    spaces = namespaces(**{space: "NODE"})
    with pytest.raises(grpc.RpcError) as refused:
        node.run_pod("pod", handler=handler, sysctls={key: tried}, spaces=spaces)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert key in refused.value.details()  # type: ignore[attr-defined]
    assert file.read_text() == before


@pytest.mark.parametrize("space", ["network", "ipc"])
def test_a_pod_on_the_host_changes_nothing_by_defaults_either(
    node: Node, handler: str, space: str
) -> None:
    """The daemon gives pods sysctls of its own accord: not those that share the namespace."""
    files = [Path("/proc/sys", key.replace(".", "/")) for _, key, _ in SHARED]
    before = {file: file.read_text() for file in files if file.exists()}
    pod = node.run_pod("pod", handler=handler, spaces=namespaces(**{space: "NODE"}))
    node.run(pod, "main", ["sleep", "1000"], spaces=namespaces(**{space: "NODE"}))
    assert {file: file.read_text() for file in before} == before
