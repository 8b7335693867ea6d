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
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from cri import validate
from cri.convert_image import credential
from cri.rpc.method import Method, StreamCall
from imageservice.service import Stage
from protos import api_pb2 as pb
from sandbox.host.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from cri.rpc.ports import Images
    from imageservice.credentials import Credential
    from imageservice.service import Progress
    from sandbox.host.clock import Clock

SERVICE: Final = "podwright.v1.Progress"
METHOD: Final = "PullImage"
E = TypeVar("E")
T = TypeVar("T")
U = TypeVar("U")
#: Ten updates a second look smooth on a terminal.
INTERVAL_S: Final = 0.1


class PullRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to pull, and what to show the registry."""

    image: str
    username: str = ""
    password: str = ""


class LayerUpdate(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far one layer is; both parts count bytes of the compressed blob."""

    id: str
    stage: str
    fetched_bytes: int = 0
    unpacked_bytes: int = 0
    total_bytes: int = 0


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
    pulled = followed(lambda note: images.pull(image, shown, on_progress=note), clock)
    async with aclosing(pulled) as parts:
        async for part in parts:
            if isinstance(part, list):
                yield msgspec.json.encode(PullUpdate(layers=part))
            else:
                yield msgspec.json.encode(PullUpdate(image_ref=part.id))


async def followed(
    work: Callable[[Callable[[Progress], None]], Awaitable[T]], clock: Clock
) -> AsyncGenerator[list[LayerUpdate] | T, None]:
    """Layers that changed, gathered a few times a second, and at last the result of `work`."""
    known: dict[str, LayerUpdate] = {}
    updates: dict[str, LayerUpdate] = {}

    def note(progress: Progress) -> None:
        layer = progress.layer
        known[layer] = updates[layer] = updated(known.get(layer), progress)

    def take() -> list[LayerUpdate]:
        layers = list(updates.values())
        updates.clear()
        return layers

    async with aclosing(gathered(work, note, take, clock)) as parts:
        async for part in parts:
            yield part


async def gathered(
    work: Callable[[Callable[[E], None]], Awaitable[T]],
    note: Callable[[E], None],
    take: Callable[[], list[U]],
    clock: Clock,
) -> AsyncGenerator[list[U] | T, None]:
    """What `work` reports, a few times a second, and at last its result.

    Whoever stops listening ends the work.

    Args:
        work: is given the function to report with.
        note: keeps a report.
        take: gives what was kept since it was asked last.
        clock: for the pauses.
    """
    changed = asyncio.Event()
    outcome: list[T | Exception] = []

    def tell(event: E) -> None:
        note(event)
        changed.set()

    async def run() -> None:
        # A failure must not leave the task: the group would cancel whoever holds this generator.
        try:
            outcome.append(await work(tell))
        except Exception as error:
            outcome.append(error)
        changed.set()

    async with asyncio.TaskGroup() as group:
        running = group.create_task(run())
        try:
            while not outcome:
                await changed.wait()
                changed.clear()
                if kept := take():
                    yield kept
                    await clock.sleep(INTERVAL_S)
        except GeneratorExit:
            # The client is gone. A task group would wrap this one in a group of exceptions, which
            # whoever closes a generator does not expect; a plain end is as good.
            running.cancel()
    if not outcome:
        return
    end = outcome[0]
    if isinstance(end, Exception):
        raise end
    if kept := take():
        yield kept
    yield end


def updated(before: LayerUpdate | None, progress: Progress) -> LayerUpdate:
    """The layer after one more event, which may be of its download or of its unpacking."""
    fetched = 0 if before is None else before.fetched_bytes
    unpacked = 0 if before is None else before.unpacked_bytes
    match progress.stage:
        case Stage.FETCHING:
            fetched = progress.done_bytes
        case Stage.UNPACKING:
            unpacked = progress.done_bytes
        case Stage.DONE | Stage.EXISTS:
            fetched = unpacked = progress.total_bytes
    return LayerUpdate(
        progress.layer, progress.stage.value, fetched, unpacked, progress.total_bytes
    )
