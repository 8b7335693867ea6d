"""The image's own passwd and group: what they may cost and where they may lead.

Row 25, CVE-2022-4318: a newline in HOME became a line of the container's passwd.
Row 26, CVE-2025-4437, CVE-2026-47262: the whole file was read into memory, however large.
Row 27, CVE-2024-9676: the file was a link to a FIFO or a file of the host.

Tried: homes, names and values with line breaks, colons and NUL; sparse files of 5 GiB, a line of
1 GiB, a million members; FIFO, device, directory, links that climb, loop, and lead to /proc.
"""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.catalog import GROUP, PASSWD
from tests.kit.node import Node
from tests.kit.tars import Tar
from tests.security.conftest import Hostile, code_of

SLEEP = ["sleep", "1000"]
#: Refused as the request's fault or as too large, never anything else.
REFUSALS = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}
#: What the daemon may grow by while it refuses gigabytes: a few times the 4 MiB that it reads.
GROWTH_LIMIT_BYTES = 64 << 20
GIB = 1 << 30


# Row 25.


def test_nothing_that_is_said_of_a_home_becomes_a_line_of_passwd(
    node: Node, hostile: Hostile, handler: str
) -> None:
    text = "/a\nroot2:x:0:0::/:/bin/sh\n/b\rc\x1b[0m"
    passwd = PASSWD + f"person:x:1000:1000:gecos:{text}:/bin/sh\n"
    image = hostile.push(
        "home-of-lines",
        Tar().file("etc/passwd", passwd.encode()),
        user="1000:1000",
        env=[f"HOME={text}", "PATH=/bin"],
    )
    node.pull(image)
    pod = node.run_pod(handler=handler)
    container = node.run(pod, "main", SLEEP, image=image, env={"HOME": text, "USER": text})
    assert node.exec(container, "cat", "/etc/passwd")[1] == passwd
    assert node.exec(container, "cat", "/etc/group")[1] == GROUP
    assert node.exec(container, "sh", "-c", 'printf %s "$HOME"')[1] == text


def test_names_that_would_break_a_line_are_refused(node: Node) -> None:
    for text in ("a\nb", "a\rb", "a\0b", "a:b", "a b", "a/b", "-a", "."):
        with pytest.raises(grpc.RpcError) as refused:
            node.run_pod(hostname=text)
        assert code_of(refused) is grpc.StatusCode.INVALID_ARGUMENT
    pod = node.run_pod()
    for text in ("a\nroot:x:0:0::/:", "a\r", "a\0b", "a=b", ""):
        with pytest.raises(grpc.RpcError) as refused:
            node.create(pod, "main", SLEEP, env={text: "value"})
        assert code_of(refused) is grpc.StatusCode.INVALID_ARGUMENT
        if text:
            with pytest.raises(grpc.RpcError) as refused:
                node.create(pod, "main", SLEEP, username=text)
            assert code_of(refused) is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as refused:
        node.create(pod, "main", SLEEP, env={"HOME": "/a\0b"})
    assert code_of(refused) is grpc.StatusCode.INVALID_ARGUMENT
    assert not node.containers()


# Row 26.


def sparse(tar: Tar, name: str, size: int, begin: bytes) -> Tar:
    """A file of `size` bytes that takes no room in the archive: GNU's sparse format 1.0."""
    begin = begin + bytes(-len(begin) % 512)
    table = f"2\n0\n{len(begin)}\n{size}\n0\n".encode()
    return tar.add(
        f"GNUSparseFile.0/{name}",
        content=table + bytes(-len(table) % 512) + begin,
        pax={
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": name,
            "GNU.sparse.realsize": str(size),
        },
    )


SIZES = {
    "passwd-of-5-gib": lambda tar: sparse(tar, "etc/passwd", 5 * GIB, PASSWD.encode()),
    "group-of-5-gib": lambda tar: sparse(tar, "etc/group", 5 * GIB, GROUP.encode()),
    "line-of-1-gib": lambda tar: sparse(tar, "etc/passwd", GIB, b"person:x:0:0:"),
    "million-members": lambda tar: tar.file(
        "etc/group", b"many:x:0:" + b",".join(b"m%06d" % n for n in range(1_000_000)) + b"\n"
    ),
    "long-line": lambda tar: tar.file("etc/group", b"many:x:5:" + b"m," * (1 << 20) + b"\n"),
}


def test_large_files_are_refused_at_little_cost(node: Node, hostile: Hostile) -> None:
    pod = node.run_pod()
    for kind, fill in SIZES.items():
        image = hostile.push(kind, fill(Tar()))
        node.pull(image)
        Path(f"/proc/{node.pid}/clear_refs").write_text("5")  # begin a new peak
        before = _memory(node.pid, "VmRSS")
        for options in ({"username": "person"}, {"user": 5, "group": 6}):
            with pytest.raises(grpc.RpcError) as refused:
                node.create(pod, "main", SLEEP, image=image, **options)
            assert code_of(refused) in REFUSALS, kind
        assert _memory(node.pid, "VmHWM") - before < GROWTH_LIMIT_BYTES, kind
        node.remove_image(image)
    assert not node.containers()


