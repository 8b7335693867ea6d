"""Images in files over the daemon's socket: load, save, pin. Not CRI, which has nothing of it.

A service of our own beside `progress`, for the same client: `podwright.v1.Archives`. Its first
message is a JSON document that says what is wanted, then

    Load   the archive's bytes, in messages of any size; answered with layers that changed, like a
           pull, and at last with the images
    Save   answered with a document that has the archive's length, then with its bytes
    Pin    one document, answered with an empty one

Bytes and not a path: the daemon must not read for somebody what he may not read himself.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Final, Literal, TypeVar

import msgspec

from cri import validate
from cri.rpc.method import Method, StreamCall, UnaryCall, UploadCall
from cri.rpc.progress import LayerUpdate, followed
from sandbox.host.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from cri.rpc.ports import Images
    from sandbox.host.clock import Clock

SERVICE: Final = "podwright.v1.Archives"
_MAX_IMAGES: Final = 4096


class LoadRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to take an archive that follows."""

    name: str = ""
    pinned: bool = False


class LoadedImage(msgspec.Struct, frozen=True):
    """An image that an archive had."""

    id: str
    tags: list[str] = []


class LoadUpdate(msgspec.Struct, frozen=True, omit_defaults=True):
    """Layers that changed, or the end."""

    layers: list[LayerUpdate] = []
    images: list[LoadedImage] = []


class SaveRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which images to write, and how."""

    images: list[str]
    form: Literal["oci", "docker"] = "oci"


class SaveHead(msgspec.Struct, frozen=True):
    """What comes; so many bytes follow. `remade`: images under a manifest of our own."""

    total_bytes: int
    remade: list[str] = []


class PinRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An image and whether collection must leave it alone."""

    image: str
    pinned: bool


R = TypeVar("R", LoadRequest, SaveRequest, PinRequest)


def archive_methods(images: Images, clock: Clock) -> tuple[Method, ...]:
    """The methods, for the server's list."""

    def load(data: bytes) -> UploadCall:
        request = _request(data, LoadRequest)
        validate.text(request.name, "name")
        return UploadCall({"name": request.name}, lambda rest: _load(images, clock, request, rest))

    def save(data: bytes) -> StreamCall:
        request = _request(data, SaveRequest)
        if not 0 < len(request.images) <= _MAX_IMAGES:
            raise InvalidArgument(f"between 1 and {_MAX_IMAGES} images can be saved at once")
        for image in request.images:
            validate.required(image, "images")
        return StreamCall({"image": request.images[0]}, lambda: _save(images, request))

    def pin(data: bytes) -> UnaryCall:
        request = _request(data, PinRequest)
        image = validate.required(request.image, "image")

        async def answer() -> bytes:
            await images.pin(image, pinned=request.pinned)
            return b"{}"

        return UnaryCall({"image": image}, answer)

    return (
        Method(service=SERVICE, name="Load", open=load, streams=True, uploads=True),
        Method(service=SERVICE, name="Save", open=save, streams=True),
        Method(service=SERVICE, name="Pin", open=pin),
    )


def _request(data: bytes, kind: type[R]) -> R:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"the {len(data)} bytes sent are no {kind.__name__}") from error


async def _load(
    images: Images, clock: Clock, request: LoadRequest, rest: AsyncIterator[bytes]
) -> AsyncGenerator[bytes, None]:
    parts = followed(
        lambda note: images.loader.load(
            rest, name=request.name, pinned=request.pinned, on_progress=note
        ),
        clock,
    )
    async with aclosing(parts):
        async for part in parts:
            layers = [one for one in part if isinstance(one, LayerUpdate)]
            loaded = [
                LoadedImage(one.id, list(one.repo_tags))
                for one in part
                if not isinstance(one, LayerUpdate)
            ]
            yield msgspec.json.encode(LoadUpdate(layers=layers, images=loaded))


async def _save(images: Images, request: SaveRequest) -> AsyncGenerator[bytes, None]:
    with await images.saver.save(request.images, request.form) as archive:
        yield msgspec.json.encode(SaveHead(archive.total_bytes, archive.remade))
        async for chunk in archive.chunks():
            yield chunk
