"""Sources of mounts: what is bound is not changed, and its length is bounded here.

Row 36, CVE-2021-43816: a host path mounted on /etc/hosts and the like was relabelled, and so opened
to every container.
Row 42, CVE-2021-43784: very long sources overflowed a length field of the runtime.

Tried: sources bound on the paths that a runtime treats as its own keep owner, mode, attributes and
content, with the flag for relabelling too (tests/host/test_relabel.py has what it does where there
is a label to give, and which places of the node it is refused for); paths of 70,000 bytes and of
names over the limit are refused before a runtime sees them.
"""

from __future__ import annotations

import os
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.node import Node
from tests.security.conftest import code_of

SLEEP = ["sleep", "1000"]
OWN_PATHS = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log")


def looks(path: Path) -> tuple[object, ...]:
    status = path.lstat()
    names = os.listxattr(path, follow_symlinks=False)
    return (
        status.st_mode,
        status.st_uid,
        status.st_gid,
        status.st_ctime_ns,  # moves with any change of the others
        path.read_bytes(),
        {name: os.getxattr(path, name, follow_symlinks=False) for name in names},
    )


@pytest.mark.parametrize("relabel", [False, True], ids=["as it is", "relabel"])
def test_sources_are_left_as_they_are(node: Node, handler: str, relabel: bool) -> None:
    """Where there is no SELinux the flag changes nothing, whatever the place."""
    if Path("/sys/fs/selinux/enforce").exists():
        pytest.skip("this node has SELinux, where the flag is to change the label")
    sources = []
    for number, _ in enumerate(OWN_PATHS):
        source = node.work / f"source-{number}"
        source.write_text("of the host\n")
        source.chmod(0o640)
        os.chown(source, 4711, 4712)
        sources.append(source)
    before = [looks(source) for source in sources]
    pod = node.run_pod(handler=handler)
    mounts = [
        api.Mount(container_path=path, host_path=str(source), selinux_relabel=relabel)
        for path, source in zip(OWN_PATHS, sources, strict=True)
    ]
    container = node.run(pod, "main", SLEEP, mounts=mounts)
    for path in OWN_PATHS:
        assert node.exec(container, "cat", path)[1] == "of the host\n"
    node.remove_container(container)
    assert [looks(source) for source in sources] == before


@pytest.mark.parametrize("long", ["/" + "a" * 70_000, "/a" * 35_000, "/" + "b" * 256])
@pytest.mark.parametrize("side", ["host_path", "container_path"])
def test_long_paths_are_refused(node: Node, side: str, long: str) -> None:
    pod = node.run_pod()
    paths = {"host_path": "/usr", "container_path": "/v", side: long}
    with pytest.raises(grpc.RpcError) as refused:
        node.create(pod, "main", SLEEP, mounts=[api.Mount(**paths)])  # type: ignore[arg-type]
    assert code_of(refused) is grpc.StatusCode.INVALID_ARGUMENT
    assert node.containers() == []
