"""Image volumes: what is in them, what may be done with them, and what keeps them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.calls import until
from tests.kit.faults import PATIENCE_S
from tests.kit.messages import BUSYBOX, namespaces, user_namespace
from tests.kit.node import Node
from tests.kit.oci import OCI, Entry, Image, ImageConfig, make_image, make_layer
from tests.kit.registry import Pusher, running_registry, write_hosts

HOST = "volumes.localhost"
DATA, SCRATCH, HOSTILE, SPARE = (f"{HOST}/{name}:1" for name in ("data", "no-files", "links", "x"))
SLEEP = ("sleep", "1000")
#: In no image of the node; `/etc/hostname` of the host is what hostile images are after.
SECRET = Path("/etc/hostname")


def _data(mark: bytes) -> Image:
    """Two layers; the upper one does not describe the directory that it puts a file into."""
    program = Path(shutil.which("busybox") or "busybox").read_bytes()
    lower = [
        Entry("conf", mode=0o700, uid=1000, gid=1001),
        Entry("conf/a", mode=0o644, content=mark),
        Entry("deep"),
        Entry("deep/er"),
        Entry("deep/er/file", mode=0o644, content=b"deep\n"),
        Entry("inside", symlink="/deep/er"),
        Entry("file", mode=0o644, content=b"file\n"),
        Entry("busybox", mode=0o755, content=program),
    ]
    upper = [Entry("conf/b", mode=0o644, content=b"upper\n"), Entry("deep/.wh.er2", content=b"")]
    return make_image([make_layer(lower), make_layer(upper)], ImageConfig(), flavor=OCI)


def _hostile() -> Image:
    links = {
        "absolute": "/etc",
        "climbing": "../../../../../../../../../../etc",
        "to-proc": "/proc/1/root/etc",
        "loop": "loop",
        "nowhere": "/not/there",
        "first": "second",
        "second": "/climbing",
        "to-file": "/etc/passwd",
    }
    entries = [Entry("etc"), Entry("etc/passwd", mode=0o644, content=b"of the image\n")]
    entries += [Entry(name, symlink=target) for name, target in links.items()]
    return make_image([make_layer(entries)], ImageConfig(), flavor=OCI)


@pytest.fixture(scope="module")
def certs_d(certs_d: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The registry of the kit, and one of this module."""
    work = tmp_path_factory.mktemp("volumes")
    both = work / "certs.d"
    shutil.copytree(certs_d, both)
    with running_registry(work / "storage", work) as port:
        write_hosts(both, port, [HOST])
        pusher = Pusher(port)
        pusher.push(_data(b"first\n"), "data:1")
        pusher.push(_data(b"spare\n"), "x:1")
        pusher.push(make_image([], ImageConfig(), flavor=OCI), "no-files:1")
        pusher.push(_hostile(), "links:1")
        pusher.close()
        yield both


IMAGES = (BUSYBOX, DATA, SCRATCH, HOSTILE)


def volume(place: str, image: str, sub_path: str = "", **fields: object) -> api.Mount:
    """As the kubelet asks for one."""
    return api.Mount(
        container_path=place,
        image=api.ImageSpec(image=image),
        image_sub_path=sub_path,
        **{"readonly": True, **fields},  # type: ignore[arg-type]
    )


def refused(node: Node, pod: str, *mounts: api.Mount) -> grpc.RpcError:
    """The error of a creation; it must have left nothing."""
    before = len(node.containers())
    with pytest.raises(grpc.RpcError) as caught:
        node.create(pod, "refused", SLEEP, mounts=mounts)
    assert len(node.containers()) == before
    return caught.value


def mounts_of(node: Node, container: str) -> list[str]:
    """Mount points of image volumes of a container, on the host."""
    place = f"{node.run_root}/containers/{container}/image-volumes/"
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return sorted(line.split()[4] for line in lines if place in line)


def sh(node: Node, container: str, script: str) -> str:
    """Output of a script that must succeed."""
    code, out, err = node.exec(container, "sh", "-c", script)
    assert code == 0, (script, out, err)
    return out


