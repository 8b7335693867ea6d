"""Sockets into the kernel's crypto and into the hypervisor are not for containers.

AF_ALG had one hole after another, and AF_VSOCK passes by every network policy; no default filter
of the field named either for long. Tried by the way that crun is given compiled filters, by the
one that it compiles rules itself, and with runc; as the container's program and as a command in it.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import seccomp_probes
from tests.kit.node import Node
from tests.kit.probe_elf import probe, probe_32
from tests.kit.rights import run_with, seccomp

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the probes are x86-64 programs"
)

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_ALG, AF_VSOCK = 1, 2, 10, 16, 38, 40
#: System calls of x86-64, and of its 32-bit table.
SOCKET, SOCKET_32, SOCKETCALL_32 = 41, 359, 102

PROBES = {
    "alg": probe(SOCKET, AF_ALG, 5, 0),
    "vsock": probe(SOCKET, AF_VSOCK, 1, 0),
    # The kernel takes 32 bits of the family: more must not lead past the filter.
    "alg-high": probe(SOCKET, AF_ALG | 1 << 32, 5, 0),
    "vsock-high": probe(SOCKET, AF_VSOCK | 1 << 32, 1, 0),
    "alg-32": probe_32(SOCKET_32, AF_ALG, ()),
    "vsock-32": probe_32(SOCKET_32, AF_VSOCK, ()),
    # The multiplexer, whose family lies in memory where no filter looks.
    "call-alg-32": probe_32(SOCKETCALL_32, 1, (AF_ALG, 5, 0)),
    "call-vsock-32": probe_32(SOCKETCALL_32, 1, (AF_VSOCK, 1, 0)),
    "call-inet-32": probe_32(SOCKETCALL_32, 1, (AF_INET, 1, 0)),
    "alg-x32": probe(SOCKET | 0x40000000, AF_ALG, 5, 0),
    "unix": probe(SOCKET, AF_UNIX, 1, 0),
    "unix-high": probe(SOCKET, AF_UNIX | 1 << 32, 1, 0),
    "inet": probe(SOCKET, AF_INET, 1, 0),
    "inet6": probe(SOCKET, AF_INET6, 1, 0),
    "netlink": probe(SOCKET, AF_NETLINK, 3, 0),
}
BLOCKED = ("alg", "vsock", "alg-high", "vsock-high", "alg-32", "vsock-32")
#: No such call, as far as a program can tell: a C library then takes the single calls.
HIDDEN = ("call-alg-32", "call-vsock-32", "call-inet-32")
WORK = ("unix", "unix-high", "inet", "inet6", "netlink")


@pytest.fixture(scope="session")
def interpreting_node(hostile) -> Iterator[Node]:  # type: ignore[no-untyped-def]
    """A daemon that hands rules to crun, not compiled filters."""
    with hostile.daemon("rules", {"runtime.compiled_seccomp": "false"}) as node:
        yield node


def judge(node: Node, handler: str, probes: Path) -> None:
    mount = seccomp_probes.write(probes, PROBES)
    pod = node.run_pod("pod", handler=handler)
    script = f"{seccomp_probes.SCRIPT}; echo done; sleep 1000"
    container = run_with(
        node, pod, "main", ["sh", "-c", script], seccomp("RuntimeDefault"), mounts=[mount]
    )
    told = seccomp_probes.told_by(node, container)
    log = node.wait_log("pod", "main", "done")
    for name in BLOCKED:
        assert (name, told[name]) == (name, "EPERM")
        assert f"{name} 1\n" in log
    # What a kernel without the x32 table says first is EPERM by the filter or ENOSYS by itself.
    assert told["alg-x32"] in ("EPERM", "ENOSYS")
    for name in HIDDEN:
        assert (name, told[name]) == (name, "ENOSYS")
    for name in WORK:
        assert (name, told[name]) == (name, "0")


def test_no_socket_of_either_family(node: Node, handler: str, tmp_path: Path) -> None:
    judge(node, handler, tmp_path / "probes")


def test_nor_where_crun_reads_the_rules(interpreting_node: Node, tmp_path: Path) -> None:
    try:
        judge(interpreting_node, "crun", tmp_path / "probes")
    finally:
        interpreting_node.remove_everything()
    interpreting_node.assert_clean()


def test_unconfined_sees_what_the_kernel_has(node: Node, handler: str, tmp_path: Path) -> None:
    """It is the filter that the test above sees."""
    mount = seccomp_probes.write(tmp_path / "probes", PROBES)
    pod = node.run_pod("pod", handler=handler)
    container = run_with(
        node, pod, "main", ["sleep", "1000"], seccomp("Unconfined"), mounts=[mount]
    )
    told = seccomp_probes.told_by(node, container)
    assert "EPERM" not in told.values()
    # 32-bit programs may not be run at all by a kernel built so: then there is no such call.
    assert told["call-inet-32"] in ("0", "EINVAL", "ENOSYS")
