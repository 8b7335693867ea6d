"""A daemon under a memory limit of 256 MiB, and what would like to have more of it.

The limit is on everything that the daemon starts and does not give a control group of its own: its
unpack workers, monitors, runtimes and plugins too. That is what MemoryMax= of its unit counts, and
a worker that is killed for memory would be a pull that fails for what its image holds.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.fakes.registry import FOREVER, Alter
from tests.fakes.registry_thread import ScriptedRegistry
from tests.integration import registry_node
from tests.kit.faults import PATIENCE_S
from tests.kit.groups import hierarchies, remove_group
from tests.kit.judge import InvariantBroken
from tests.kit.messages import BUSYBOX
from tests.kit.node import Node

registry = registry_node.registry
MIB = 1 << 20
LIMIT_BYTES = 256 * MIB
SLEEP = ["sleep", "1000"]
BOMB_BYTES = 1 << 30


@dataclass(frozen=True)
class MemoryGroup:
    """A control group with a limit, of either version."""

    path: Path

    @property
    def _v2(self) -> bool:
        return (self.path / "memory.max").exists()

    def limit(self, size_bytes: int) -> None:
        name = "memory.max" if self._v2 else "memory.limit_in_bytes"
        (self.path / name).write_text(str(size_bytes))

    def kills(self) -> int:
        """How many processes the kernel has killed in it for memory."""
        name = "memory.events" if self._v2 else "memory.oom_control"
        words = (line.split() for line in (self.path / name).read_text().splitlines())
        return next(int(number) for key, number in words if key == "oom_kill")


def _has_memory(hierarchy: Path) -> bool:
    control = hierarchy / "cgroup.subtree_control"  # version 2 has it
    return (
        "memory" in control.read_text().split() if control.exists() else hierarchy.name == "memory"
    )


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    """A group of the test's own; what is left in it goes back to where it was before."""
    tops = [path for path in hierarchies() if _has_memory(path)]
    if not tops:
        pytest.skip("no hierarchy of this machine has the memory controller")
    made = MemoryGroup(tops[0] / f"podwright-test-memory-{os.getpid()}")
    made.path.mkdir()
    try:
        yield made
    finally:
        remove_group(made.path)


@pytest.fixture
def node(certs_d: Path, group: MemoryGroup) -> Iterator[Node]:
    """A node whose daemon lives in the group from its first moment on."""
    # The default is half of the limit here, and what it bounds is copied until an answer is sent.
    settings = {**registry_node.SETTINGS, "runtime.exec_outputs_bytes": str(4 * MIB)}
    with Node.running("memory", certs_d, settings=settings) as node:
        node.stop()
        group.limit(LIMIT_BYTES)
        node.within = group.path
        node.start_daemon()
        yield node
        node.remove_everything()
        node.stop()


def bomb(number: int) -> bytes:
    """A gigabyte of one letter, packed."""
    made = io.BytesIO()
    with gzip.GzipFile(fileobj=made, mode="wb", compresslevel=1) as packed:
        member = tarfile.TarInfo("big")
        member.size = BOMB_BYTES
        packed.write(member.tobuf())
        for _ in range(BOMB_BYTES // MIB):
            packed.write(bytes([number]) * MIB)
        packed.write(bytes(10240))
    return made.getvalue()


def many_names(number: int) -> bytes:
    """A hundred thousand empty files."""
    head = tarfile.TarInfo()
    plain = bytearray()
    for each in range(100_000):
        head.name = f"{number}/{each % 100}/{each}"
        plain += head.tobuf()
    return gzip.compress(bytes(plain) + bytes(10240), 1)


def huge_names() -> bytes:
    """Names and attributes of many kilobytes each."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for each in range(500):
            member = tarfile.TarInfo(f"file-{each}")
            member.pax_headers = {f"SCHILY.xattr.user.{n}": "x" * 50_000 for n in range(4)}
            tar.addfile(member)
    return gzip.compress(made.getvalue(), 1)


def outcome(call: object, *arguments: object, **options: object) -> grpc.StatusCode:
    try:
        call(*arguments, **options)  # type: ignore[operator]
    except grpc.RpcError as error:
        return error.code()  # type: ignore[attr-defined, no-any-return]
    return grpc.StatusCode.OK


@pytest.mark.cell("FD4")
def test_bombs_under_a_limit_of_memory(
    node: Node, group: MemoryGroup, registry: ScriptedRegistry
) -> None:
    pod = node.run_pod("pod")
    container = node.run(pod, "main", SLEEP)
    daemon, first = node.pid, node.container_pid(container)

    def alive(after: str) -> None:
        assert node.process is not None
        if group.kills() or node.process.poll() is not None:
            raise InvariantBroken("I5", f"killed for memory by {after}: {node.log_tail()}")
        node.runtime.Version(api.VersionRequest(), timeout=PATIENCE_S)
        assert node.container_pid(container) == first

    layers = {
        "bombs": [bomb(1)],
        "names": [many_names(number) for number in range(2)],
        "attributes": [huge_names()],
    }
    for name, blobs in layers.items():
        registry.add_image(name, "1", layers=blobs)
        outcome(node.pull, registry.reference(f"{name}:1"), timeout=600)
        alive(f"layers of {name}")
    registry.add_image("document", "1")
    for way in (Alter(body=b" " * (100 * MIB), times=FOREVER), Alter(length="9999999999")):
        registry.calm()
        registry.on("/manifests/", way)
        assert outcome(node.pull, registry.reference("document:1")) is not grpc.StatusCode.OK
        alive("a document of 100 MiB")
    registry.calm()

    with ThreadPoolExecutor(8) as clients:
        endless = ("sh", "-c", "head -c 60000000 /dev/zero; echo end >&2")
        list(clients.map(lambda _: outcome(node.exec, container, *endless), range(8)))
        alive("endless output of eight commands at once")

        def large(number: int) -> grpc.StatusCode:
            # It is read to its end before it can be refused.
            request = node.create_request(pod, "", SLEEP, env={"LONG": "x" * (15 * MIB)})
            return outcome(node.runtime.CreateContainer, request, timeout=PATIENCE_S)

        codes = [clients.submit(large, number) for number in range(2)]
        assert {code.result() for code in codes} == {grpc.StatusCode.INVALID_ARGUMENT}
        alive("two requests of 15 MiB at once")
    assert node.pid == daemon
    assert node.exec(node.run(pod, "again", SLEEP, image=BUSYBOX), "true")[0] == 0
