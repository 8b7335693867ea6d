"""A disk that gets full in the middle of a pull, with layers in both forms.

Cell DK1 of the fault matrix: the client is told, what was half done is gone, running pods and other
images are as they were, and pulls work again at once.
"""

from __future__ import annotations

import gzip
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox.host.libc import LibcSyscalls
from sandbox.host.mounts import unmount_tree
from tests import probes
from tests.fakes.registry import make_tar
from tests.fakes.registry_thread import ScriptedRegistry
from tests.integration import registry_node
from tests.integration.registry_node import (
    MIB,
    Code,
    add_noise,
    assert_pulled,
    assert_refused,
    partials,
    stagings,
)
from tests.kit.calls import until
from tests.kit.node import Node
from tests.kit.operations import Bystander

registry = registry_node.registry
DISK_MIB = 96


@contextmanager
def small_disk(work: Path) -> Iterator[Path]:
    """A new ext4 of `DISK_MIB` on a loop device."""
    image, target = work / "small.img", work / "small"
    target.mkdir()
    with image.open("wb") as file:
        file.truncate(DISK_MIB * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, target], check=True)
    target.chmod(0o711)
    try:
        yield target
    finally:
        # A node looks for mounts below its own directories, and layers are mounted below this one.
        unmount_tree(target, syscalls=LibcSyscalls())


@pytest.fixture(scope="module", params=["indexed", "tree"])
def form(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Each form of layers that this kernel has."""
    return probes.form_or_skip(request.param, tmp_path_factory.mktemp("probe"))


@pytest.fixture(scope="module")
def shared_node(
    form: str, certs_d: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    """A node on a small disk."""
    settings = {"image.layer_form": f'"{form}"'}
    with small_disk(tmp_path_factory.mktemp("disk")) as disk:
        state = disk / "state"
        with Node.running(f"full-{form}", certs_d, settings=settings, state_root=state) as node:
            yield node


@pytest.mark.cell("DK1")
@pytest.mark.parametrize("packed", ["blob", "layer"])
def test_the_disk_gets_full_in_the_middle(
    node: Node, bystander: Bystander, registry: ScriptedRegistry, packed: str
) -> None:
    """While the blob arrives, and while a small blob becomes a large layer."""
    fits = add_noise(registry, "fits", 2 * MIB)
    image = registry.reference("big:1")
    if packed == "blob":
        add_noise(registry, "big", 2 * MIB, DISK_MIB * MIB)
    else:
        zeros = gzip.compress(make_tar({"zeros": bytes(DISK_MIB * MIB)}), 1)
        registry.add_image("big", "1", layers=[zeros])
    text = assert_refused(node, image, Code.RESOURCE_EXHAUSTED)
    assert re.search("space|full", text), text
    until(lambda: not stagings(node), "workers have ended")
    until(lambda: not partials(node), "other layers of the pull have ended, and are gone as well")
    bystander.assert_untouched()
    pod = node.run_pod("after")
    container = node.run(pod, "main", ["true"])
    assert node.wait_exited(container).exit_code == 0
    assert_pulled(node, registry, registry.reference("fits:1"))
    assert len(fits.layers) == 1
    add_noise(registry, "big", 3 * MIB)
    assert_pulled(node, registry, image)
