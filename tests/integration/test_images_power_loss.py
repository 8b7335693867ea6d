"""In which order a pull reaches the disk, read from the system calls of a real one.

Cell DK9: no machine here can be switched off in the middle, so the order is what can be looked at.
Whatever a power loss cuts off then, what is recorded is on the disk: the kernel keeps what was
synced, and nothing else in any order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import probes
from tests.fakes.registry import FakeImage
from tests.fakes.registry_thread import ScriptedRegistry
from tests.integration import registry_node
from tests.integration.registry_node import KIB, MIB, noise
from tests.kit.node import Node
from tests.kit.strace import SystemCall, calls_of, traced
from tests.kit.tars import Tar

registry = registry_node.registry
#: What can change a file or a name, and what makes changes last.
CALLS = (
    "write,pwrite64,writev,pwritev,copy_file_range,sendfile,splice,ftruncate,fallocate,"
    "openat,mkdir,mkdirat,symlinkat,linkat,mknodat,fchmod,fchown,fsetxattr,"
    "rename,renameat,renameat2,fsync,fdatasync,syncfs,sync_file_range"
)
CHANGES = frozenset(CALLS.split(",")) - {"fsync", "fdatasync", "syncfs", "sync_file_range"}


@pytest.fixture(scope="module", params=["indexed", "tree"])
def shared_node(
    request: pytest.FixtureRequest, certs_d: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    """A node for each form of layers."""
    if request.param == "indexed":
        reason = probes.no_indexed_layers(tmp_path_factory.mktemp("probe"))
        if reason:
            pytest.skip(reason)
    settings = {"image.layer_form": f'"{request.param}"'}
    with Node.running(f"power-loss-{request.param}", certs_d, settings=settings) as node:
        yield node


@pytest.fixture
def calls(
    node: Node, registry: ScriptedRegistry, tmp_path: Path
) -> tuple[FakeImage, list[SystemCall]]:
    """The image that was pulled, and every call that changed or synced something below `images`."""
    small = Tar().directory("d")
    for number in range(50):
        small.file(f"d/f{number}", b"x" * number)
    layers = [noise(1, 3 * MIB), noise(2, KIB), small.done()]
    made = registry.add_image("app", "1", layers=layers)
    with traced(node.pid, CALLS, tmp_path / "trace"):
        node.pull(registry.reference("app:1"))
    images = str(node.state_root / "images")
    found = calls_of((tmp_path / "trace").read_text(errors="replace"))
    return made, [call for call in found if images in call.arguments and call.result >= 0]


def published(calls: list[SystemCall]) -> dict[str, SystemCall]:
    """For each layer's directory the call that gave it its name."""
    found = {}
    for call in calls:
        if call.name.startswith("rename"):
            match = re.search(r'/staging/(\w+)".*/layers/(\w+)"', call.arguments)
            if match and match[1] == match[2]:
                found[match[1]] = call
    return found


def first_after(calls: list[SystemCall], call: SystemCall, name: str, path: str) -> SystemCall:
    """The first call of that name on that file that begins after `call` has ended."""
    for each in sorted(calls, key=lambda each: each.began):
        if each.began > call.ended and each.name in name.split() and path in each.arguments:
            return each
    raise AssertionError(f"no {name} of {path} after {call}")


def on(call: SystemCall, path: str) -> bool:
    """Whether the call's first descriptor is this very file."""
    return bool(re.match(rf"\d+<{re.escape(path)}>", call.arguments))


@pytest.mark.cell("DK9")
def test_a_layer_is_on_the_disk_before_its_name_and_its_name_before_its_record(
    node: Node, calls: tuple[FakeImage, list[SystemCall]]
) -> None:
    made, trace = calls
    layers_dir = f"{node.state_root}/images/layers"
    names = published(trace)
    assert len(names) == len(made.layers)
    syncs = [c for c in trace if c.name == "syncfs"]
    for name, rename in names.items():
        own = f"/images/staging/{name}"
        written = [
            c for c in trace
            if c.name in CHANGES and c is not rename
            and re.search(rf'{own}[/">]', c.arguments) and not _only_reads(c)
        ]  # fmt: skip
        assert written, f"nothing was seen that writes {own}"
        last = max(call.ended for call in written)
        assert last < rename.began, "it is written to after it has its name"
        assert any(last < s.began and s.ended < rename.began for s in syncs), (
            f"no syncfs between the last write to {own} and its name"
        )
        named = next(
            c for c in sorted(trace, key=lambda c: c.began)
            if c.began > rename.ended and c.name == "fsync" and on(c, layers_dir)
        )  # fmt: skip
        assert _records_after(node, trace, named), "nothing is recorded after the name is on disk"
    # Each record is written after some layer's name was synced, none before the first.
    first = min(rename.began for rename in names.values())
    early = [c for c in _log_writes(node, trace) if c.ended < first]
    assert early == [], "something was recorded before any layer had its name"


@pytest.mark.cell("DK9")
def test_an_image_is_recorded_after_its_documents_and_layers(
    node: Node, calls: tuple[FakeImage, list[SystemCall]]
) -> None:
    made, trace = calls
    content = f"{node.state_root}/images/content/sha256"
    last_record = max(c.began for c in _log_writes(node, trace))
    for document in (made.manifest, made.config):
        hexadecimal = document.digest.removeprefix("sha256:")
        renames = [
            c for c in trace
            if c.name.startswith("rename") and c.arguments.rstrip('"').endswith(hexadecimal)
        ]  # fmt: skip
        [rename] = renames
        temporary = re.search(r'"([^"]+)"', rename.arguments)
        assert temporary is not None
        place = Path(temporary[1])
        path = place if place.is_absolute() else Path(content) / place
        writes = [c for c in trace if c.name == "write" and on(c, str(path))]
        synced = [c for c in trace if c.name in ("fsync", "fdatasync") and on(c, str(path))]
        assert writes
        assert any(
            max(w.ended for w in writes) < s.began and s.ended < rename.began for s in synced
        ), f"{path} has its name before its bytes are on the disk"
        directory = first_after(trace, rename, "fsync", content)
        assert directory.ended < last_record, "the image is recorded before its document's name"
    newest = max(rename.ended for rename in published(trace).values())
    assert newest < last_record


@pytest.mark.cell("DK9")
def test_every_record_is_synced_before_the_answer(
    node: Node, calls: tuple[FakeImage, list[SystemCall]]
) -> None:
    """The trace ends with the answer: whatever is not synced by then may be lost."""
    _made, trace = calls
    last = max(c.ended for c in _log_writes(node, trace))
    log = str(node.state_root / "images/catalog.db-wal")
    assert any(c.began > last and c.name in ("fsync", "fdatasync") and on(c, log) for c in trace)


def _only_reads(call: SystemCall) -> bool:
    """An open that creates and writes nothing."""
    return call.name == "openat" and not re.search("O_WRONLY|O_RDWR|O_CREAT", call.arguments)


def _log_writes(node: Node, trace: list[SystemCall]) -> list[SystemCall]:
    """What went into the catalog's log."""
    log = str(node.state_root / "images/catalog.db-wal")
    return [c for c in trace if c.name in ("pwrite64", "write") and on(c, log)]


def _records_after(node: Node, trace: list[SystemCall], call: SystemCall) -> bool:
    return any(c.began > call.ended for c in _log_writes(node, trace))
