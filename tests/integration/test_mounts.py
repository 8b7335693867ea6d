"""Mount propagation and recursive read-only, as both runtimes make them on the real kernel."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from sandbox.host.libc import LibcSyscalls
from sandbox.host.mountinfo import list_mounts
from sandbox.host.mounts import unmount, unmount_tree
from tests.kit.node import Node

SLEEP = ("sleep", "1000")
PRIVATE, SLAVE, SHARED = (
    api.PROPAGATION_PRIVATE,
    api.PROPAGATION_HOST_TO_CONTAINER,
    api.PROPAGATION_BIDIRECTIONAL,
)


@pytest.fixture(params=["shared", "private"])
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of the test's own, for which alone it says how mounts propagate."""
    place = tmp_path / "volume"
    place.mkdir()
    _mount("-t", "tmpfs", "-o", "size=1m", "volume", place)
    _mount(f"--make-{request.param}", place)
    (place / "below").mkdir()
    yield place
    syscalls = LibcSyscalls()
    unmount_tree(place, syscalls=syscalls)
    if any(mount.target == place for mount in list_mounts()):
        unmount(place, syscalls=syscalls)


shared = pytest.mark.parametrize("volume", ["shared"], indirect=True)
private = pytest.mark.parametrize("volume", ["private"], indirect=True)


def _mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True)


def mount_of(source: Path, propagation: api.MountPropagation, **more: bool) -> api.Mount:
    return api.Mount(container_path="/v", host_path=str(source), propagation=propagation, **more)


def sh(node: Node, container: str, command: str) -> str:
    code, out, err = node.exec(container, "sh", "-c", command)
    assert code == 0, err
    return out


def refused(node: Node, pod: str, mount: api.Mount) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as error:
        node.create(pod, "refused", SLEEP, mounts=[mount], privileged=True)
    return error.value.code(), error.value.details()  # type: ignore[attr-defined]


@shared
@pytest.mark.parametrize(
    ("propagation", "tag"),
    [(PRIVATE, None), (SLAVE, "master:"), (SHARED, "shared:")],
    ids=["private", "slave", "shared"],
)
def test_what_the_node_mounts_later(
    node: Node, handler: str, volume: Path, propagation: api.MountPropagation, tag: str | None
) -> None:
    pod = node.run_pod("later", handler=handler, privileged=True)
    mounts = [mount_of(volume, propagation)]
    container = node.run(pod, "main", SLEEP, mounts=mounts, privileged=True)
    [line] = sh(node, container, "grep ' /v ' /proc/self/mountinfo").splitlines()
    told = line.split()[6 : line.split().index("-")]
    assert [word for word in told if tag and word.startswith(tag)] == told[: 1 if tag else 0]
    if tag is None:
        assert told == []
    _mount("-t", "tmpfs", "-o", "size=1m", "later", volume / "below")
    (volume / "below/file").write_text("of the node\n")
    # A mount that propagates has done so before mount(2) returns: nothing to wait for.
    assert sh(node, container, "ls /v/below") == ("" if tag is None else "file\n")
    assert node.status(container).mounts[0].propagation == propagation


@shared
@pytest.mark.parametrize(
    "propagation", [PRIVATE, SLAVE, SHARED], ids=["private", "slave", "shared"]
)
def test_what_the_container_mounts(
    node: Node, handler: str, volume: Path, propagation: api.MountPropagation
) -> None:
    pod = node.run_pod("own", handler=handler, privileged=True)
    mounts = [mount_of(volume, propagation)]
    container = node.run(pod, "main", SLEEP, mounts=mounts, privileged=True)
    sh(node, container, "mount -t tmpfs -o size=1m own /v/below && echo own > /v/below/file")
    assert sh(node, container, "cat /v/below/file") == "own\n"
    found = [mount for mount in list_mounts() if mount.target == volume / "below"]
    if propagation == SHARED:
        assert len(found) == 1
        assert (volume / "below/file").read_text() == "own\n"
        # It is the node's own mount now: it stays when the container goes, for others to use.
        node.remove_container(container)
        assert (volume / "below/file").read_text() == "own\n"
    else:
        assert found == []
        assert list((volume / "below").iterdir()) == []


@private
@pytest.mark.parametrize("propagation", [SLAVE, SHARED], ids=["slave", "shared"])
def test_refused_where_the_node_does_not_share(
    node: Node, handler: str, volume: Path, propagation: api.MountPropagation
) -> None:
    pod = node.run_pod("unshared", handler=handler, privileged=True)
    code, text = refused(node, pod, mount_of(volume, propagation))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert str(volume) in text
    assert "--make-rshared" in text
    assert node.containers() == []


@private
@pytest.mark.parametrize("recursive", [False, True], ids=["readonly", "recursive"])
def test_read_only_and_what_is_mounted_below(
    node: Node, handler: str, volume: Path, recursive: bool
) -> None:
    """Plain read-only holds for the top alone, as Kubernetes has it since ever."""
    _mount("-t", "tmpfs", "-o", "size=1m", "sub", volume / "below")
    pod = node.run_pod("read-only", handler=handler)
    mount = mount_of(volume, PRIVATE, readonly=True, recursive_read_only=recursive)
    container = node.run(pod, "main", SLEEP, mounts=[mount])
    code, _, err = node.exec(container, "sh", "-c", "echo x > /v/new")
    assert code != 0
    assert "Read-only file system" in err
    code, _, err = node.exec(container, "sh", "-c", "echo x > /v/below/new")
    if recursive:
        assert code != 0
        assert "Read-only file system" in err
        assert not (volume / "below/new").exists()
    else:
        assert (code, err) == (0, "")
        assert (volume / "below/new").read_text() == "x\n"
    assert node.status(container).mounts[0].recursive_read_only == recursive
    (volume / "below/by-the-node").write_text("the node's side stays writable\n")


@shared
@pytest.mark.parametrize(
    ("propagation", "readonly"),
    [(PRIVATE, False), (SLAVE, True), (SHARED, True)],
    ids=["not read-only", "slave", "bidirectional"],
)
def test_recursive_read_only_that_cannot_be(
    node: Node, handler: str, volume: Path, propagation: api.MountPropagation, readonly: bool
) -> None:
    """The three cases of KEP-3857; the kubelet looks for the word."""
    pod = node.run_pod("no-rro", handler=handler, privileged=True)
    mount = mount_of(volume, propagation, readonly=readonly, recursive_read_only=True)
    code, text = refused(node, pod, mount)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "RROUnsupported" in text
    assert "recursive_read_only" in text
    assert node.containers() == []
