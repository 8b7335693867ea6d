"""The daemon dies in the middle of a sweep, at each of its steps; the next one goes on with it.

What is swept is what a creation without a record leaves: directories with mounts, a pinned
namespace, an exit file, a writable layer and a control group, all by one id that nobody knows.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit import groups, judge
from tests.kit.calls import until
from tests.kit.node import Node
from tests.kit.operations import Bystander, survived

FAILPOINTS = True
SETTINGS = {"daemon.sweep_interval_s": "0.3"}
#: Steps that only the sweep takes: nothing else removes or unmounts in these tests.
SWEEPING = r"^(umount2|rmdir|remove) "
#: How far apart the steps are at which it dies.
STRIDE = 1 if os.environ.get("PODWRIGHT_KILL_EVERY") else 4


def places(node: Node, nobody: str) -> list[Path]:
    """Where something of `nobody` is, or was."""
    run, parent = node.run_root, groups.parent(node.tag, "nobody")
    return [
        run / "containers" / nobody,
        run / "pods" / nobody,
        run / "namespaces" / nobody,
        run / "exits" / nobody,
        node.state_root / "containers" / nobody,
        *(Path(f"{top}{parent}/{nobody}") for top in groups.hierarchies()),
    ]


def left(node: Node, nobody: str) -> list[Path]:
    """What there still is of it."""
    mounted = nobody in Path("/proc/self/mountinfo").read_text()
    return [*(p for p in places(node, nobody) if p.exists()), *([Path("a mount")] * mounted)]


@contextmanager
def leavings(node: Node) -> Iterator[str]:
    """Traces of nobody; the id."""
    nobody = secrets.token_hex(32)
    node.ids.add(nobody)
    bundle, pod, pins, exit_file, layer, *cgroups = places(node, nobody)
    for directory in (bundle / "rootfs", pod / "shm"):
        directory.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "none", directory], check=True)
    (bundle / "config.json").write_text("{}")
    (bundle / "rootfs" / "file").write_text("of nobody")
    pins.mkdir()
    (pins / "net").touch()
    subprocess.run(["unshare", f"--net={pins / 'net'}", "true"], check=True)
    exit_file.write_text("0")
    (layer / "upper" / "deep").mkdir(parents=True)
    for cgroup in cgroups:
        if Path(cgroup.parts[0], *cgroup.parts[1:4]).is_dir():
            cgroup.mkdir(parents=True)
    yield nobody
    node.remove_pod_cgroups()


@pytest.mark.cell("GC1")
def test_killed_at_the_steps_of_a_sweep(node: Node, bystander: Bystander) -> None:
    """Everything of nobody goes in the end, and nothing of anybody else's."""
    assert node.failpoints is not None
    killed = 0
    for number in range(1, 200, STRIDE):
        with node.failpoints.ordered("kill", number=number), leavings(node) as nobody:
            process = node.process
            assert process is not None
            until(
                lambda: process.poll() is not None or not left(node, nobody),  # noqa: B023
                "it is swept, or the sweep has killed",
            )
        # The order may have struck a step after the last of the sweep.
        through = survived(node) and not left(node, nobody)
        if not through and not survived(node):
            node.forget_process()
            killed += 1
            node.start_daemon()
        until(lambda: not left(node, nobody), "the rest is swept")
        node.remove_pod_cgroups()
        node.assert_true()
        bystander.assert_untouched()
        node.assert_clean()
        if through:
            break
    assert killed, "it was never killed"
    judge.notes.walks.append(("sweep", "step", killed))


@pytest.mark.cell("GC1")
def test_killed_five_times_in_one_sweep(node: Node, bystander: Bystander) -> None:
    """The starts sweep too, and die of it: what they have done is not done again, nor undone."""
    assert node.failpoints is not None
    with leavings(node) as nobody:
        for number in (2, 4, 6, 8, 10):
            with node.failpoints.ordered("kill", match=SWEEPING, nth=number % 3 + 1):
                if node.process is None:
                    node.start_daemon(wait=False)
                process = node.process
                assert process is not None
                until(lambda: process.poll() is not None or not left(node, nobody))  # noqa: B023
            if survived(node):
                break
            node.forget_process()
        if node.process is None:
            node.start_daemon()
        until(lambda: not left(node, nobody), "all of it is swept")
    node.assert_true()
    bystander.assert_untouched()
