"""One daemon and one registry for all of these tests; images are made by the test that needs them.

A hostile image is a list of tar members over the kit's busybox, pushed under a name of its own:

    image = hostile.push("etc-is-a-link", Tar().symlink("etc", "/run/canary"), user="1000")
    hostile.node.pull(image)

A test that needs another daemon than the shared one starts it with `hostile.daemon(...)`.
"""

from __future__ import annotations

import contextlib
import gzip
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.catalog import base_layer
from tests.kit.images import make_sets
from tests.kit.node import Node
from tests.kit.oci import ImageConfig, Layer, make_image
from tests.kit.registry import Pusher, running_registry, write_hosts
from tests.kit.tars import Tar, diff_id

#: Where hack/images keeps what it has made.
STORAGE = Path("/var/cache/podwright/images")
HOST = "hostile.localhost"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever drives a daemon does it as root; the census of its node is the leak check."""
    here = Path(__file__).parent
    for item in items:
        names = getattr(item, "fixturenames", ())
        if item.path.is_relative_to(here) and ("node" in names or "hostile" in names):
            item.add_marker(pytest.mark.root(leaks=True))
            item.add_marker(pytest.mark.integration)
            item.add_marker(pytest.mark.slow)


@dataclass
class Hostile:
    """A registry that takes any image, and the configuration that leads to it."""

    port: int
    certs_d: Path
    pushed: dict[str, str] = field(default_factory=dict)

    def push(self, name: str, tar: Tar | None = None, **config: object) -> str:
        """Push an image of busybox with `tar` over it; its reference. Once for each name.

        Args:
            name: repository, unique among all tests.
            tar: further members.
            config: of `ImageConfig`.
        """
        if name not in self.pushed:
            layers = [base_layer(own_shell=False)]
            if tar is not None:
                plain = tar.done()
                layers.append(Layer(gzip.compress(plain, 1, mtime=0), diff_id(plain)))
            pusher = Pusher(self.port)
            with contextlib.closing(pusher):
                pusher.push(
                    make_image(layers, ImageConfig(**{"command": ["sh"], **config})),  # type: ignore[arg-type]
                    f"{name}:1",
                )
            self.pushed[name] = f"{HOST}/{name}:1"
        return self.pushed[name]

    @contextlib.contextmanager
    def daemon(self, name: str, settings: Mapping[str, str] | None = None) -> Iterator[Node]:
        """A daemon of the test's own."""
        with Node.running(name, self.certs_d, settings=settings) as node:
            yield node


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    """A registry for images that nobody should run, beside the one of the kit."""
    work = tmp_path_factory.mktemp("registries")
    kit = make_sets(STORAGE, ["first-pod"])
    (work / "own").mkdir()
    (work / "kit").mkdir()
    with (
        running_registry(kit, work / "kit") as kit_port,
        running_registry(work / "own" / "storage", work / "own") as port,
    ):
        write_hosts(work / "certs.d", kit_port)
        write_hosts(work / "certs.d", port, [HOST])
        yield Hostile(port, work / "certs.d")


@pytest.fixture(scope="session")
def shared_node(hostile: Hostile) -> Iterator[Node]:
    """One node for all, because a daemon takes a second to start."""
    with hostile.daemon("security") as node:
        yield node


@pytest.fixture
def node(shared_node: Node) -> Iterator[Node]:
    """The shared node, with a daemon that runs; after the test nothing may be left of it."""
    if shared_node.process is None:
        shared_node.start_daemon()
    for logs in shared_node.logs.glob("*"):
        shutil.rmtree(logs)
    known = {image.id for image in _images(shared_node)}
    yield shared_node
    if shared_node.process is None:
        shared_node.start_daemon()
    shared_node.remove_everything()
    for image in _images(shared_node):
        if image.id not in known:
            shared_node.remove_image(image.id)
    shared_node.assert_clean()


def _images(node: Node) -> list[api.Image]:
    return list(node.images.ListImages(api.ListImagesRequest(), timeout=60).images)


@pytest.fixture(params=["crun", "runc"])
def handler(request: pytest.FixtureRequest) -> str:
    """Each of the OCI runtimes."""
    return str(request.param)


def code_of(error: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    """The code of a refused call."""
    return error.value.code()  # type: ignore[attr-defined]
