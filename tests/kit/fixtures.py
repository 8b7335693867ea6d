"""Fixtures of tests that drive a whole daemon; each test must leave its node as it found it.

A conftest imports the ones that it wants. Whatever a test does, at its end the node is judged: no
leaks, no refusal in dishonest words, nothing of the machine itself touched.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.canary import HostPicture
from tests.kit.images import make_sets
from tests.kit.node import Node
from tests.kit.operations import Bystander
from tests.kit.registry import running_registry, write_hosts

__all__ = ["bystander", "certs_d", "handler", "node", "shared_bystander", "shared_node"]

#: Where hack/images keeps what it has made.
STORAGE = Path("/var/cache/podwright/images")


@pytest.fixture(scope="session")
def certs_d(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory that leads to a registry with the images of the kit."""
    registry = make_sets(STORAGE, ["first-pod", "critest"])
    work = tmp_path_factory.mktemp("registry")
    with running_registry(registry, work) as port:
        write_hosts(work / "certs.d", port)
        yield work / "certs.d"


@pytest.fixture(scope="module")
def shared_node(request: pytest.FixtureRequest, certs_d: Path) -> Iterator[Node]:
    """One node for a module, because a daemon takes a second to start.

    A module may say `IMAGES`, `SETTINGS` and `FAILPOINTS`.
    """
    options = {
        key: getattr(request.module, key.upper())
        for key in ("images", "settings", "failpoints")
        if hasattr(request.module, key.upper())
    }
    with Node.running(request.module.__name__, certs_d, **options) as node:
        yield node


@pytest.fixture
def node(shared_node: Node) -> Iterator[Node]:
    """The module's node, with a daemon that runs; after the test nothing may be left of it."""
    if shared_node.process is None:
        shared_node.start_daemon()
    for logs in shared_node.logs.glob("*"):
        if logs.name != "bystander":
            shutil.rmtree(logs)
    shared_node.dishonest.clear()
    picture = HostPicture.taken()
    yield shared_node
    shared_node.faults.clear()
    if shared_node.process is None:
        shared_node.start_daemon()
    shared_node.remove_everything()
    shared_node.assert_clean()
    shared_node.assert_honest()
    picture.assert_untouched()


@pytest.fixture(params=["crun", "runc"])
def handler(request: pytest.FixtureRequest) -> str:
    """Each of the OCI runtimes."""
    return str(request.param)


@pytest.fixture(scope="module")
def shared_bystander(shared_node: Node) -> Bystander:
    """A pod that is there before every test of the module and after it."""
    bystander = Bystander.placed(shared_node)
    shared_node.take_baseline()
    return bystander


@pytest.fixture
def bystander(shared_bystander: Bystander, node: Node) -> Iterator[Bystander]:
    """The module's bystander; the test may do to others what it wants."""
    yield shared_bystander
    shared_bystander.assert_untouched()
