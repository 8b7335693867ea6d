"""Manifests, indexes and image configs as typed values, and which of an index this machine runs.

A manifest is a stranger's JSON that decides what runs, so a document that could be read in two ways
is refused, not interpreted: duplicate keys, keys that differ only in case (Go's decoder takes
either), manifest and index in one (CVE-2021-41190), a Content-Type that contradicts `mediaType`.
Everything is bounded before it is parsed. The bytes stay the truth: digests are of bytes, and
nothing here is ever encoded again.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import msgspec

from imageservice.digest import Digest
from imageservice.errors import (
    DigestInvalid,
    ImageUnsupported,
    ManifestInvalid,
    PlatformNotFound,
)
from imageservice.strict_json import reason, strict_object

if TYPE_CHECKING:
    from collections.abc import Mapping

#: containerd's and the distribution specification's customary bound for a manifest: 4 MiB.
MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
MAX_CONFIG_BYTES: Final = MAX_MANIFEST_BYTES
#: Layers of one image; overlayfs itself takes 500 lower directories.
MAX_LAYERS: Final = 500
#: One blob; what a descriptor claims beyond it is refused before a byte is fetched (1 TiB).
MAX_BLOB_BYTES: Final = 1 << 40

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
INDEX_TYPES: Final = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFEST_TYPES: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIG_TYPES: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})
#: In the order of preference, as an Accept header names them.
ACCEPTED_TYPES: Final = (OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST)
_SCHEMA1_TYPES: Final = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)
#: What servers say that do not know; the document itself decides then.
_VAGUE_TYPES: Final = frozenset({"", "application/json", "application/octet-stream", "text/plain"})
_FOREIGN_MARKS: Final = (".rootfs.foreign.", ".layer.nondistributable.")
#: Keys that say what a document is; another spelling is the same key to a Go program.
_TOP_LEVEL: Final = frozenset(
    {"schemaVersion", "mediaType", "config", "layers", "manifests", "fsLayers"}
)
_TOP_LEVEL_FOLDED: Final = frozenset(key.lower() for key in _TOP_LEVEL)
_ATTESTATION: Final = "vnd.docker.reference.type"


class Platform(msgspec.Struct, frozen=True, kw_only=True):
    """Operating system, architecture and variant in Go's words (`linux`, `arm64`, `v8`)."""

    os: str = ""
    architecture: str = ""
    variant: str = ""

    @classmethod
    def host(cls, machine: str | None = None) -> Platform:
        """This machine's platform; `machine` is what uname(2) says (default: asked)."""
        name = os.uname().machine if machine is None else machine
        architecture, variant = _MACHINES.get(name, (name, ""))
        return cls(os="linux", architecture=architecture, variant=variant)

    def __str__(self) -> str:
        """`linux/arm64/v8`."""
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


#: uname -m -> (architecture, variant).
_MACHINES: Final[Mapping[str, tuple[str, str]]] = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armv5tel": ("arm", "v5"),
    "i686": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
}


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A pointer to a blob: type, digest and exact size, checked when it is made."""

    media_type: str = ""
    digest: str
    size_bytes: int = msgspec.field(name="size")
    urls: tuple[str, ...] | None = None
    platform: Platform | None = None
    annotations: dict[str, str] | None = None

    def __post_init__(self) -> None:
        """Refuse a malformed digest and an impossible size."""
        Digest.parse(self.digest)
        if not 0 <= self.size_bytes <= MAX_BLOB_BYTES:
            raise ValueError(f"size {self.size_bytes} is out of range")

    @property
    def parsed_digest(self) -> Digest:
        """The digest as a value."""
        return Digest.parse(self.digest)

    @property
    def is_index(self) -> bool:
        """Whether it points to an index."""
        return self.media_type in INDEX_TYPES

    @property
    def is_foreign(self) -> bool:
        """Whether it is a layer that its registry need not hold (Windows bases)."""
        return any(mark in self.media_type for mark in _FOREIGN_MARKS)

    @property
    def is_attestation(self) -> bool:
        """Whether it is build metadata that hides in an index as a manifest."""
        if self.annotations is not None and _ATTESTATION in self.annotations:
            return True
        return self.platform is not None and self.platform.architecture == "unknown"


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One image for one platform."""

    schema_version: int
    media_type: str = ""
    config: Descriptor
    layers: tuple[Descriptor, ...]


