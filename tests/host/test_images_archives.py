"""Archives of images on a real kernel: loaded, saved, loaded again; those of other programs too."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import zstandard

from imageservice import loading as loading_module
from imageservice.archives.table import ArchiveTable, Extent
from imageservice.errors import (
    DigestMismatch,
    ImageNotFound,
    ImageUnsupported,
    ManifestInvalid,
    ReferenceInvalid,
    SizeMismatch,
)
from imageservice.saving import ArchiveForm
from imageservice.service import Image, ImageService, Progress, Stage
from sandbox.host.errors import Corrupt, FailedPrecondition, PodwrightError, ResourceExhausted
from sandbox.host.processes import Finished
from tests import probes
from tests.host.image_node import image_node, layer_directories, leftovers, rootfs
from tests.kit import archives, oci
from tests.kit.registry import Pusher, running_registry
from tests.kit.tars import Tar

pytestmark = pytest.mark.root

NAME = "docker.io/library/made"
NOISE = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(60_000))
needs_skopeo = pytest.mark.skipif(
    shutil.which("skopeo") is None, reason="Debian package skopeo is missing"
)
needs_umoci = pytest.mark.skipif(
    shutil.which("umoci") is None, reason="Debian package umoci is missing"
)


@pytest.fixture(autouse=True)
def _kernel() -> None:
    if reason := probes.no_overlay():
        pytest.skip(reason)


@pytest.fixture
def indexed(tmp_path: Path) -> None:
    """Saving needs layers that are kept as tars."""
    if reason := probes.no_indexed_layers(tmp_path):
        pytest.skip(reason)


def made(*contents: str, with_index: bool = False, flavor: oci.Flavor = oci.OCI) -> oci.Image:
    """An image with one layer for each text, which is also the name of its file."""
    layers = [
        oci.make_layer([oci.Entry("d"), oci.Entry(f"d/{text}", content=text.encode())])
        for text in contents
    ]
    return oci.make_image(
        layers, oci.ImageConfig(command=["/bin/sh"]), flavor=flavor, with_index=with_index
    )


def image_id(image: oci.Image) -> str:
    """Of this machine's variant."""
    for _, body in image.manifests.values():
        document = json.loads(body)
        if "config" in document:
            digest = str(document["config"]["digest"])
            if json.loads(image.blobs[digest])["architecture"] == oci.ARCHITECTURE:
                return digest
    raise AssertionError("no variant for this machine")


