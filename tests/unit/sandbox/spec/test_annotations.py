"""What the OCI runtime is told."""

from __future__ import annotations

import pytest
from msgspec.structs import replace as changed

from sandbox.model import LinuxResources
from sandbox.spec.annotations import (
    allowed_annotations,
    container_annotations,
    sandbox_annotations,
    scope_annotations,
)
from tests.kit.spec_inputs import CONTAINER, POD

PREFIX = "io.kubernetes.cri."


def test_keys_that_other_runtimes_find_pods_by() -> None:
    config = changed(POD, resources=LinuxResources(cpu_shares=5, memory_limit_bytes=6))
    told = sandbox_annotations(config, pod_id="p1")
    assert told == {
        PREFIX + "container-type": "sandbox",
        PREFIX + "sandbox-id": "p1",
        PREFIX + "sandbox-name": "web",
        PREFIX + "sandbox-namespace": "shop",
        PREFIX + "sandbox-uid": "uid-1",
        PREFIX + "sandbox-log-directory": "/var/log/pods/shop_web_uid-1",
        PREFIX + "sandbox-cpu-period": "0",
        PREFIX + "sandbox-cpu-quota": "0",
        PREFIX + "sandbox-cpu-shares": "5",
        PREFIX + "sandbox-memory": "6",
    }
    told = container_annotations(CONTAINER, pod=POD, pod_id="p1", image_name="i")
    assert told[PREFIX + "container-type"] == "container"
    assert told[PREFIX + "container-name"] == "nginx"
    assert told[PREFIX + "image-name"] == "i"


@pytest.mark.parametrize(
    ("limit", "told"),
    [(None, "18446744073709551615"), (-1, "18446744073709551615"), (77, "77")],
)
def test_a_scope_has_the_limit_of_its_container_and_not_systemd_s_own(limit, told) -> None:
    asked = scope_annotations("a.slice:podwright:c1", limit)
    assert asked == {"org.systemd.property.TasksMax": f"uint64 {told}"}
    assert scope_annotations("/podwright/pod1/c1", limit) == {}


@pytest.mark.parametrize(
    "key",
    [
        "run.oci.hooks",
        "org.systemd.property.ExecStart",
        "io.containerd.rdt-class",
        "io.katacontainers.config.hypervisor.path",
        "cdi.k8s.io/gpu",
        "io.kubernetes.cri-o.Devices",
        "org.criu.config",
    ],
)
def test_steering_annotations_need_their_own_pattern(key: str) -> None:
    """CVE-2024-3154, CVE-2023-6476: a pattern of everything does not open them."""
    config = changed(CONTAINER, annotations={key: "x", "plain": "y"})

    def told(*patterns: str) -> dict[str, str]:
        return container_annotations(config, pod=POD, pod_id="p", image_name="i", patterns=patterns)

    assert key not in told()
    assert key not in told("*", "[a-z]*", "?*", key[:4] + "*")
    assert "plain" not in told()
    assert told("*")["plain"] == "y"
    assert told(key)[key] == "x"


def test_own_keys_cannot_be_forged() -> None:
    config = changed(CONTAINER, annotations={PREFIX + "sandbox-id": "forged", PREFIX + "x": "y"})
    told = container_annotations(
        config, pod=POD, pod_id="p", image_name="i", patterns=("*", PREFIX + "*")
    )
    assert told[PREFIX + "sandbox-id"] == "p"
    assert PREFIX + "x" not in told


def test_what_is_let_through_of_the_pods_reaches_its_containers_too() -> None:
    """A kubelet gives pod authors no annotations of containers."""
    pod = changed(POD, annotations={"a.test/x": "pod", "a.test/y": "pod", "other": "pod"})
    config = changed(CONTAINER, annotations={"a.test/y": "container"})
    told = container_annotations(
        config, pod=pod, pod_id="p", image_name="i", patterns=("a.test/*",)
    )
    assert {key: told[key] for key in told if not key.startswith(PREFIX)} == {
        "a.test/x": "pod",
        "a.test/y": "container",
    }
    assert "a.test/x" in sandbox_annotations(pod, pod_id="p", patterns=("a.test/*",))


def test_what_is_meant_for_the_daemon_counts_by_its_own_pattern_and_goes_nowhere() -> None:
    ours = {"podwright.io/rlimits": "nofile=1", "rlimits.podwright.io/nginx": "nofile=2"}
    assert allowed_annotations(ours, ("*", "pod*", "rlimits.*")) == {}
    patterns = ("podwright.io/*", "rlimits.podwright.io/*")
    assert allowed_annotations(ours, patterns) == ours
    pod = changed(POD, annotations=ours)
    told = container_annotations(
        changed(CONTAINER, annotations=ours), pod=pod, pod_id="p", image_name="i", patterns=patterns
    )
    assert not ours.keys() & told.keys()
    assert not ours.keys() & sandbox_annotations(pod, pod_id="p", patterns=patterns).keys()
