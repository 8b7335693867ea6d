"""A pod's annotation became a property of its systemd unit, and so a command on the host.

CVE-2024-3154: `org.systemd.property.*` passes runc and crun to systemd. Others steer the runtime
itself (`run.oci.*`) or a shim. None of a request gets into a document unless the administrator
lists it for the handler, and a list of everything does not list those.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.node import PATIENCE_S, Node
from tests.kit.spec_files import document_of, text_of
from tests.security.conftest import Hostile

MARK = "from-the-author"
#: crun writes the output of hooks there, as root, when it is told to by an annotation.
EVIL = Path(f"/run/podwright-test-row-47-{MARK}")
HOSTILE = {
    "org.systemd.property.ExecStopPost": f"[('/bin/touch', ['touch', '{EVIL}'], false)] {MARK}",
    "org.systemd.property.TimeoutStopUSec": f"uint64 1 {MARK}",
    "run.oci.handler": f"no-such-{MARK}",
    "run.oci.hooks.stdout": str(EVIL),
    "run.oci.hooks.stderr": str(EVIL),
    "run.oci.systemd.subgroup": MARK,
    "run.oci.systemd.force_cgroup_v1": f"/{MARK}",
    "run.oci.seccomp.receiver": f"{EVIL}/{MARK}",
    "run.oci.keep_original_groups": MARK,
    "org.criu.config": f"{EVIL}/{MARK}",
    "io.containerd.rdt-class": MARK,
    "io.kubernetes.cri-o.Devices": f"/dev/kmsg:/dev/kmsg:rw {MARK}",
    "io.kubernetes.cri-o.Unified": MARK,
    "io.katacontainers.config.hypervisor.path": f"/bin/{MARK}",
    "dev.gvisor.spec.mount.a.source": f"/{MARK}",
    "io.kubernetes.cri.sandbox-id": MARK,
    "podwright.io/rlimits": f"nofile=7,{MARK}",
}


@contextlib.contextmanager
def daemon_with_a_hook(hostile: Hostile, **allowed: list[str]) -> Iterator[Node]:
    """A node with a hook that says something, and what its administrator allows by handler."""
    with tempfile.TemporaryDirectory(dir="/run", prefix="podwright-test-hooks-") as directory:
        hook = {
            "version": "1.0.0",
            "hook": {"path": "/bin/echo", "args": ["echo", "the hook has run"]},
            "when": {"always": True},
            "stages": ["createRuntime"],
        }
        Path(directory, "hook.json").write_text(json.dumps(hook))
        settings = {
            "runtime.hooks_dirs": json.dumps([directory]),
            **{f"runtimes.{n}.allowed_annotations": json.dumps(a) for n, a in allowed.items()},
        }
        try:
            with hostile.daemon("row-47", settings=settings) as node:
                yield node
        finally:
            EVIL.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def shared_open_node(hostile: Hostile) -> Iterator[Node]:
    """An administrator who lists everything, and for runc one steering prefix by name."""
    with daemon_with_a_hook(hostile, crun=["*"], runc=["*", "run.oci.*"]) as node:
        yield node


@pytest.fixture
def open_node(shared_open_node: Node) -> Iterator[Node]:
    """The same, empty after each test."""
    yield shared_open_node
    shared_open_node.remove_everything()


def run_with(node: Node, handler: str, image: str = "") -> tuple[str, str]:
    """Pod and container that have the annotations, both of them."""
    options = {"image": image} if image else {}
    pod = node.run_pod("pod", handler=handler, annotations=HOSTILE)
    request = node.create_request(pod, "main", ["sleep", "1000"], **options)
    request.config.annotations.update(HOSTILE)
    container = node.runtime.CreateContainer(request, timeout=PATIENCE_S).container_id
    node.ids.add(container)
    return pod, node.start(container)


def test_none_reaches_a_document_by_itself(node: Node, handler: str) -> None:
    pod, container = run_with(node, handler)
    for each in (pod, container):
        assert MARK not in text_of(node, each)
        assert not HOSTILE.keys() - {"io.kubernetes.cri.sandbox-id"} & annotations(node, each)
    assert not EVIL.exists()
    # They are still the client's to read, as they were.
    assert HOSTILE.items() <= dict(node.status(container).annotations).items()
    # Limits of an annotation that nobody allowed: none.
    assert limit_of_open_files(node.container_pid(container)) != "7"


def annotations(node: Node, object_id: str) -> set[str]:
    found = document_of(node, object_id).get("annotations", {})
    assert isinstance(found, dict)
    return set(found)


def limit_of_open_files(pid: int) -> str:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line for line in lines if line.startswith("Max open files")).split()[3]


def test_labels_of_an_image_are_no_annotations(node: Node, hostile: Hostile, handler: str) -> None:
    image = hostile.push("row-47-labels", labels=HOSTILE)
    node.pull(image)
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", ["sleep", "1000"], image=image)
    assert MARK not in text_of(node, container)
    assert MARK not in text_of(node, pod)
    assert not EVIL.exists()


def test_a_list_of_everything_does_not_list_what_steers(open_node: Node) -> None:
    pod, container = run_with(open_node, "crun")
    for each in (pod, container):
        assert MARK not in text_of(open_node, each)
        # What steers nothing did pass, so the list is in force.
        assert "note" in annotations(open_node, each)
    assert not EVIL.exists()


def test_what_is_listed_by_its_own_prefix_passes_and_nothing_else(open_node: Node) -> None:
    """The counter-check: an annotation that passes is in the document."""
    pod, container = run_with(open_node, "runc")
    for each in (pod, container):
        told = annotations(open_node, each)
        assert {key for key in HOSTILE if key.startswith("run.oci.")} <= told
        assert not {key for key in told if key.startswith(("org.", "io.containerd.", "dev."))}


def test_an_annotation_that_is_obeyed_would_be_seen(hostile: Hostile) -> None:
    """The counter-check: listed for crun, the same annotation has root write where it says."""
    with daemon_with_a_hook(hostile, crun=["run.oci.hooks.stdout"]) as node:
        run_with(node, "crun")
        assert "the hook has run" in EVIL.read_text()
        node.remove_everything()
