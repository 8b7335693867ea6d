"""Row 6: whiteouts, when no layer is there yet that they could hide something of.

Layers are unpacked in parallel, each alone, so what hides is only right if the mounted whole is.
Tried: an opaque directory and whiteouts in a small last layer that is done long before the large
ones below it, by several workers. (Malformed and escaping whiteouts: tests/unit/imageservice/
test_entries.py and tests/host/test_images_unpack.py.)
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.fakes.registry import FakeRegistry
from tests.host.image_node import image_node, rootfs
from tests.kit.tars import Tar

pytestmark = pytest.mark.root


async def test_later_layers_hide_what_lies_below_whichever_is_ready_first(tmp_path: Path) -> None:
    lowest, middle = Tar(), Tar().directory("kept")
    for number in range(1500):
        lowest.file(f"gone/{number}", b"low").file(f"kept/{number}", b"low")
        middle.file(f"gone/m{number}", b"middle")
    lowest.file("file", b"low").symlink("link", "file").file("dir/x", b"low")
    middle.file("kept/.wh.7", b"").file(".wh.dir", b"").file("dir2/x")
    top = (
        Tar()
        .file("gone/.wh..wh..opq", b"")
        .file("gone/new", b"top")
        .file(".wh.file", b"")
        .file(".wh.link", b"")
        .file(".wh.no-such", b"")
        .file("dir/y", b"top")
    )
    layers = [part.done() for part in (lowest, middle, top)]
    async with FakeRegistry() as registry, image_node(tmp_path, unpack_workers=3) as service:
        registry.add_image("app", "1", layers=layers)
        image = await service.pull(registry.reference("app:1"), None)
        async with rootfs(service, image, tmp_path) as root:
            seen = await asyncio.to_thread(
                lambda: sorted(str(p.relative_to(root)) for p in root.rglob("*"))
            )
            assert [name for name in seen if name.startswith("gone/")] == ["gone/new"]
            assert "kept/7" not in seen
            assert len([name for name in seen if name.startswith("kept/")]) == 1499
            assert not {"file", "link", "no-such", "dir/x"} & set(seen)
            assert (root / "dir/y").read_bytes() == b"top"
            assert not [name for name in seen if ".wh." in name]
