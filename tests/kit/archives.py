"""Archives of images made from values, as skopeo, Docker and containerd write them, and worse."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence

from tests.kit import oci
from tests.kit.tars import Tar


def layout(
    images: Sequence[tuple[oci.Image, Mapping[str, str] | None]],
    *,
    extra: Mapping[str, bytes] | None = None,
    leave_out: str = "",
) -> bytes:
    """An OCI image layout: each image with the annotations of its entry in the index."""
    members: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
    entries: list[dict[str, object]] = []
    for image, notes in images:
        media_type, body = image.manifests[image.top]
        entry: dict[str, object] = {
            "mediaType": media_type,
            "digest": image.top,
            "size": len(body),
        }
        if notes is not None:
            entry["annotations"] = dict(notes)
        entries.append(entry)
        for digest, (_, document) in image.manifests.items():
            members[blob(digest)] = document
        for digest, data in image.blobs.items():
            members[blob(digest)] = data
    members.pop(blob(leave_out), None)
    members.update(extra or {})
    # The index comes last, as a writer that does not know its images beforehand has it.
    members["index.json"] = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    return packed(members)


def docker(
    images: Sequence[tuple[oci.Image, Sequence[str]]],
    *,
    compressed: bool = False,
    extra: Mapping[str, bytes] | None = None,
) -> bytes:
    """What `docker save` writes: a directory for each layer, links for those that come again."""
    tar = Tar()
    saved: list[dict[str, object]] = []
    seen: dict[str, str] = {}
    for number, (image, tags) in enumerate(images):
        manifest = json.loads(image.manifests[image.top][1])
        config = manifest["config"]["digest"]
        names: list[str] = []
        for place, each in enumerate(manifest["layers"]):
            data = image.blobs[each["digest"]]
            name = f"{number}-{place}/layer.tar"
            tar.directory(f"{number}-{place}/")
            if each["digest"] in seen:
                tar.symlink(name, f"../{seen[each['digest']]}")
            else:
                tar.file(name, data if compressed else gzip.decompress(data))
                seen[each["digest"]] = name
            names.append(name)
        document = f"{config.partition(':')[2]}.json"
        tar.file(document, image.blobs[config])
        saved.append({"Config": document, "RepoTags": list(tags) or None, "Layers": names})
    for name, data in (extra or {}).items():
        tar.file(name, data)
    tar.file("manifest.json", json.dumps(saved).encode())
    tar.file("repositories", b"{}")
    return tar.done()


def packed(members: Mapping[str, bytes]) -> bytes:
    """Plain files in the order given."""
    tar = Tar()
    for name, data in members.items():
        tar.file(name, data)
    return tar.done()


def blob(digest: str) -> str:
    """Where a layout has a blob."""
    return f"blobs/{digest.replace(':', '/')}"
