"""Mounts: what is refused, what replaces what, and the order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import oci
from sandbox.host.errors import FailedPrecondition, InvalidArgument, PodwrightError, Unsupported
from sandbox.model import CriMount, IdMapping, ImageDefaults, ImageSpec, MountPropagation
from sandbox.spec.inputs import PodFiles, ResolvedMount
from sandbox.spec.mounts import (
    check_mount,
    container_mounts,
    default_mounts,
    image_volume_paths,
)
from sandbox.spec.paths import depth

FILES = PodFiles(shm=Path("/p/shm"), resolv_conf=Path("/p/r"), hostname=Path("/p/h"))


def bind(path: str, **fields: object) -> CriMount:
    return CriMount(container_path=path, **{"host_path": "/h", **fields})  # type: ignore[arg-type]


def resolved(*mounts: CriMount, **fields: object) -> list[ResolvedMount]:
    return [
        ResolvedMount(mount=item, source=Path(item.host_path or "/img"), **fields)  # type: ignore[arg-type]
        for item in mounts
    ]


def build(
    *mounts: ResolvedMount, files: PodFiles = FILES, volumes: dict[str, Path] | None = None
) -> tuple[tuple[oci.Mount, ...], str]:
    return container_mounts(
        privileged=False,
        readonly_rootfs=False,
        files=files,
        volumes=volumes or {},
        mounts=mounts,
        recursive_read_only=True,
    )


def places(mounts: tuple[oci.Mount, ...]) -> list[str]:
    return [mount.destination for mount in mounts]


@pytest.mark.parametrize(
    "mount",
    [
        bind(""),
        bind("relative"),
        bind("/"),
        bind("/x/.."),
        bind("/a\0"),
        bind("/" + "a" * 70_000),
        bind("/a", host_path="relative"),
        bind("/a", host_path="/" + "h" * 70_000),
        bind("/a", host_path=""),
        bind("/a", image=ImageSpec(image="i")),
        bind("/a", mount_options=("bind",)),
        bind("/a", mount_options=("remount",)),
        bind("/a", mount_options=("rw",)),
        bind("/a", mount_options=("lowerdir=/",)),
        bind("/a", mount_options=("",)),
        bind("/a", mount_options=("noexec", "exec")),
        bind("/a", mount_options=("noatime", "relatime")),
        CriMount(
            container_path="/a",
            image=ImageSpec(image="i"),
            propagation=MountPropagation.BIDIRECTIONAL,
        ),
    ],
)
def test_refused(mount: CriMount) -> None:
    with pytest.raises(InvalidArgument):
        check_mount(mount, recursive_read_only=True)
    with pytest.raises(InvalidArgument):
        build(*resolved(mount))


def test_ids_are_mapped_only_in_a_user_namespace() -> None:
    mapping = (IdMapping(host_id=0, container_id=0, length=1),)
    for mount in (bind("/a", uid_mappings=mapping), bind("/a", gid_mappings=mapping)):
        with pytest.raises(Unsupported):
            check_mount(mount, recursive_read_only=True)


@pytest.mark.parametrize(
    ("mount", "possible", "error"),
    [
        (bind("/a", recursive_read_only=True), True, InvalidArgument),
        (
            bind(
                "/a",
                recursive_read_only=True,
                readonly=True,
                propagation=MountPropagation.HOST_TO_CONTAINER,
            ),
            True,
            InvalidArgument,
        ),
        (bind("/a", recursive_read_only=True, readonly=True), False, Unsupported),
    ],
)
def test_recursive_read_only_rules(
    mount: CriMount, possible: bool, error: type[PodwrightError]
) -> None:
    with pytest.raises(error, match="RROUnsupported"):
        check_mount(mount, recursive_read_only=possible)


def test_options() -> None:
    mounts, _ = build(
        *resolved(
            bind("/ro", readonly=True), bind("/rro", readonly=True, recursive_read_only=True)
        ),
        *resolved(bind("/rw", mount_options=("noexec", "nodev", "noatime"))),
        *resolved(CriMount(container_path="/image", image=ImageSpec(image="i"))),
    )
    options = {mount.destination: mount.options for mount in mounts}
    assert options["/ro"] == ("rbind", "rprivate", "ro")
    assert options["/rro"] == ("rbind", "rprivate", "rro")
    assert options["/rw"] == ("rbind", "rprivate", "noexec", "nodev", "noatime")
    assert options["/image"] == ("rbind", "rprivate", "ro")


def test_flags_of_the_source_survive_unless_the_client_says_otherwise() -> None:
    flags = frozenset({"nosuid", "nodev", "noexec"})
    mounts, _ = build(
        *resolved(bind("/a", readonly=True), source_flags=flags),
        *resolved(bind("/b", mount_options=("exec",)), source_flags=flags),
    )
    options = {mount.destination: mount.options for mount in mounts}
    assert options["/a"] == ("rbind", "rprivate", "ro", "noexec", "nodev", "nosuid")
    assert options["/b"] == ("rbind", "rprivate", "exec", "nodev", "nosuid")


@pytest.mark.parametrize(
    ("asked", "have", "root"),
    [
        (MountPropagation.PRIVATE, "private", ""),
        (MountPropagation.PRIVATE, "shared", ""),
        (MountPropagation.HOST_TO_CONTAINER, "private", None),
        (MountPropagation.HOST_TO_CONTAINER, "slave", "rslave"),
        (MountPropagation.HOST_TO_CONTAINER, "shared", "rslave"),
        (MountPropagation.BIDIRECTIONAL, "private", None),
        (MountPropagation.BIDIRECTIONAL, "slave", None),
        (MountPropagation.BIDIRECTIONAL, "shared", "rshared"),
    ],
)
def test_propagation(asked: MountPropagation, have: str, root: str | None) -> None:
    mounts = resolved(bind("/a", propagation=asked), source_propagation=have)
    if root is None:
        with pytest.raises(FailedPrecondition, match="/h"):
            build(*mounts)
    else:
        assert build(*mounts)[1] == root


def test_the_strongest_propagation_makes_the_roots() -> None:
    both = resolved(
        bind("/a", propagation=MountPropagation.HOST_TO_CONTAINER),
        bind("/b", propagation=MountPropagation.BIDIRECTIONAL),
        source_propagation="shared",
    )
    assert build(*both)[1] == build(*reversed(both))[1] == "rshared"


def test_defaults_in_order() -> None:
    mounts, root = build()
    assert root == ""
    assert places(mounts) == [
        *("/proc", "/dev", "/dev/pts", "/dev/mqueue", "/sys", "/sys/fs/cgroup"),
        *("/etc/hostname", "/etc/resolv.conf", "/dev/shm"),
    ]


def test_kernel_file_systems_are_read_only_unless_privileged() -> None:
    for privileged, word in ((False, "ro"), (True, "rw")):
        options = {item.destination: item.options for item in default_mounts(privileged=privileged)}
        assert word in options["/sys"]
        assert word in options["/sys/fs/cgroup"]


def test_client_replaces_defaults_at_and_below_its_place() -> None:
    mounts, _ = build(*resolved(bind("/dev/"), bind("/sys"), bind("/etc/resolv.conf")))
    assert places(mounts) == [
        "/proc",
        "/dev",
        "/sys",
        "/etc/hostname",
        "/dev/shm",
        "/etc/resolv.conf",
    ]
    assert all(mount.type == "bind" for mount in mounts if mount.destination != "/proc")


def test_pod_files_stay_above_a_directory_of_the_client() -> None:
    mounts, _ = build(*resolved(bind("/etc")))
    assert places(mounts)[-4:] == ["/etc", "/etc/hostname", "/etc/resolv.conf", "/dev/shm"]


def test_last_of_two_at_one_place_wins() -> None:
    mounts, _ = build(
        *resolved(bind("/a", host_path="/first"), bind("/b"), bind("/a/.", host_path="/second"))
    )
    (mount,) = [mount for mount in mounts if mount.destination == "/a"]
    assert mount.source == "/second"
    assert places(mounts)[-2:] == ["/b", "/a"] or places(mounts).index("/b") < places(mounts).index(
        "/a"
    )


def test_read_only_root_makes_the_pods_files_read_only() -> None:
    mounts, _ = container_mounts(
        privileged=False,
        readonly_rootfs=True,
        files=FILES,
        volumes={},
        mounts=(),
        recursive_read_only=False,
    )
    options = {mount.destination: mount.options for mount in mounts}
    assert "ro" in options["/etc/hostname"]
    assert "ro" not in options["/dev/shm"]


@pytest.mark.parametrize("readonly", [True, False])
def test_read_only_files_keep_the_flags_of_their_mount(readonly: bool) -> None:
    """The kernel lets nobody drop them in a user namespace; without "ro" nothing is remounted."""
    mounts, _ = container_mounts(
        privileged=False,
        readonly_rootfs=readonly,
        files=replace(FILES, hosts=Path("/p/hosts"), flags=frozenset({"nosuid", "nodev"})),
        volumes={},
        mounts=(),
        recursive_read_only=False,
    )
    expected = ("rbind", "rprivate", *(("ro", "nodev", "nosuid") if readonly else ()))
    for place in ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf"):
        assert [m.options for m in mounts if m.destination == place] == [expected]


def test_too_many_mounts() -> None:
    with pytest.raises(InvalidArgument, match="10000"):
        build(*resolved(*(bind(f"/m/{number}") for number in range(10_001))))


@given(st.lists(st.text(alphabet="ab/.", min_size=1, max_size=8), max_size=8))
def test_parents_come_before_children(texts: list[str]) -> None:
    asked = [bind("/m/" + text) for text in texts]
    try:
        mounts, _ = build(*resolved(*asked))
    except InvalidArgument:
        return
    later = [mount for mount in mounts if mount.type == "bind"]
    assert [depth(path) for path in places(tuple(later))] == sorted(
        depth(mount.destination) for mount in later
    )
    assert len(set(places(mounts))) == len(mounts)


def test_image_volumes() -> None:
    image = ImageDefaults(
        volumes=("/data/", "/b", "/data", "/sys/fs/cgroup", "/proc/1/root", "/dev/x")
    )
    assert image_volume_paths(image, [bind("/b/")]) == ("/data",)
    mounts, _ = build(volumes={"/data": Path("/v/0")})
    assert (
        oci.Mount(destination="/data", type="bind", source="/v/0", options=("rbind", "rprivate"))
        in mounts
    )


@pytest.mark.parametrize("volume", ["/", "", "data", "/../../etc", "/a/../b", "/./", "/a\0", "~"])
def test_unusable_image_volumes(volume: str) -> None:
    """CVE-2022-23648."""
    with pytest.raises(InvalidArgument):
        image_volume_paths(ImageDefaults(volumes=(volume,)), ())