def test_content_and_what_may_be_done_with_it(node: Node, handler: str) -> None:
    pod = node.run_pod("volumes", handler=handler)
    container = node.run(
        pod,
        "main",
        SLEEP,
        mounts=[
            volume("/whole", DATA),
            volume("/part", DATA, "deep/er"),
            volume("/linked", DATA, "inside"),
            volume("/own", BUSYBOX, "bin"),
            volume("/empty", SCRATCH),
            volume("/unset", DATA, readonly=False),
            volume("/strict", DATA, mount_options=["noexec"], recursive_read_only=True),
        ],
    )
    assert sh(node, container, "cat /whole/conf/a /whole/conf/b") == "first\nupper\n"
    assert sh(node, container, "ls /part /linked") == "/linked:\nfile\n\n/part:\nfile\n"
    assert sh(node, container, "ls -A /empty") == ""
    # The directory looks as the layer describes it that does.
    assert sh(node, container, "stat -c '%a %u %g' /whole/conf") == "700 1000 1001\n"
    assert sh(node, container, "/whole/busybox echo runs; /own/busybox echo too") == "runs\ntoo\n"
    assert node.exec(container, "sh", "-c", "/strict/busybox echo")[0] == 126
    for place in ("whole", "part", "linked", "own", "empty", "unset", "strict"):
        code, _, err = node.exec(container, "sh", "-c", f"echo x > /{place}/new")
        assert code != 0
        assert "Read-only" in err
        [line] = sh(node, container, f"grep ' /{place} ' /proc/self/mountinfo").splitlines()
        assert {"ro", "nodev"} <= set(line.split()[5].split(",")), line
    # One mount for each image, however often it is asked for.
    assert len(mounts_of(node, container)) == 3


def test_status_says_which_image_it_is(node: Node) -> None:
    image = node.pull(DATA)
    request = api.ImageStatusRequest(image=api.ImageSpec(image=DATA))
    [digest] = node.images.ImageStatus(request, timeout=PATIENCE_S).image.repo_digests
    pod = node.run_pod("told")
    plain = api.Mount(container_path="/plain", host_path="/usr", readonly=True)
    asked = [plain, volume("/by-tag", DATA, readonly=False), volume("/by-id", image, "conf")]
    container = node.run(pod, "main", SLEEP, mounts=asked)
    for told in (node.status(container).mounts, _after_restart(node, container).mounts):
        by_place = {mount.container_path: mount for mount in told}
        assert by_place["/plain"] == plain
        for place, mount in by_place.items():
            if place != "/plain":
                assert (mount.image.image, mount.image.image_ref) == (image, digest)
                assert mount.readonly
                assert not mount.host_path
        assert by_place["/by-tag"].image.user_specified_image == DATA
        assert by_place["/by-id"].image_sub_path == "conf"


def _after_restart(node: Node, container: str) -> api.ContainerStatus:
    node.restart()
    return node.status(container)


def test_removed_image_stays_in_the_containers_that_have_it(node: Node, handler: str) -> None:
    """The layers go with the last container, and no sooner; names and documents go at once."""
    image = node.pull(SPARE)
    layers = set((node.state_root / "images/layers").iterdir())
    pod = node.run_pod("kept", handler=handler)
    mounts = [volume("/v", SPARE)]
    first = node.run(pod, "first", SLEEP, mounts=mounts)
    second = node.create(pod, "second", SLEEP, mounts=mounts)
    node.remove_image(SPARE)
    assert not node.image_id(SPARE)
    assert not node.image_id(image)
    assert set((node.state_root / "images/layers").iterdir()) == layers
    error = refused(node, pod, *mounts)
    assert error.code() is grpc.StatusCode.NOT_FOUND
    node.start(second)
    for container in (first, second):
        assert sh(node, container, "cat /v/conf/a") == "spare\n"
    node.restart()
    node.remove_container(first)
    assert sh(node, second, "cat /v/conf/a; /v/busybox echo runs") == "spare\nruns\n"
    assert set((node.state_root / "images/layers").iterdir()) == layers
    node.remove_container(second)
    # The upper layer is DATA's too.
    assert len(set((node.state_root / "images/layers").iterdir())) == len(layers) - 1


def test_pulled_again_while_the_old_layers_are_held(node: Node) -> None:
    node.pull(SPARE)
    pod = node.run_pod("again")
    container = node.run(pod, "main", SLEEP, mounts=[volume("/v", SPARE)])
    node.remove_image(SPARE)
    node.pull(SPARE)
    other = node.run(pod, "other", SLEEP, mounts=[volume("/v", SPARE)])
    node.remove_container(container)
    assert sh(node, other, "cat /v/conf/a") == "spare\n"
    node.remove_image(SPARE)


@pytest.mark.parametrize(
    ("sub_path", "content"),
    [
        ("absolute", "passwd\n"),
        ("climbing", "passwd\n"),
        ("first", "passwd\n"),
        ("etc/", "passwd\n"),
        ("./etc/.", "passwd\n"),
    ],
)
def test_links_of_the_image_stay_in_the_image(
    node: Node, handler: str, sub_path: str, content: str
) -> None:
    assert SECRET.exists()
    pod = node.run_pod("links", handler=handler)
    container = node.run(pod, "main", SLEEP, mounts=[volume("/v", HOSTILE, sub_path)])
    assert sh(node, container, "ls /v") == content
    assert sh(node, container, "cat /v/passwd") == "of the image\n"


