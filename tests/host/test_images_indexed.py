"""Indexed layers in the life of a node: seen while somebody needs them, gone when nobody does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from imageservice.service import ImageService
from sandbox.host.errors import Unsupported
from sandbox.host.libc import LibcSyscalls
from sandbox.host.mounts import Mount, list_mounts, mount_one, unmount
from tests import probes
from tests.fakes.registry import FakeRegistry
from tests.host.image_node import image_node
from tests.kit.tars import Tar

pytestmark = pytest.mark.root
SYSCALLS = LibcSyscalls()


@pytest.fixture(autouse=True)
def _kernel(tmp_path: Path) -> None:
    if reason := probes.no_indexed_layers(tmp_path):
        pytest.skip(reason)


def layer(name: str) -> bytes:
    return Tar().directory("d").file(f"d/{name}", b"content").done()


def places(tmp_path: Path) -> list[str]:
    """Names of the layers that are mounted as such."""
    top = tmp_path / "images/mounts"
    return sorted(m.target.name for m in list_mounts() if m.target.parent == top)


@asynccontextmanager
async def rootfs(
    service: ImageService, tmp_path: Path, image: str, key: str
) -> AsyncIterator[Path]:
    """The mounted root file system of `image`, its lease kept afterwards."""
    target = tmp_path / f"root-{key}"
    target.mkdir(exist_ok=True)
    (mount,) = await service.prepare_rootfs(
        key, image, upper_dir=tmp_path / key / "upper", work_dir=tmp_path / key / "work"
    )
    mount_one(Mount(mount.type, mount.source, target, mount.options), syscalls=SYSCALLS)
    try:
        yield target
    finally:
        unmount(target, syscalls=SYSCALLS)


async def pull(service: ImageService, registry: FakeRegistry, name: str) -> str:
    return (await service.pull(registry.reference(name), None)).id


async def test_a_layer_is_mounted_once_while_any_lease_needs_it(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        registry.add_image("one", "1", layers=[layer("base"), layer("one")])
        registry.add_image("two", "1", layers=[layer("base"), layer("two")])
        one, two = await pull(service, registry, "one:1"), await pull(service, registry, "two:1")
        assert places(tmp_path) == []
        async with rootfs(service, tmp_path, one, "c1") as first:
            assert len(places(tmp_path)) == 2
            async with rootfs(service, tmp_path, two, "c2") as second:
                assert len(places(tmp_path)) == 3
                assert (first / "d/base").read_bytes() == (second / "d/base").read_bytes()
                (first / "d/base").write_bytes(b"mine")
                assert (second / "d/base").read_bytes() != b"mine"
            await service.release_rootfs("c2")
            assert len(places(tmp_path)) == 2
        await service.release_rootfs("c1")
        assert places(tmp_path) == []
        assert list((tmp_path / "images/mounts").iterdir()) == []


async def test_nothing_of_an_image_is_a_file_of_the_host(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        registry.add_image("one", "1", layers=[layer("base")])
        await pull(service, registry, "one:1")
        files = [p for p in (tmp_path / "images/layers").rglob("*") if p.is_file()]
        assert sorted(p.name for p in files) == ["index.erofs", "layer.tar"]
        assert {p.stat().st_mode & 0o7777 for p in files} == {0o600}


async def test_mounts_outlive_the_daemon_and_go_with_their_lease(tmp_path: Path) -> None:
    async with FakeRegistry() as registry:
        registry.add_image("one", "1", layers=[layer("base")])
        async with image_node(tmp_path, killed=True) as service:
            image = await pull(service, registry, "one:1")
            async with rootfs(service, tmp_path, image, "c1"):
                pass
        assert len(places(tmp_path)) == 1
        async with image_node(tmp_path) as service:
            assert len(places(tmp_path)) == 1
            await service.release_rootfs("c1")
            assert places(tmp_path) == []


async def test_what_nobody_leases_is_unmounted_at_the_next_start(tmp_path: Path) -> None:
    async with FakeRegistry() as registry:
        registry.add_image("one", "1", layers=[layer("base")])
        async with image_node(tmp_path, killed=True) as service:
            image = await pull(service, registry, "one:1")
            async with rootfs(service, tmp_path, image, "c1"):
                pass
            stray = tmp_path / "images/mounts/zz"
            stray.mkdir()
            mount_one(Mount("tmpfs", "stray", stray, ("size=64k",)), syscalls=SYSCALLS)
        async with image_node(tmp_path) as service:
            assert "zz" not in places(tmp_path)
            await service.release_rootfs("c1")


async def test_a_layer_unmounted_by_hand_is_mounted_again(tmp_path: Path) -> None:
    """Never an empty directory in its place."""
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        registry.add_image("one", "1", layers=[layer("base")])
        image = await pull(service, registry, "one:1")
        async with rootfs(service, tmp_path, image, "c1"):
            unmount(tmp_path / "images/mounts" / places(tmp_path)[0], syscalls=SYSCALLS)
        async with rootfs(service, tmp_path, image, "c2") as root:
            assert (root / "d/base").exists()
        await service.release_rootfs("c1")
        await service.release_rootfs("c2")


@pytest.mark.parametrize(("before", "after"), [("tree", "indexed"), ("indexed", "tree")])
async def test_a_node_moves_from_one_form_to_the_other(
    tmp_path: Path, before: str, after: str
) -> None:
    """What is there stays as it is, new layers come in the new form, and images mix both."""
    async with FakeRegistry() as registry:
        registry.add_image("one", "1", layers=[layer("base")])
        registry.add_image("two", "1", layers=[layer("base"), layer("two")])
        async with image_node(tmp_path, layer_form=before) as service:
            await pull(service, registry, "one:1")
        async with image_node(tmp_path, layer_form=after) as service:
            image = await pull(service, registry, "two:1")
            async with rootfs(service, tmp_path, image, "c1") as root:
                assert len(places(tmp_path)) == 1
                assert (root / "d/base").exists()
                assert (root / "d/two").exists()
            await service.release_rootfs("c1")


async def test_a_form_that_the_kernel_lacks_is_refused_where_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Linux before 6.12: the layer's index cannot be mounted."""
    monkeypatch.setattr(
        "imageservice.snapshots.overlay.probe_indexed", lambda _path, _calls: "no such file system"
    )
    with pytest.RaisesGroup(pytest.RaisesExc(Unsupported, match="no such file system")):
        async with image_node(tmp_path, layer_form="indexed"):
            pass
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        registry.add_image("one", "1", layers=[layer("base")])
        image = await pull(service, registry, "one:1")
        async with rootfs(service, tmp_path, image, "c1") as root:
            assert places(tmp_path) == []
            assert (root / "d/base").exists()
