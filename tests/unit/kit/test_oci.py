"""Images of the kit: the same every time, and what they say of themselves is true."""

from __future__ import annotations

import gzip
import io
import json
import tarfile

from tests.kit.oci import (
    ARCHITECTURE,
    DOCKER,
    FOREIGN_ARCHITECTURE,
    Entry,
    ImageConfig,
    make_image,
    make_layer,
    sha256,
)

ENTRIES = (
    Entry("bin"),
    Entry("bin/a", mode=0o4755, content=b"program"),
    Entry("bin/b", hardlink="bin/a"),
    Entry("bin/c", symlink="a"),
)


def test_a_layer_is_the_same_bytes_every_time() -> None:
    assert make_layer(ENTRIES) == make_layer(ENTRIES)


def test_a_layer_keeps_modes_and_kinds_and_tells_its_diff_id() -> None:
    layer = make_layer(ENTRIES)
    plain = gzip.decompress(layer.blob)
    assert sha256(plain) == layer.diff_id
    with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
        members = {member.name: member for member in tar}
    assert members["bin"].isdir()
    assert members["bin/a"].mode == 0o4755
    assert members["bin/b"].islnk()
    assert members["bin/c"].issym()


def test_descriptors_match_the_bytes_they_describe() -> None:
    image = make_image([make_layer(ENTRIES)], ImageConfig(command=["a"]), flavor=DOCKER)
    (media_type, body), *others = image.manifests.values()
    manifest = json.loads(body)
    assert others == []
    assert media_type == manifest["mediaType"] == DOCKER.manifest
    for descriptor in (manifest["config"], *manifest["layers"]):
        blob = image.blobs[descriptor["digest"]]
        assert len(blob) == descriptor["size"]
        assert sha256(blob) == descriptor["digest"]


def test_an_index_offers_a_foreign_platform_first() -> None:
    image = make_image([make_layer(ENTRIES)], ImageConfig(), with_index=True)
    _, body = image.manifests[image.top]
    entries = json.loads(body)["manifests"]
    offered = [entry["platform"]["architecture"] for entry in entries]
    assert offered == [FOREIGN_ARCHITECTURE, ARCHITECTURE]
    assert all(entry["digest"] in image.manifests for entry in entries)
