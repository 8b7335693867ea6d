"""Which images an archive has: the OCI image layout, and what `docker save` writes.

Both are read by their documents: `index.json` and then digests (image-spec, image-layout.md), or
`manifest.json` and then names. Docker writes both since version 25; the layout is taken then,
because its manifests have digests that registries know. An archive of Docker's old form (before
1.10, `repositories` alone) is refused.

An image has the names that its archive gives it. Of the layout's two customs containerd's
annotation is a whole name; the specification's own `ref.name` is whatever its writer liked: skopeo
writes a whole name or a bare tag, umoci a tag. What has no `/` and no `:` is taken for a tag and
names nothing, for `1.36` is no image.

A docker archive has no manifest. One is made for it, always the same for the same archive, but no
registry has it: such an image gets no repo digest.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from imageservice.digest import Digest
from imageservice.errors import ImageUnsupported, ManifestInvalid, ReferenceInvalid, TooLarge
from imageservice.manifest import (
    DOCKER_CONFIG,
    DOCKER_MANIFEST,
    MAX_CONFIG_BYTES,
    MAX_LAYERS,
    MAX_MANIFEST_BYTES,
    OCI_INDEX,
    Descriptor,
    Index,
    Manifest,
    parse_config,
    parse_manifest,
    select_platform,
)
from imageservice.reference import parse_reference
from imageservice.strict_json import reason, strict_object
from imageservice.unpack.compression import Compression, sniff
from sandbox.host.errors import Corrupt, NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imageservice.archives.table import ArchiveTable, Extent
    from imageservice.manifest import Platform
    from imageservice.reference import Reference

#: containerd's and Docker's whole name of an image.
CONTAINERD_NAME: Final = "io.containerd.image.name"
#: The image specification's name, of whatever kind (annotations.md).
OCI_NAME: Final = "org.opencontainers.image.ref.name"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
_LAYER_TYPES: Final = {
    Compression.NONE: DOCKER_LAYER,
    Compression.GZIP: f"{DOCKER_LAYER}.gzip",
    Compression.ZSTD: f"{DOCKER_LAYER}.zstd",
}
#: Images of one archive; each costs a few documents in memory.
MAX_IMAGES: Final = 4096
_HASH_BYTES: Final = 1 << 20
#: Manifests and indexes of one archive, together.
MAX_MANIFESTS_BYTES: Final = 64 * 1024 * 1024
_Documents = dict[str, tuple[bytes, "Manifest | Index"]]
#: Indexes inside the layout's own index: one for platforms, one more is allowed.
_INDEX_DEPTH: Final = 2


@dataclass(frozen=True, slots=True)
class ArchivedImage:
    """One image of an archive.

    Attributes:
        names: what it is called, tagged.
        named: digest that a registry would know it by, if there is such.
        digest, body, manifest: its manifest.
        members: where each blob is, by its digest.
    """

    names: tuple[Reference, ...]
    named: Digest | None
    digest: Digest
    body: bytes
    manifest: Manifest
    members: Mapping[str, str]


class _Saved(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    config: str
    repo_tags: tuple[str, ...] | None = None
    layers: tuple[str, ...]


_SAVED: Final = msgspec.json.Decoder(tuple[_Saved, ...])


def read_images(table: ArchiveTable, platform: Platform) -> list[ArchivedImage]:
    """The images of an archive for this machine. Blocking: documents are read, odd layers hashed.

    Raises:
        ManifestInvalid, Corrupt, TooLarge: a document is not what it should be.
        PlatformNotFound: nothing for this machine under a name.
        ImageUnsupported: not an archive of images, or of a kind that is not read.
    """
    if "index.json" in table:
        images = _of_layout(table, platform)
    elif "manifest.json" in table:
        images = _of_docker(table)
    elif "repositories" in table:
        raise ImageUnsupported(
            "archive is of Docker before 1.10", hint="load it there and save it again"
        )
    else:
        raise ImageUnsupported(
            "not an archive of images: it has neither index.json nor manifest.json",
            hint="make it with podwright save, skopeo copy or docker save",
        )
    if not images:
        raise ImageUnsupported("archive has no images")
    merged: dict[Digest, ArchivedImage] = {}
    for image in images:
        known = merged.get(image.digest)
        if known is None:
            merged[image.digest] = image
            continue
        names = tuple(dict.fromkeys((*known.names, *image.names)))
        merged[image.digest] = ArchivedImage(
            names, known.named, image.digest, image.body, image.manifest, image.members
        )
    return list(merged.values())


# OCI layout


def _of_layout(table: ArchiveTable, platform: Platform) -> list[ArchivedImage]:
    body = table.read("index.json", limit_bytes=MAX_MANIFEST_BYTES)
    index = parse_manifest(body, OCI_INDEX)
    assert isinstance(index, Index)  # an OCI_INDEX is nothing else
    groups: dict[str, list[Descriptor]] = {}
    for entry in index.manifests:
        if not entry.is_attestation:
            groups.setdefault(_name_of(entry), []).append(entry)
    if sum(len(group) for group in groups.values()) > MAX_IMAGES:
        raise ManifestInvalid(f"archive has more than {MAX_IMAGES} images")
    images: list[ArchivedImage] = []
    # Any number of names may be of one manifest, which is read once and held once.
    read: _Documents = {}
    for name, group in groups.items():
        stated = [entry.platform for entry in group if entry.platform is not None]
        if len(group) == len(stated) and len({str(one) for one in stated}) > 1:
            group = [select_platform(Index(schema_version=2, manifests=tuple(group)), platform)]
        images += [_layout_image(table, name, entry, platform, read) for entry in group]
    return images


def _name_of(entry: Descriptor) -> str:
    annotations = entry.annotations or {}
    whole = annotations.get(CONTAINERD_NAME, "")
    if whole:
        return whole
    text = annotations.get(OCI_NAME, "")
    return text if "/" in text or ":" in text else ""


def _layout_image(
    table: ArchiveTable, name: str, entry: Descriptor, platform: Platform, read: _Documents
) -> ArchivedImage:
    named = entry.parsed_digest
    for _ in range(_INDEX_DEPTH):
        if entry.digest not in read:
            body = _blob(table, entry)
            if sum(len(each) for each, _ in read.values()) + len(body) > MAX_MANIFESTS_BYTES:
                raise TooLarge("the manifests of the archive take more than 64 MiB")
            read[entry.digest] = body, parse_manifest(body, entry.media_type)
        body, document = read[entry.digest]
        if isinstance(document, Manifest):
            return ArchivedImage(
                names=() if not name else (_reference(name),),
                named=named,
                digest=entry.parsed_digest,
                body=body,
                manifest=document,
                members={each.digest: _path(each) for each in (document.config, *document.layers)},
            )
        entry = select_platform(document, platform)
    raise ImageUnsupported("image index is nested too deeply", digest=str(named))


def _path(descriptor: Descriptor) -> str:
    digest = descriptor.parsed_digest
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _blob(table: ArchiveTable, descriptor: Descriptor) -> bytes:
    try:
        body = table.read(_path(descriptor), limit_bytes=MAX_MANIFEST_BYTES)
    except NotFound as error:
        raise Corrupt("archive lacks a manifest", digest=descriptor.digest) from error
    if not descriptor.parsed_digest.matches(body):
        raise ManifestInvalid(
            "manifest in the archive does not have its digest", digest=descriptor.digest
        )
    return body


def _reference(text: str) -> Reference:
    try:
        reference = parse_reference(text)
    except ReferenceInvalid as error:
        raise ManifestInvalid(f"archive has an image with a bad name: {error.message}") from error
    if reference.tag is None:
        raise ManifestInvalid(f"archive has an image named by digest, {text[:200]!a}")
    return parse_reference(reference.tagged or text)


# docker archive


def _of_docker(table: ArchiveTable) -> list[ArchivedImage]:
    body = table.read("manifest.json", limit_bytes=MAX_MANIFEST_BYTES)
    # The strict reader wants an object; the document is a list.
    strict_object(b'{"images":' + body + b"}", limit_bytes=MAX_MANIFEST_BYTES + 16, what="archive")
    try:
        saved = _SAVED.decode(body)
    except msgspec.MsgspecError as error:
        raise ManifestInvalid(f"manifest.json is malformed: {reason(error)}") from error
    if len(saved) > MAX_IMAGES:
        raise ManifestInvalid(f"archive has more than {MAX_IMAGES} images")
    # Images of one archive share layers, under one name or by links: each is hashed once.
    hashed: dict[Extent, Digest] = {}
    return [_docker_image(table, one, hashed) for one in saved]


def _docker_image(
    table: ArchiveTable, saved: _Saved, hashed: dict[Extent, Digest]
) -> ArchivedImage:
    document = _member(table, saved.config)
    config = parse_config(document)
    diff_ids = config.rootfs.diff_ids
    if len(diff_ids) != len(saved.layers) or len(diff_ids) > MAX_LAYERS:
        raise ManifestInvalid(
            f"image config names {len(diff_ids)} layers, manifest.json {len(saved.layers)}"
        )
    layers: list[Descriptor] = []
    members: dict[str, str] = {}
    for name, diff_id in zip(saved.layers, diff_ids, strict=True):
        layers.append(_docker_layer(table, name, diff_id, hashed))
        members[layers[-1].digest] = name
    own = Descriptor(
        media_type=DOCKER_CONFIG, digest=str(Digest.of(document)), size_bytes=len(document)
    )
    members[own.digest] = saved.config
    manifest = Manifest(
        schema_version=2, media_type=DOCKER_MANIFEST, config=own, layers=tuple(layers)
    )
    body = manifest_bytes(manifest)
    return ArchivedImage(
        names=tuple(_reference(name) for name in saved.repo_tags or ()),
        named=None,
        digest=Digest.of(body),
        body=body,
        manifest=manifest,
        members=members,
    )


def _member(table: ArchiveTable, name: str) -> bytes:
    try:
        return table.read(name, limit_bytes=MAX_CONFIG_BYTES)
    except NotFound as error:
        raise Corrupt("archive lacks an image config", member=ascii(name)[:200]) from error


def _docker_layer(
    table: ArchiveTable, name: str, diff_id: str, hashed: dict[Extent, Digest]
) -> Descriptor:
    """A plain layer has its diffID for a digest; a compressed one is hashed to have one at all."""
    try:
        extent = table.find(name)
    except NotFound as error:
        raise Corrupt("archive lacks a layer", layer=diff_id, member=ascii(name)[:200]) from error
    kind = sniff(table.read_at(extent, 0, 16))
    digest = Digest.parse(diff_id)
    if kind is not Compression.NONE:
        if extent not in hashed:
            hashed[extent] = _hash(table, extent)
        digest = hashed[extent]
    return Descriptor(
        media_type=_LAYER_TYPES[kind], digest=str(digest), size_bytes=extent.size_bytes
    )


def _hash(table: ArchiveTable, extent: Extent) -> Digest:
    hasher, position = hashlib.sha256(), 0
    while data := table.read_at(extent, position, _HASH_BYTES):
        hasher.update(data)
        position += len(data)
    return Digest("sha256", hasher.hexdigest())


def manifest_bytes(manifest: Manifest) -> bytes:
    """A manifest of ours as a document: the same value always has the same bytes."""

    def descriptor(one: Descriptor) -> dict[str, object]:
        return {"mediaType": one.media_type, "digest": one.digest, "size": one.size_bytes}

    return msgspec.json.encode(
        {
            "schemaVersion": 2,
            "mediaType": manifest.media_type,
            "config": descriptor(manifest.config),
            "layers": [descriptor(layer) for layer in manifest.layers],
        }
    )


def renamed(images: list[ArchivedImage], name: str) -> list[ArchivedImage]:
    """The one image of an archive under another name.

    Raises:
        ReferenceInvalid: not a name.

    """
    reference = parse_reference(name)
    if reference.digest is not None:
        raise ReferenceInvalid("an image cannot be given a digest for a name", image=name[:200])
    if len(images) != 1:
        raise ReferenceInvalid(
            f"archive has {len(images)} images, one name is not for all", image=name[:200]
        )
    one = images[0]
    return [ArchivedImage((reference,), one.named, one.digest, one.body, one.manifest, one.members)]
