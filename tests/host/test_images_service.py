"""The whole image service on a real kernel: pulls, sharing, removal, restarts, full disks."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest
import zstandard

from imageservice.errors import (
    DigestMismatch,
    ImageNotFound,
    ImageUnsupported,
    PlatformNotFound,
    PullStalled,
    RegistryDenied,
    RegistryThrottled,
    RegistryUnavailable,
    SignatureValidationFailed,
    TooLarge,
)
from imageservice.manifest import Platform
from imageservice.service import Image, ImageService, Progress, Stage
from sandbox.host.errors import Corrupt, PodwrightError, ResourceExhausted
from sandbox.host.files import filesystem_usage
from sandbox.host.libc import LibcSyscalls
from sandbox.host.mounts import Mount, mount_one, unmount
from tests import probes
from tests.fakes.registry import (
    FOREVER,
    OCI_LAYER_GZIP,
    Alter,
    Blob,
    Cut,
    FakeRegistry,
    Hold,
    Stall,
    Status,
)
from tests.host.image_node import image_node, layer_directories, leftovers, rootfs, until
from tests.kit import oci
from tests.kit.held import children
from tests.kit.registry import Pusher, running_registry
from tests.kit.signing import attachment, new_key, payload, public_pem, signature_tag, signed
from tests.kit.tars import Tar

pytestmark = pytest.mark.root

ARCHITECTURE = Platform.host().architecture
#: Does not compress, so a layer is as large as it says.
NOISE = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(60_000))


def layer(name: str, content: bytes = b"content") -> bytes:
    return Tar().directory("d").file(f"d/{name}", content).done()


async def pulled(service: ImageService, registry: FakeRegistry, name: str) -> Image:
    return await service.pull(registry.reference(name), None)


def blob_requests(registry: FakeRegistry, blob: Blob) -> int:
    return len(registry.seen(f"/blobs/{blob.digest}"))


async def test_pull_list_status_mount_remove(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        made = registry.add_image(
            "team/app",
            "1",
            layers=[layer("a", b"lower"), layer("b"), layer("a", b"upper")],
            config={"User": "1002:grp", "Entrypoint": ["/d/a"], "Env": ["A=b"]},
        )
        events: list[Progress] = []
        name = registry.reference("team/app:1")
        image = await service.pull(name, None, on_progress=events.append)
        assert image.id == made.config.digest
        assert image.repo_tags == (name,)
        assert image.repo_digests == (f"{name[:-2]}@{made.manifest.digest}",)
        assert image.size_bytes == made.config.size + sum(blob.size for blob in made.layers)
        assert (image.user, image.config.config.entrypoint) == ("1002:grp", ("/d/a",))
        assert image.chain == made.diff_ids
        assert {event.layer for event in events} == {blob.digest for blob in made.layers}
        assert [e.stage for e in events if e.layer == made.layers[0].digest][-1] is Stage.DONE
        for text in (name, image.repo_digests[0], image.id, image.id[7:], image.id[7:20]):
            assert service.status(text) is image
        assert service.list() == [image]
        assert service.list(name) == [image]
        assert service.list("nothing") == []
        async with rootfs(service, image, tmp_path) as target:
            assert (target / "d/a").read_bytes() == b"upper"
            assert (target / "d/b").exists()
            (target / "d/new").write_text("x")
            (target / "d/b").unlink()
        assert leftovers(tmp_path) == []
        await service.remove(name)
        await service.remove(name)
        assert service.list() == []
        assert layer_directories(tmp_path) == []
        assert not list((tmp_path / "images/content").rglob("*/*"))


async def test_a_removal_that_is_called_off_has_removed_everything(tmp_path: Path) -> None:
    """RemoveImage ends with its client; what it began it must not leave half done."""
    async with FakeRegistry() as registry:
        async with image_node(tmp_path) as service:
            registry.add_image("app", "1", layers=[layer("a"), layer("b")])
            await pulled(service, registry, "app:1")
            begun, may_go_on = threading.Event(), threading.Event()

            def block(_connection: object) -> None:
                begun.set()
                may_go_on.wait()

            blocking = asyncio.ensure_future(service._database.write(block))
            await asyncio.to_thread(begun.wait)
            removing = asyncio.ensure_future(service.remove(registry.reference("app:1")))
            for _ in range(20):
                await asyncio.sleep(0)
            removing.cancel()
            for _ in range(20):
                await asyncio.sleep(0)
            may_go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await removing
            await blocking
            assert service.list() == []
            assert layer_directories(tmp_path) == []
            assert not list((tmp_path / "images/content").rglob("*/*"))
        async with image_node(tmp_path) as service:
            assert service.list() == []


async def test_pulling_again_fetches_no_layer(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        made = registry.add_image("app", "1")
        first = await pulled(service, registry, "app:1")
        assert await pulled(service, registry, "app:1") == first
        assert blob_requests(registry, made.layers[0]) == 1
        assert blob_requests(registry, made.config) == 1


async def test_an_index_is_resolved_and_its_digest_is_the_image_s_name(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        made = registry.add_image("app", architecture=ARCHITECTURE)
        other = registry.add_image("app", architecture="s390x", layers=[layer("other")])
        index = registry.add_index(
            "app",
            "1",
            {"linux/s390x": other.manifest, f"linux/{ARCHITECTURE}": made.manifest},
        )
        image = await pulled(service, registry, "app:1")
        assert image.id == made.config.digest
        assert image.repo_digests == (registry.reference(f"app@{index.digest}"),)
        by_digest = await pulled(service, registry, f"app@{index.digest}")
        assert by_digest == image
        registry.add_index("app", "2", {"linux/s390x": other.manifest})
        with pytest.raises(PlatformNotFound):
            await pulled(service, registry, "app:2")


@pytest.mark.parametrize("kind", ["zstd", "plain", "mislabelled"])
async def test_other_compressions(tmp_path: Path, kind: str) -> None:
    plain = layer("a")
    blob = {
        "zstd": zstandard.ZstdCompressor().compress(plain),
        "plain": plain,
        "mislabelled": zstandard.ZstdCompressor().compress(plain),
    }[kind]
    suffix = {"zstd": "+zstd", "plain": "", "mislabelled": "+gzip"}[kind]
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        diff_id = "sha256:" + hashlib.sha256(plain).hexdigest()
        config = registry.add_blob(
            b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["%s"]}}'
            % diff_id.encode(),
            "application/vnd.oci.image.config.v1+json",
        )
        media_type = f"application/vnd.oci.image.layer.v1.tar{suffix}"
        part = registry.add_blob(blob, media_type)
        body = b'{"schemaVersion":2,"config":%s,"layers":[%s]}' % (
            str(config.json).replace("'", '"').encode(),
            str(part.json).replace("'", '"').encode(),
        )
        registry.add_manifest("app", body, tag="1")
        image = await pulled(service, registry, "app:1")
        async with rootfs(service, image, tmp_path) as target:
            assert (target / "d/a").read_bytes() == b"content"


async def test_what_is_wanted_by_many_is_fetched_once(tmp_path: Path) -> None:
    base = layer("base", NOISE)
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        first = registry.add_image("one", "1", layers=[base, layer("one")])
        registry.add_image("two", "1", layers=[base, layer("two")])
        body = registry.manifests["one", "1"][1]
        registry.add_manifest("one", body, tag="also")
        wanted = ["one:1"] * 4 + ["one:also"] * 2 + ["two:1"] * 3
        images = await asyncio.gather(*(pulled(service, registry, name) for name in wanted))
        assert len({image.id for image in images}) == 2
        assert blob_requests(registry, first.layers[0]) == 1
        assert blob_requests(registry, first.layers[1]) == 1
        final = service.status(registry.reference("one:1"))
        assert final is not None
        assert final.repo_tags == (registry.reference("one:1"), registry.reference("one:also"))
        assert len(layer_directories(tmp_path)) == 3


async def test_a_layer_twice_in_one_image(tmp_path: Path) -> None:
    same, other = layer("same"), layer("other")
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        made = registry.add_image("app", "1", layers=[same, other, same])
        image = await pulled(service, registry, "app:1")
        assert len(image.chain) == 3
        assert blob_requests(registry, made.layers[0]) == 1
        async with rootfs(service, image, tmp_path) as target:
            assert sorted(p.name for p in (target / "d").iterdir()) == ["other", "same"]


async def test_a_deadline_ends_the_pull_and_the_next_goes_on_from_there(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        made = registry.add_image("app", "1", layers=[layer("big", NOISE)])
        registry.on(f"/blobs/{made.layers[0].digest}", Stall(after_bytes=1_500_000))
        pull = asyncio.ensure_future(pulled(service, registry, "app:1"))
        ingest = tmp_path / "images/ingest"
        await until(
            lambda: sum(path.stat().st_size for path in ingest.iterdir()) >= 1_000_000,
            "something of the blob has come",
        )
        pull.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pull
        await until(lambda: len(leftovers(tmp_path)) == 1, "only the download is left")
        image = await pulled(service, registry, "app:1")
        assert image.chain == made.diff_ids
        again = registry.seen(f"/blobs/{made.layers[0].digest}")[-1]
        assert again.header("Range") is not None
        assert leftovers(tmp_path) == []


async def test_a_layer_is_written_while_it_is_fetched_and_holds_nobody_up(tmp_path: Path) -> None:
    """One worker for the node: a download that stands still must not keep it from others."""
    async with FakeRegistry() as registry, image_node(tmp_path, unpack_workers=1) as service:
        slow = registry.add_image("slow", "1", layers=[layer("big", NOISE * 2)])
        registry.add_image("app", "1", layers=[layer("a")])
        registry.on(f"/blobs/{slow.layers[0].digest}", Stall(after_bytes=3_000_000))
        pull = asyncio.ensure_future(pulled(service, registry, "slow:1"))
        staging = tmp_path / "images/staging"
        await until(
            lambda: sum(p.stat().st_size for p in staging.rglob("*") if p.is_file()) > 1 << 20,
            "the first part of the layer is written",
        )
        await pulled(service, registry, "app:1")
        assert not pull.done()
        pull.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pull
        await until(lambda: len(leftovers(tmp_path)) == 1, "only the download is left")
        await pulled(service, registry, "slow:1")
        assert leftovers(tmp_path) == []


async def test_a_registry_that_is_tired_does_not_cost_what_it_sent(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        made = registry.add_image("app", "1", layers=[layer("big", NOISE)])
        target = f"/blobs/{made.layers[0].digest}"
        refused = Status(status=429, headers=[("Retry-After", "10000")])
        registry.on(target, Cut(after_bytes=1_500_000), refused)
        with pytest.raises(RegistryThrottled):
            await pulled(service, registry, "app:1")
        await pulled(service, registry, "app:1")
        assert int((registry.seen(target)[-1].header("Range") or "")[6:-1]) >= 1_000_000


async def test_an_image_beyond_a_limit_costs_no_others_what_they_have_fetched(
    tmp_path: Path,
) -> None:
    """Its own download goes; only a full disk makes the others' go as well."""
    async with (
        FakeRegistry() as registry,
        image_node(tmp_path, max_layer_bytes=10 << 20) as service,
    ):
        made = registry.add_image("app", "1", layers=[layer("big", NOISE)])
        target = f"/blobs/{made.layers[0].digest}"
        registry.on(target, Cut(after_bytes=1_500_000), Status(status=403))
        with pytest.raises(RegistryDenied):
            await pulled(service, registry, "app:1")
        [kept] = leftovers(tmp_path)
        registry.add_image("bomb", "1", layers=[layer("zeros", bytes(20 << 20))])
        registry.add_manifest("huge", b"{" + b" " * (5 << 20) + b"}", tag="1")
        for name, kind in (("huge:1", TooLarge), ("bomb:1", ResourceExhausted)):
            with pytest.raises(kind):
                await pulled(service, registry, name)
            assert leftovers(tmp_path) == [kept]
        await pulled(service, registry, "app:1")
        assert int((registry.seen(target)[-1].header("Range") or "")[6:-1]) >= 1_000_000


