"""Makes container images from values: entries → layers → config and manifest, all bytes, no I/O.

The same input gives the same bytes, so digests are stable and a second push finds everything
there already. Nothing here knows the code under test: an image the tests made with our own
unpacking rules in mind would prove little.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

#: Go's names of the machine's architecture, as image configs use them.
ARCHITECTURE: Final = {"x86_64": "amd64", "aarch64": "arm64"}.get(
    platform.machine(), platform.machine()
)
#: A second entry in every index, so that choosing a platform is not left to luck. Its layers are
#: the same; only a runtime that takes the wrong entry would notice.
FOREIGN_ARCHITECTURE: Final = "s390x"

#: 2020-02-02T00:00:00Z: every file and every image claims to have been made then.
EPOCH_S: Final = 1_580_601_600
CREATED: Final = "2020-02-02T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Flavor:
    """The media types of one of the two families of image documents."""

    manifest: str
    index: str
    config: str
    layer: str


OCI: Final = Flavor(
    manifest="application/vnd.oci.image.manifest.v1+json",
    index="application/vnd.oci.image.index.v1+json",
    config="application/vnd.oci.image.config.v1+json",
    layer="application/vnd.oci.image.layer.v1.tar+gzip",
)
DOCKER: Final = Flavor(
    manifest="application/vnd.docker.distribution.manifest.v2+json",
    index="application/vnd.docker.distribution.manifest.list.v2+json",
    config="application/vnd.docker.container.image.v1+json",
    layer="application/vnd.docker.image.rootfs.diff.tar.gzip",
)


def sha256(data: bytes) -> str:
    """The digest of `data` in the form manifests use."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One member of a layer. A directory has neither `content` nor a link."""

    path: str
    mode: int = 0o755
    content: bytes | None = None
    symlink: str = ""
    hardlink: str = ""
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class Layer:
    """A compressed layer and the digest of what is inside."""

    blob: bytes
    diff_id: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image ready to be pushed: blobs by digest, then manifests by digest, the top one last."""

    blobs: Mapping[str, bytes]
    manifests: Mapping[str, tuple[str, bytes]]
    top: str


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What an image says about how to run it; the part of the OCI image config we use."""

    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    env: Sequence[str] = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",)
    user: str = ""
    working_dir: str = ""
    stop_signal: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    volumes: Sequence[str] = ()

    def document(self) -> dict[str, object]:
        """The `config` object, with only what was given."""
        values: dict[str, object] = {
            "Entrypoint": list(self.entrypoint),
            "Cmd": list(self.command),
            "Env": list(self.env),
            "User": self.user,
            "WorkingDir": self.working_dir,
            "StopSignal": self.stop_signal,
            "Labels": dict(self.labels),
            "Volumes": {path: {} for path in self.volumes},
        }
        return {key: value for key, value in values.items() if value}


def make_layer(entries: Iterable[Entry], *, level: int = 6) -> Layer:
    """Tar and gzip `entries` in the order given."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            info = tarfile.TarInfo(entry.path)
            info.mode, info.uid, info.gid, info.mtime = entry.mode, entry.uid, entry.gid, EPOCH_S
            if entry.symlink:
                info.type, info.linkname = tarfile.SYMTYPE, entry.symlink
            elif entry.hardlink:
                info.type, info.linkname = tarfile.LNKTYPE, entry.hardlink
            elif entry.content is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(entry.content)
            tar.addfile(info, io.BytesIO(entry.content) if entry.content is not None else None)
    plain = raw.getvalue()
    return Layer(blob=gzip.compress(plain, level, mtime=0), diff_id=sha256(plain))


def make_image(
    layers: Sequence[Layer],
    config: ImageConfig,
    *,
    flavor: Flavor = OCI,
    with_index: bool = False,
) -> Image:
    """Put layers and config together; with an index, for this architecture and a foreign one."""
    blobs = {sha256(layer.blob): layer.blob for layer in layers}
    manifests: dict[str, tuple[str, bytes]] = {}
    entries: list[dict[str, object]] = []
    # The foreign one comes first in the index: taking the first entry must be seen to be wrong.
    architectures = (FOREIGN_ARCHITECTURE, ARCHITECTURE) if with_index else (ARCHITECTURE,)
    top = ""
    for architecture in architectures:
        document = _json(
            {
                "created": CREATED,
                "architecture": architecture,
                "os": "linux",
                "config": config.document(),
                "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
                "history": [{"created": CREATED, "created_by": "tests/kit"} for _ in layers],
            }
        )
        blobs[sha256(document)] = document
        manifest = _json(
            {
                "schemaVersion": 2,
                "mediaType": flavor.manifest,
                "config": _descriptor(flavor.config, document),
                "layers": [_descriptor(flavor.layer, layer.blob) for layer in layers],
            }
        )
        top = sha256(manifest)
        manifests[top] = (flavor.manifest, manifest)
        entries.append(
            _descriptor(flavor.manifest, manifest)
            | {"platform": {"architecture": architecture, "os": "linux"}}
        )
    if with_index:
        index = _json({"schemaVersion": 2, "mediaType": flavor.index, "manifests": entries})
        top = sha256(index)
        manifests[top] = (flavor.index, index)
    return Image(blobs=blobs, manifests=manifests, top=top)


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data)}


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
