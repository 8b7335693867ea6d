"""An annotation raised a container's limits above what its request allows.

CVE-2023-6476: CRI-O took values for control group files from an annotation of the pod. Limits here
are the request's and nothing else's, whatever annotations of pod, container and image say.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from protos import api_pb2 as api
from tests.kit.node import PATIENCE_S, Node
from tests.security.conftest import Hostile

MEMORY_BYTES = 64 << 20
RAISING = {
    "io.kubernetes.cri-o.UnifiedCgroup.main": "memory.max=max;pids.max=max;cpu.max=max",
    "io.kubernetes.cri-o.UnifiedCgroup": "memory.max=max",
    "unified-cgroup.crio.io/main": "memory.max=max",
    "cpu-quota.crio.io": "disable",
    "io.kubernetes.cri.sandbox-memory": "99999999999",
    "io.containerd.runc.memory": "-1",
    "run.oci.systemd.subgroup": "",
    "org.systemd.property.MemoryMax": "uint64 18446744073709551615",
    "podwright.io/rlimits": "nofile=unlimited",
}
FILES = {
    ("memory", "memory.limit_in_bytes"): str(MEMORY_BYTES),
    ("memory", "memory.max"): str(MEMORY_BYTES),
    ("cpu", "cpu.shares"): "200",
    ("cpu", "cpu.cfs_quota_us"): "20000",
    ("cpu", "cpu.max"): "20000 100000",
}


def limits_of(pid: int) -> dict[tuple[str, str], str]:
    """Those of FILES that there are for a process."""
    found = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller, name in FILES:
            if controllers == "" or controller in controllers.split(","):
                for root in (f"/sys/fs/cgroup/{controllers}", "/sys/fs/cgroup"):
                    file = Path(f"{root}{path}/{name}")
                    if file.exists():
                        found[controller, name] = file.read_text().strip()
    return found


@pytest.mark.parametrize("annotated", [False, True])
def test_limits_are_the_requests(
    node: Node, hostile: Hostile, handler: str, annotated: bool
) -> None:
    raising = RAISING if annotated else {}
    image = hostile.push("row-48-labels", labels=RAISING)
    node.pull(image)
    pod = node.run_pod("pod", handler=handler, annotations=raising)
    limits = api.LinuxContainerResources(
        memory_limit_in_bytes=MEMORY_BYTES,
        cpu_shares=200,
        cpu_quota=20_000,
        cpu_period=100_000,
    )
    request = node.create_request(pod, "main", ["sleep", "1000"], image=image, resources=limits)
    request.config.annotations.update(raising)
    container = node.start(node.runtime.CreateContainer(request, timeout=PATIENCE_S).container_id)
    node.ids.add(container)
    found = limits_of(node.container_pid(container))
    assert len(found) >= 2
    assert found == {key: FILES[key] for key in found}
