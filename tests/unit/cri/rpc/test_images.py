import json
from dataclasses import replace
from pathlib import Path

import pytest

from cri.convert_image import credential, image_user
from cri.rpc.images import ImageCalls
from imageservice import errors as registry
from imageservice.images import Image
from imageservice.manifest import parse_config
from imageservice.usage import FsInfo, FsUsage
from protos import api_pb2 as pb
from sandbox.host.errors import InvalidArgument
from tests.fakes.daemon import FakeImages

CONFIG = parse_config(
    json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"User": "1002:grp", "Env": ["A=b"]},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "d" * 64]},
        }
    ).encode()
)
IMAGE = Image(
    id="sha256:" + "1" * 64,
    repo_tags=("docker.io/library/busybox:1",),
    repo_digests=("docker.io/library/busybox@sha256:" + "2" * 64,),
    size_bytes=4321,
    user="1002:grp",
    config=CONFIG,
    pinned=True,
    chain=("sha256:" + "d" * 64,),
)


@pytest.fixture
def images():
    images = FakeImages()
    images.add(IMAGE, *IMAGE.repo_tags, *IMAGE.repo_digests, "busybox")
    return images


@pytest.fixture
def calls(images):
    return ImageCalls(images)


async def status(calls, name, **fields):
    return await calls.image_status(pb.ImageStatusRequest(image=pb.ImageSpec(image=name), **fields))


async def test_every_name_gives_the_identical_message(calls):
    names = [IMAGE.id, *IMAGE.repo_tags, *IMAGE.repo_digests, "busybox"]
    answers = {(await status(calls, name)).SerializeToString() for name in names}
    assert len(answers) == 1
    image = pb.ImageStatusResponse.FromString(answers.pop()).image
    assert (image.id, image.size, image.pinned) == (IMAGE.id, 4321, True)
    assert list(image.repo_tags) == list(IMAGE.repo_tags)
    assert (image.uid.value, image.username) == (1002, "")


async def test_a_missing_image_is_an_empty_answer_and_no_error(calls):
    assert (await status(calls, "nope")).ListFields() == []
    with pytest.raises(InvalidArgument, match=r"image\.image: must not be empty"):
        await status(calls, "")


async def test_verbose_has_the_image_configuration_under_its_own_names(calls):
    answer = await status(calls, IMAGE.id, verbose=True)
    info = json.loads(answer.info["info"])
    assert info["imageSpec"]["config"]["Env"] == ["A=b"]
    assert info["diffIDs"] == list(IMAGE.chain)


async def test_an_image_of_additional_stores_says_which(calls, images):
    lent = replace(IMAGE, id="sha256:" + "3" * 64, own=False, stores=("/a", "/b"))
    images.add(lent, "lent")
    answer = await status(calls, "lent", verbose=True)
    assert dict(answer.image.spec.annotations) == {"podwright.io/additional-stores": "/a, /b"}
    info = json.loads(answer.info["info"])
    assert (info["own"], info["additionalStores"]) == (False, ["/a", "/b"])
    assert not (await status(calls, "busybox")).image.HasField("spec")


async def test_list_with_and_without_a_filter(calls):
    async def ids(name=""):
        request = pb.ListImagesRequest(filter=pb.ImageFilter(image=pb.ImageSpec(image=name)))
        answer = pb.ListImagesResponse.FromString(await calls.list_images(request))
        return [image.id for image in answer.images]

    assert await ids() == [IMAGE.id]
    assert await ids("busybox") == [IMAGE.id]
    assert await ids("nope") == []
    everything = pb.ListImagesResponse.FromString(await calls.list_images(pb.ListImagesRequest()))
    assert len(everything.images) == 1


async def test_pull_answers_with_the_id_and_hands_over_the_credential(calls, images):
    request = pb.PullImageRequest(
        image=pb.ImageSpec(image="busybox"), auth=pb.AuthConfig(username="u", password="p")
    )
    assert (await calls.pull_image(request)).image_ref == IMAGE.id
    [(_, name, shown)] = images.calls
    assert (name, shown.username, shown.password) == ("busybox", "u", "p")


async def test_pull_says_for_which_namespace_it_is(calls, images):
    for namespace in ("", "shop"):
        metadata = pb.PodSandboxMetadata(namespace=namespace)
        request = pb.PullImageRequest(
            image=pb.ImageSpec(image="busybox"),
            sandbox_config=pb.PodSandboxConfig(metadata=metadata),
        )
        await calls.pull_image(request)
    await calls.pull_image(pb.PullImageRequest(image=pb.ImageSpec(image="busybox")))
    assert images.namespaces == ["", "shop", ""]


async def test_failures_of_a_pull_keep_their_class(calls, images):
    images.fail["pull"] = registry.ImageNotFound("no such image")
    with pytest.raises(registry.ImageNotFound):
        await calls.pull_image(pb.PullImageRequest(image=pb.ImageSpec(image="busybox")))


async def test_remove(calls, images):
    await calls.remove_image(pb.RemoveImageRequest(image=pb.ImageSpec(image="nope")))
    assert images.calls == [("remove", "nope")]


async def test_usage_of_both_file_systems(calls, images):
    async def usage():
        return FsInfo(
            image_filesystems=(FsUsage(Path("/i"), 10, 2, 99),),
            container_filesystems=(FsUsage(Path("/c"), 0, 0, 98),),
        )

    images.fs_info = usage
    answer = await calls.image_fs_info(pb.ImageFsInfoRequest())
    [one] = answer.image_filesystems
    assert (one.fs_id.mountpoint, one.used_bytes.value, one.inodes_used.value) == ("/i", 10, 2)
    assert one.timestamp == 99
    # A usage of 0 is a fact, not a field left out.
    assert answer.container_filesystems[0].HasField("used_bytes")


@pytest.mark.parametrize(
    ("user", "shown"),
    [
        ("", (None, "")),
        ("0", (0, "")),
        ("1002", (1002, "")),
        ("1002:grp", (1002, "")),
        ("www", (None, "www")),
        ("www:1", (None, "www")),
        ("2147483647", (2147483647, "")),
        ("2147483648", (None, "")),
        ("4294967296", (None, "")),
        ("9" * 5000, (None, "")),
        ("+0", (None, "+0")),
        ("1_0", (None, "1_0")),
        (chr(0x660), (None, chr(0x660))),
    ],
)
def test_user_of_an_image(user, shown):
    assert image_user(user) == shown


def test_credentials_never_come_back_in_an_error():
    with pytest.raises(InvalidArgument) as caught:
        credential(pb.AuthConfig(password="hunter2" * 20_000))
    assert "hunter2" not in str(caught.value)
    with pytest.raises(InvalidArgument) as caught:
        credential(pb.AuthConfig(auth="hunter2-not-base64!"))
    assert "hunter2" not in str(caught.value)


def test_no_credential_at_all():
    assert credential(pb.AuthConfig()) is None


async def test_streamed_images_are_the_listed_ones(calls):
    async def streamed(name=""):
        request = pb.StreamImagesRequest(
            filter=pb.ImageFilter(image=pb.ImageSpec(image=name)) if name else None
        )
        return b"".join([data async for data in calls.stream_images(request)])

    assert await streamed() == await calls.list_images(pb.ListImagesRequest())
    assert pb.StreamImagesResponse.FromString(await streamed("busybox")).images[0].id == IMAGE.id
    assert await streamed("unknown") == b""
