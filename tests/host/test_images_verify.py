"""Every kind of damage to a store on a real kernel is found, and mended while the service runs."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from imageservice.catalog import ImageRecord
from imageservice.service import Image, ImageService
from imageservice.verify import Checked, Finding
from sandbox.host.errors import Unavailable
from tests import probes
from tests.fakes.registry import FOREVER, FakeRegistry, Hold, Status
from tests.host.image_node import image_node, layer_directories, rootfs
from tests.kit import archives, oci
from tests.kit.tars import Tar

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def _kernel(tmp_path: Path) -> None:
    if reason := probes.no_overlay() or probes.no_indexed_layers(tmp_path):
        pytest.skip(reason)


def layer(name: str) -> bytes:
    return Tar().directory("d").file(f"d/{name}", b"content of " + name.encode()).done()


async def pulled(service: ImageService, registry: FakeRegistry) -> Image:
    registry.add_image("app", "1", layers=[layer("one"), layer("two")])
    return await service.pull(registry.reference("app:1"), None)


async def verified(service: ImageService, *, repair: bool = False) -> list[Finding]:
    steps: list[Checked] = []
    found = await service.verifier.verify(repair=repair, on_progress=steps.append)
    assert steps[-1].layers == steps[-1].of_layers
    return found


def flip(path: Path, offset: int = 600) -> None:
    data = bytearray(path.read_bytes())
    data[min(offset, len(data) - 1)] ^= 1
    path.write_bytes(data)


def file_of(root: Path, name: str) -> Path:
    return root / "images/layers" / layer_directories(root)[0] / name


async def test_nothing_is_found_where_nothing_is_wrong(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        image = await pulled(service, registry)
        async with rootfs(service, image, tmp_path):
            assert await verified(service) == []
            assert await verified(service, repair=True) == []


@pytest.mark.parametrize("damage", ["tar", "index", "file", "directory"])
async def test_a_damaged_layer_is_found_and_fetched_again(tmp_path: Path, damage: str) -> None:
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        image = await pulled(service, registry)
        match damage:
            case "tar":
                flip(file_of(tmp_path, "layer.tar"))
            case "index":
                flip(file_of(tmp_path, "index.erofs"))
            case "file":
                file_of(tmp_path, "layer.tar").unlink()
            case _:
                shutil.rmtree(file_of(tmp_path, "layer.tar").parent)
        [found] = await verified(service)
        assert found.kind == "layer"
        assert found.what in image.chain
        assert found.images == image.repo_tags
        [again] = await verified(service)
        assert again == found
        [mended] = await verified(service, repair=True)
        assert "fetched again" in mended.outcome
        assert await verified(service) == []
        assert len(layer_directories(tmp_path)) == 2
        async with rootfs(service, image, tmp_path) as root:
            assert (root / "d/one").read_text() == "content of one"
            assert (root / "d/two").read_text() == "content of two"


async def test_a_container_goes_on_while_its_layer_is_made_anew(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        image = await pulled(service, registry)
        async with rootfs(service, image, tmp_path) as root:
            flip(file_of(tmp_path, "index.erofs"), 1)
            [mended] = await verified(service, repair=True)
            assert "fetched again" in mended.outcome
            assert (root / "d/two").read_text() == "content of two"
            async with rootfs(service, image, tmp_path, key="c2") as second:
                assert (second / "d/one").read_text() == "content of one"


@pytest.mark.parametrize("kind", ["changed", "missing"])
async def test_a_damaged_document_is_found_and_fetched_again(tmp_path: Path, kind: str) -> None:
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        image = await pulled(service, registry)
        document = tmp_path / "images/content" / image.id.replace(":", "/")
        if kind == "changed":
            flip(document, 5)
        else:
            document.unlink()
        [found] = await verified(service)
        assert (found.kind, found.what) == ("document", image.id)
        [mended] = await verified(service, repair=True)
        assert "fetched again" in mended.outcome
        assert await verified(service) == []


async def test_an_image_that_no_registry_gives_back_is_forgotten(tmp_path: Path) -> None:
    made = oci.make_image([oci.make_layer([oci.Entry("f", content=b"x" * 999)])], oci.ImageConfig())

    async def chunks(data: bytes):
        yield data

    async with image_node(tmp_path) as service:
        await service.loader.load(chunks(archives.docker([(made, ["made:1"])])))
        flip(file_of(tmp_path, "layer.tar"))
        [mended] = await verified(service, repair=True)
        assert "forgotten" in mended.outcome
        assert service.list() == []
        assert await verified(service) == []
        assert layer_directories(tmp_path) == []


async def test_a_repair_that_is_called_off_leaves_no_image_that_cannot_run(tmp_path: Path) -> None:
    """As by a client that goes away while a registry is silent."""
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        image = await pulled(service, registry)
        flip(file_of(tmp_path, "layer.tar"))
        registry.on("blobs", Hold(times=100))
        repair = asyncio.ensure_future(verified(service, repair=True))
        async with asyncio.timeout(60):
            while not registry.held:  # noqa: ASYNC110 - a counter of the registry
                await asyncio.sleep(0.01)
        repair.cancel()
        with pytest.raises(asyncio.CancelledError):
            await repair
        assert service.status(image.id) is None
        registry.calm()
        registry.release()
        again = await pulled(service, registry)
        async with rootfs(service, again, tmp_path):
            assert await verified(service) == []


async def test_an_image_that_is_loaded_again_while_it_is_looked_at_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = oci.make_image([oci.make_layer([oci.Entry("f", content=b"x" * 999)])], oci.ImageConfig())
    archive = archives.docker([(made, ["made:1"])])

    async def chunks():
        yield archive

    async with image_node(tmp_path) as service:
        await service.loader.load(chunks())
        flip(file_of(tmp_path, "layer.tar"))
        is_whole, looked = service.verifier._is_whole, 0

        async def slow(record: ImageRecord) -> bool:
            nonlocal looked
            looked += 1
            found = await is_whole(record)
            if looked == 1:
                await service.loader.load(chunks())
            return found

        monkeypatch.setattr(service.verifier, "_is_whole", slow)
        [mended] = await verified(service, repair=True)
        assert "whole again" in mended.outcome
        [image] = service.list()
        async with rootfs(service, image, tmp_path):
            assert await verified(service) == []


async def test_a_pull_does_not_end_with_a_layer_that_was_dropped_beside_it(
    tmp_path: Path,
) -> None:
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        old = registry.add_image("old", "1", layers=[layer("shared")])
        new = registry.add_image("new", "1", layers=[layer("shared"), layer("own")])
        await service.pull(registry.reference("old:1"), None)
        registry.on(f"/blobs/{new.layers[1].digest}", Hold())
        pull = asyncio.ensure_future(service.pull(registry.reference("new:1"), None))
        async with asyncio.timeout(60):
            while not registry.held:  # noqa: ASYNC110 - a counter of the registry
                await asyncio.sleep(0.01)
        flip(file_of(tmp_path, "layer.tar"))
        registry.on(f"/blobs/{old.layers[0].digest}", Status(status=404, times=FOREVER))
        [mended] = await verified(service, repair=True)
        assert "forgotten" in mended.outcome
        registry.release()
        with pytest.raises(Unavailable, match="pull it again"):
            await pull
        assert service.list() == []
        registry.calm()
        image = await service.pull(registry.reference("new:1"), None)
        async with rootfs(service, image, tmp_path):
            assert await verified(service) == []


async def test_what_belongs_to_nothing_is_found_and_removed(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        await pulled(service, registry)
        stray = tmp_path / "images/layers/zz"
        stray.mkdir()
        (stray / "file").write_text("of nobody")
        loose = tmp_path / "images/content/sha256" / ("ab" * 32)
        loose.write_text("{}")
        assert {f.what for f in await verified(service)} == {"zz", f"sha256:{'ab' * 32}"}
        assert {f.outcome for f in await verified(service, repair=True)} == {"removed"}
        assert not stray.exists()
        assert not loose.exists()
        assert await verified(service) == []
