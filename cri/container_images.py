"""The images of a container: its own, and those that it has as volumes (KEP-4639).

    find ──► what the request's names mean now, kept in the container's record
    mount ─► for each image a lease, then a mount below the container's run directory
    release ► all leases of the container; after the unmount, never before

An image volume is mounted as the root file system is: the image's layers by the driver, an upper
directory of its own (so that directories look as the image describes them, also when its layers
come apart; `imageservice.snapshots.upper`), but read-only as a whole, so that nothing is ever
written there by anybody. One image is mounted once in a container, however often it is named; other
containers of the pod have mounts of their own, so that each goes with its container. Leases are
keyed `ID/IMAGE`, mount points are below `Paths.container`: teardown, recovery and the sweep find
both by the container's id alone, after SIGKILL at any moment too.

Decisions, with what others do:

- RemoveImage of an image that is mounted as a volume succeeds, as it does for an image that
  containers run on: names and documents go, layers stay while they are leased (containerd's way;
  CRI-O refuses). The kubelet's collector leaves such images alone by itself: it looks for their ids
  in `ContainerStatus.mounts[].image.image`, so that is always the id. Whoever removes an image
  nevertheless is obeyed, as the CRI text has it even for pinned ones.
- Programs in a volume may be executed: the feature's rule of noexec was dropped because people
  mount plugins and tools. `mount_options` can ask for noexec. Device nodes are of no use (nodev).
- A volume is read-only whatever `readonly` says: "all image mounts are per feature definition".
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri.signals import parse_signal
from imageservice.snapshots.snapshotter import MappedRoot
from sandbox import errors
from sandbox.containers import ImageUse
from sandbox.host.errors import InvalidArgument, NotFound
from sandbox.model import ImageDefaults, ImageVolume

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from imageservice.service import Image, ImageService
    from sandbox.host.idmap import IdMap
    from sandbox.host.mounts import Mount
    from sandbox.model import Container, ContainerConfig, ImageSpec
    from sandbox.paths import Paths
    from sandbox.roots import Roots


@dataclass(frozen=True, slots=True)
class Mounted:
    """Where a container's images are: its root, and by place in `config.mounts` its volumes."""

    rootfs: Path
    volumes: Mapping[int, Path]


class ContainerImages:
    """See the module's text."""

    def __init__(self, images: ImageService, roots: Roots, paths: Paths) -> None:
        self._images = images
        self._roots = roots
        self._paths = paths

    def find(self, config: ContainerConfig) -> ImageUse:
        """What the names in a request mean now.

        Raises:
            NotFound: an image is not on the node.
            InvalidArgument: no image is named.
        """
        own = self._find(config.image.image or config.image.image_ref)
        volumes: list[ImageVolume] = []
        for place, mount in enumerate(config.mounts):
            if mount.image is not None:
                with errors.image_volume(mount.image.image, mount.container_path):
                    found = self._find(mount.image.image)
                volumes.append(
                    ImageVolume(mount=place, image_id=found.id, image_ref=_reference(found))
                )
        return ImageUse(
            image_id=own.id,
            image_ref=_reference(own),
            image_name=own.repo_tags[0] if own.repo_tags else own.id,
            volumes=tuple(volumes),
            storage_driver=self._images.storage.driver.name,
        )

    async def admit(self, config: ContainerConfig, use: ImageUse, namespace: str) -> None:
        """Ask the operator's policy whether a container may be made of these images.

        Args:
            config: the request, for what the pod's author called them.
            use: what `find` made of it.
            namespace: of the pod.

        Raises:
            SignatureValidationFailed: it may not.
        """
        await self._images.admit(use.image_id, _asked(config.image), namespace)
        for volume in use.volumes:
            mount = config.mounts[volume.mount]
            assert mount.image is not None
            with errors.image_volume(volume.image_ref, mount.container_path):
                await self._images.admit(volume.image_id, _asked(mount.image), namespace)

    def defaults(self, image_id: str) -> ImageDefaults:
        """What the config of an image says about running it; raises NotFound."""
        return image_defaults(self._find(image_id))

    async def mount(
        self, container: Container, *, label: str = "", ids: IdMap | None = None
    ) -> Mounted:
        """Hold and mount the images of a reserved container.

        Args:
            container: the reserved container.
            label: SELinux label of their files, where there is SELinux.
            ids: the mapping of the pod's user namespace; volumes are mapped as the root is.

        Raises:
            ImageNotFound: one was removed meanwhile.
            PodwrightError: as the kernel says.
        """
        rootfs = await self._roots.mount(
            container,
            await self._prepare(container, container.id, container.image_id, ids),
            label=label,
            ids=ids,
        )
        places: dict[str, Path] = {}
        for volume in container.image_volumes:
            image_id = volume.image_id
            if image_id not in places:
                asked = container.config.mounts[volume.mount]
                with errors.image_volume(volume.image_ref, asked.container_path):
                    key = f"{container.id}/{image_id.removeprefix('sha256:')}"
                    parts = await self._prepare(container, key, image_id, ids)
                    places[image_id] = await self._roots.mount_volume(
                        container, image_id, parts, label=label
                    )
        return Mounted(rootfs, {v.mount: places[v.image_id] for v in container.image_volumes})

    async def _prepare(
        self, container: Container, key: str, image_id: str, ids: IdMap | None
    ) -> tuple[Mount, ...]:
        layer = self._paths.layer(container.id)
        _, _, volume = key.partition("/")
        own = layer / "image-volumes" / volume if volume else layer
        return await self._images.prepare_rootfs(
            key,
            image_id,
            upper_dir=own / "upper",
            work_dir=own / "work",
            mapped=None if ids is None else MappedRoot(ids, self._paths.lower(container.id)),
        )

    async def release(self, container_id: str) -> None:
        """Give all layers back; the container's mounts must be gone."""
        await self._images.release_rootfs(container_id)

    def _find(self, wanted: str) -> Image:
        if not wanted:
            raise InvalidArgument("container config names no image")
        image = self._images.status(wanted)
        if image is None:
            raise NotFound(f"image {wanted} is not on this node", hint="pull it first")
        return image


def _asked(spec: ImageSpec) -> str:
    return spec.user_specified_image or spec.image


def _reference(image: Image) -> str:
    return image.repo_digests[0] if image.repo_digests else image.id


def image_defaults(image: Image) -> ImageDefaults:
    """What the image's config says about running it, in the engine's words."""
    config = image.config.config
    return ImageDefaults(
        entrypoint=tuple(config.entrypoint or ()),
        cmd=tuple(config.cmd or ()),
        env=tuple(config.env or ()),
        user=config.user,
        working_dir=config.working_dir,
        stop_signal=config.stop_signal,
        volumes=tuple(config.volumes or ()),
    )


def stop_signal(config: ContainerConfig, image: ImageDefaults) -> int:
    """The signal that a stop sends first: the request's, else the image's, else SIGTERM.

    Raises:
        InvalidArgument: a name or number that is no signal.
    """
    text = config.stop_signal or image.stop_signal
    return parse_signal(text) if text else signal.SIGTERM
