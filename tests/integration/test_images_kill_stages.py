"""SIGKILL of the daemon at every stage of a pull, with layers in both forms; the same again.

Cells PI1 to PI7 of the fault matrix. What must hold is the same everywhere: nothing is listed that
is not whole, the unchanged request succeeds, what was on the disk is not fetched again, contents
are right, and after the image's removal nothing is left. PI8, pulls that share layers, is
`tests/host/test_images_kill.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests import probes
from tests.fakes.registry import FOREVER, FakeImage, Hold, Recorded
from tests.fakes.registry_thread import ScriptedRegistry
from tests.integration import registry_node
from tests.integration.registry_node import (
    KIB,
    MIB,
    Code,
    Pulling,
    assert_pulled,
    assert_served,
    blob,
    noise,
    partials,
    stagings,
)
from tests.kit import census
from tests.kit.calls import until
from tests.kit.catalog import base_layer
from tests.kit.node import Node
from tests.kit.operations import Bystander, finish
from tests.kit.strace import struck

registry = registry_node.registry
SIZE = 5 * MIB
#: What a client hears of a daemon that was killed; the kit closes the connection soon after.
GONE = (Code.UNAVAILABLE, Code.CANCELLED)
EVERY = bool(os.environ.get("PODWRIGHT_KILL_EVERY"))


@pytest.fixture(scope="module", params=["indexed", "tree"])
def shared_node(
    request: pytest.FixtureRequest, certs_d: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    """A node for each form of layers."""
    if request.param == "indexed":
        reason = probes.no_indexed_layers(tmp_path_factory.mktemp("probe"))
        if reason:
            pytest.skip(reason)
    settings = {
        **registry_node.SETTINGS,
        "image.pull_progress_timeout_s": "60.0",  # held answers are no stalls here
        "image.layer_form": f'"{request.param}"',
    }
    with Node.running(f"kill-stages-{request.param}", certs_d, settings=settings) as node:
        yield node


def layer_names(node: Node) -> set[str]:
    return {path.name for path in (node.state_root / "images/layers").iterdir()}


def assert_good(node: Node, registry: ScriptedRegistry, image: str, content: bytes) -> None:
    """The same request succeeds, and every file of noise is in the container as it was made."""
    assert_pulled(node, registry, image)
    pod = node.run_pod("looks")
    command = "cat /noise-* | sha256sum"
    container = node.run(pod, "main", ["sh", "-c", command], image=image)
    assert node.wait_exited(container).exit_code == 0
    expected = hashlib.sha256(content).hexdigest()
    assert expected in node.wait_log("looks", "main", "\n")
    node.stop_pod(pod)
    node.remove_pod(pod)
    node.remove_pod_cgroups()


def add_image(registry: ScriptedRegistry) -> tuple[FakeImage, bytes]:
    """busybox, which the node has, a large layer of noise and a small one; the image, the noise."""
    large, small = noise(1, SIZE), noise(2, KIB)
    layers = [base_layer(own_shell=False).blob, large, small]
    image = registry.add_image("app", "1", layers=layers)
    return image, large[512 : 512 + SIZE] + small[512 : 512 + KIB]


def numbers() -> Iterator[int]:
    """Which system calls to be killed at: all of them in a long night, otherwise ever fewer."""
    number = 1
    while True:
        yield number
        number += 1 if EVERY else max(1, number // 2)


@pytest.mark.cell("PI1")
@pytest.mark.parametrize("part", ["manifest", "config", "layer"])
def test_killed_before_anything_of_a_layer(
    node: Node, bystander: Bystander, registry: ScriptedRegistry, part: str
) -> None:
    made, content = add_image(registry)
    image = registry.reference("app:1")
    where = {"manifest": "/manifests/", "config": made.config.digest, "layer": blob(made, 1)}[part]
    registry.on(where, Hold(after_bytes=0, times=FOREVER))
    pull = Pulling(node, image)
    until(lambda: registry.held, "the registry is asked")
    node.restart()
    registry.release()
    assert pull.code() in GONE
    assert node.image_id(image) == ""
    assert stagings(node) == []
    bystander.assert_untouched()
    assert_good(node, registry, image, content)


@pytest.mark.cell("PI2")
def test_killed_in_the_middle_of_a_blob(
    node: Node, bystander: Bystander, registry: ScriptedRegistry
) -> None:
    made, content = add_image(registry)
    image, layer = registry.reference("app:1"), made.layers[1]
    registry.on(blob(made, 1), Hold(after_bytes=SIZE // 2, times=FOREVER))
    pull = Pulling(node, image)
    until(lambda: held_bytes(node, layer.digest) > 0, "something of it is on the disk")
    node.restart()
    registry.release()
    assert pull.code() in GONE
    assert node.image_id(image) == ""
    held, asked = held_bytes(node, layer.digest), len(registry.seen(layer.digest))
    assert 0 < held < layer.size
    bystander.assert_untouched()
    assert_good(node, registry, image, content)
    starts = starts_of(registry.seen(layer.digest)[asked:])
    assert starts[0] == held, starts
    assert min(starts) == held, "something of it was asked for again"


@pytest.mark.cell("PI2", "PI3")
@pytest.mark.parametrize("share", [0.5, 1.0], ids=["half", "whole"])
def test_what_was_kept_of_a_blob_has_rotted_meanwhile(
    node: Node, registry: ScriptedRegistry, share: float
) -> None:
    """What a power loss leaves is a file of the right length with other bytes."""
    made, content = add_image(registry)
    image, layer = registry.reference("app:1"), made.layers[1]
    registry.on(blob(made, 1), Hold(after_bytes=SIZE // 2, times=FOREVER))
    pull = Pulling(node, image)
    until(lambda: held_bytes(node, layer.digest) > 0, "something of it is on the disk")
    node.kill()
    registry.release()
    assert pull.code() in GONE
    [partial] = [p for p in partials(node) if layer.digest.removeprefix("sha256:") in p.name]
    with partial.open("r+b") as file:
        file.truncate(int(layer.size * share))
        file.seek(64 * KIB)
        file.write(b"rot")
    node.start_daemon()
    assert_good(node, registry, image, content)


@pytest.mark.cell("PI3", "PI4", "PI5")
def test_killed_when_every_byte_is_there_and_no_layer(
    node: Node, bystander: Bystander, registry: ScriptedRegistry
) -> None:
    """The workers stand still, so nothing can be committed; they outlive the daemon by a moment."""
    made, content = add_image(registry)
    image, layer = registry.reference("app:1"), made.layers[1]
    registry.on(blob(made, 1), Hold(after_bytes=SIZE // 2, times=FOREVER))
    before = layer_names(node)
    pull = Pulling(node, image)
    until(
        lambda: registry.held and len(layer_names(node) - before) == 1, "the other layer is there"
    )
    stopped: set[int] = set()

    def stop_workers() -> set[int]:
        # Whoever comes later as well, long before it can have unpacked a layer.
        for worker in set(census.workers(node.pid)) - stopped:
            with contextlib.suppress(ProcessLookupError):  # an idle one ends by itself
                os.kill(worker, signal.SIGSTOP)
                stopped.add(worker)
        return stopped

    def all_there() -> bool:
        stop_workers()
        return held_bytes(node, layer.digest) == layer.size

    until(stop_workers, "workers are there")
    registry.release()
    until(all_there, "all of it is on the disk")
    node.kill()
    for worker in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGCONT)
    assert pull.code() in GONE
    node.start_daemon()
    assert node.image_id(image) == ""
    assert stagings(node) == []
    assert len(layer_names(node) - before) == 1
    bystander.assert_untouched()
    assert_good(node, registry, image, content)
    assert_served(registry, layer.digest, layer.size)


@pytest.mark.cell("PI6")
@pytest.mark.parametrize(("calls", "place"), [
    ("syncfs", "layers"), ("fsync", "layers"),
], ids=["before the sync", "after the name, before the record"])  # fmt: skip
def test_killed_in_the_middle_of_a_commit(
    node: Node, bystander: Bystander, registry: ScriptedRegistry, calls: str, place: str
) -> None:
    made, content = add_image(registry)
    image = registry.reference("app:1")
    with struck(node.pid, calls, 1, node.state_root / "images" / place):
        answered = finish(Pulling(node, image))
    assert not answered, "nothing was struck"
    node.forget_process()
    layer = made.layers[1]
    held, asked = held_bytes(node, layer.digest), len(registry.seen(layer.digest))
    node.start_daemon()
    assert node.image_id(image) == ""
    assert stagings(node) == []
    bystander.assert_untouched()
    assert_good(node, registry, image, content)
    starts = starts_of(registry.seen(layer.digest)[asked:])
    assert min(starts, default=held) == held, "something of it was asked for again"


@pytest.mark.cell("PI6", "PI7")
@pytest.mark.parametrize("calls", ["pwrite64", "fdatasync,fsync"])
def test_killed_at_every_write_of_the_catalog(
    node: Node, bystander: Bystander, registry: ScriptedRegistry, calls: str
) -> None:
    """Each layer's record, then the image and its names: before each, between them, after all."""
    made, content = add_image(registry)
    image = registry.reference("app:1")
    log = node.state_root / "images/catalog.db-wal"
    killed = 0
    for number in numbers():
        with struck(node.pid, calls, number, log):
            answered = finish(Pulling(node, image))
        if answered:
            break
        killed += 1
        node.forget_process()
        node.start_daemon()
        bystander.assert_untouched()
        assert_good(node, registry, image, content)
        node.remove_image(image)
        assert node.image_id(image) == ""
        registry.served_bytes.clear()
    print(f"killed {killed} times at {calls}")
    assert killed >= 3, "two layers and an image are recorded"
    # And PI7: the answer is lost, the image is there; asking again fetches nothing of it.
    node.restart()
    served = registry.served_bytes[made.layers[1].digest]
    assert_good(node, registry, image, content)
    assert registry.served_bytes[made.layers[1].digest] == served


def starts_of(requests: Iterable[Recorded]) -> list[int]:
    """From which byte on each asked for its blob.

    Bytes sent are no measure: the registry may still be writing to a daemon that was killed, and
    what was in the daemon's sockets died with it.
    """
    ranges = [request.header("Range") or "" for request in requests]
    return [int(text.removeprefix("bytes=").partition("-")[0] or 0) for text in ranges]


def held_bytes(node: Node, digest: str) -> int:
    """How much of a blob is on the disk."""
    name = digest.removeprefix("sha256:")
    return sum(path.stat().st_size for path in partials(node) if name in path.name)
