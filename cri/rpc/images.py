"""The image service: list, status, pull, remove, and what images take on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri import validate
from cri.convert_image import credential, filesystem_usage, image_message, image_reference
from cri.rpc.lists import ListCache
from cri.rpc.pods import info_json
from protos import api_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from cri.rpc.ports import Images
    from imageservice.service import Image


class ImageCalls:
    """The methods of the image service."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self._items: ListCache[Image] = ListCache(image_message)

    async def list_images(self, request: pb.ListImagesRequest) -> bytes:
        """All images, or those that the filter names."""
        found, total = self._chosen(request.filter)
        return self._items.join(found, total)

    async def stream_images(self, request: pb.StreamImagesRequest) -> AsyncIterator[bytes]:
        """The same in several messages."""
        found, total = self._chosen(request.filter)
        for message in self._items.stream(found, total):
            yield message

    def _chosen(self, wanted: pb.ImageFilter) -> tuple[Sequence[Image], int]:
        name = validate.text(wanted.image.image, "filter.image.image")
        found = self._images.list(name)
        return found, len(found) if not name else len(self._images.list())

    async def image_status(self, request: pb.ImageStatusRequest) -> pb.ImageStatusResponse:
        """An image, or an empty answer when there is none of that name."""
        image = self._images.status(image_reference(request.image))
        if image is None:
            return pb.ImageStatusResponse()
        response = pb.ImageStatusResponse(image=image_message(image))
        if request.verbose:
            facts = {
                "diffIDs": image.chain,
                "imageSpec": image.config,
                "own": image.own,
                "additionalStores": image.stores,
            }
            response.info.update(info_json(facts))
        return response

    async def pull_image(self, request: pb.PullImageRequest) -> pb.PullImageResponse:
        """Fetch an image; the answer is the id that every other call uses for it.

        Cancelling, by the client's deadline too, ends this caller's wait; the image service stops
        the download when nobody waits for it any more.
        """
        reference = image_reference(request.image)
        shown = credential(request.auth) if request.HasField("auth") else None
        namespace = validate.text(
            request.sandbox_config.metadata.namespace, "sandbox_config.metadata.namespace"
        )
        image = await self._images.pull(reference, shown, namespace=namespace)
        return pb.PullImageResponse(image_ref=image.id)

    async def remove_image(self, request: pb.RemoveImageRequest) -> pb.RemoveImageResponse:
        """Forget an image under all its names; unknown is success.

        One that only a read-only additional store has is a failed precondition. It is shown as
        pinned, so the kubelet does not ask for it.
        """
        await self._images.remove(image_reference(request.image))
        return pb.RemoveImageResponse()

    async def image_fs_info(self, request: pb.ImageFsInfoRequest) -> pb.ImageFsInfoResponse:
        """What images and writable layers take on disk."""
        usage = await self._images.fs_info()
        return pb.ImageFsInfoResponse(
            image_filesystems=[filesystem_usage(one) for one in usage.image_filesystems],
            container_filesystems=[filesystem_usage(one) for one in usage.container_filesystems],
        )
