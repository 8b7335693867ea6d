"""`podwright wipe`: nothing of containers is left, and the command says so truly."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import census, groups
from tests.kit.calls import until
from tests.kit.messages import BUSYBOX
from tests.kit.node import Node

SLEEP = ["sleep", "1000"]


@pytest.fixture
def node(certs_d: Path) -> Iterator[Node]:
    """A node of the test's own: it is destroyed."""
    with Node.running("wipe", certs_d) as node:
        yield node


def wipe(node: Node, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command; its answer."""
    program = Path(sys.executable).with_name("podwright")
    argv = [program, "wipe", "--config", node.config, *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False, input="n\n")


def populate(node: Node) -> None:
    pod = node.run_pod("pod")
    node.run(pod, "running", SLEEP)
    node.create(pod, "created", SLEEP)
    node.wait_exited(node.run(pod, "exited", ["true"]))
    node.run(node.run_pod("runc", handler="runc"), "main", SLEEP)
    node.stop_pod(node.run_pod("stopped"))


def left(node: Node) -> dict[str, list[str]]:
    """What the tests' own census finds, but for images and groups that a kubelet would remove."""
    node.remove_pod_cgroups()
    taken = census.take(node.places, None, node.ids)
    rest = {kind: sorted(names) for kind, names in taken.items() if kind not in ("files", "rows")}
    rest["files"] = [f for f in taken["files"] if "/images/" not in f]
    rest["rows"] = [row for row in taken["rows"] if "lease" in row]
    rest["links"] = [name for name in rest["links"] if name.startswith("veth")]
    return {kind: names for kind, names in rest.items() if names}


def test_a_daemon_that_runs_is_left_alone(node: Node) -> None:
    container = node.run(node.run_pod("pod"), "main", SLEEP)
    for words in (["--yes"], ["--dry-run"]):
        answer = wipe(node, *words)
        assert answer.returncode == 1
        assert "another podwright serves this run root" in answer.stderr
    assert node.exec(container, "echo", "alive")[1] == "alive\n"


def test_what_would_go_is_said_and_nothing_goes(node: Node) -> None:
    populate(node)
    pids = [node.pod_pid(pod.id) for pod in node.pods()]
    node.stop()
    dry = wipe(node, "--dry-run")
    assert dry.returncode == 0
    assert "pods: 3" in dry.stdout
    assert "containers: 4" in dry.stdout
    for pid in pids:
        assert f"would go: processes {pid}\n" in dry.stdout or not pid
    refused = wipe(node)
    assert refused.returncode == 1, "nobody said yes"
    node.start_daemon()
    assert [node.pod_pid(pod.id) for pod in node.pods()] == pids
    node.assert_true()


@pytest.mark.parametrize("how", ["term", "kill"])
def test_every_trace_of_containers_goes_and_images_stay(node: Node, how: str) -> None:
    populate(node)
    (node.stop if how == "term" else node.kill)()
    answer = wipe(node, "--yes")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "nothing is left" in answer.stdout
    assert not left(node)
    node.start_daemon()
    assert not node.pods()
    assert node.image_id(BUSYBOX)
    node.run(node.run_pod("after"), "main", SLEEP)
    node.remove_everything()


def test_images_go_where_asked(node: Node) -> None:
    populate(node)
    node.kill()
    answer = wipe(node, "--images", "--yes")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert not left(node)
    assert not any(node.state_root.iterdir())
    assert wipe(node, "--images", "--yes").returncode == 0, "again is fine"
    node.start_daemon()
    assert not node.image_id(BUSYBOX)


def test_a_failure_is_named_and_does_not_stop_the_rest(node: Node) -> None:
    """A network that does not let go at first."""
    populate(node)
    node.kill()
    node.faults.order("bridge", "DEL", "fail-before")
    answer = wipe(node, "--yes")
    assert "ordered to fail" in answer.stderr
    assert not census.processes_of(node.places)
    until(lambda: not groups_of(node), "groups are gone")


def groups_of(node: Node) -> list[str]:
    node.remove_pod_cgroups()
    tops = [Path(f"{top}{groups.top(node.tag)}") for top in groups.hierarchies()]
    return [str(path) for top in tops if top.is_dir() for path in top.iterdir() if path.is_dir()]


@contextlib.contextmanager
def disk(place: Path) -> Iterator[None]:
    """A file system of an operator's at `place`."""
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "disk", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def test_disks_of_the_operator_are_emptied_and_stay(certs_d: Path, tmp_path: Path) -> None:
    """One for the images, one for containers' layers, and one that is none of our business."""
    state = tmp_path / "state"
    images, layers, other = state / "images", state / "containers", state / "other"
    with (
        disk(images),
        disk(layers),
        disk(other),
        Node.running("wipe-disks", certs_d, state_root=state) as node,
    ):
        (other / "file").write_text("of somebody")
        (images / "lost+found").mkdir()
        populate(node)
        assert any(layers.iterdir())
        assert (images / "catalog.db").exists()
        node.kill()
        kept = wipe(node, "--yes")
        assert kept.returncode == 0, kept.stdout + kept.stderr
        assert (images / "catalog.db").exists()
        answer = wipe(node, "--images", "--yes")
        assert answer.returncode == 0, answer.stdout + answer.stderr
        assert f"{other}: something is mounted there" in answer.stderr
        assert all(map(os.path.ismount, (images, layers, other)))
        assert [path.name for path in images.iterdir()] == ["lost+found"]
        assert not list(layers.iterdir())
        assert (other / "file").read_text() == "of somebody"
        rest = left(node)
        assert len(rest.pop("mounts")) == 3
        assert not rest
        node.start_daemon()
        node.pull(BUSYBOX)
        node.run(node.run_pod("after"), "main", SLEEP)
        node.remove_everything()
        node.stop()