@pytest.mark.parametrize(
    ("sub_path", "code"),
    [
        ("missing", grpc.StatusCode.NOT_FOUND),
        ("etc/missing", grpc.StatusCode.NOT_FOUND),
        ("nowhere", grpc.StatusCode.NOT_FOUND),
        ("to-proc", grpc.StatusCode.NOT_FOUND),
        ("loop", grpc.StatusCode.INVALID_ARGUMENT),
        ("to-file", grpc.StatusCode.INVALID_ARGUMENT),
        ("etc/passwd", grpc.StatusCode.INVALID_ARGUMENT),
        ("etc/passwd/x", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_sub_path_that_is_no_directory_of_the_image(
    node: Node, sub_path: str, code: grpc.StatusCode
) -> None:
    pod = node.run_pod("no-directory")
    error = refused(node, pod, volume("/fine", DATA), volume("/v", HOSTILE, sub_path))
    assert error.code() is code
    text = error.details() or ""
    assert text.startswith("ImageVolumeMountFailed: ")
    assert HOSTILE in text
    assert sub_path in text


@pytest.mark.parametrize("sub_path", ["..", "etc/../..", "/etc", "a" * 70_000, "a\0b", "a\nb"])
def test_sub_path_that_is_refused_by_its_text(node: Node, sub_path: str) -> None:
    pod = node.run_pod("text")
    error = refused(node, pod, volume("/v", HOSTILE, sub_path))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_image_that_is_not_here(node: Node) -> None:
    pod = node.run_pod("missing")
    error = refused(node, pod, volume("/v", f"{HOST}/nobody/has:this"))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert (error.details() or "").startswith("ImageVolumeMountFailed: ")
    error = refused(node, pod, volume("/v", DATA, propagation=api.PROPAGATION_BIDIRECTIONAL))
    assert (error.details() or "").startswith("ImageVolumeMountFailed: ")


def test_restart_neither_loses_nor_repeats_a_mount(node: Node, handler: str) -> None:
    pod = node.run_pod("restart", handler=handler)
    mounts = [volume("/v", DATA), volume("/w", HOSTILE, "etc"), volume("/x", DATA, "conf")]
    running = node.run(pod, "running", SLEEP, mounts=mounts)
    created = node.create(pod, "created", SLEEP, mounts=mounts)
    before = {each: mounts_of(node, each) for each in (running, created)}
    assert [len(places) for places in before.values()] == [2, 2]
    for _ in range(2):
        node.restart()
        assert {each: mounts_of(node, each) for each in (running, created)} == before
    node.start(created)
    for container in (running, created):
        assert sh(node, container, "cat /v/conf/b /w/passwd /x/a") == (
            "upper\nof the image\nfirst\n"
        )
    node.stop_container(running)
    node.kill()
    node.start_daemon()
    assert sh(node, created, "cat /v/conf/b") == "upper\n"


def test_mounts_go_when_the_container_ends(node: Node) -> None:
    """What is dead needs no files; the layers are kept for its record, as the image's own are."""
    pod = node.run_pod("ended")
    container = node.run(pod, "main", ["true"], mounts=[volume("/v", DATA)])
    node.wait_exited(container)
    node.stop_pod(pod)
    until(lambda: not mounts_of(node, container), "its mounts are gone")


def test_failed_creation_leaves_no_mount(node: Node) -> None:
    """The runtime fails after the volumes were mounted."""
    pod = node.run_pod("fails")
    node.faults.order("crun", "create", "fail-before")
    refused(node, pod, volume("/v", DATA), volume("/w", SCRATCH))
    places = Path("/proc/self/mountinfo").read_text()
    assert f"{node.run_root}/containers" not in places


@pytest.mark.parametrize("mapped", [False, True], ids=["plain request", "mapped request"])
def test_owners_in_a_user_namespace_are_the_ids_inside(
    node: Node, handler: str, mapped: bool
) -> None:
    """Mapped as the root file system is, whether or not the mount repeats the pod's mapping."""
    spaces = namespaces(user=user_namespace(200_000))
    pod = node.run_pod("mapped", handler=handler, spaces=spaces)
    mount = volume("/v", DATA)
    if mapped:
        mount.uidMappings.extend(spaces.userns_options.uids)
        mount.gidMappings.extend(spaces.userns_options.gids)
    container = node.run(
        pod, "main", SLEEP, spaces=spaces, mounts=[mount, volume("/part", DATA, "inside")]
    )
    assert sh(node, container, "stat -c '%u %g' /v/conf /v/file") == "1000 1001\n0 0\n"
    assert sh(node, container, "cat /v/conf/a /part/file") == "first\ndeep\n"
    assert node.exec(container, "sh", "-c", "echo x > /v/new")[0] != 0
