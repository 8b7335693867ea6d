"""A LABEL of an image was taken for control data of the runtime and named a program to run.

CVE-2026-53488: labels of an image were laid over the container's, and one of those names a program
that the daemon runs on the host to restart or to log. Labels of images are read by nobody here,
even where the administrator allows every annotation that there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from protos import api_pb2 as api
from tests.kit.node import Node
from tests.kit.spec_files import text_of
from tests.security.conftest import Hostile

MARK = "from-the-image"
EVIL = Path("/run/podwright-test-row-49")
LABELS = {
    "containerd.io/restart.loguri": f"binary:///bin/touch?{EVIL}={MARK}",
    "containerd.io/restart.status": f"running {MARK}",
    "containerd.io/restart.policy": f"always {MARK}",
    "io.containerd.runtime.v2.shim": f"/bin/{MARK}",
    "io.kubernetes.cri.container-type": f"sandbox {MARK}",
    "io.kubernetes.container.logpath": f"{EVIL}/{MARK}",
    "io.kubernetes.cri-o.Labels": MARK,
    "io.podman.annotations.privileged": "TRUE",
    "cdi.k8s.io/evil": f"vendor.test/{MARK}=all",
    "run.oci.handler": f"no-such-{MARK}",
    "podwright.io/rlimits": f"nofile={MARK}",
    "app": MARK,
}
EVERYTHING = (
    '["*", "run.oci.*", "io.containerd.*", "io.podman.*", "cdi.k8s.io/*", "podwright.io/*",'
    ' "io.kubernetes.cri-o.*", "org.systemd.property.*"]'
)


@pytest.fixture(scope="module")
def shared_open_node(hostile: Hostile) -> Iterator[Node]:
    settings = {f"runtimes.{n}.allowed_annotations": EVERYTHING for n in ("crun", "runc")}
    with hostile.daemon("row-49", settings=settings) as node:
        yield node


@pytest.fixture
def open_node(shared_open_node: Node) -> Iterator[Node]:
    """The same, empty after each test."""
    yield shared_open_node
    shared_open_node.remove_everything()


def test_labels_of_an_image_are_in_nothing_that_is_made(
    open_node: Node, hostile: Hostile, handler: str
) -> None:
    node = open_node
    image = hostile.push("row-49-labels", labels=LABELS)
    node.pull(image)
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", ["sleep", "1000"], image=image)
    status = node.status(container)
    assert status.state == api.CONTAINER_RUNNING
    assert dict(status.labels) == {"name": "main"}
    assert MARK not in str(status.annotations)
    assert status.log_path == str(node.logs / "pod" / "main_0.log")
    assert MARK not in text_of(node, container)
    assert MARK not in text_of(node, pod)
    # It is what the request says: neither privileged nor with other programs around it.
    assert node.exec(container, "sh", "-c", "mknod /tmp/d b 7 0 && : < /tmp/d")[0] != 0
    assert not [pid for pid in node.processes_doing(MARK) if pid]
    assert not EVIL.exists()
