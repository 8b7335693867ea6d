"""What tests of a daemon against a faulty registry have in common.

Each says what the registry does wrong, what the client is told, and that the same request succeeds
once the registry behaves. `registry` removes the images afterwards, so that the node's own census
sees partial downloads, layers and documents that stayed behind.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import grpc
import pytest

from protos import api_pb2 as api
from protos import api_pb2_grpc as rpc
from tests.fakes.registry import FakeImage, FakeRegistry, make_tar
from tests.fakes.registry_thread import ScriptedRegistry, scripted_registry
from tests.kit.calls import until
from tests.kit.node import PATIENCE_S, Node
from tests.kit.runtimes import connect

KIB: Final = 1024
MIB: Final = 1 << 20
#: So short that a test need not wait for minutes, so long that a busy machine does not trip them.
SETTINGS: Final = {
    "image.pull_progress_timeout_s": "2.0",
    "image.min_progress_bytes": "4096",
    "image.connect_timeout_s": "2.0",
    "image.mirror_connect_timeout_s": "1.0",
    "image.response_timeout_s": "2.0",
}
Code = grpc.StatusCode
#: A registry's silence is a deadline that passed, or its unavailability in the kubelet's words.
SILENT: Final = (Code.DEADLINE_EXCEEDED, Code.UNKNOWN)


@pytest.fixture
def registry(node: Node) -> Iterator[ScriptedRegistry]:
    """An open registry on loopback; its images are gone from the node afterwards."""
    with scripted_registry() as serving:
        yield serving
        remove_images_of(node, serving)


def remove_images_of(node: Node, registry: FakeRegistry) -> None:
    """Remove every image that came from this registry, whoever named it."""
    for image in listed(node):
        if any(registry.domain in name for name in (*image.repo_tags, *image.repo_digests)):
            node.remove_image(image.id)


def listed(node: Node) -> list[api.Image]:
    """ListImages."""
    return list(node.images.ListImages(api.ListImagesRequest(), timeout=PATIENCE_S).images)


def noise(seed: int, size_bytes: int) -> bytes:
    """A plain tar of one file that does not compress, so that offsets mean something."""
    return make_tar({f"noise-{seed}": random.Random(seed).randbytes(size_bytes)})


def add_noise(
    registry: FakeRegistry, name: str, *sizes_bytes: int, tag: str = "1", seed: int = 0
) -> FakeImage:
    """An image with a layer of noise for each size."""
    base = int.from_bytes(hashlib.sha256(f"{name}{seed}".encode()).digest()[:6])
    layers = [noise(base + number, size) for number, size in enumerate(sizes_bytes)]
    return registry.add_image(name, tag, layers=layers)


def blob(image: FakeImage, number: int = 0) -> str:
    """What requests for one of its layers have in their target."""
    return f"/blobs/{image.layers[number].digest}"


def assert_refused(
    node: Node,
    image: str,
    codes: grpc.StatusCode | tuple[grpc.StatusCode, ...],
    *words: str,
    timeout: float = PATIENCE_S,
) -> str:
    """A pull fails with one of the codes and says all the words; nothing of it can be seen.

    Returns:
        what the client was told.
    """
    with answering(node), pytest.raises(grpc.RpcError) as caught:
        node.pull(image, timeout=timeout)
    code, text = caught.value.code(), str(caught.value.details())
    assert code in (codes if isinstance(codes, tuple) else (codes,)), (code, text)
    assert code is not Code.UNKNOWN or text.startswith("RegistryUnavailable: "), text
    for word in words:
        assert word in text, text
    assert "Traceback" not in text
    assert node.image_id(image) == ""
    until(lambda: not stagings(node), "the pull's other layers have ended")
    return text


def assert_pulled(node: Node, registry: FakeRegistry, image: str) -> str:
    """The registry behaves now, and the same request succeeds; the image's id."""
    registry.calm()
    image_id = node.pull(image)
    assert node.image_id(image) == image_id
    assert stagings(node) == []
    assert partials(node) == []
    return image_id


def assert_served(registry: FakeRegistry, digest: str, size_bytes: int) -> None:
    """So many bytes of the blob were sent, and no more; the last of them are counted late."""
    until(lambda: registry.served_bytes[digest] >= size_bytes, f"{size_bytes} bytes have been sent")
    assert registry.served_bytes[digest] == size_bytes, "a byte was sent twice"


def stagings(node: Node) -> list[str]:
    """Layers on their way."""
    return [path.name for path in (node.state_root / "images/staging").iterdir()]


def partials(node: Node) -> list[Path]:
    """Blobs on their way, or kept for the next try."""
    return list((node.state_root / "images/ingest").iterdir())


@contextmanager
def answering(node: Node) -> Iterator[None]:
    """The daemon answers others, again and again, while the block runs."""
    over, failures, answers = threading.Event(), [], []

    def ask() -> None:
        with connect(node.socket) as channel:
            runtime = rpc.RuntimeServiceStub(channel)
            while True:
                try:
                    answers.append(runtime.Version(api.VersionRequest(), timeout=PATIENCE_S))
                except grpc.RpcError as error:
                    failures.append(error)
                if over.wait(0.02):
                    return

    thread = threading.Thread(target=ask, name="asking")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert failures == []
    assert answers


class Pulling:
    """A pull in flight; it is called off when nobody refers to it any more."""

    def __init__(self, node: Node, image: str, timeout: float = PATIENCE_S) -> None:
        request = api.PullImageRequest(image=api.ImageSpec(image=image))
        self._call = node.images.PullImage.future(request, timeout=timeout)

    @property
    def is_over(self) -> bool:
        return bool(self._call.done())

    def leave(self) -> None:
        """What a client does that does not want it any more."""
        self._call.cancel()

    def result(self, timeout: float | None = PATIENCE_S) -> str:
        """The image's id; raises grpc.RpcError."""
        return str(self._call.result(timeout).image_ref)

    def code(self) -> grpc.StatusCode:
        """How it ended, once it has."""
        with suppress(grpc.RpcError, grpc.FutureCancelledError):
            self._call.result(timeout=PATIENCE_S)
            return Code.OK
        return self._call.code()
