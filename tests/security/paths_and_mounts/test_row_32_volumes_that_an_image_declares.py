"""VOLUME paths of an image that lead out of it.

Row 32, CVE-2022-23648: the path of a volume that an image declares was joined to the root file
system as text, and what was found there, on the host, was copied into the volume.

Tried: climbing, relative and empty paths and the root are refused; paths through links of the image
are followed inside the image alone. A file of the host is never seen, changed or made.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import grpc
import pytest

from tests.kit.catalog import base_layer
from tests.kit.node import Node
from tests.kit.oci import Entry, ImageConfig, make_image, make_layer
from tests.kit.registry import Pusher
from tests.security.canary import Canary
from tests.security.conftest import HOST, Hostile, code_of

SLEEP = ["sleep", "1000"]


def pulled(hostile: Hostile, node: Node, name: str, volume: str, *entries: Entry) -> str:
    layers = [base_layer(own_shell=False), *([make_layer(entries)] if entries else [])]
    image = make_image(layers, ImageConfig(command=["sh"], volumes=(volume,)))
    with contextlib.closing(Pusher(hostile.port)) as pusher:
        pusher.push(image, f"volume-{name}:1")
    reference = f"{HOST}/volume-{name}:1"
    node.pull(reference)
    return reference


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("climbing", "/../../../../../../../../etc"),
        ("climbing-later", "/data/../../../../etc"),
        ("relative", "data"),
        ("root", "/"),
        ("dots", "/."),
        ("doubled", "//"),
    ],
)
def test_paths_that_no_volume_can_have_are_refused(
    hostile: Hostile, node: Node, name: str, path: str
) -> None:
    canary = Canary.placed(node.work / f"volume-{name}")
    image = pulled(hostile, node, name, path)
    pod = node.run_pod()
    with pytest.raises(grpc.RpcError) as refused:
        node.create(pod, "main", SLEEP, image=image)
    assert code_of(refused) is grpc.StatusCode.INVALID_ARGUMENT
    assert node.containers() == []
    canary.assert_untouched()


@pytest.mark.parametrize("target", ["absolute", "climbing", "proc"])
def test_links_on_the_way_stay_in_the_image(
    hostile: Hostile, node: Node, handler: str, target: str
) -> None:
    place = node.work / f"links-{target}-{handler}"
    canary = Canary.placed(place)
    before = set(Path(place).iterdir())
    links = {
        "absolute": str(place),
        "climbing": "../" * 12 + str(place).lstrip("/"),
        "proc": f"/proc/1/root{place}",
    }
    image = pulled(
        hostile,
        node,
        f"links-{target}-{handler}",
        "/link/inside",
        Entry("link", symlink=links[target]),
        Entry(str(place).lstrip("/") if target != "proc" else f"proc/1/root{place}"),
    )
    pod = node.run_pod(handler=handler)
    if target == "proc":
        # The directory is in the image's own /proc, which the container's covers.
        with pytest.raises(grpc.RpcError):
            node.create(pod, "main", SLEEP, image=image)
        assert node.containers() == []
        assert set(Path(place).iterdir()) == before
        canary.assert_untouched()
        return
    container = node.run(pod, "main", SLEEP, image=image)
    # What is written there is the container's alone.
    assert node.exec(container, "sh", "-c", f"ls {place}; touch /link/inside/x")[0] in (0, 1)
    assert set(Path(place).iterdir()) == before
    canary.assert_untouched()