async def test_layers_of_all_pulls_together_are_fetched_so_many_at_once(tmp_path: Path) -> None:
    most = 0
    async with (
        FakeRegistry() as registry,
        image_node(tmp_path, max_node_downloads=2) as service,
    ):
        names = [f"app{number}:1" for number in range(4)]
        for number, name in enumerate(names):
            layers = [layer(f"{number}-{part}", NOISE[: 1 << 18]) for part in range(3)]
            made = registry.add_image(name.partition(":")[0], "1", layers=layers)
            for blob in made.layers:
                registry.on(f"/blobs/{blob.digest}", Hold(after_bytes=1000))
        # One pull has the places; the others wait for theirs, and it is not called a stall.
        group = asyncio.gather(*(pulled(service, registry, name) for name in names))
        await until(lambda: registry.held == 2, "two layers are being fetched")
        for _ in range(50):
            await asyncio.sleep(0.002)
            most = max(most, registry.held)

        def goes_on() -> bool:
            nonlocal most
            most = max(most, registry.held)
            registry.release()
            return group.done()

        await until(goes_on, "all are here")
        await group
    assert most == 2


async def test_a_millisecond_is_not_enough_and_leaves_nothing_running(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        registry.add_image("app", "1")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await pulled(service, registry, "app:1")
        await until(lambda: len(service._pulls) == 0, "pull ended")
        assert service.list() == []


async def test_one_caller_leaves_and_the_other_gets_the_image(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        made = registry.add_image("app", "1", layers=[layer("big", NOISE)])
        registry.on("/blobs/", Status(status=503))
        calls = [asyncio.ensure_future(pulled(service, registry, "app:1")) for _ in range(3)]
        await until(lambda: len(registry.requests) > 0, "pull began")
        calls[0].cancel()
        images = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(images[0], asyncio.CancelledError)
        assert [image.id for image in images[1:] if isinstance(image, Image)] == [
            made.config.digest
        ] * 2


async def test_bytes_that_are_not_the_blob(tmp_path: Path) -> None:
    wrong = gzip.compress(layer("evil"))
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        made = registry.add_image("app", "1", layers=[layer("a", NOISE)])
        body = wrong + bytes(made.layers[0].size - len(wrong))
        registry.on(f"/blobs/{made.layers[0].digest}", Alter(body=body))
        image = await pulled(service, registry, "app:1")  # once wrong is asked for again
        assert image.chain == made.diff_ids
        await service.remove(image.id)
        registry.on(f"/blobs/{made.layers[0].digest}", Alter(body=body, times=FOREVER))
        with pytest.raises(DigestMismatch) as caught:
            await pulled(service, registry, "app:1")
        for word in (made.layers[0].digest, registry.reference("app"), "tries=2"):
            assert word in str(caught.value)
        assert service.list() == []
        assert leftovers(tmp_path) == []
        assert layer_directories(tmp_path) == []


async def test_time_limits_hold_when_a_layer_is_asked_for_again(tmp_path: Path) -> None:
    """It was wrong the first time, and nothing comes the second time."""
    async with (
        FakeRegistry() as registry,
        image_node(tmp_path, pull_progress_timeout_s=0.5) as service,
    ):
        made = registry.add_image("app", "1", layers=[layer("a", NOISE)])
        wrong = gzip.compress(layer("evil"))
        body = wrong + bytes(made.layers[0].size - len(wrong))
        registry.on(
            f"/blobs/{made.layers[0].digest}",
            Alter(body=body),
            Stall(after_bytes=10_000, times=FOREVER),
        )
        with pytest.raises(PullStalled):
            await pulled(service, registry, "app:1")


@pytest.mark.parametrize(
    ("blob", "error"),
    [
        pytest.param(gzip.compress(b"no tar" * 200), Corrupt, id="no tar"),
        pytest.param(gzip.compress(layer("a"))[:-6], Corrupt, id="cut gzip"),
        pytest.param(gzip.compress(Tar().file("../x").done()), Corrupt, id="escape"),
        pytest.param(gzip.compress(layer("a")), DigestMismatch, id="wrong diffID"),
        pytest.param(gzip.compress(bytes(20 << 20)), ResourceExhausted, id="bomb"),
        pytest.param(b"\xfd7zXZ\0" + bytes(100), PodwrightError, id="xz"),
    ],
)
async def test_layers_that_lie(tmp_path: Path, blob: bytes, error: type[Exception]) -> None:
    async with (
        FakeRegistry() as registry,
        image_node(tmp_path, max_layer_bytes=10 << 20) as service,
    ):
        good = registry.add_image("app", "1", layers=[layer("good")])
        part = registry.add_blob(blob, OCI_LAYER_GZIP)
        _type, body = registry.manifests["app", "1"]
        body = body.replace(good.layers[0].digest.encode(), part.digest.encode()).replace(
            b'"size": %d}]' % good.layers[0].size, b'"size": %d}]' % part.size
        )
        registry.add_manifest("bad", body, tag="1")
        with pytest.raises(error):
            await pulled(service, registry, "bad:1")
        assert service.list() == []
        assert leftovers(tmp_path) == []
        assert (await pulled(service, registry, "app:1")).chain == good.diff_ids


async def test_what_is_no_image(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        with pytest.raises(ImageNotFound):
            await pulled(service, registry, "none:1")
        made = registry.add_image("app", "1")
        _type, body = registry.manifests["app", "1"]
        chart = body.replace(b"oci.image.config.v1+json", b"cncf.helm.config.v1+json")
        registry.add_manifest("chart", chart, tag="1")
        with pytest.raises(ImageUnsupported, match="artifact"):
            await pulled(service, registry, "chart:1")
        more = body.replace(
            b'"layers": [',
            b'"layers": [' + str(made.layers[0].json).replace("'", '"').encode() + b", ",
        )
        registry.add_manifest("more", more, tag="1")
        with pytest.raises(Corrupt, match="names 1 layers, its manifest 2"):
            await pulled(service, registry, "more:1")


async def test_a_tag_that_moves(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        old = registry.add_image("app", "1", layers=[layer("old")])
        first = await pulled(service, registry, "app:1")
        new = registry.add_image("app", "1", layers=[layer("new")])
        second = await pulled(service, registry, "app:1")
        assert second.id == new.config.digest
        left = service.status(first.id)
        assert left is not None
        assert left.repo_tags == ()
        assert left.repo_digests == (registry.reference(f"app@{old.manifest.digest}"),)
        assert {image.id for image in service.list()} == {first.id, second.id}


async def test_layers_of_a_container_outlive_their_image(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        registry.add_image("app", "1", layers=[layer("a"), layer("b")])
        image = await pulled(service, registry, "app:1")
        async with rootfs(service, image, tmp_path) as target:
            await service.remove(image.id)
            assert service.list() == []
            assert (target / "d/a").read_bytes() == b"content"
            assert await service.leases() == {"c1"}
            assert len(layer_directories(tmp_path)) == 2
            # Pulled again meanwhile, nothing is fetched that is still there.
            await pulled(service, registry, "app:1")
            assert len(registry.seen("/blobs/")) == 4
            await service.remove(image.id)
        assert layer_directories(tmp_path) == []
        with pytest.raises(ImageNotFound):
            await service.prepare_rootfs(
                "c2", image.id, upper_dir=tmp_path / "u", work_dir=tmp_path / "w"
            )


async def test_volumes_of_a_container_are_released_with_it(tmp_path: Path) -> None:
    """Their keys lie below the container's id; an id that begins alike is somebody else's."""
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        registry.add_image("app", "1", layers=[layer("a")])
        registry.add_image("data", "1", layers=[layer("b")])
        app = await pulled(service, registry, "app:1")
        data = await pulled(service, registry, "data:1")
        for key, image in (("c1", app), ("c1/x", data), ("c1/y", app), ("c10", data)):
            upper, work = tmp_path / key / "upper", tmp_path / key / "work"
            await service.prepare_rootfs(key, image.id, upper_dir=upper, work_dir=work)
        assert await service.leases() == {"c1", "c10"}
        await service.remove(app.id)
        await service.remove(data.id)
        assert len(layer_directories(tmp_path)) == 2
        await service.release_rootfs("c1")
        assert await service.leases() == {"c10"}
        assert len(layer_directories(tmp_path)) == 1
        await service.release_rootfs("c10")
        assert layer_directories(tmp_path) == []


async def test_shared_layers_stay_with_the_other_image(tmp_path: Path) -> None:
    base = layer("base")
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        registry.add_image("one", "1", layers=[base, layer("one")])
        registry.add_image("two", "1", layers=[base, layer("two")])
        await pulled(service, registry, "one:1")
        two = await pulled(service, registry, "two:1")
        await asyncio.gather(*(service.remove(registry.reference("one:1")) for _ in range(5)))
        assert service.list() == [two]
        assert len(layer_directories(tmp_path)) == 2
        async with rootfs(service, two, tmp_path) as target:
            assert (target / "d/base").exists()


@pytest.mark.cell("LD12")
async def test_remove_pull_and_prepare_at_once(tmp_path: Path) -> None:
    """Never a container without its layers, never a layer without an owner."""
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        registry.add_image("app", "1", layers=[layer("a"), layer("b")])
        name = registry.reference("app:1")
        image = await service.pull(name, None)
        failures: list[Exception] = []

        async def worker(number: int) -> None:
            for turn in range(25):
                key = f"c{number}-{turn}"
                try:
                    await service.pull(name, None)
                    async with rootfs(service, image, tmp_path, key) as target:
                        assert (target / "d/a").read_bytes() == b"content"
                        assert (target / "d/b").exists()
                except ImageNotFound:
                    continue  # somebody removed it in between: said, not suffered
                except Exception as error:
                    failures.append(error)

        async def remover() -> None:
            for _ in range(60):
                await service.remove(name)
                await asyncio.sleep(0.005)

        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(worker(number))
            group.create_task(remover())
        assert failures == []
        await service.remove(name)
        assert await service.leases() == set()
        assert layer_directories(tmp_path) == []
        assert leftovers(tmp_path) == []


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    async with FakeRegistry() as registry:
        registry.add_image("app", "1", layers=[layer("a"), layer("b")], config={"User": "5"})
        async with image_node(tmp_path) as service:
            before = await pulled(service, registry, "app:1")
            await service.prepare_rootfs(
                "c1", before.id, upper_dir=tmp_path / "u", work_dir=tmp_path / "w"
            )
        async with image_node(tmp_path, killed=True) as service:
            assert service.list() == [before]
            assert await service.leases() == {"c1"}
            await service.remove(before.id)
            assert len(layer_directories(tmp_path)) == 2
        async with image_node(tmp_path) as service:
            assert service.list() == []
            assert await service.leases() == {"c1"}
            assert len(layer_directories(tmp_path)) == 2
            await service.release_rootfs("c1")
            assert layer_directories(tmp_path) == []


async def test_a_restart_clears_what_a_kill_left(tmp_path: Path) -> None:
    async with FakeRegistry() as registry:
        made = registry.add_image("app", "1", layers=[layer("a"), layer("b")])
        async with image_node(tmp_path, killed=True) as service:
            image = await pulled(service, registry, "app:1")
            await service._snapshots.stage("sha256:" + "9" * 64)
        root = tmp_path / "images"
        (root / "layers/zz").mkdir()
        (root / "layers/zz/file").write_text("no record of this")
        (root / "content/sha256/junk").write_text("x")
        (root / "ingest/sha256-old.1").write_text("x")
        os.utime(root / "ingest/sha256-old.1", (0, 0))
        async with image_node(tmp_path, killed=True) as service:
            assert service.list() == [image]
            assert leftovers(tmp_path) == []
            assert len(layer_directories(tmp_path)) == 2
            assert len(list((root / "content/sha256").iterdir())) == 2
        # A layer that is gone takes its image with it, and a pull brings both back; the other layer
        # is not fetched again.
        shutil.rmtree(root / "layers" / layer_directories(tmp_path)[0])
        fetched = len(registry.seen("/blobs/"))
        async with image_node(tmp_path) as service:
            assert service.list() == []
            assert len(layer_directories(tmp_path)) == 1
            assert (await pulled(service, registry, "app:1")).chain == made.diff_ids
            layers = {blob.digest for blob in made.layers}
            again = [r for r in registry.seen("/blobs/")[fetched:] if r.path[-71:] in layers]
            assert len(again) == 1


async def test_a_config_that_rotted_takes_the_image_with_it(tmp_path: Path) -> None:
    async with FakeRegistry() as registry:
        made = registry.add_image("app", "1")
        async with image_node(tmp_path) as service:
            await pulled(service, registry, "app:1")
        path = tmp_path / "images/content/sha256" / made.config.digest[7:]
        path.write_bytes(path.read_bytes()[:-1])
        async with image_node(tmp_path) as service:
            assert service.list() == []
            await pulled(service, registry, "app:1")
            assert len(service.list()) == 1


@pytest.mark.cell("DB11", "DK9", "S5")
@pytest.mark.parametrize(
    ("form", "damaged"),
    [("tree", "d/a"), ("indexed", "layer.tar"), ("indexed", "index.erofs")],
)
@pytest.mark.parametrize("loss", ["power", "kill"])
async def test_layers_are_checked_after_a_power_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str, form: str, damaged: str
) -> None:
    if form == "indexed" and (reason := probes.no_indexed_layers(tmp_path)):
        pytest.skip(reason)
    async with FakeRegistry() as registry:
        registry.add_image("app", "1", layers=[layer("a"), layer("b")])
        with monkeypatch.context() as patch:
            if loss == "power":
                patch.setattr("imageservice.snapshots.overlay.boot_id", lambda: "before")
            async with image_node(tmp_path, killed=True, layer_form=form) as service:
                await pulled(service, registry, "app:1")
        (path, *_) = sorted((tmp_path / "images/layers").glob(f"*/{damaged}"))
        data = path.read_bytes()
        # A tree is counted and measured; an indexed layer is hashed.
        path.write_bytes(b"" if form == "tree" else data[:-1] + bytes([data[-1] ^ 1]))
        async with image_node(tmp_path, killed=True, layer_form=form) as service:
            # After a mere kill the kernel still has what was written: nothing is walked.
            assert len(service.list()) == (0 if loss == "power" else 1)
            if loss == "power":
                await pulled(service, registry, "app:1")


@pytest.mark.cell("DB2")
async def test_a_corrupt_catalog_does_not_keep_the_daemon_from_starting(tmp_path: Path) -> None:
    async with FakeRegistry() as registry:
        registry.add_image("app", "1")
        async with image_node(tmp_path) as service:
            image = await pulled(service, registry, "app:1")
        for path in (tmp_path / "images").glob("catalog.db*"):
            if path.name == "catalog.db":
                path.write_bytes(b"\xff" * 8192)
        async with image_node(tmp_path) as service:
            assert service.list() == []
            assert await pulled(service, registry, "app:1") == image


async def test_a_mounted_layer_survives_the_loss_of_the_catalog(tmp_path: Path) -> None:
    async with FakeRegistry() as registry:
        registry.add_image("app", "1")
        calls = LibcSyscalls()
        target = tmp_path / "mnt"
        target.mkdir()
        async with image_node(tmp_path, killed=True) as service:
            image = await pulled(service, registry, "app:1")
            (mount,) = await service.prepare_rootfs(
                "c1", image.id, upper_dir=tmp_path / "u", work_dir=tmp_path / "w"
            )
            mount_one(Mount(mount.type, mount.source, target, mount.options), syscalls=calls)
        try:
            (tmp_path / "images/catalog.db").write_bytes(b"\xff" * 8192)
            async with image_node(tmp_path):
                assert (target / "hello").read_bytes() == b"world\n"
        finally:
            unmount(target, syscalls=calls)
        async with image_node(tmp_path):
            assert layer_directories(tmp_path) == []


@pytest.mark.cell("DK1")
async def test_a_full_disk_fails_the_pull_and_heals(tmp_path: Path) -> None:
    calls = LibcSyscalls()
    disk = tmp_path / "disk"
    disk.mkdir()
    mount_one(Mount("tmpfs", "small", disk, ("size=6m",)), syscalls=calls)
    try:
        async with FakeRegistry() as registry, image_node(disk) as service:
            registry.add_image("small", "1", layers=[layer("a")])
            registry.add_image("big", "1", layers=[layer("x"), layer("big", NOISE * 2)])
            small = await pulled(service, registry, "small:1")
            with pytest.raises(ResourceExhausted):
                await pulled(service, registry, "big:1")
            assert service.list() == [small]
            # Layers that were on their way beside the one that failed end a moment later.
            await until(
                lambda: (
                    not list((disk / "images/staging").iterdir())
                    and len(layer_directories(disk)) == 1
                ),
                "only the small image's layer is left",
            )
            (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free))
            await service.remove(small.id)
            (disk / "ballast").unlink()
            assert service.list() == []
            assert (await pulled(service, registry, "small:1")).id == small.id
    finally:
        unmount(disk, syscalls=calls)


async def test_a_worker_that_dies_fails_one_pull(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        made = registry.add_image("app", "1", layers=[layer("big", NOISE * 2)])
        # The rest of the layer comes only once its worker is dead: it cannot be done before.
        registry.on(f"/blobs/{made.layers[0].digest}", Hold(after_bytes=2_500_000))
        killed: list[int] = []

        def kill(event: Progress) -> None:
            if event.stage is Stage.UNPACKING and event.done_bytes and not killed:
                killed.extend(_workers())
                _signal_workers(signal.SIGKILL)

        name = registry.reference("app:1")
        pull = asyncio.ensure_future(service.pull(name, None, on_progress=kill))
        await until(lambda: killed and registry.held, "the worker is killed, the blob is held")
        registry.release()
        with pytest.raises(PodwrightError, match="worker ended"):
            await pull
        assert service.list() == []
        assert not list((tmp_path / "images/staging").iterdir())
        image = await pulled(service, registry, "app:1")
        async with rootfs(service, image, tmp_path) as target:
            assert (target / "d/big").read_bytes() == NOISE * 2
    assert not _workers()


def _workers() -> list[int]:
    """Unpack workers that this process has started and that have not ended."""
    found = []
    for pid in children(os.getpid()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # reaped meanwhile
            if b"imageservice.unpack.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def _signal_workers(number: int) -> None:
    for pid in _workers():
        os.kill(pid, number)


async def test_cancelling_ends_the_worker_at_once(tmp_path: Path) -> None:
    big = Tar()
    for number in range(30_000):
        big.file(f"f{number}", b"x")
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        registry.add_image("app", "1", layers=[big.done()])
        unpacking = asyncio.Event()

        def hear(event: Progress) -> None:
            if event.stage is Stage.UNPACKING and event.done_bytes and not unpacking.is_set():
                # Stopped, so that it cannot be done before it is called off.
                _signal_workers(signal.SIGSTOP)
                unpacking.set()

        pull = asyncio.ensure_future(
            service.pull(registry.reference("app:1"), None, on_progress=hear)
        )
        await unpacking.wait()
        pull.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pull
        staging = tmp_path / "images/staging"
        await until(lambda: not list(staging.iterdir()), "staging is gone")
        _signal_workers(signal.SIGCONT)  # another one may have been idle
        # The blob was whole: nothing is fetched again.
        fetched = len(registry.seen("/blobs/"))
        await pulled(service, registry, "app:1")
        assert len(registry.seen("/blobs/")) - fetched <= 1  # the config, perhaps


async def test_usage_is_what_is_there(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        registry.add_image("app", "1", layers=[layer("big", NOISE), layer("b")])
        image = await pulled(service, registry, "app:1")
        (tmp_path / "containers/file").write_bytes(bytes(50_000))
        info = await service.fs_info()
        (images,), (containers,) = info.image_filesystems, info.container_filesystems
        real = filesystem_usage(tmp_path / "images")
        assert images.mountpoint == tmp_path / "images"
        assert abs(images.used_bytes - real.used_bytes) <= 256 * 1024
        assert abs(images.inodes_used - real.inodes) <= 4
        assert containers.mountpoint == tmp_path / "containers"
        assert containers.used_bytes >= 50_000
        await service.remove(image.id)
        after = (await service.fs_info()).image_filesystems[0]
        # The database's log grows meanwhile.
        assert images.used_bytes - after.used_bytes >= len(NOISE) * 0.9
        assert (await service.fs_info()).image_filesystems[0] == after  # not measured again


async def test_a_registry_that_fails_says_so(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        registry.add_image("app", "1")
        registry.on("/manifests/", Status(status=503, times=FOREVER))
        with pytest.raises(RegistryUnavailable):
            await pulled(service, registry, "app:1")
        assert service.list() == []


@pytest.mark.skipif(shutil.which("umoci") is None, reason="Debian package umoci is missing")
async def test_same_root_file_system_as_umoci(tmp_path: Path) -> None:
    """An image of several layers with whiteouts, unpacked by another implementation."""
    layers = [
        Tar()
        .directory("./", 0o751)
        .directory("etc")
        .file("etc/keep")
        .file("etc/gone")
        .directory("tmp", 0o1777)
        .directory("var")
        .directory("var/old")
        .file("var/old/file")
        .symlink("lib", "usr/lib")
        .directory("usr/lib")
        .add("usr/lib/setuid", content=b"s", mode=0o4755, uid=3, gid=4)
        .hardlink("usr/lib/again", "usr/lib/setuid")
        .done(),
        Tar()
        .directory("etc")
        .file("etc/.wh.gone")
        .directory("var")
        .directory("var/old")
        .file("var/old/.wh..wh..opq")
        .file("var/old/new")
        .file("tmp/implied")
        .done(),
    ]
    fake = FakeRegistry()
    made = fake.add_image("app", "1", layers=layers, architecture=ARCHITECTURE)
    body = fake.manifests["app", made.manifest.digest]
    name = "app:1"
    with running_registry(tmp_path / "storage", tmp_path) as port:
        pusher = Pusher(port)
        pusher.push(oci.Image(fake.blobs, {made.manifest.digest: body}, made.manifest.digest), name)
        pusher.close()
        source = f"127.0.0.1:{port}/{name}"
        async with image_node(tmp_path) as service:
            image = await service.pull(source, None)
            async with rootfs(service, image, tmp_path) as ours:
                theirs = await asyncio.to_thread(_unpacked_by_umoci, source, tmp_path)
                assert await asyncio.to_thread(_listing, ours) == _listing(theirs)


def _unpacked_by_umoci(source: str, directory: Path) -> Path:
    layout, rootfs = directory / "layout", directory / "theirs"
    copy = ["skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false"]
    subprocess.run([*copy, f"docker://{source}", f"oci:{layout}:1"], check=True)
    subprocess.run(["umoci", "raw", "unpack", "--image", f"{layout}:1", rootfs], check=True)
    return rootfs


def _listing(root: Path) -> list[str]:
    """Path, type, mode, owner and link target of everything."""
    find = ["find", ".", "-printf", r"%P %y %m %U %G %l\n"]
    lines = subprocess.run(find, cwd=root, check=True, capture_output=True).stdout.decode()
    return sorted(lines.splitlines())


@pytest.mark.parametrize(
    "kind",
    [
        "application/vnd.oci.image.layer.v1.tar+encrypted",
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "application/vnd.oci.image.layer.v1.tar+zstd+encrypted",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip+encrypted",
        "application/vnd.docker.image.rootfs.diff.tar+encrypted",
        "application/vnd.docker.image.rootfs.diff.tar.gzip+encrypted",
    ],
)
async def test_encrypted_layers_are_refused_before_anything_is_fetched(
    tmp_path: Path, kind: str
) -> None:
    """As ocicrypt writes them: another media type, and the wrapped keys as annotations."""
    async with FakeRegistry() as registry, image_node(tmp_path) as service:
        plain = registry.add_image("team/secret", layers=[layer("a"), layer("b")])
        _, body = registry.manifests["team/secret", plain.manifest.digest]
        document = json.loads(body)
        document["layers"][1]["mediaType"] = kind
        document["layers"][1]["annotations"] = {
            "org.opencontainers.image.enc.keys.jwe": "e30=",
            "org.opencontainers.image.enc.pubopts": "e30=",
        }
        registry.add_manifest("team/secret", json.dumps(document).encode(), tag="1")
        with pytest.raises(ImageUnsupported, match="image layers are encrypted"):
            await pulled(service, registry, "team/secret:1")
        assert not registry.seen("/blobs/")


async def test_signatures_come_and_go_with_their_image(tmp_path: Path) -> None:
    key = new_key()
    (tmp_path / "key.pub").write_bytes(public_pem(key))
    demand = {"type": "sigstoreSigned", "keyPath": str(tmp_path / "key.pub")}
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"default": [demand]}))
    async with (
        FakeRegistry() as registry,
        image_node(tmp_path, signature_policy=policy) as service,
    ):
        made = registry.add_image("team/app", "1", layers=[layer("a")])
        name, digest = registry.reference("team/app:1"), made.manifest.digest
        with pytest.raises(SignatureValidationFailed, match="no signature"):
            await service.pull(name, None)
        assert not registry.seen("/blobs/")
        pushed = attachment([signed(key, payload(name, digest))])
        registry.blobs.update(pushed.blobs)
        tag = signature_tag(digest)
        registry.add_manifest("team/app", pushed.manifests[pushed.top][1], tag=tag)
        image = await service.pull(name, None)
        await service.admit(image.id, name, "")
        kept = service._gate._kept
        repository = registry.reference("team/app")
        assert len(await kept.of(repository, [digest])) == 1
        await service.remove(name)
        assert await kept.of(repository, [digest]) == ()
        with pytest.raises(ImageNotFound):
            await service.admit(image.id, name, "")