def _memory(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {name}")


# Row 27.

LEADS = {
    "kmsg": lambda tar, name: tar.symlink(name, "/proc/kmsg"),
    "proc-root": lambda tar, name: tar.symlink(name, "/proc/1/root/etc/passwd"),
    "kmsg-by-decoy": lambda tar, name: tar.file("proc/kmsg", PASSWD.encode()).symlink(
        name, "../proc/kmsg"
    ),
    "kmsg-by-etc": lambda tar, name: (
        tar.symlink("etc", "/proc/sys").file("proc/sys/passwd").file("proc/sys/group")
    ),
    "etc-to-nothing": lambda tar, name: tar.symlink("etc", "/proc/tty/driver"),
    "self-fd": lambda tar, name: tar.symlink(name, "/proc/self/fd/0"),
    "fifo": lambda tar, name: tar.add(name, kind=tarfile.FIFOTYPE),
    "zero": lambda tar, name: tar.add(name, kind=tarfile.CHRTYPE, device=(1, 5)),
    "directory": lambda tar, name: tar.directory(name),
    "loop": lambda tar, name: tar.symlink(name, "loop").symlink("etc/loop", f"/{name}"),
    "chain": lambda tar, name: _chain(tar, name),
    "socket-like": lambda tar, name: tar.symlink(name, "/dev/log"),
}


def _chain(tar: Tar, name: str) -> Tar:
    for number in range(60):
        tar.symlink(f"etc/link{number}", f"link{number + 1}")
    return tar.file("etc/link60", PASSWD.encode()).symlink(name, "link0")


@pytest.mark.parametrize("name", ["passwd", "group"])
def test_files_that_are_none_lead_nowhere(node: Node, hostile: Hostile, name: str) -> None:
    """All are refused, and none is waited for: the runtimes would follow these inside."""
    pod = node.run_pod()
    accepted = []
    for kind, fill in LEADS.items():
        image = hostile.push(f"{name}-is-{kind}", fill(Tar(), f"etc/{name}"))
        node.pull(image)
        for options in ({"username": "person"}, {"user": 5, "group": 6}):
            try:
                node.create(pod, f"c{len(accepted)}", SLEEP, image=image, **options)
                accepted.append((kind, options))
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, kind  # noqa: PT017
    assert not accepted


def test_names_are_looked_up_inside_the_image(node: Node, hostile: Hostile) -> None:
    """The host has a file there with an account that the image lacks."""
    canary = node.work / "canary"
    canary.mkdir()
    (canary / "passwd").write_text("person:x:0:0::/:/bin/sh\n")
    before = (canary / "passwd").stat().st_atime_ns
    pod = node.run_pod()
    for number, climb in enumerate(("", "../../../../../../../..", "/proc/self/root")):
        target = f"{climb}{canary}/passwd"
        image = hostile.push(f"climbs-{number}-{node.tag}", Tar().symlink("etc/passwd", target))
        node.pull(image)
        with pytest.raises(grpc.RpcError) as refused:
            node.create(pod, "main", SLEEP, image=image, username="person")
        assert code_of(refused) is grpc.StatusCode.INVALID_ARGUMENT
    assert (canary / "passwd").stat().st_atime_ns == before
    # And a link that leads to a file of the image is a file like others.
    good = (
        Tar().symlink("etc/passwd", "/usr/passwd").file("usr/passwd", b"person:x:5:6::/:/bin/sh\n")
    )
    image = hostile.push("passwd-elsewhere", good)
    node.pull(image)
    container = node.create(pod, "good", SLEEP, image=image, username="person")
    assert (node.status(container).user.linux.uid, node.status(container).user.linux.gid) == (5, 6)


def test_a_fifo_mounted_over_passwd_is_waited_for_by_nobody_of_ours(
    node: Node, handler: str
) -> None:
    """The OCI runtimes read passwd themselves, inside; a pod can only hang its own container."""
    fifo = node.work / f"fifo-{handler}"
    os.mkfifo(fifo)
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    pod = node.run_pod(handler=handler)
    request = node.create_request(
        pod, "main", SLEEP, mounts=[api.Mount(host_path=str(fifo), container_path="/etc/passwd")]
    )
    create = node.runtime.CreateContainer.future(request, timeout=1)
    # Whether it hangs or not: others are served, and it goes when it is told to.
    other = node.run(pod, "other", SLEEP)
    assert node.exec(other, "true")[0] == 0
    create.exception()
