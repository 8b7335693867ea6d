"""A `+` or `=` in a sysctl's value became a second sysctl, set on the host.

CVE-2022-0811: `kernel.shm_rmid_forced` of `1+kernel.core_pattern=|/program` had every crash on the
node run the pod author's program as root. Keys and values here try what a splitting reader would
take for a second sysctl, and paths that lead elsewhere.
"""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from tests.kit.node import Node

PROGRAM = "|/bin/sh -c id"
HOST = ("kernel/core_pattern", "kernel/hostname", "kernel/shm_rmid_forced", "kernel/sysrq")

TRIED = [
    {"kernel.shm_rmid_forced": f"1+kernel.core_pattern={PROGRAM}"},
    {"kernel.shm_rmid_forced": f"1\nkernel.core_pattern={PROGRAM}"},
    {"kernel.shm_rmid_forced": f"1,kernel.core_pattern={PROGRAM}"},
    {"kernel.shm_rmid_forced": "1\0"},
    {f"kernel.shm_rmid_forced=1+kernel.core_pattern={PROGRAM}": "1"},
    {"kernel.shm_rmid_forced\n": "1"},
    {"kernel.core_pattern": PROGRAM},
    {"kernel/core_pattern": PROGRAM},
    {"net/../kernel/core_pattern": PROGRAM},
    {"net.ipv4/../../kernel/core_pattern": PROGRAM},
    {"net..kernel.core_pattern": PROGRAM},
    {"/proc/sys/kernel/core_pattern": PROGRAM},
    {"net./../kernel/core_pattern": PROGRAM},
    {"fs.mqueue/../../kernel/core_pattern": PROGRAM},
    {"": "1"},
    {"kernel.sysrq": "1"},
    {"vm.overcommit_memory": "1"},
]


def host() -> dict[str, str]:
    files = [Path("/proc/sys", name) for name in HOST]
    return {file.name: file.read_text() for file in files if file.exists()}


@pytest.mark.parametrize("sysctls", TRIED, ids=lambda tried: ascii(str(tried))[:60])
def test_it_is_refused_and_the_host_is_as_before(
    node: Node, handler: str, sysctls: dict[str, str]
) -> None:
    before = host()
    with pytest.raises(grpc.RpcError) as refused:
        node.run_pod("pod", handler=handler, sysctls=sysctls)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert host() == before
    assert not [pod for pod in node.pods() if pod.id not in node.kept]


def test_what_a_pod_may_set_is_set_for_it_alone(node: Node, handler: str) -> None:
    """The check is not simply that nothing ever works."""
    before = host()
    wanted = "0" if before["shm_rmid_forced"].strip() == "1" else "1"
    pod = node.run_pod("pod", handler=handler, sysctls={"kernel.shm_rmid_forced": wanted})
    container = node.run(pod, "main", ["sleep", "1000"])
    assert node.exec(container, "cat", "/proc/sys/kernel/shm_rmid_forced")[1].strip() == wanted
    assert host() == before
