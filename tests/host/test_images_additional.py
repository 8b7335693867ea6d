"""Additional stores on a real kernel: used where they lie, never written to, and nobody's need."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from imageservice.errors import ImageNotFound, SignatureValidationFailed
from imageservice.service import Image, ImageService
from sandbox.host.errors import FailedPrecondition, Unavailable
from sandbox.host.libc import LibcSyscalls
from sandbox.host.mounts import Mount, list_mounts, mount_one, unmount
from tests import probes
from tests.fakes.registry import FakeRegistry
from tests.host.image_node import image_node, layer_directories, rootfs
from tests.kit.tars import Tar

pytestmark = pytest.mark.root
SYSCALLS = LibcSyscalls()


@pytest.fixture(params=["tree", "indexed"])
def form(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """How the layers of the additional store are kept."""
    return probes.form_or_skip(request.param, tmp_path)


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as serving:
        serving.add_image("base", "1", layers=[layer("base")])
        serving.add_image("app", "1", layers=[layer("base"), layer("app")])
        yield serving


def layer(name: str) -> bytes:
    return Tar().directory("d", mode=0o750).file(f"d/{name}", f"{name}\n".encode()).done()


async def bake(tmp_path: Path, registry: FakeRegistry, form: str, *images: str) -> Path:
    """A store with these images, closed in order; the path of its root."""
    place = tmp_path / "baked"
    place.mkdir(exist_ok=True)
    async with image_node(place, layer_form=form) as service:
        for name in images:
            await service.pull(registry.reference(name), None)
    return place / "images"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[ReadOnly]:
    """A place where a directory can be mounted read-only, and taken away again."""
    made = ReadOnly(tmp_path / "disk")
    yield made
    made.take_away()


class ReadOnly:
    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()

    def show(self, source: Path) -> Path:
        bind = Mount("bind", str(source), self.path, ("bind", "ro", "private"))
        mount_one(bind, syscalls=SYSCALLS)
        with pytest.raises(OSError, match="Read-only"):
            (self.path / "new").touch()
        return self.path

    def take_away(self) -> None:
        unmount(self.path, syscalls=SYSCALLS)


@asynccontextmanager
async def node(
    tmp_path: Path, *stores: Path, killed: bool = False, **changes: object
) -> AsyncIterator[ImageService]:
    async with image_node(tmp_path, additional_stores=stores, killed=killed, **changes) as service:
        yield service


def problems(service: ImageService) -> list[str]:
    return [problem for store in service.stores for problem in store.problems]


def fetched(registry: FakeRegistry) -> int:
    return sum(request.method == "GET" for request in registry.seen("/blobs/"))


def state(root: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for path in root.rglob("*"):
        status = path.lstat()
        found[str(path)] = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return found


def mounted(tmp_path: Path) -> list[str]:
    top = tmp_path / "images/mounts"
    return sorted(m.target.name for m in list_mounts() if m.target.parent == top)


async def test_an_image_is_listed_and_run_without_a_pull(
    tmp_path: Path, registry: FakeRegistry, form: str, disk: ReadOnly
) -> None:
    store = disk.show(await bake(tmp_path, registry, form, "app:1"))
    before = state(store)
    name = registry.reference("app:1")
    async with node(tmp_path, store) as service:
        [image] = service.list()
        assert (image.own, image.pinned, image.stores) == (False, True, (str(store),))
        assert image.repo_tags == (name,)
        assert service.status(name) is image
        assert service.status(image.id[7:19]) is image
        await service.admit(image.id, name, "")
        async with rootfs(service, image, tmp_path) as root:
            assert (root / "d/base").read_text() == "base\n"
            assert (root / "d/app").read_text() == "app\n"
            assert (root / "d").stat().st_mode & 0o7777 == 0o750
            (root / "d/app").write_text("mine")
            assert len(mounted(tmp_path)) == 2
        assert mounted(tmp_path) == []
        assert layer_directories(tmp_path) == []
        assert problems(service) == []
    assert state(store) == before


async def test_a_root_can_be_a_copy_of_its_layers(
    tmp_path: Path, registry: FakeRegistry, form: str, disk: ReadOnly
) -> None:
    store = disk.show(await bake(tmp_path, registry, form, "app:1"))
    before = state(store)
    async with node(tmp_path, store, storage_driver="native") as service:
        [image] = service.list()
        async with rootfs(service, image, tmp_path) as root:
            assert (root / "d/base").read_text() == "base\n"
            (root / "d/app").write_text("mine")
    assert state(store) == before


async def test_a_pull_fetches_only_the_layers_that_are_not_there(
    tmp_path: Path, registry: FakeRegistry, form: str, disk: ReadOnly
) -> None:
    store = disk.show(await bake(tmp_path, registry, form, "base:1"))
    before = fetched(registry)
    async with node(tmp_path, store) as service:
        image = await service.pull(registry.reference("app:1"), None)
        assert fetched(registry) == before + 2  # the config, and one layer of two
        assert len(layer_directories(tmp_path)) == 1
        async with rootfs(service, image, tmp_path) as root:
            assert sorted(p.name for p in (root / "d").iterdir()) == ["app", "base"]
        assert {i.own for i in service.list()} == {True, False}
    async with node(tmp_path, store) as service:
        assert service.status(registry.reference("app:1")) is not None
        await service.remove(registry.reference("app:1"))
        assert layer_directories(tmp_path) == []
        assert [i.own for i in service.list()] == [False]


async def test_an_image_that_is_there_is_pulled_without_a_byte_of_a_layer(
    tmp_path: Path, registry: FakeRegistry, form: str, disk: ReadOnly
) -> None:
    store = disk.show(await bake(tmp_path, registry, form, "app:1"))
    before = fetched(registry)
    async with node(tmp_path, store) as service:
        pulled = await service.pull(registry.reference("app:1"), None)
        assert fetched(registry) == before
        assert layer_directories(tmp_path) == []
        [image] = service.list()
        assert (image.id, image.own, image.stores) == (pulled.id, True, (str(store),))
        assert not image.pinned  # removing it changes something: our record goes
        await service.remove(image.id)
        [image] = service.list()
        assert (image.own, image.pinned) == (False, True)


async def test_what_is_only_there_cannot_be_removed(
    tmp_path: Path, registry: FakeRegistry, form: str, disk: ReadOnly
) -> None:
    store = disk.show(await bake(tmp_path, registry, form, "app:1"))
    name = registry.reference("app:1")
    async with node(tmp_path, store) as service:
        for text in (name, service.list()[0].id):
            with pytest.raises(FailedPrecondition, match="read-only additional store") as caught:
                await service.remove(text)
            assert str(store) in str(caught.value)
            assert "additional_stores" in caught.value.hint
        with pytest.raises(FailedPrecondition, match="read-only additional store"):
            await service.pin(name, pinned=False)
        assert (await service.pin(name, pinned=True)).pinned
        await service.remove("no/such:image")
        assert service.status(name) is not None


async def test_a_name_is_ours_first(tmp_path: Path, registry: FakeRegistry, disk: ReadOnly) -> None:
    store = disk.show(await bake(tmp_path, registry, "tree", "app:1"))
    name = registry.reference("app:1")
    registry.add_image("app", "1", layers=[layer("base"), layer("newer")])
    async with node(tmp_path, store) as service:
        old = service.status(name)
        new = await service.pull(name, None)
        assert old is not None
        assert service.status(name) == new
        again = service.status(old.id)
        assert again is not None
        assert again.repo_tags == ()
        assert again.repo_digests == old.repo_digests
        await service.remove(name)
        assert service.status(name) is not None
        assert service.status(name) == old


async def test_nothing_is_lost_while_a_store_is_away(
    tmp_path: Path, registry: FakeRegistry, form: str, disk: ReadOnly
) -> None:
    baked = await bake(tmp_path, registry, form, "base:1")
    store = disk.show(baked)
    name = registry.reference("app:1")
    async with node(tmp_path, store) as service:
        await service.pull(name, None)
    disk.take_away()
    async with node(tmp_path, store) as service:
        assert service.list() == []
        assert service.status(name) is None
        [problem] = problems(service)
        assert "there is no image store" in problem
        assert "mount its disk" in problem
        with pytest.raises(ImageNotFound):
            await service.admit("sha256:" + "0" * 64, name, "")
        assert len(layer_directories(tmp_path)) == 1
    disk.show(baked)
    async with node(tmp_path, store) as service:
        image = service.status(name)
        assert image is not None
        async with rootfs(service, image, tmp_path) as root:
            assert (root / "d/base").read_text() == "base\n"


async def test_a_pull_mends_an_image_whose_store_is_away(
    tmp_path: Path, registry: FakeRegistry, form: str, disk: ReadOnly
) -> None:
    store = disk.show(await bake(tmp_path, registry, form, "base:1"))
    name = registry.reference("app:1")
    async with node(tmp_path, store) as service:
        await service.pull(name, None)
    async with node(tmp_path) as service:
        assert service.status(name) is None
        image = await service.pull(name, None)
        assert len(layer_directories(tmp_path)) == 2
        assert service.status(name) == image
    async with node(tmp_path) as service:
        assert service.status(name) == image


async def test_an_image_whose_store_is_away_can_be_removed(
    tmp_path: Path, registry: FakeRegistry, disk: ReadOnly
) -> None:
    store = disk.show(await bake(tmp_path, registry, "tree", "base:1"))
    async with node(tmp_path, store) as service:
        image = await service.pull(registry.reference("app:1"), None)
    async with node(tmp_path) as service:
        await service.remove(image.id)
        assert layer_directories(tmp_path) == []
        assert list((tmp_path / "images/content/sha256").iterdir()) == []


async def test_a_container_goes_on_after_its_store_and_its_daemon_went(
    tmp_path: Path, registry: FakeRegistry, form: str, disk: ReadOnly
) -> None:
    baked = await bake(tmp_path, registry, form, "app:1")
    store = disk.show(baked)
    async with node(tmp_path, store, killed=True) as service:
        [image] = service.list()
        dirs = {n: tmp_path / f"containers/c1/{n}" for n in ("upper_dir", "work_dir")}
        (mount,) = await service.prepare_rootfs("c1", image.id, **dirs)
        target = tmp_path / "root"
        target.mkdir()
        mount_one(Mount(mount.type, mount.source, target, mount.options), syscalls=SYSCALLS)
        SYSCALLS.umount2(store, 2)  # MNT_DETACH: as a disk that is taken away in use
    try:
        assert (target / "d/base").read_text() == "base\n"
        async with node(tmp_path, store) as service:
            assert service.list() == []
            assert len(mounted(tmp_path)) == 2  # kept for the lease, though nobody knows the layers
            assert (target / "d/app").read_text() == "app\n"
        disk.show(baked)
        async with node(tmp_path, store) as service:
            assert len(mounted(tmp_path)) == 2
            unmount(target, syscalls=SYSCALLS)
            await service.release_rootfs("c1")
            assert mounted(tmp_path) == []
    finally:
        unmount(target, syscalls=SYSCALLS)


async def test_a_store_that_goes_while_it_is_used_is_named(
    tmp_path: Path, registry: FakeRegistry, form: str, disk: ReadOnly
) -> None:
    baked = await bake(tmp_path, registry, form, "app:1")
    store = disk.show(baked)
    async with node(tmp_path, store) as service:
        [image] = service.list()
        disk.take_away()
        dirs = {n: tmp_path / f"containers/c1/{n}" for n in ("upper_dir", "work_dir")}
        with pytest.raises(Unavailable, match=str(store)) as caught:
            await service.prepare_rootfs("c1", image.id, **dirs)
        assert "mount its disk again" in caught.value.hint
        await service.release_rootfs("c1")
        disk.show(baked)
        async with rootfs(service, image, tmp_path) as root:
            assert (root / "d/app").read_text() == "app\n"


async def test_another_store_in_its_place_is_never_taken_for_it(
    tmp_path: Path, registry: FakeRegistry, form: str, disk: ReadOnly
) -> None:
    """Both have a layer in a directory of the same name."""
    store = disk.show(await bake(tmp_path, registry, form, "app:1"))
    other = tmp_path / "other"
    other.mkdir()
    registry.add_image("evil", "1", layers=[layer("x"), layer("y")])
    evil = await bake(other, registry, form, "evil:1")
    assert {p.name for p in (store / "layers").iterdir()} == {
        p.name for p in (evil / "layers").iterdir()
    }
    async with node(tmp_path, store) as service:
        [image] = service.list()
        disk.take_away()
        disk.show(evil)
        dirs = {n: tmp_path / f"containers/c1/{n}" for n in ("upper_dir", "work_dir")}
        with pytest.raises(Unavailable, match="another than at the start"):
            await service.prepare_rootfs("c1", image.id, **dirs)
        await service.release_rootfs("c1")


async def test_the_same_layer_in_two_stores_and_here(
    tmp_path: Path, registry: FakeRegistry, form: str
) -> None:
    first = await bake(tmp_path, registry, form, "app:1")
    (tmp_path / "two").mkdir()
    second = await bake(tmp_path / "two", registry, "tree", "app:1", "base:1")
    async with node(tmp_path) as service:
        await service.pull(registry.reference("base:1"), None)
    async with node(tmp_path, first, second) as service:
        by_tag = {image.repo_tags: image for image in service.list()}
        app = by_tag[registry.reference("app:1"),]
        assert app.stores == (str(first), str(second))
        base = by_tag[registry.reference("base:1"),]
        assert (base.own, base.stores) == (True, (str(second),))
        async with rootfs(service, app, tmp_path) as root:
            assert sorted(p.name for p in (root / "d").iterdir()) == ["app", "base"]
            # Ours goes; the container has its lease, and the next one takes another store's.
            await service.remove(base.id)
            assert len(layer_directories(tmp_path)) == 1
            async with rootfs(service, app, tmp_path, key="c2") as other:
                assert (other / "d/base").read_text() == "base\n"
        assert layer_directories(tmp_path) == []
        async with rootfs(service, app, tmp_path) as root:
            assert (root / "d/base").read_text() == "base\n"


@pytest.mark.parametrize("kind", ["missing", "killed", "in use", "corrupt", "newer", "open", "own"])
async def test_a_store_that_cannot_be_used_costs_only_its_images(
    tmp_path: Path, registry: FakeRegistry, kind: str
) -> None:
    baked = await bake(tmp_path, registry, "tree", "app:1")
    words = {
        "missing": "no image store",
        "killed": "closed in order",
        "in use": "in use",
        "corrupt": "not a database",
        "newer": "schema version",
        "open": "written to by others",
        "own": "the node's own",
    }[kind]
    catalog = baked / "catalog.db"
    match kind:
        case "missing":
            shutil.rmtree(baked)
        case "killed":
            async with image_node(tmp_path / "baked", killed=True):
                pass
        case "corrupt":
            catalog.write_bytes(b"nonsense" * 1000)
        case "newer":
            data = bytearray(catalog.read_bytes())
            data[60:64] = (99).to_bytes(4, "big")
            catalog.write_bytes(data)
        case "open":
            catalog.chmod(0o666)
        case "own":
            baked = tmp_path / "images"
    async with node(tmp_path, baked) as service:
        if kind == "in use":
            (tmp_path / "second").mkdir()
            async with (
                image_node(tmp_path / "baked"),
                node(tmp_path / "second", baked) as other,
            ):
                [problem] = problems(other)
                assert words in problem
                assert other.list() == []
            return
        [problem] = problems(service)
        assert words in problem
        assert str(baked) in problem
        assert service.list() == []
        image = await service.pull(registry.reference("app:1"), None)
        assert service.list() == [image]


async def test_a_store_with_holes_lends_what_is_whole(
    tmp_path: Path, registry: FakeRegistry, form: str
) -> None:
    registry.add_image("other", "1", layers=[layer("other")])
    baked = await bake(tmp_path, registry, form, "app:1", "other:1")
    async with image_node(tmp_path / "baked") as service:
        [app] = [i for i in service.list() if len(i.chain) == 2]
        row = service._snapshots._ledger.get(app.chain[1])  # type: ignore[attr-defined]
    shutil.rmtree(baked / "layers" / row.directory)
    async with node(tmp_path, baked) as service:
        assert [i.repo_tags for i in service.list()] == [(registry.reference("other:1"),)]
        assert any("1 layers are not on its disk" in p for p in problems(service))
        assert any(registry.reference("app:1") in p for p in problems(service))
        before = fetched(registry)
        await service.pull(registry.reference("app:1"), None)
        assert fetched(registry) == before + 1
        assert len(service.list()) == 2


async def test_layers_of_a_form_that_cannot_be_mounted_are_not_lent(
    tmp_path: Path, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := probes.no_indexed_layers(tmp_path):
        pytest.skip(reason)
    baked = await bake(tmp_path, registry, "indexed", "app:1")

    class NoErofs(LibcSyscalls):
        def mount(self, source, target, kind, flags=0, data=""):  # type: ignore[no-untyped-def]
            if kind == "erofs":
                raise Unavailable("no such file system")
            super().mount(source, target, kind, flags, data)

    monkeypatch.setattr("tests.host.image_node.LibcSyscalls", NoErofs)
    async with node(tmp_path, baked) as service:
        assert service.list() == []
        assert "image.layer_form = tree" in problems(service)[0]
        image = await service.pull(registry.reference("app:1"), None)
        assert service.list() == [image]


async def test_what_containers_take_is_ours_and_what_stores_take_is_not(
    tmp_path: Path, registry: FakeRegistry, form: str
) -> None:
    big = os.urandom(4 << 20)
    registry.add_image("big", "1", layers=[Tar().file("big", big).done()])
    baked = await bake(tmp_path, registry, form, "big:1")
    async with node(tmp_path, baked) as service:
        [image] = service.list()
        async with rootfs(service, image, tmp_path):
            info = await service.fs_info()
        assert sum(fs.used_bytes for fs in info.image_filesystems) < len(big)
        assert len(info.image_filesystems) == 1


async def test_a_store_is_verified_and_never_mended(
    tmp_path: Path, registry: FakeRegistry, disk: ReadOnly, form: str
) -> None:
    baked = await bake(tmp_path, registry, form, "app:1")
    store = disk.show(baked)
    async with node(tmp_path, store) as service:

        async def found(*, repair: bool) -> list[tuple[str, str]]:
            findings = await service.verifier.verify(repair=repair, on_progress=lambda _: None)
            assert all(str(store) in f.problem for f in findings)
            assert all(f.outcome.startswith("left as it is") for f in findings if repair)
            return sorted((f.kind, f.what) for f in findings)

        assert await found(repair=False) == []
        image: Image = service.list()[0]
        document = baked / "content" / image.id.replace(":", "/")
        document.write_bytes(document.read_bytes() + b" ")
        if form == "indexed":
            [tar, *_] = sorted(baked.glob("layers/*/layer.tar"))
            data = bytearray(tar.read_bytes())
            data[600] ^= 1
            tar.write_bytes(data)
        else:
            next(baked.glob("layers/*/d/app")).unlink()
        before = state(store)
        bad = await found(repair=False)
        assert [kind for kind, _ in bad] == ["document", "layer"]
        assert await found(repair=True) == bad
        assert state(store) == before


async def test_an_image_of_a_store_can_be_saved(
    tmp_path: Path, registry: FakeRegistry, disk: ReadOnly
) -> None:
    if reason := probes.no_indexed_layers(tmp_path):
        pytest.skip(reason)
    store = disk.show(await bake(tmp_path, registry, "indexed", "app:1"))
    async with node(tmp_path, store) as service:
        with await service.saver.save([registry.reference("app:1")], "oci") as archive:
            size = sum([len(chunk) async for chunk in archive.chunks()])
        assert size == archive.total_bytes


async def test_this_nodes_policy_holds_for_them(
    tmp_path: Path, registry: FakeRegistry, disk: ReadOnly
) -> None:
    store = disk.show(await bake(tmp_path, registry, "tree", "app:1"))
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "reject"}]}')
    async with node(tmp_path, store, signature_policy=policy) as service:
        [image] = service.list()
        with pytest.raises(SignatureValidationFailed):
            await service.admit(image.id, registry.reference("app:1"), "")


async def test_signatures_are_lent_as_well(tmp_path: Path, registry: FakeRegistry) -> None:
    """They are judged by this node's policy when a container is made; see test_gate."""
    from imageservice.trust.model import Signature

    (tmp_path / "baked").mkdir()
    async with image_node(tmp_path / "baked", layer_form="tree") as service:
        await service.pull(registry.reference("app:1"), None)
        digest = service.inventory.list()[0].repo_digests[0].partition("@")[2]
        signature = Signature(payload=b"p", annotations={"a": "b"})
        repository = registry.reference("app")
        await service._gate._kept.put(repository, {digest: (signature,)})
    async with node(tmp_path, tmp_path / "baked/images") as service:
        assert await service._gate._kept.of(repository, [digest]) == (signature,)
