"""Nodes whose images come from a disk that is mounted read-only and shared by them.

The disk is a file system of its own behind a loop device, made by `podwright pull --root` as an
operator would make it, once with each form of layers.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from sandbox.host.mountinfo import list_mounts
from tests import probes
from tests.kit.faults import PATIENCE_S
from tests.kit.messages import BUSYBOX, namespaces, user_namespace
from tests.kit.node import Node, until

SLEEP = ("sleep", "1000")
PODWRIGHT = Path(sys.executable).with_name("podwright")


@pytest.fixture(scope="module", params=["tree", "indexed"])
def disk(
    request: pytest.FixtureRequest, certs_d: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A store on a read-only ext4; where it is mounted."""
    work = tmp_path_factory.mktemp("disk")
    if request.param == "indexed" and (reason := probes.no_indexed_layers(work)):
        pytest.skip(reason)
    baked = work / "baked"
    config = work / "config.toml"
    config.write_text(
        f"[image]\nregistry_config_dirs = [{json.dumps(str(certs_d))}]\n"
        f'layer_form = "{request.param}"\nadditional_stores = ["/no/such/store"]\n'
    )
    image_id = podwright(config, "pull", "--root", baked, BUSYBOX)
    assert image_id.startswith("sha256:")
    assert podwright(config, "verify", "--root", baked) == "nothing is wrong"
    image = work / "disk.ext4"
    subprocess.run(
        ["mkfs.ext4", "-q", "-d", str(baked), str(image), "64M"], check=True, capture_output=True
    )
    place = work / "mounted"
    place.mkdir()
    with mounted(image, place):
        yield place


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "ro,loop", str(image), str(place)], check=True)
    try:
        with pytest.raises(OSError, match="Read-only"):
            (place / "new").touch()
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def podwright(config: Path, command: str, *arguments: str | Path, status: int = 0) -> str:
    done = subprocess.run(
        [PODWRIGHT, command, "--config", config, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, (done.stdout, done.stderr)
    return (done.stdout or done.stderr).strip()


def settings(*stores: Path) -> dict[str, str]:
    return {"image.additional_stores": json.dumps([str(store) for store in stores])}


@contextmanager
def running(name: str, certs_d: Path, *stores: Path) -> Iterator[Node]:
    with Node.running(name, certs_d, images=(), settings=settings(*stores)) as node:
        node.warm_up()
        yield node
        node.remove_everything()
        node.assert_clean()
        node.assert_honest()


@pytest.fixture(scope="module")
def shared_node(disk: Path, certs_d: Path) -> Iterator[Node]:
    with running("lender", certs_d, disk) as node:
        yield node


def own_layers(node: Node) -> list[str]:
    return [p.name for p in (node.state_root / "images/layers").iterdir() if p.name != "empty"]


def listed(node: Node) -> list[api.Image]:
    return list(node.images.ListImages(api.ListImagesRequest(), timeout=PATIENCE_S).images)


def sh(node: Node, container: str, script: str) -> str:
    code, out, err = node.exec(container, "sh", "-c", script)
    assert code == 0, (script, out, err)
    return out


def places(node: Node) -> list[Path]:
    top = node.state_root / "images/mounts"
    return [m.target for m in list_mounts() if m.target.parent == top]


def test_a_container_runs_on_it_without_a_pull(node: Node, handler: str) -> None:
    container = node.run(node.run_pod("web", handler=handler), "main", SLEEP)
    assert sh(node, container, "echo mine >/bin/new; cat /bin/new") == "mine\n"
    assert own_layers(node) == []
    assert places(node)


def test_it_is_shown_to_the_kubelet_and_to_people(node: Node, disk: Path) -> None:
    [image] = listed(node)
    assert image.pinned
    assert list(image.repo_tags) == [BUSYBOX]
    assert dict(image.spec.annotations) == {"podwright.io/additional-stores": str(disk)}
    request = api.ImageStatusRequest(image=api.ImageSpec(image=BUSYBOX), verbose=True)
    info = json.loads(node.images.ImageStatus(request, timeout=PATIENCE_S).info["info"])
    assert (info["own"], info["additionalStores"]) == (False, [str(disk)])
    table = podwright(node.config, "images")
    assert "ADDITIONAL STORE" in table
    assert str(disk) in table
    [shown] = json.loads(podwright(node.config, "images", "--json"))
    assert shown["additional_stores"] == str(disk)
    assert f"additional images: 1 of {len(info['diffIDs'])} layers at {disk}" in podwright(
        node.config, "status"
    )
    assert podwright(node.config, "verify") == "nothing is wrong"


def test_it_cannot_be_removed(node: Node, disk: Path) -> None:
    [image] = listed(node)
    for name in (image.id, BUSYBOX):
        request = api.RemoveImageRequest(image=api.ImageSpec(image=name))
        with pytest.raises(grpc.RpcError) as caught:
            node.images.RemoveImage(request, timeout=PATIENCE_S)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert str(disk) in str(caught.value.details())
        assert "image.additional_stores" in str(caught.value.details())
    assert listed(node) == [image]


def test_a_pull_of_it_costs_no_layer_and_can_be_removed(node: Node) -> None:
    [before] = listed(node)
    assert node.pull(BUSYBOX) == before.id
    assert own_layers(node) == []
    [image] = listed(node)
    assert not image.pinned
    node.remove_image(BUSYBOX)
    assert listed(node) == [before]


def test_a_pod_with_a_user_namespace_runs_on_it(node: Node, handler: str) -> None:
    own = namespaces(user=user_namespace(200_000, gids=400_000))
    pod = node.run_pod("mapped", handler=handler, spaces=own)
    container = node.run(pod, "main", SLEEP, spaces=own)
    assert sh(node, container, "stat -c '%u %g' /bin/busybox; id -u") == "0 0\n0\n"
    sh(node, container, "echo x >/bin/new")


def test_it_is_mounted_as_a_volume(node: Node) -> None:
    volume = api.Mount(container_path="/volume", image=api.ImageSpec(image=BUSYBOX), readonly=True)
    container = node.run(node.run_pod("volume"), "main", SLEEP, mounts=[volume])
    assert sh(node, container, "/volume/bin/busybox echo runs") == "runs\n"
    assert node.exec(container, "sh", "-c", "echo x >/volume/new")[0] != 0


def test_a_container_on_it_outlives_the_daemon(node: Node) -> None:
    pod = node.run_pod("stays")
    container = node.run(pod, "main", SLEEP)
    pid = node.container_pid(container)
    node.restart()
    node.assert_true()
    assert node.container_pid(container) == pid
    assert sh(node, container, "ls /bin/sh") == "/bin/sh\n"
    second = node.run(pod, "second", SLEEP)
    assert sh(node, second, "echo also") == "also\n"


def test_two_nodes_share_one_disk(node: Node, disk: Path, certs_d: Path) -> None:
    first = node.run(node.run_pod("one"), "main", SLEEP)
    with running("second-lender", certs_d, disk) as other:
        second = other.run(other.run_pod("two"), "main", SLEEP)
        assert sh(other, second, "echo there") == "there\n"
        node.kill()
        assert sh(other, second, "echo still") == "still\n"
        node.start_daemon()
    assert sh(node, first, "echo here") == "here\n"
    assert not any("wal" in p.name for p in disk.iterdir())


@pytest.mark.parametrize("how", ["running", "restarted"])
def test_a_disk_that_is_taken_away_is_named_and_comes_back(
    disk: Path, certs_d: Path, tmp_path: Path, how: str
) -> None:
    source = disk.parent / "disk.ext4"
    place = tmp_path / "own"
    place.mkdir()
    with Node.running("bereft", certs_d, images=(), settings=settings(place)) as node:
        # The daemon began without it: it says so, and serves.
        assert listed(node) == []
        assert "there is no image store" in podwright(node.config, "status")
        [warned] = [one for one in checked(node) if one["name"] == "additional store"]
        assert warned["level"] == "warning"
        assert str(place) in warned["detail"]
        assert "mount its disk" in warned["remedy"]
        found = podwright(node.config, "verify", status=1)
        assert found.startswith(f"store {place}: there is no image store")
        with mounted(source, place):
            node.restart()
            pod = node.run_pod("web")
            container = node.run(pod, "main", SLEEP)
            subprocess.run(["umount", "-l", str(place)], check=True)
            if how == "running":
                # What is mounted for the first container is enough for the second.
                assert sh(node, node.run(pod, "more", SLEEP), "echo more") == "more\n"
                node.remove_container(container)
                node.stop_pod(pod)
                node.remove_pod(pod)
                until(lambda: not places(node), "its layers are not mounted any more")
                pod = node.run_pod("again")
                with pytest.raises(grpc.RpcError) as caught:
                    node.create(pod, "main", SLEEP)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                assert str(place) in str(caught.value.details())
                assert "mount its disk again" in str(caught.value.details())
            else:
                node.restart()
                node.assert_true()
                assert sh(node, container, "echo alive") == "alive\n"
                assert listed(node) == []
            node.assert_honest()
        with mounted(source, place):
            if how == "restarted":
                node.restart()
            again = node.run(pod, "again", SLEEP)
            assert sh(node, again, "echo back") == "back\n"
        node.remove_everything()


def checked(node: Node) -> list[dict[str, str]]:
    """What `podwright check` says, which may find other things lacking on this machine."""
    argv = [PODWRIGHT, "check", "--json", "--config", node.config]
    return list(json.loads(subprocess.run(argv, capture_output=True, check=False).stdout))


def test_a_daemons_own_store_is_verified_by_itself_only_while_none_runs(node: Node) -> None:
    root = node.state_root / "images"
    said = podwright(node.config, "verify", "--root", root, status=1)
    assert "a daemon uses this store" in said
    node.kill()
    # A store that was not closed in order is put in order first.
    assert podwright(node.config, "verify", "--root", root) == "nothing is wrong"
    assert not (root / "catalog.db-wal").exists()
    node.start_daemon()


def copied(disk: Path, tmp_path: Path) -> Path:
    """The store again, where it can be damaged."""
    root = tmp_path / "copy"
    subprocess.run(["cp", "-a", f"{disk}/.", str(root)], check=True)
    return root


def test_a_damaged_store_is_told_by_verify_and_left_as_it_is(
    node: Node, disk: Path, tmp_path: Path
) -> None:
    root = copied(disk, tmp_path)
    config = node.config
    assert podwright(config, "verify", "--root", root) == "nothing is wrong"
    [image] = listed(node)
    document = root / "content" / image.id.replace(":", "/")
    document.write_bytes(document.read_bytes() + b" ")
    for layer in (p for p in (root / "layers").iterdir() if p.name != "empty"):
        shutil.rmtree(layer)
    before = {p: p.lstat().st_ctime_ns for p in root.rglob("*")}
    said = podwright(config, "verify", "--root", root, status=1)
    assert f"document {image.id}" in said
    assert "its files are missing" in said
    assert BUSYBOX in said
    assert {p: p.lstat().st_ctime_ns for p in root.rglob("*")} == before


def test_what_is_no_store_is_made_none_by_verifying_it(node: Node, tmp_path: Path) -> None:
    said = podwright(node.config, "verify", "--root", tmp_path / "none", status=1)
    assert "there is no image store" in said
    assert list(tmp_path.iterdir()) == []


def test_one_that_was_not_closed_and_cannot_be_written_says_so(
    node: Node, disk: Path, tmp_path: Path
) -> None:
    root = copied(disk, tmp_path)
    (root / "catalog.db-wal").write_bytes(b"changes")
    subprocess.run(["mount", "--bind", str(root), str(root)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(root)], check=True)
        said = podwright(node.config, "verify", "--root", root, status=1)
    finally:
        subprocess.run(["umount", str(root)], check=True)
    assert "not closed in order" in said
    assert "podwright verify --root" in said


def test_a_daemon_that_keeps_blobs_saves_the_registrys_digests(
    certs_d: Path, tmp_path: Path
) -> None:
    with Node.running("keeper", certs_d, settings={"image.keep_blobs": "true"}) as node:
        [image] = listed(node)
        archive = tmp_path / "busybox.tar"
        said = podwright(node.config, "save", "-o", archive, BUSYBOX)
        assert said == ""  # nothing was made anew
        kept = {p.name for p in (node.state_root / "images/content/sha256").iterdir()}
        with tarfile.open(archive) as members:
            index = members.extractfile("index.json")
            assert index is not None
            [entry] = json.loads(index.read())["manifests"]
            # The manifest is the one that the registry gave, and so its layers are compressed.
            digest = entry["digest"].partition(":")[2]
            assert digest in kept
            manifest = members.extractfile(f"blobs/sha256/{digest}")
            assert manifest is not None
            for layer in json.loads(manifest.read())["layers"]:
                blob = members.extractfile(f"blobs/{layer['digest'].replace(':', '/')}")
                assert blob is not None
                assert blob.read(2) == b"\x1f\x8b"
        assert podwright(node.config, "verify") == "nothing is wrong"
        node.kill()
        # A store in which the same archive is loaded has the same image under the same digest.
        root = tmp_path / "loaded"
        podwright(node.config, "load", "--root", root, "-i", archive)
        assert podwright(node.config, "verify", "--root", root) == "nothing is wrong"
        node.config.write_text(node.config.read_text().replace("keep_blobs = true", ""))
        node.start_daemon()
        assert not (node.state_root / "images/blobs").exists()
        assert listed(node) == [image]


def test_wiping_a_node_leaves_the_disk_alone(disk: Path, certs_d: Path) -> None:
    with Node.running("wiped", certs_d, images=(), settings=settings(disk)) as node:
        node.run(node.run_pod("web"), "main", SLEEP)
        node.kill()
        assert "nothing is left" in podwright(node.config, "wipe", "--images", "--yes")
        with suppress(FileNotFoundError):
            assert list((node.state_root / "images").iterdir()) == []
        node.start_daemon()
        assert len(listed(node)) == 1
