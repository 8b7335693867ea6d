"""Rows 79 to 83: what others did with checkpoint archives; here there are none.

CVE-2024-8676 (mounts from the archive), CVE-2026-53492 (CDI annotations from it), CVE-2026-50195
(an image tag made of it), CVE-2026-53489 (its link for a log followed), CVE-2025-0426 (archives
fill the disk). CheckpointContainer answers UNIMPLEMENTED for a container that runs and for one that
does not exist, writes nothing where it is told to, and leaves container and images as they were.
An archive offered as an image is no image.
"""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.node import Node


def checkpoint(node: Node, container: str, location: Path) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as refused:
        node.runtime.CheckpointContainer(
            api.CheckpointContainerRequest(container_id=container, location=str(location)),
            timeout=60,
        )
    return refused.value.code()  # type: ignore[attr-defined]


def test_a_checkpoint_is_refused_and_nothing_is_touched(
    node: Node, handler: str, tmp_path: Path
) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", ["sleep", "1000"])
    pid = node.container_pid(container)
    images = node.images.ListImages(api.ListImagesRequest(), timeout=60)
    planted = tmp_path / "planted"
    planted.symlink_to(tmp_path / "victim")
    state = sorted(str(path) for path in node.state_root.rglob("*"))
    for location in (tmp_path / "new.tar", planted, tmp_path / "no/such/dir.tar"):
        for name in (container, "0" * 64, ""):
            assert checkpoint(node, name, location) is grpc.StatusCode.UNIMPLEMENTED
    assert [path.name for path in tmp_path.iterdir()] == ["planted"]
    assert sorted(str(path) for path in node.state_root.rglob("*")) == state
    assert node.images.ListImages(api.ListImagesRequest(), timeout=60) == images
    assert node.container_pid(container) == pid
    assert node.exec(container, "true")[0] == 0
    [status] = node.containers()
    assert status.state == api.CONTAINER_RUNNING


def test_an_archive_is_no_image_to_start_from(node: Node, handler: str, tmp_path: Path) -> None:
    archive = tmp_path / "checkpoint.tar"
    archive.write_bytes(b"config.dump" + bytes(1024))
    pod = node.run_pod("pod", handler=handler)
    with pytest.raises(grpc.RpcError) as refused:
        node.create(pod, "restored", ["true"], image=str(archive))
    assert refused.value.code() in (  # type: ignore[attr-defined]
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
    )
    assert not node.containers()
