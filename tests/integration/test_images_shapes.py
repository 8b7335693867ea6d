"""Images of extreme shapes in both forms of layers: 128 layers, 10⁶ entries.

Cell RG13 of the fault matrix. With PODWRIGHT_BIG_LAYERS=1 the layer has the 10⁶
entries (minutes, and 2 GB of memory in the test itself); in a usual run it has 50,000.
"""

from __future__ import annotations

import gzip
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import probes
from tests.fakes.registry import make_tar
from tests.fakes.registry_thread import ScriptedRegistry
from tests.integration import registry_node
from tests.integration.registry_node import (
    MIB,
    answering,
)
from tests.kit import census
from tests.kit.catalog import base_layer
from tests.kit.measure_pull import status_bytes
from tests.kit.messages import namespaces, user_namespace
from tests.kit.node import Node
from tests.kit.tars import Tar

registry = registry_node.registry
BIG = bool(os.environ.get("PODWRIGHT_BIG_LAYERS"))
ENTRIES = 1_000_000 if BIG else 50_000
#: As many layers as images have at most in practice: Docker's own limit is 127.
LAYERS = 128
#: Of the worker while it unpacks, its address space: `imageservice.unpack.worker`. An index of 10⁶
#: entries took 533 MiB, a tree of them 28.
WORKER_BYTES = 2 << 30


@pytest.fixture(scope="module", params=["indexed", "tree"])
def form(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Each form of layers that this kernel has."""
    return probes.form_or_skip(request.param, tmp_path_factory.mktemp("probe"))


@pytest.fixture(scope="module")
def shared_node(form: str, certs_d: Path) -> Iterator[Node]:
    """A node for each form of layers."""
    settings = {"image.layer_form": f'"{form}"'}
    with Node.running(f"shapes-{form}", certs_d, settings=settings) as node:
        yield node


@pytest.mark.cell("RG13")
@pytest.mark.parametrize("mapped", [False, True], ids=["plain", "userns"])
def test_128_layers_run(node: Node, registry: ScriptedRegistry, mapped: bool) -> None:
    """Every layer is seen, the last of one name wins, and what is written goes to the top."""
    own = [make_tar({f"layer/{n}": b"%d" % n, "which": b"%d" % n}) for n in range(1, LAYERS)]
    registry.add_image("deep", "1", layers=[base_layer(own_shell=False).blob, *own])
    image = registry.reference("deep:1")
    node.pull(image)
    spaces = namespaces(user=user_namespace(200_000) if mapped else None)
    pod = node.run_pod("deep", spaces=spaces)
    container = node.run(pod, "main", ["sleep", "1000"], image=image, spaces=spaces)
    code, seen, _ = node.exec(container, "sh", "-c", "cat /layer/* /which && echo x > /layer/1")
    assert code == 0
    numbers = sorted(str(n) for n in range(1, LAYERS))
    assert seen == "".join(numbers) + str(LAYERS - 1)
    assert node.exec(container, "cat", "/layer/1")[1] == "x\n"


@pytest.mark.cell("RG13")
def test_a_layer_of_very_many_entries(
    node: Node, registry: ScriptedRegistry, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The worker's memory is bounded, the daemon's does not grow, and others are answered."""
    image = registry.reference("wide:1")
    base = base_layer(own_shell=False).blob
    registry.add_image("wide", "1", layers=[base, gzip.compress(_empty_files(ENTRIES), 1)])
    before = status_bytes(node.pid, "VmRSS")
    with answering(node), peak_of_workers(node) as peak:
        node.pull(image, timeout=1800)
    grown = status_bytes(node.pid, "VmHWM") - before
    with capsys.disabled():
        print(f"\n{ENTRIES} entries, {form}: worker {peak[0] / MIB:.0f} MiB, "
              f"daemon grew by {grown / MIB:.1f} MiB")  # fmt: skip
    assert peak[0] < WORKER_BYTES
    pod = node.run_pod("wide")
    last = f"/wide/{ENTRIES // 1000 - 1}/999"
    container = node.run(pod, "main", ["stat", "-c", "%a %s", last], image=image)
    assert node.wait_exited(container).exit_code == 0
    assert node.log_of("wide", "main") == "640 0\n"


def _empty_files(count: int) -> bytes:
    """A plain tar of directories of 1000 files each; headers are made once and patched."""

    def header(kind: bytes, name: str, mode: int) -> bytes:
        whole = Tar().add(name, kind=kind, mode=mode).done()
        return whole[:512]

    parts = [header(b"5", "wide", 0o755)]
    for directory in range(count // 1000):
        parts.append(header(b"5", f"wide/{directory}", 0o755))
        pattern = bytearray(header(b"0", f"wide/{directory}/000", 0o640))
        at = len(f"wide/{directory}/")
        plain = sum(pattern[:148]) + sum(pattern[156:]) + 8 * 32 - 3 * 48
        for number in range(1000):
            digits = b"%d" % number
            pattern[at : at + 3] = digits + bytes(3 - len(digits))
            pattern[148:156] = b"%06o\0 " % (plain + sum(digits))
            parts.append(bytes(pattern))
    return b"".join(parts) + bytes(1024)


@contextmanager
def peak_of_workers(node: Node) -> Iterator[list[int]]:
    """The largest resident memory that any unpack worker had while the block ran, in bytes."""
    over, peak = threading.Event(), [0]

    def look() -> None:
        while not over.wait(0.02):
            for worker in census.workers(node.pid):
                peak[0] = max(peak[0], status_bytes(worker, "VmHWM"))

    thread = threading.Thread(target=look, name="looking")
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
