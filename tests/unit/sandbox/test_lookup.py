"""Sources of mounts, looked up: host paths once, sub paths of images inside the image."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sandbox.host.errors import InvalidArgument, NotFound, PodwrightError
from sandbox.lookup import resolve_mounts
from sandbox.model import CriMount, ImageSpec, MountPropagation


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """What stands for a mounted image, and beside it what must not be reached."""
    root = tmp_path / "image"
    (root / "dir/below").mkdir(parents=True)
    (root / "file").write_text("")
    (tmp_path / "outside").mkdir()
    links = {
        "absolute": "/dir",
        "climbing": "../../../../dir/below",
        "escape": "../outside",
        "host": str(tmp_path / "outside"),
        "loop": "loop",
        "to-file": "/file",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    return root


def volume(sub_path: str = "", **fields: object) -> CriMount:
    return CriMount(
        container_path="/v",
        image=ImageSpec(image="app:1"),
        image_sub_path=sub_path,
        **fields,  # type: ignore[arg-type]
    )


def source(image: Path, sub_path: str) -> Path:
    [found] = resolve_mounts([volume(sub_path)], {0: image}, recursive_read_only=True)
    return found.source


@pytest.mark.parametrize(
    ("sub_path", "found"),
    [
        ("", "."),
        ("dir", "dir"),
        ("dir/", "dir"),
        ("./dir/./below", "dir/below"),
        ("absolute", "dir"),
        ("absolute/below", "dir/below"),
        ("climbing", "dir/below"),
    ],
)
def test_sub_path_is_a_real_path_inside_the_image(image: Path, sub_path: str, found: str) -> None:
    assert source(image, sub_path) == image / found


@pytest.mark.parametrize(
    ("sub_path", "kind"),
    [
        ("missing", NotFound),
        ("escape", NotFound),
        ("host", NotFound),
        ("loop", InvalidArgument),
        ("file", InvalidArgument),
        ("to-file", InvalidArgument),
        ("file/x", InvalidArgument),
    ],
)
def test_no_sub_path_leads_out(image: Path, sub_path: str, kind: type[PodwrightError]) -> None:
    with pytest.raises(kind) as caught:
        source(image, sub_path)
    text = str(caught.value)
    assert text.startswith("ImageVolumeMountFailed: ")
    assert {"image=app:1", "container_path=/v", f"sub_path={sub_path}"} <= set(
        re.split(r"[(), ]+", text)
    )


def test_each_volume_has_the_image_of_its_place(tmp_path: Path, image: Path) -> None:
    host = CriMount(container_path="/h", host_path=str(tmp_path))
    found = resolve_mounts(
        [volume("dir"), host, volume()], {0: image, 2: tmp_path}, recursive_read_only=True
    )
    assert [item.source for item in found] == [image / "dir", tmp_path, tmp_path]


def test_links_of_host_paths_are_followed_once(tmp_path: Path) -> None:
    """The runtime gets the real path: a link that is changed later changes nothing."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "parent").symlink_to(tmp_path)
    for path in (tmp_path / "link", tmp_path / "parent/link"):
        mount = CriMount(container_path="/h", host_path=str(path))
        [found] = resolve_mounts([mount], {}, recursive_read_only=True)
        assert found.source == tmp_path / "real"
        assert found.mount.host_path == str(path)


def test_missing_host_path_becomes_a_directory(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("made")
    mount = CriMount(container_path="/h", host_path=str(tmp_path / "dangling/below"))
    [found] = resolve_mounts([mount], {}, recursive_read_only=True)
    assert found.source == tmp_path / "made/below"
    assert found.source.is_dir()


def test_nothing_is_made_when_one_of_the_mounts_is_refused(tmp_path: Path) -> None:
    good = CriMount(container_path="/a", host_path=str(tmp_path / "new"))
    bad = volume(propagation=MountPropagation.BIDIRECTIONAL)
    with pytest.raises(InvalidArgument, match="ImageVolumeMountFailed"):
        resolve_mounts([good, bad], {1: tmp_path}, recursive_read_only=True)
    assert not (tmp_path / "new").exists()