class Index(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The same image for several platforms."""

    schema_version: int
    media_type: str = ""
    manifests: tuple[Descriptor, ...]


class ProcessConfig(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """What the image wants run; lists that are `null` in the document are empty here."""

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    stop_signal: str = ""


class _RawProcessConfig(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """As the document spells it: any of them may be null, two of them are sets."""

    user: str | None = None
    env: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    working_dir: str | None = None
    volumes: dict[str, msgspec.Raw] | None = None
    exposed_ports: dict[str, msgspec.Raw] | None = None
    labels: dict[str, str] | None = None
    stop_signal: str | None = None


class RootFs(msgspec.Struct, frozen=True, kw_only=True):
    """The digests of the layers' plain tars, lowest first."""

    type: str = ""
    diff_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse malformed digests: they become names of directories."""
        for diff_id in self.diff_ids:
            Digest.parse(diff_id)


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """An image's config document, cleaned; its digest is the image's id."""

    architecture: str
    os: str
    variant: str = ""
    created: str = ""
    config: ProcessConfig = ProcessConfig()
    rootfs: RootFs = RootFs()

    @property
    def platform(self) -> Platform:
        """What it was built for."""
        return Platform(os=self.os, architecture=self.architecture, variant=self.variant)


class _RawImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    architecture: str = ""
    os: str = ""
    variant: str | None = None
    created: str | None = None
    config: _RawProcessConfig | None = None
    rootfs: RootFs | None = None


_MANIFEST_DECODER: Final = msgspec.json.Decoder(Manifest)
_INDEX_DECODER: Final = msgspec.json.Decoder(Index)
_CONFIG_DECODER: Final = msgspec.json.Decoder(_RawImageConfig)


def parse_manifest(body: bytes, content_type: str) -> Manifest | Index:
    """Read a manifest or an index.

    Args:
        body: the bytes as received (their digest is the caller's to check).
        content_type: the answer's Content-Type or the descriptor's media type; may be empty.

    Raises:
        TooLarge: over 4 MiB.
        ManifestInvalid: malformed, ambiguous, contradicting its content type, wrong sizes.
        ImageUnsupported: Docker schema 1, or a media type that is no image.
    """
    keys = strict_object(body, limit_bytes=MAX_MANIFEST_BYTES, what="manifest")
    for key in keys:
        if key not in _TOP_LEVEL and key.lower() in _TOP_LEVEL_FOLDED:
            raise ManifestInvalid(f"manifest key {key[:40]!a} differs from the standard in case")
    declared = content_type.partition(";")[0].strip().lower()
    if declared in _VAGUE_TYPES:
        declared = ""
    inner = keys.get("mediaType", "")
    if declared and inner and declared != inner:
        raise ManifestInvalid(
            f"manifest calls itself {ascii(inner)[:120]} but was sent as {ascii(declared)[:120]}"
        )
    kind = declared or (inner if isinstance(inner, str) else "")
    if kind in _SCHEMA1_TYPES or "fsLayers" in keys or keys.get("schemaVersion") == 1:
        raise ImageUnsupported(
            "image manifest schema 1 is not supported",
            hint="push the image again with a tool of this decade",
        )
    if kind and kind not in INDEX_TYPES | MANIFEST_TYPES:
        raise ImageUnsupported(f"media type {ascii(kind)[:120]} is no image manifest")
    if keys.get("schemaVersion") != 2:
        raise ManifestInvalid("manifest has no schemaVersion 2")
    is_index, is_manifest = "manifests" in keys, "layers" in keys or "config" in keys
    if is_index == is_manifest:
        raise ManifestInvalid(
            "document is both index and manifest" if is_index else "neither index nor manifest"
        )
    if kind and is_index != (kind in INDEX_TYPES):
        raise ManifestInvalid(f"document does not have the shape of {kind}")
    try:
        if is_index:
            return _INDEX_DECODER.decode(body)
        manifest = _MANIFEST_DECODER.decode(body)
    except (msgspec.MsgspecError, DigestInvalid, RecursionError) as error:
        raise ManifestInvalid(f"manifest is malformed: {reason(error)}") from error
    if len(manifest.layers) > MAX_LAYERS:
        raise ManifestInvalid(f"manifest has {len(manifest.layers)} layers, more than {MAX_LAYERS}")
    return manifest


def parse_config(body: bytes) -> ImageConfig:
    """Read an image config; raises TooLarge, ManifestInvalid, ImageUnsupported."""
    strict_object(body, limit_bytes=MAX_CONFIG_BYTES, what="image config")
    try:
        raw = _CONFIG_DECODER.decode(body)
    except (msgspec.MsgspecError, DigestInvalid, RecursionError) as error:
        raise ManifestInvalid(f"image config is malformed: {reason(error)}") from error
    if raw.rootfs is not None and raw.rootfs.type not in ("layers", ""):
        raise ImageUnsupported(f"root file system of type {ascii(raw.rootfs.type)[:80]}")
    config = raw.config or _RawProcessConfig()
    return ImageConfig(
        architecture=raw.architecture,
        os=raw.os,
        variant=raw.variant or "",
        created=raw.created or "",
        rootfs=raw.rootfs or RootFs(),
        config=ProcessConfig(
            user=config.user or "",
            env=config.env or (),
            entrypoint=config.entrypoint or (),
            cmd=config.cmd or (),
            working_dir=config.working_dir or "",
            volumes=tuple(sorted(config.volumes or ())),
            exposed_ports=tuple(sorted(config.exposed_ports or ())),
            labels=config.labels or {},
            stop_signal=config.stop_signal or "",
        ),
    )


def select_platform(index: Index, host: Platform) -> Descriptor:
    """The entry of `index` that fits `host` best; the first of equals, as the author ordered them.

    An entry without a platform is taken only when none that names one fits. The entry may be an
    index again: the caller bounds how deep it follows.

    Raises:
        PlatformNotFound: naming the host's platform and up to ten that the index has.
    """
    best: tuple[int, Descriptor] | None = None
    for entry in index.manifests:
        if entry.is_attestation:
            continue
        rank = _UNSTATED if entry.platform is None else _rank(entry.platform, host)
        if rank is not None and (best is None or rank < best[0]):
            best = rank, entry
    if best is None:
        offered = sorted(
            {str(e.platform) for e in index.manifests if e.platform and not e.is_attestation}
        )
        raise PlatformNotFound(
            f"image has no variant for {host}", available=ascii(", ".join(offered[:10]))[1:-1][:400]
        )
    return best[1]


_UNSTATED: Final = 1000
#: Architecture -> (level that an unstated variant means, lowest level there is), as Go has it.
_LEVELS: Final = {"arm": (7, 5), "arm64": (8, 8), "amd64": (1, 1)}


def _rank(offered: Platform, host: Platform) -> int | None:
    """How far `offered` is from the best for `host` (0 is exact), or None when it cannot run."""
    if offered.os != host.os or offered.architecture != host.architecture:
        return None
    if host.architecture not in _LEVELS:
        return 0 if offered.variant in ("", host.variant) else None
    # A newer machine runs what was built for an older one, never the other way round.
    default, lowest = _LEVELS[host.architecture]
    wanted, highest = _level(offered.variant, default), _level(host.variant, default)
    return highest - wanted if lowest <= wanted <= highest else None


def _level(variant: str, default: int) -> int:
    """`v7` -> 7; 0 for what is no level."""
    digits = variant.removeprefix("v")
    if not variant:
        return default
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 4 else 0
