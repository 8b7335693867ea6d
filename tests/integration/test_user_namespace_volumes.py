"""Volumes that an image declares, in pods with a user namespace, with both OCI runtimes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.catalog import base_layer
from tests.kit.messages import namespaces, user_namespace
from tests.kit.node import Node
from tests.kit.oci import Entry, ImageConfig, make_image, make_layer
from tests.kit.registry import Pusher, running_registry, write_hosts

#: Different for users and groups, so that one taken for the other shows.
USERS, GROUPS = 200_000, 400_000
OWN = namespaces(user=user_namespace(USERS, gids=GROUPS))
IMAGE = "volumes.localhost/volumes:1"


@pytest.fixture
def image(node: Node, certs_d: Path, tmp_path: Path) -> Iterator[str]:
    """With a volume that it has, one of another user's, and one that it has not."""
    entries = [
        Entry("has/file", content=b"of the image"),
        Entry("other/file", content=b"x", uid=1000, gid=1001),
    ]
    config = ImageConfig(command=["sh"], volumes=("/has", "/other", "/has-not/deep"))
    made = make_image([base_layer(own_shell=False), make_layer(entries)], config)
    with running_registry(tmp_path / "storage", tmp_path) as port:
        write_hosts(certs_d, port, ["volumes.localhost"])
        with contextlib.closing(Pusher(port)) as pusher:
            pusher.push(made, "volumes:1")
        node.pull(IMAGE)
    yield IMAGE
    node.remove_everything()
    node.remove_image(IMAGE)


@pytest.mark.parametrize("read_only", [False, True])
def test_belong_to_root_inside_who_writes_them(
    node: Node, handler: str, image: str, read_only: bool
) -> None:
    pod = node.run_pod("pod", handler=handler, spaces=OWN)
    container = node.run(
        pod, "main", ["sleep", "1000"], image=image, spaces=OWN, read_only=read_only
    )
    script = (
        "stat -c %u:%g /has /has/file /other/file /has-not /has-not/deep; cat /has/file; echo;"
        " for v in /has /other /has-not/deep; do touch $v/new && chown 7:8 $v/new || exit 1; done;"
        " stat -c %u:%g /has/new; grep -c ' /has ' /proc/mounts"
    )
    code, out, errors = node.exec(container, "sh", "-c", script)
    assert code == 0, (out, errors)
    assert out.split("\n")[:-1] == [
        "0:0",
        "0:0",
        "1000:1001",
        "0:0",
        "0:0",
        "of the image",
        "7:8",
        "1",
    ]
    assert (node.exec(container, "touch", "/new")[0] != 0) is read_only
    upper = node.state_root / "containers" / container / "upper"
    for path in ("has/new", "other/new", "has-not/deep/new"):
        status = (upper / path).stat()
        assert (status.st_uid, status.st_gid) == (USERS + 7, GROUPS + 8), path
    status = (upper / "has-not").stat()
    assert (status.st_uid, status.st_gid) == (USERS, GROUPS)
