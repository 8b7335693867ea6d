"""Kept blobs: an image is saved as the registry has it, and no blob outlives its last image."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from imageservice.service import ImageService
from imageservice.verify import Finding
from sandbox.host.errors import FailedPrecondition
from tests import probes
from tests.fakes.registry import Cut, FakeImage, FakeRegistry
from tests.host.image_node import image_node, leftovers, rootfs
from tests.kit.tars import Tar

pytestmark = pytest.mark.root


@pytest.fixture(params=["tree", "indexed"])
def form(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return probes.form_or_skip(request.param, tmp_path)


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as serving:
        yield serving


def layer(name: str) -> bytes:
    return Tar().directory("d").file(f"d/{name}", f"{name}\n".encode()).done()


def kept(root: Path) -> list[str]:
    """Digests by file name."""
    return sorted(p.name.replace("-", ":") for p in (root / "images/blobs").glob("*/*"))


def digests(*images: FakeImage) -> list[str]:
    return sorted({blob.digest for image in images for blob in image.layers})


async def saved(service: ImageService, name: str, form: str = "oci") -> dict[str, bytes]:
    with await service.saver.save([name], form) as archive:  # type: ignore[arg-type]
        data = b"".join([chunk async for chunk in archive.chunks()])
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as members:
        for member in members:
            file = members.extractfile(member)
            assert file is not None
            found[member.name] = file.read()
    return found


async def verified(service: ImageService, *, repair: bool = False) -> list[Finding]:
    return await service.verifier.verify(repair=repair, on_progress=lambda _: None)


async def test_an_image_is_saved_byte_by_byte(
    tmp_path: Path, registry: FakeRegistry, form: str
) -> None:
    image = registry.add_image("app", "1", layers=[layer("one"), layer("two")])
    name = registry.reference("app:1")
    async with image_node(tmp_path, layer_form=form, keep_blobs=True) as service:
        await service.pull(name, None)
        assert kept(tmp_path) == digests(image)
        assert leftovers(tmp_path) == []
        files = await saved(service, name)
        for path, content in files.items():
            if path.startswith("blobs/"):
                assert hashlib.sha256(content).hexdigest() == path.rpartition("/")[2]
        [entry] = json.loads(files["index.json"])["manifests"]
        assert entry["digest"] == image.manifest.digest
        body = files[f"blobs/{image.manifest.digest.replace(':', '/')}"]
        assert body == registry.manifests["app", "1"][1]
        for blob in image.layers:
            assert files[f"blobs/{blob.digest.replace(':', '/')}"] == registry.blobs[blob.digest]
        info = await service.fs_info()
        assert await verified(service) == []
    with_blobs = info.image_filesystems[0].used_bytes
    async with image_node(tmp_path, layer_form=form, keep_blobs=True) as service:
        assert kept(tmp_path) == digests(image)
        assert await saved(service, name) == files
    # Switched off: they go with the next start, and are not missed.
    async with image_node(tmp_path, layer_form=form) as service:
        assert not (tmp_path / "images/blobs").exists()
        assert (await service.fs_info()).image_filesystems[0].used_bytes < with_blobs
        assert await verified(service) == []
        if form == "tree":
            with pytest.raises(FailedPrecondition, match="kept as files") as caught:
                await service.saver.save([name], "oci")
            assert "image.keep_blobs" in caught.value.hint
        else:
            with await service.saver.save([name], "oci") as archive:
                assert archive.remade == [name]


async def test_they_go_with_the_last_image_that_has_their_layer(
    tmp_path: Path, registry: FakeRegistry, form: str
) -> None:
    one = registry.add_image("one", "1", layers=[layer("base"), layer("one")])
    two = registry.add_image("two", "1", layers=[layer("base"), layer("two")])
    async with image_node(tmp_path, layer_form=form, keep_blobs=True) as service:
        first = await service.pull(registry.reference("one:1"), None)
        await service.pull(registry.reference("two:1"), None)
        assert kept(tmp_path) == digests(one, two)
        async with rootfs(service, first, tmp_path) as root:
            await service.remove(first.id)
            # The container has its layers, and needs no blob.
            assert kept(tmp_path) == digests(two)
            assert (root / "d/one").read_text() == "one\n"
        await service.remove(registry.reference("two:1"))
        assert list((tmp_path / "images/blobs").iterdir()) == []


async def test_of_a_failed_pull_they_wait_for_the_next_try(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    image = registry.add_image("app", "1", layers=[layer("one"), layer("two")])
    name = registry.reference("app:1")
    registry.on(f"/blobs/{image.layers[1].digest}", Cut(after_bytes=5, times=50))
    async with image_node(tmp_path, layer_form="tree", keep_blobs=True) as service:
        with pytest.raises(Exception, match="RegistryUnavailable"):
            await service.pull(name, None)
        other = registry.add_image("other", "1", layers=[layer("other")])
        await service.pull(registry.reference("other:1"), None)
        await service.remove(registry.reference("other:1"))
        assert other.layers[0].digest not in kept(tmp_path)
        assert set(kept(tmp_path)) <= {image.layers[0].digest}
        registry.calm()
        await service.pull(name, None)
        assert kept(tmp_path) == digests(image)


async def test_a_rotten_one_is_found_and_removed(
    tmp_path: Path, registry: FakeRegistry, form: str
) -> None:
    image = registry.add_image("app", "1", layers=[layer("one"), layer("two")])
    name = registry.reference("app:1")
    async with image_node(tmp_path, layer_form=form, keep_blobs=True) as service:
        await service.pull(name, None)
        bad = image.layers[0].digest
        [path] = (tmp_path / "images/blobs").glob(f"*/{bad.replace(':', '-')}")
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        [found] = await verified(service)
        assert (found.kind, found.what, found.images) == ("blob", bad, (name,))
        [mended] = await verified(service, repair=True)
        assert mended.outcome.startswith("removed")
        assert await verified(service) == []
        assert kept(tmp_path) == [image.layers[1].digest]
        assert service.status(name) is not None


async def test_docker_takes_the_blob_of_a_layer_that_is_kept_as_files(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    image = registry.add_image("app", "1", layers=[layer("one")])
    name = registry.reference("app:1")
    async with image_node(tmp_path, layer_form="tree", keep_blobs=True) as service:
        pulled = await service.pull(name, None)
        with await service.saver.save([name], "docker") as archive:
            data = b"".join([chunk async for chunk in archive.chunks()])
    assert registry.blobs[image.layers[0].digest] in data
    (tmp_path / "second").mkdir()
    async with image_node(tmp_path / "second", layer_form="tree") as service:

        async def chunks() -> AsyncIterator[bytes]:
            yield data

        [loaded] = await service.loader.load(chunks())
        assert loaded.id == pulled.id


async def test_what_is_loaded_keeps_its_blobs_too(
    tmp_path: Path, registry: FakeRegistry, form: str
) -> None:
    image = registry.add_image("app", "1", layers=[layer("one"), layer("two")])
    name = registry.reference("app:1")
    (tmp_path / "second").mkdir()
    async with image_node(tmp_path, layer_form=form, keep_blobs=True) as service:
        await service.pull(name, None)
        with await service.saver.save([name], "oci") as archive:
            data = b"".join([chunk async for chunk in archive.chunks()])

    async def chunks() -> AsyncIterator[bytes]:
        yield data

    async with image_node(tmp_path / "second", layer_form=form, keep_blobs=True) as service:
        await service.loader.load(chunks())
        assert kept(tmp_path / "second") == digests(image)
        with await service.saver.save([name], "oci") as archive:
            assert b"".join([chunk async for chunk in archive.chunks()]) == data
            assert archive.remade == []


async def test_a_plain_tar_that_is_kept_anyway_is_not_kept_twice(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    if reason := probes.no_indexed_layers(tmp_path):
        pytest.skip(reason)
    image = registry.add_image("app", "1", layers=[layer("one")])
    media_type, body = registry.manifests["app", "1"]
    plain = registry.add_blob(layer("one"), "application/vnd.oci.image.layer.v1.tar")
    document = json.loads(body) | {"layers": [plain.json]}
    made = registry.add_manifest("app", json.dumps(document).encode(), tag="1")
    assert media_type
    assert plain.digest == image.diff_ids[0]
    name = registry.reference("app:1")
    async with image_node(tmp_path, layer_form="indexed", keep_blobs=True) as service:
        await service.pull(name, None)
        assert kept(tmp_path) == []
        [entry] = json.loads((await saved(service, name))["index.json"])["manifests"]
        assert entry["digest"] == made.digest


async def test_blobs_of_an_additional_store_are_used_and_verified(
    tmp_path: Path, registry: FakeRegistry, form: str
) -> None:
    image = registry.add_image("app", "1", layers=[layer("one")])
    name = registry.reference("app:1")
    baked = tmp_path / "baked"
    baked.mkdir()
    async with image_node(baked, layer_form=form, keep_blobs=True) as service:
        await service.pull(name, None)
    async with image_node(tmp_path, additional_stores=(baked / "images",)) as service:
        [entry] = json.loads((await saved(service, name))["index.json"])["manifests"]
        assert entry["digest"] == image.manifest.digest
        assert await verified(service) == []
        [path] = (baked / "images/blobs").glob("*/*")
        path.write_bytes(b"rot")
        [found] = await verified(service, repair=True)
        assert (found.kind, found.what) == ("blob", image.layers[0].digest)
        assert found.outcome.startswith("left as it is")
        assert path.read_bytes() == b"rot"
