"""Joins the classes of this folder to the wire contract, method by method, from the descriptors.

A method of the contract that no class has ends the start of the daemon, so a new RPC cannot be
forgotten; a test compares the annotations of every method with the contract's types.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import TYPE_CHECKING, Final

from google.protobuf.internal import api_implementation
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from cri.rpc.archives import archive_methods
from cri.rpc.checkpoint import CheckpointCalls
from cri.rpc.containers import ContainerCalls
from cri.rpc.images import ImageCalls
from cri.rpc.method import Method, StreamCall, UnaryCall
from cri.rpc.node import NodeCalls
from cri.rpc.observe import ObserveCalls
from cri.rpc.pods import PodCalls
from cri.rpc.progress import progress_method
from cri.rpc.sessions import SessionCalls
from cri.rpc.verify import verify_method
from protos import api_pb2 as pb
from sandbox.host.errors import InvalidArgument, Unsupported

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from google.protobuf.descriptor import MethodDescriptor

    from cri.rpc.ports import Containers, EventSource, Images, Node, Pods, Usages
    from cri.rpc.sessions import Streaming
    from sandbox.host.clock import Clock

#: Asked for every second or on every probe by kubelets and their tools.
QUIET: Final = frozenset(
    {
        "Version", "Status", "RuntimeConfig", "ListPodSandbox", "PodSandboxStatus",
        "ListContainers", "ContainerStatus", "ListImages", "ImageStatus", "ImageFsInfo", "ExecSync",
        "ContainerStats", "ListContainerStats", "PodSandboxStats", "ListPodSandboxStats",
        "ListPodSandboxMetrics", "ListMetricDescriptors",
    }
)  # fmt: skip

#: Where an answer larger than one message can be had in parts.
LARGER: Final = {
    "ListPodSandbox": "StreamPodSandboxes",
    "ListContainers": "StreamContainers",
    "ListContainerStats": "StreamContainerStats",
    "ListPodSandboxStats": "StreamPodSandboxStats",
    "ListPodSandboxMetrics": "StreamPodSandboxMetrics",
    "ListImages": "StreamImages",
}

#: Processes are made or enter a container in these, so they are moved between cgroups.
MOVES: Final = frozenset({"RunPodSandbox", "CreateContainer", "ExecSync"})

_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SUBJECT_LIMIT: Final = 256


def python_name(method: str) -> str:
    """`RunPodSandbox` as `run_pod_sandbox`."""
    return _WORD.sub("_", method).lower()


def build_methods(
    *,
    pods: Pods,
    containers: Containers,
    images: Images,
    node: Node,
    usages: Usages,
    events: EventSource,
    streaming: Streaming,
    clock: Clock,
    version: str,
    moving: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[Method, ...]:
    """Every method the daemon answers: both CRI services and our own three.

    `moving` is put around the calls that move processes between cgroups (`MOVES`).

    Raises:
        Unsupported: protobuf runs without its C library, whose limits on nesting are relied upon.
    """
    if api_implementation.Type() != "upb":
        raise Unsupported(
            "protobuf runs in pure Python here, which has no safe limit on nesting",
            hint="install the protobuf wheel, and unset PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION",
        )
    runtime = (
        PodCalls(pods, containers, clock),
        ContainerCalls(containers),
        SessionCalls(containers, streaming),
        ObserveCalls(pods, containers, usages, events),
        CheckpointCalls(),
        NodeCalls(node, version),
    )
    services = pb.DESCRIPTOR.services_by_name
    return (
        *(_join(method, runtime, moving) for method in services["RuntimeService"].methods),
        *(_join(method, (ImageCalls(images),)) for method in services["ImageService"].methods),
        progress_method(images, clock),
        *archive_methods(images, clock),
        verify_method(images, clock),
    )


def _join(
    descriptor: MethodDescriptor,
    owners: tuple[object, ...],
    moving: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Method:
    name = python_name(descriptor.name)
    handlers = [getattr(owner, name) for owner in owners if hasattr(owner, name)]
    if len(handlers) != 1:
        raise TypeError(f"{descriptor.full_name} has {len(handlers)} handlers, needs exactly one")
    request_class = GetMessageClass(descriptor.input_type)
    if descriptor.server_streaming:
        open_call = _opener_of_stream(descriptor.name, request_class, handlers[0])
    else:
        around = moving if descriptor.name in MOVES else nullcontext
        open_call = _opener(descriptor.name, request_class, handlers[0], around)
    return Method(
        service=descriptor.containing_service.full_name,
        name=descriptor.name,
        open=open_call,
        streams=descriptor.server_streaming,
        quiet=descriptor.name in QUIET,
        larger=LARGER.get(descriptor.name, ""),
    )


def _opener(
    name: str,
    request_class: type[Message],
    handler: Callable[[Message], Awaitable[Message | bytes]],
    around: Callable[[], AbstractContextManager[None]],
) -> Callable[[bytes], UnaryCall | StreamCall]:
    def open_call(data: bytes) -> UnaryCall:
        request = parse(request_class, data, name)
        about = subject(request)

        async def answer() -> bytes:
            with around():
                response = await handler(request)
            if isinstance(response, bytes):
                return response
            # What was made is known only now; the log line is written after the answer.
            about.update(subject(response))
            return response.SerializeToString()

        return UnaryCall(about, answer)

    return open_call


def _opener_of_stream(
    name: str,
    request_class: type[Message],
    handler: Callable[[Message], AsyncGenerator[Message | bytes, None]],
) -> Callable[[bytes], UnaryCall | StreamCall]:
    def open_call(data: bytes) -> StreamCall:
        request = parse(request_class, data, name)

        async def answers() -> AsyncGenerator[bytes, None]:
            # Closed with us and not by the garbage collector: a subscription ends with its client.
            async with aclosing(handler(request)) as responses:
                async for response in responses:
                    yield response if isinstance(response, bytes) else response.SerializeToString()

        return StreamCall(subject(request), answers)

    return open_call


def parse(request_class: type[Message], data: bytes, method: str) -> Message:
    """The request in `data`; InvalidArgument for bytes that are none (bad UTF-8 included)."""
    request = request_class()
    try:
        request.ParseFromString(data)
    except (DecodeError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InvalidArgument(
            f"{method}: the {len(data)} bytes sent are not a {request_class.DESCRIPTOR.name}"
        ) from error
    return request


def subject(message: Message) -> dict[str, str]:
    """Which objects a message names, for the log: ids, image and metadata, nothing else of it."""
    found: dict[str, str] = {}
    pod = getattr(message, "pod_sandbox_id", "")
    container = getattr(message, "container_id", "")
    image = getattr(message, "image", None)
    config = getattr(message, "config", None)
    if pod:
        found["pod"] = pod
    if container:
        found["container"] = container
    if isinstance(message, pb.PullImageResponse):
        found["id"] = message.image_ref
    if isinstance(image, pb.ImageSpec) and image.image:
        found["image"] = image.image
    if isinstance(config, pb.PodSandboxConfig):
        found["name"] = f"{config.metadata.namespace}/{config.metadata.name}"
        found["attempt"] = str(config.metadata.attempt)
    elif isinstance(config, pb.ContainerConfig):
        found["name"] = config.metadata.name
        found["attempt"] = str(config.metadata.attempt)
    return {key: value[:_SUBJECT_LIMIT] for key, value in found.items()}
