"""The command line's side of the socket: a few calls, with failures in our own words.

Blocking, because a command does one thing; no generated stubs, because a few methods need none.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Self, TypeVar

import grpc
import msgspec
from google.protobuf.message import Message

from cri.rpc.archives import SERVICE as ARCHIVES
from cri.rpc.archives import LoadRequest, LoadUpdate, PinRequest
from cri.rpc.progress import METHOD, SERVICE, PullRequest, PullUpdate
from cri.rpc.verify import SERVICE as STORE
from cri.rpc.verify import VerifyRequest, VerifyUpdate
from cri.status import CODES
from protos import api_pb2 as pb
from sandbox.host.errors import Denied, PodwrightError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

_LIMIT_BYTES: Final = 16 * 1024 * 1024
#: Everything asked here is answered from memory.
CALL_TIMEOUT_S: Final = 10.0
RUNTIME: Final = "runtime.v1.RuntimeService"
IMAGE: Final = "runtime.v1.ImageService"

M = TypeVar("M", bound=Message)
#: For those who may not know that there is a wire.
ImageList = pb.ListImagesResponse


class DaemonClient:
    """A connection to the daemon; a context manager."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._channel = grpc.insecure_channel(
            f"unix:{socket}", options=(("grpc.max_receive_message_length", _LIMIT_BYTES),)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._channel.close()

    def version(self) -> pb.VersionResponse:
        """Who answers. Raises Unavailable when nobody does."""
        return self._call(RUNTIME, "Version", pb.VersionRequest(), pb.VersionResponse)

    def status(self) -> pb.StatusResponse:
        """Conditions, handlers, and under `info` what else is known."""
        request = pb.StatusRequest(verbose=True)
        return self._call(RUNTIME, "Status", request, pb.StatusResponse)

    def pods(self) -> pb.ListPodSandboxResponse:
        """All pods."""
        return self._call(
            RUNTIME, "ListPodSandbox", pb.ListPodSandboxRequest(), pb.ListPodSandboxResponse
        )

    def containers(self) -> pb.ListContainersResponse:
        """All containers."""
        return self._call(
            RUNTIME, "ListContainers", pb.ListContainersRequest(), pb.ListContainersResponse
        )

    def pods_by_state(self) -> Iterator[str]:
        """State of every pod, in words."""
        for pod in self.pods().items:
            yield pb.PodSandboxState.Name(pod.state).removeprefix("SANDBOX_").lower()

    def containers_by_state(self) -> Iterator[str]:
        """State of every container, in words."""
        for container in self.containers().containers:
            yield pb.ContainerState.Name(container.state).removeprefix("CONTAINER_").lower()

    def images(self) -> pb.ListImagesResponse:
        """All images."""
        return self._call(IMAGE, "ListImages", pb.ListImagesRequest(), pb.ListImagesResponse)

    def pull(self, image: str, username: str = "", password: str = "") -> Iterator[PullUpdate]:
        """Pull an image; the last update has its id. Leaving the client ends the wait."""
        request = msgspec.json.encode(PullRequest(image, username, password))
        stream = self._channel.unary_stream(f"/{SERVICE}/{METHOD}", None, None)(request)
        try:
            for data in stream:
                yield msgspec.json.decode(data, type=PullUpdate)
        except grpc.RpcError as error:
            raise self._failure(error) from error

    def image_id(self, image: str) -> str:
        """The id of an image, "" when it is not here."""
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=image))
        return self._call(IMAGE, "ImageStatus", request, pb.ImageStatusResponse).image.id

    def remove_image(self, image: str) -> None:
        """Forget an image; large layers take a while to go."""
        request = pb.RemoveImageRequest(image=pb.ImageSpec(image=image))
        self._call(IMAGE, "RemoveImage", request, pb.RemoveImageResponse, timeout_s=None)

    def load(self, archive: Iterator[bytes], name: str, pinned: bool) -> Iterator[LoadUpdate]:
        """Send an archive; the last update has its images."""
        failed: list[PodwrightError] = []

        def messages() -> Iterator[bytes]:
            yield msgspec.json.encode(LoadRequest(name, pinned))
            try:
                yield from (chunk for chunk in archive if chunk)
            except PodwrightError as error:
                failed.append(error)  # grpc would only log it
                raise

        stream = self._channel.stream_stream(f"/{ARCHIVES}/Load", None, None)(messages())
        try:
            for data in stream:
                yield msgspec.json.decode(data, type=LoadUpdate)
        except grpc.RpcError as error:
            raise (failed[0] if failed else self._failure(error)) from error

    def save(self, images: Sequence[str], form: str) -> Iterator[bytes]:
        """A document with the length of an archive (`SaveHead`), then its bytes."""
        request = msgspec.json.encode({"images": list(images), "form": form})
        stream = self._channel.unary_stream(f"/{ARCHIVES}/Save", None, None)(request)
        try:
            yield from stream
        except grpc.RpcError as error:
            raise self._failure(error) from error

    def verify(self, repair: bool) -> Iterator[VerifyUpdate]:
        """Have the store looked through; the last update has what is wrong."""
        request = msgspec.json.encode(VerifyRequest(repair))
        stream = self._channel.unary_stream(f"/{STORE}/Verify", None, None)(request)
        try:
            for data in stream:
                yield msgspec.json.decode(data, type=VerifyUpdate)
        except grpc.RpcError as error:
            raise self._failure(error) from error

    def pin(self, image: str, pinned: bool) -> None:
        """Keep garbage collection from an image, or no longer."""
        call = self._channel.unary_unary(f"/{ARCHIVES}/Pin", None, None)
        try:
            call(msgspec.json.encode(PinRequest(image, pinned)), timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise self._failure(error) from error

    def _call(
        self,
        service: str,
        method: str,
        request: Message,
        response: type[M],
        *,
        timeout_s: float | None = CALL_TIMEOUT_S,
    ) -> M:
        call = self._channel.unary_unary(f"/{service}/{method}", None, None)
        try:
            data: bytes = call(request.SerializeToString(), timeout=timeout_s)
        except grpc.RpcError as error:
            raise self._failure(error) from error
        answer = response()
        answer.ParseFromString(data)
        return answer

    def _failure(self, error: grpc.RpcError) -> PodwrightError:
        code = error.code()
        if code is grpc.StatusCode.UNAVAILABLE:
            path = str(self._socket)
            if self._socket.exists() and not os.access(self._socket, os.R_OK | os.W_OK):
                return Denied("the daemon's socket is not ours to use", path=path, hint="use root")
            return Unavailable(
                "no daemon answers on the socket",
                path=path,
                hint="start it with podwright serve, or name its --socket",
            )
        kinds = {number: kind for kind, number in CODES.items()}
        return kinds.get(code, PodwrightError)(error.details() or code.name)