async def chunked(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def load(service: ImageService, data: bytes, **options: object) -> list[Image]:
    return await service.loader.load(chunked(data), **options)  # type: ignore[arg-type]


async def saved(service: ImageService, images: Sequence[str], form: ArchiveForm = "oci") -> bytes:
    with await service.saver.save(images, form) as archive:
        data = b"".join([chunk async for chunk in archive.chunks()])
        assert len(data) == archive.total_bytes
    return data


def nothing_is_left(root: Path) -> None:
    assert leftovers(root) == []
    assert list((root / "images/loads").iterdir()) == []


def skopeo(*arguments: str) -> str:
    run = subprocess.run(
        ["skopeo", "--insecure-policy", *arguments], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def by_umoci(directory: Path) -> Path:
    """An archive of a layout with one image."""
    layout, archive = directory / "layout", directory / "image.tar"
    (directory / "added").write_text("by umoci")
    for command in (
        ["umoci", "init", "--layout", str(layout)],
        ["umoci", "new", "--image", f"{layout}:v1"],
        ["umoci", "insert", "--image", f"{layout}:v1", str(directory / "added"), "/added"],
        ["tar", "-C", str(layout), "-cf", str(archive), "."],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return archive


# load


async def test_a_layout_is_loaded_under_its_name_and_digest_and_runs(tmp_path: Path) -> None:
    image = made("one", "two")
    data = archives.layout([(image, {"io.containerd.image.name": f"{NAME}:1"})])
    async with image_node(tmp_path) as service:
        [loaded] = await load(service, data)
        assert loaded.id == image_id(image)
        assert loaded.repo_tags == (f"{NAME}:1",)
        assert loaded.repo_digests == (f"{NAME}@{image.top}",)
        assert not loaded.pinned
        assert service.status("made:1") is loaded
        async with rootfs(service, loaded, tmp_path) as root:
            assert (root / "d/one").read_text() == "one"
            assert (root / "d/two").read_text() == "two"
        nothing_is_left(tmp_path)


async def test_one_manifest_may_have_very_many_names(tmp_path: Path) -> None:
    image = made("one")
    entries = [(image, {"io.containerd.image.name": f"{NAME}:{n}"}) for n in range(500)]
    async with image_node(tmp_path) as service:
        [loaded] = await load(service, archives.layout(entries))
        assert len(loaded.repo_tags) == 500


async def test_of_several_platforms_this_machines_is_loaded(tmp_path: Path) -> None:
    image = made("one", with_index=True)
    data = archives.layout([(image, {"org.opencontainers.image.ref.name": f"{NAME}:1"})])
    async with image_node(tmp_path) as service:
        [loaded] = await load(service, data)
        assert loaded.id == image_id(image)
        assert loaded.repo_digests == (f"{NAME}@{image.top}",)


@pytest.mark.parametrize("compressed", [False, True])
async def test_a_docker_archive_is_loaded_with_its_shared_layers(
    tmp_path: Path, compressed: bool
) -> None:
    first, second = made("base", "one"), made("base", "two")
    data = archives.docker(
        [(first, ["made:1", "made:latest"]), (second, ["ghcr.io/a/b:2"])], compressed=compressed
    )
    async with image_node(tmp_path) as service:
        loaded = await load(service, data)
        assert [image.id for image in loaded] == [image_id(first), image_id(second)]
        assert loaded[0].repo_tags == (f"{NAME}:1", f"{NAME}:latest")
        assert loaded[0].repo_digests == ()
        assert loaded[1].repo_tags == ("ghcr.io/a/b:2",)
        assert len(layer_directories(tmp_path)) == 3
        async with rootfs(service, loaded[1], tmp_path) as root:
            assert sorted(p.name for p in (root / "d").iterdir()) == ["base", "two"]
        nothing_is_left(tmp_path)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
async def test_an_archive_may_be_compressed_itself(tmp_path: Path, pack: object) -> None:
    image = made("one")
    data = pack(archives.docker([(image, ["made:1"])]))  # type: ignore[operator]
    async with image_node(tmp_path) as service:
        [loaded] = await load(service, data)
        assert loaded.id == image_id(image)
        nothing_is_left(tmp_path)


@pytest.mark.parametrize("notes", [None, {"org.opencontainers.image.ref.name": "1.36"}])
async def test_an_image_without_a_name_is_loaded_and_can_be_given_one(
    tmp_path: Path, notes: dict[str, str] | None
) -> None:
    image = made("one")
    data = archives.layout([(image, notes)])
    async with image_node(tmp_path) as service:
        [loaded] = await load(service, data)
        assert (loaded.id, loaded.repo_tags) == (image_id(image), ())
        [named] = await load(service, data, name="local/it:3")
        assert named.repo_tags == ("docker.io/local/it:3",)
        assert service.list() == [named]


async def test_one_name_for_several_images_is_refused(tmp_path: Path) -> None:
    data = archives.docker([(made("one"), ["a:1"]), (made("two"), ["b:1"])])
    async with image_node(tmp_path) as service:
        with pytest.raises(ReferenceInvalid, match="2 images"):
            await load(service, data, name="local/it:3")
        assert service.list() == []


async def test_a_pinned_image_stays_pinned_over_restarts_until_it_is_unpinned(
    tmp_path: Path,
) -> None:
    data = archives.docker([(made("one"), ["made:1"])])
    async with image_node(tmp_path) as service:
        [loaded] = await load(service, data, pinned=True)
        assert loaded.pinned
    async with image_node(tmp_path) as service:
        [found] = service.list()
        assert found.pinned
        assert not (await service.pin("made:1", pinned=False)).pinned
    async with image_node(tmp_path) as service:
        [found] = service.list()
        assert not found.pinned


async def test_layers_that_are_here_are_not_read_again(tmp_path: Path) -> None:
    stages: list[tuple[str, Stage]] = []

    def note(progress: Progress) -> None:
        stages.append((progress.layer, progress.stage))

    data = archives.docker([(made("base", "one"), ["made:1"])])
    async with image_node(tmp_path) as service:
        await load(service, archives.docker([(made("base"), ["base:1"])]))
        await load(service, data, on_progress=note)
        ends = {stage for _, stage in stages if stage in (Stage.DONE, Stage.EXISTS)}
        assert ends == {Stage.DONE, Stage.EXISTS}


# what is wrong with an archive


def broken_layer() -> tuple[bytes, str]:
    image = made("one")
    [digest] = [each["digest"] for each in json.loads(image.manifests[image.top][1])["layers"]]
    blob = image.blobs[digest]
    changed = blob[:40] + bytes([blob[40] ^ 1]) + blob[41:]
    return archives.layout([(image, None)], extra={archives.blob(digest): changed}), digest


async def test_a_layer_with_a_wrong_bit_is_refused_by_name_and_nothing_stays(
    tmp_path: Path,
) -> None:
    data, digest = broken_layer()
    async with image_node(tmp_path) as service:
        with pytest.raises(DigestMismatch) as caught:
            await load(service, data)
        assert digest in str(caught.value)
        assert service.list() == []
        assert layer_directories(tmp_path) == []
        nothing_is_left(tmp_path)


async def test_a_docker_layer_that_is_not_its_diff_id_is_refused_by_name(tmp_path: Path) -> None:
    image = made("one")
    config = next(d for d, b in image.blobs.items() if b.startswith(b"{"))
    diff_id = json.loads(image.blobs[config])["rootfs"]["diff_ids"][0]
    other = Tar().file("other", b"x").done()
    saved_as = [{"Config": "c.json", "RepoTags": None, "Layers": ["l.tar"]}]
    data = archives.packed(
        {
            "c.json": image.blobs[config],
            "l.tar": other,
            "manifest.json": json.dumps(saved_as).encode(),
        }
    )
    async with image_node(tmp_path) as service:
        with pytest.raises(DigestMismatch) as caught:
            await load(service, data)
        assert diff_id in str(caught.value)
        nothing_is_left(tmp_path)


def hostile() -> dict[str, tuple[bytes, type[PodwrightError]]]:
    image = made("one")
    good = archives.layout([(image, None)])
    [layer] = [each["digest"] for each in json.loads(image.manifests[image.top][1])["layers"]]
    config = json.loads(image.manifests[image.top][1])["config"]["digest"]
    docker_manifest = b'[{"Config":"%s","RepoTags":null,"Layers":["l.tar"]}]'
    document = image.blobs[config]
    return {
        "nothing": (b"", ImageUnsupported),
        "no archive": (b"hello" * 1000, Corrupt),
        "cut": (good[:1500], Corrupt),
        "cut gzip": (gzip.compress(good)[:-40], Corrupt),
        "another archive": (Tar().file("a").done(), ImageUnsupported),
        "docker of old": (Tar().file("repositories", b"{}").done(), ImageUnsupported),
        "a member twice": (
            Tar().raw(good.rstrip(b"\0") + bytes(512)).file("index.json").done(),
            Corrupt,
        ),
        "a layer lacks": (archives.layout([(image, None)], leave_out=layer), ImageNotFound),
        "config lacks": (archives.layout([(image, None)], leave_out=config), ImageNotFound),
        "manifest lacks": (archives.layout([(image, None)], leave_out=image.top), Corrupt),
        "manifest changed": (
            archives.layout([(image, None)], extra={archives.blob(image.top): b"{}"}),
            ManifestInvalid,
        ),
        "layer of another size": (
            archives.layout([(image, None)], extra={archives.blob(layer): b"x"}),
            SizeMismatch,
        ),
        "name is a path": (
            archives.layout([(image, {"io.containerd.image.name": "../../etc/x"})]),
            ManifestInvalid,
        ),
        "config is a path": (
            archives.packed({"manifest.json": docker_manifest % b"../../../../etc/hostname"}),
            Corrupt,
        ),
        "layer links out": (
            Tar()
            .file("c.json", document)
            .symlink("l.tar", "../../../../../../etc/hostname")
            .file("manifest.json", docker_manifest % b"c.json")
            .done(),
            Corrupt,
        ),
        "layer links to itself": (
            Tar()
            .file("c.json", document)
            .symlink("l.tar", "l.tar")
            .file("manifest.json", docker_manifest % b"c.json")
            .done(),
            Corrupt,
        ),
        "a device": (Tar().add("d", kind=b"3", device=(1, 3)).done(), Corrupt),
        "index of lists": (archives.packed({"index.json": b"[" * 200_000}), PodwrightError),
        "huge document": (
            archives.packed({"index.json": b"{" + b" " * (5 << 20) + b"}"}),
            ResourceExhausted,
        ),
        "docker document twice": (
            archives.packed({"manifest.json": b'[{"Config":"a","Config":"b","Layers":[]}]'}),
            ManifestInvalid,
        ),
    }


@pytest.mark.parametrize("case", list(hostile()))
async def test_a_bad_archive_is_refused_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    data, kind = hostile()[case]
    async with image_node(tmp_path) as service:
        with pytest.raises(kind):
            await load(service, data)
        assert service.list() == []
        assert layer_directories(tmp_path) == []
        nothing_is_left(tmp_path)


async def test_a_bomb_of_an_archive_ends_at_the_limit(tmp_path: Path) -> None:
    data = gzip.compress(Tar().file("zeros", bytes(8 << 20)).done())
    async with image_node(tmp_path, max_layer_bytes=1 << 20) as service:
        with pytest.raises(ResourceExhausted):
            await load(service, data)
        nothing_is_left(tmp_path)


async def test_an_upload_without_end_ends_at_the_limit(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 20)

    async with image_node(tmp_path, max_layer_bytes=8 << 20) as service:
        with pytest.raises(ResourceExhausted, match="too large"):
            await service.loader.load(endless())
        nothing_is_left(tmp_path)


async def test_an_upload_that_is_called_off_leaves_nothing(tmp_path: Path) -> None:
    async def stuck() -> AsyncIterator[bytes]:
        yield bytes(1 << 20)
        started.set()
        await asyncio.Event().wait()

    started = asyncio.Event()
    async with image_node(tmp_path) as service:
        loading = asyncio.ensure_future(service.loader.load(stuck()))
        await started.wait()
        loading.cancel()
        await asyncio.wait({loading})
        assert loading.cancelled()
        nothing_is_left(tmp_path)


async def test_the_daemon_hears_of_an_archives_members_only_how_many_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a million may be in it: as objects of the daemon they would keep everybody waiting."""
    image = made("one")
    more = {f"blobs/sha256/{number:064x}": b"" for number in range(20_000)}
    data = archives.layout([(image, None)], extra=more)
    async with image_node(tmp_path) as service:
        runner, heard = service.loader._runner, []
        run = runner.run

        async def spy(*arguments: object, **options: object) -> Finished:
            finished = await run(*arguments, **options)  # type: ignore[arg-type]
            heard.append(len(finished.stdout))
            return finished

        monkeypatch.setattr(runner, "run", spy)
        [loaded] = await load(service, data)
        assert loaded.id == image_id(image)
        assert len(heard) == 1
        assert heard[0] < 100
        nothing_is_left(tmp_path)


async def test_a_spool_is_not_closed_under_the_thread_that_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, fds = threading.Event(), threading.Event(), []
    write = loading_module._Spool.write

    def slow(self: loading_module._Spool, batch: list[bytes]) -> None:
        begun.set()
        go_on.wait()
        fds.append(self._fd)
        write(self, batch)

    monkeypatch.setattr(loading_module._Spool, "write", slow)
    async with image_node(tmp_path) as service:
        task = asyncio.ensure_future(load(service, bytes(4 << 20)))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        await asyncio.wait({task}, timeout=0.05)
        go_on.set()
        await asyncio.wait({task})
        assert task.cancelled()
        assert len(fds) == 1
        assert fds[0] >= 0
        nothing_is_left(tmp_path)


async def test_a_load_that_is_called_off_amid_a_layer_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = oci.make_layer([oci.Entry("noise", content=NOISE * 2)])
    image = oci.make_image([noise], oci.ImageConfig())
    begun, go_on, read_at = threading.Event(), threading.Event(), ArchiveTable.read_at
    main = threading.current_thread()

    def slow(self: ArchiveTable, extent: Extent, position: int, size_bytes: int) -> bytes:
        if position:
            assert threading.current_thread() is not main
            begun.set()
            go_on.wait()
        return read_at(self, extent, position, size_bytes)

    monkeypatch.setattr(ArchiveTable, "read_at", slow)
    async with image_node(tmp_path) as service:
        task = asyncio.ensure_future(load(service, archives.layout([(image, None)])))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        nothing_is_left(tmp_path)
        go_on.set()
    assert service.list() == []


async def test_what_a_killed_daemon_was_loading_is_gone_after_the_next_start(
    tmp_path: Path,
) -> None:
    async def cut_off() -> AsyncIterator[bytes]:
        yield bytes(1 << 20)
        started.set()
        await asyncio.Event().wait()

    started = asyncio.Event()
    async with image_node(tmp_path, killed=True) as service:
        loading = asyncio.ensure_future(service.loader.load(cut_off()))
        await started.wait()
        kept = tmp_path / "kept"
        shutil.copytree(tmp_path / "images/loads", kept)
        loading.cancel()
        await asyncio.wait({loading})
    shutil.copytree(kept, tmp_path / "images/loads", dirs_exist_ok=True)
    assert list((tmp_path / "images/loads").iterdir()) != []
    async with image_node(tmp_path):
        nothing_is_left(tmp_path)


# save


@pytest.mark.parametrize("form", ["oci", "docker"])
@pytest.mark.usefixtures("indexed")
async def test_what_is_saved_is_the_same_image_every_time(
    tmp_path: Path, form: ArchiveForm
) -> None:
    image = made("one", "two")
    data = archives.layout([(image, {"io.containerd.image.name": f"{NAME}:1"})])
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with image_node(tmp_path / "a") as service:
        [loaded] = await load(service, data)
        first = await saved(service, ["made:1"], form)
        assert await saved(service, [loaded.id], form) == first
    async with image_node(tmp_path / "b") as service:
        [again] = await load(service, first)
        assert (again.id, again.repo_tags) == (loaded.id, loaded.repo_tags)
        assert again.chain == loaded.chain
        assert await saved(service, ["made:1"], form) == first
        async with rootfs(service, again, tmp_path) as root:
            assert (root / "d/two").read_text() == "two"


@pytest.mark.usefixtures("indexed")
async def test_several_images_are_saved_with_their_shared_layers_once(tmp_path: Path) -> None:
    base = oci.make_layer([oci.Entry("noise", content=NOISE)])
    images = [
        oci.make_image([base, oci.make_layer([oci.Entry(t, content=b"x")])], oci.ImageConfig())
        for t in ("one", "two")
    ]
    (tmp_path / "b").mkdir()
    async with image_node(tmp_path) as service:
        await load(service, archives.docker([(images[0], ["a:1"]), (images[1], ["b:1", "b:2"])]))
        for form in ("oci", "docker"):
            data = await saved(service, ["a:1", "b:1", "b:2"], form)  # type: ignore[arg-type]
            assert len(NOISE) < len(data) < 2 * len(NOISE)
            async with image_node(tmp_path / "b") as other:
                tags = {tag for image in await load(other, data) for tag in image.repo_tags}
                assert tags == {f"docker.io/library/{name}" for name in ("a:1", "b:1", "b:2")}


async def test_an_image_kept_as_files_is_not_saved_as_something_else(tmp_path: Path) -> None:
    async with image_node(tmp_path, layer_form="tree") as service:
        await load(service, archives.docker([(made("one"), ["made:1"])]))
        with pytest.raises(FailedPrecondition, match="kept as files"):
            await saved(service, ["made:1"])


async def test_an_unknown_image_is_not_saved(tmp_path: Path) -> None:
    async with image_node(tmp_path) as service:
        with pytest.raises(ImageNotFound):
            await saved(service, ["nobody:1"])


@pytest.mark.usefixtures("indexed")
async def test_a_layer_that_has_rotted_ends_the_archive_with_an_error(tmp_path: Path) -> None:
    async with image_node(tmp_path) as service:
        [image] = await load(service, archives.docker([(made("one"), ["made:1"])]))
        [directory] = layer_directories(tmp_path)
        tar = tmp_path / "images/layers" / directory / "layer.tar"
        data = bytearray(tar.read_bytes())
        data[600] ^= 1
        tar.write_bytes(data)
        with pytest.raises(Corrupt) as caught:
            await saved(service, ["made:1"])
        assert image.chain[0] in str(caught.value)


@pytest.mark.usefixtures("indexed")
async def test_an_image_removed_while_it_is_saved_is_saved_whole(tmp_path: Path) -> None:
    async with image_node(tmp_path) as service:
        await load(service, archives.docker([(made("one"), ["made:1"])]))
        whole = await saved(service, ["made:1"])
        with await service.saver.save(["made:1"], "oci") as archive:
            await service.remove("made:1")
            assert b"".join([chunk async for chunk in archive.chunks()]) == whole


# other programs


@needs_skopeo
@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
async def test_what_skopeo_archives_is_loaded(tmp_path: Path, transport: str) -> None:
    image = made("one", "two", flavor=oci.DOCKER)
    with running_registry(tmp_path / "storage", tmp_path) as port:
        pusher = Pusher(port)
        pusher.push(image, "made:1")
        pusher.close()
        archive = tmp_path / "image.tar"
        skopeo(
            *("copy", "-q", "--src-tls-verify=false"),
            f"docker://127.0.0.1:{port}/made:1",
            f"{transport}:{archive}:{NAME}:1",
        )
    async with image_node(tmp_path) as service:
        [loaded] = await service.loader.load_file(archive)
        assert loaded.repo_tags == (f"{NAME}:1",)
        async with rootfs(service, loaded, tmp_path) as root:
            assert (root / "d/two").read_text() == "two"


@needs_skopeo
@pytest.mark.parametrize("form", ["oci", "docker"])
@pytest.mark.usefixtures("indexed")
async def test_what_is_saved_goes_through_skopeo_and_a_registry_as_the_same_image(
    tmp_path: Path, form: ArchiveForm
) -> None:
    (tmp_path / "b").mkdir()
    async with image_node(tmp_path) as service:
        [loaded] = await load(service, archives.docker([(made("one", "two"), ["made:1"])]))
        archive = tmp_path / "image.tar"
        archive.write_bytes(await saved(service, ["made:1"], form))
    source = f"{form}-archive:{archive}"
    config = json.loads(skopeo("inspect", "--config", source))
    assert tuple(config["rootfs"]["diff_ids"]) == loaded.chain
    with running_registry(tmp_path / "storage", tmp_path) as port:
        target = f"127.0.0.1:{port}/again:1"
        skopeo("copy", "-q", "--dest-tls-verify=false", source, f"docker://{target}")
        async with image_node(tmp_path / "b") as service:
            again = await service.pull(target, None)
            assert again.chain == loaded.chain
            assert again.id == loaded.id


@needs_umoci
async def test_what_umoci_makes_is_loaded(tmp_path: Path) -> None:
    archive = await asyncio.to_thread(by_umoci, tmp_path)
    async with image_node(tmp_path) as service:
        [loaded] = await service.loader.load_file(archive, name="local/umoci:1")
        async with rootfs(service, loaded, tmp_path) as root:
            assert (root / "added").read_text() == "by umoci"
