"""The daemon's one method that is not CRI: pull an image and watch it come.

CRI's PullImage answers once, at the end. `podwright pull` shows a bar per layer, so the same socket
has a service of our own, `podwright.v1.Progress`, whose PullImage streams JSON documents (no proto
file: the only client is the command of the same version). Both go through the same image service,
so a pull that the kubelet began is joined, not repeated.

A response has every layer that changed since the one before; the last has `image_ref` instead. A
slow reader misses intermediate numbers, never a layer, and holds nothing up.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec

from cri import validate
from cri.convert_image import credential
from cri.rpc.method import Method, StreamCall
from protos import api_pb2 as pb
from sandbox.host.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from cri.rpc.ports import Images
    from imageservice.credentials import Credential
    from imageservice.service import Image, Progress
    from sandbox.host.clock import Clock

SERVICE: Final = "podwright.v1.Progress"
METHOD: Final = "PullImage"
#: Ten updates a second look smooth on a terminal.
INTERVAL_S: Final = 0.1


class PullRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to pull, and what to show the registry."""

    image: str
    username: str = ""
    password: str = ""


class LayerUpdate(msgspec.Struct, frozen=True):
    """How far one layer is."""

    id: str
    stage: str
    done_bytes: int
    total_bytes: int


class PullUpdate(msgspec.Struct, frozen=True, omit_defaults=True):
    """Layers that changed, or the end."""

    layers: list[LayerUpdate] = []
    image_ref: str = ""


def progress_method(images: Images, clock: Clock) -> Method:
    """The method, for the server's list."""

    def open_call(data: bytes) -> StreamCall:
        try:
            request = msgspec.json.decode(data, type=PullRequest)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"the {len(data)} bytes sent are not a pull request") from error
        image = validate.required(request.image, "image")
        shown = None
        if request.username or request.password:
            shown = credential(pb.AuthConfig(username=request.username, password=request.password))
        return StreamCall({"image": image}, lambda: _pull(images, clock, image, shown))

    return Method(service=SERVICE, name=METHOD, open=open_call, streams=True)


async def _pull(
    images: Images, clock: Clock, image: str, shown: Credential | None
) -> AsyncGenerator[bytes, None]:
    changed = asyncio.Event()
    updates: dict[str, LayerUpdate] = {}
    outcome: list[Image | Exception] = []

    def note(progress: Progress) -> None:
        updates[progress.layer] = LayerUpdate(
            progress.layer, progress.stage.value, progress.done_bytes, progress.total_bytes
        )
        changed.set()

    async def work() -> None:
        # A failure must not leave the task: the group would cancel whoever holds this generator.
        try:
            outcome.append(await images.pull(image, shown, on_progress=note))
        except Exception as error:
            outcome.append(error)
        changed.set()

    async with asyncio.TaskGroup() as group:
        pulling = group.create_task(work())
        try:
            while not outcome:
                await changed.wait()
                changed.clear()
                if updates:
                    layers = list(updates.values())
                    updates.clear()
                    yield msgspec.json.encode(PullUpdate(layers=layers))
                    await clock.sleep(INTERVAL_S)
        except GeneratorExit:
            # The client is gone. A task group would wrap this one in a group of exceptions, which
            # whoever closes a generator does not expect; a plain end is as good.
            pulling.cancel()
    if not outcome:
        return
    end = outcome[0]
    if isinstance(end, Exception):
        raise end
    if updates:
        yield msgspec.json.encode(PullUpdate(layers=list(updates.values())))
    yield msgspec.json.encode(PullUpdate(image_ref=end.id))
