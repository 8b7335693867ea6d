"""The node's own credentials and proxy in a whole daemon: they work, and nothing shows them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.fakes.proxy import FakeProxy
from tests.fakes.registry import FakeRegistry, make_tar
from tests.integration.test_secrets_stay_secret import (
    CANARY,
    METRICS_PORT,
    Registry,
    assert_nowhere,
)
from tests.kit.node import PATIENCE_S, Node
from tests.kit.registry import free_port

PLACE = tempfile.TemporaryDirectory(prefix="podwright-credentials-")
ROOT = Path(PLACE.name)
PROXY_PORT = free_port()
SETTINGS = {
    "daemon.log_level": '"debug"',
    "metrics.address": f'"127.0.0.1:{METRICS_PORT}"',
    "image.auth_file": f'"{ROOT}/auth.json"',
    "image.namespaced_auth_dir": f'"{ROOT}/auth"',
    "image.credential_helper_dirs": f'["{ROOT}/helpers"]',
    "image.http_proxy": f'"http://canary-user:canary-password@127.0.0.1:{PROXY_PORT}"',
}
USERS = {"alice": "canary-password"}


@pytest.fixture(scope="module")
def registry(certs_d: Path) -> Iterator[Registry]:
    made = Registry(certs_d)
    yield made
    made.close()
    PLACE.cleanup()


@pytest.fixture(autouse=True)
def _no_files() -> Iterator[None]:
    for name in ("auth/shop", "helpers"):
        (ROOT / name).mkdir(parents=True, exist_ok=True, mode=0o755)
    yield
    for path in [ROOT / "auth.json", *ROOT.glob("auth/*.json"), ROOT / "auth/shop/config.json"]:
        path.unlink(missing_ok=True)


def write(path: Path, document: dict[str, object], mode: int = 0o600) -> Path:
    path.write_text(json.dumps(document))
    path.chmod(mode)
    return path


def of(server: FakeRegistry) -> dict[str, object]:
    return {"auths": {server.domain: {"username": "alice", "password": USERS["alice"]}}}


def pull(node: Node, image: str, namespace: str = "") -> str:
    """Pull; what the client is told when it fails, empty when not."""
    pod = api.PodSandboxConfig(metadata=api.PodSandboxMetadata(namespace=namespace))
    request = api.PullImageRequest(image=api.ImageSpec(image=image), sandbox_config=pod)
    try:
        node.images.PullImage(request, timeout=PATIENCE_S)
    except grpc.RpcError as error:
        return str(error)
    node.images.RemoveImage(
        api.RemoveImageRequest(image=api.ImageSpec(image=image)), timeout=PATIENCE_S
    )
    return ""


@pytest.mark.parametrize("challenge", ["Basic", "Bearer"])
def test_files_of_all_of_a_namespace_and_of_one_pull(
    node: Node, registry: Registry, challenge: str
) -> None:
    with registry.serving(challenge) as server:
        registry.call(lambda: server.users.update(USERS))
        server.add_image("library/thing", "1", layers=[make_tar({"a": b"a"})])
        image = server.reference("library/thing:1")
        assert "UNAUTHENTICATED" in pull(node, image)
        common = write(ROOT / "auth.json", of(server))
        assert pull(node, image) == ""
        assert pull(node, image, "shop") == ""
        mine = write(ROOT / "auth/shop/config.json", {})
        assert "UNAUTHENTICATED" in pull(node, image, "shop")
        assert pull(node, image, "bank") == ""
        name = hashlib.sha256(server.reference("library/thing").encode()).hexdigest()
        once = write(ROOT / f"auth/shop-{name}.json", of(server))
        assert pull(node, image, "shop") == ""
        assert not once.exists()
        common.chmod(0o644)
        told = pull(node, image)
        assert "FAILED_PRECONDITION" in told
        assert f"chmod 600 {common}" in told
        assert CANARY not in told
        mine.unlink()
    assert_nowhere(node)


def test_a_helper(node: Node, registry: Registry) -> None:
    with registry.serving("Basic") as server:
        registry.call(lambda: server.users.update(USERS))
        server.add_image("library/thing", "1", layers=[make_tar({"b": b"b"})])
        image = server.reference("library/thing:1")
        write(ROOT / "auth.json", {"credHelpers": {server.domain: "mine"}})
        helper = ROOT / "helpers/docker-credential-mine"
        helper.write_text('#!/bin/sh\necho "{\\"Username\\":\\"alice\\",'
                          '\\"Secret\\":\\"canary-password\\"}"\n')  # fmt: skip
        helper.chmod(0o755)
        assert pull(node, image) == ""
        helper.write_text("#!/bin/sh\necho canary-said; echo canary-cried >&2; exit 1\n")
        told = pull(node, image)
        assert str(helper) in told
        assert CANARY not in told
        helper.unlink()
        assert "image.credential_helper_dirs" in pull(node, image)
    assert_nowhere(node)


def test_a_proxy(node: Node, registry: Registry, certs_d: Path) -> None:
    with registry.serving("Bearer") as server:
        registry.call(lambda: server.users.update(USERS))
        server.add_image("library/thing", "1", layers=[make_tar({"c": b"c"})])
        registry.call(lambda: setattr(server, "host", "registry.test"))
        hosts = certs_d / server.domain / "hosts.toml"
        hosts.parent.mkdir()
        hosts.write_text(f'server = "{server.url}"\n')
        image = server.reference("library/thing:1")
        write(ROOT / "auth.json", of(server))
        told = pull(node, image)
        assert f"cannot connect to proxy http://127.0.0.1:{PROXY_PORT}" in told
        assert CANARY not in told
        proxy = FakeProxy(server.port, authorization="Basic of-somebody-else")
        _in_loop(registry, proxy.__aenter__(PROXY_PORT))
        try:
            told = pull(node, image)
            assert "does not accept its user" in told
            assert CANARY not in told
            proxy.authorization = proxy.requests[-1].header("Proxy-Authorization")
            assert proxy.authorization
            assert pull(node, image) == ""
            assert any("/blobs/" in asked.first for asked in proxy.requests)
            assert server.seen("/token")
        finally:
            _in_loop(registry, proxy.__aexit__(None, None, None))
            hosts.unlink()
            hosts.parent.rmdir()
            registry.call(lambda: setattr(server, "host", "127.0.0.1"))
    assert_nowhere(node)


def test_the_verbose_status_does_not_show_the_proxys_password(node: Node) -> None:
    status = node.runtime.Status(api.StatusRequest(verbose=True), timeout=PATIENCE_S)
    assert f"[redacted]@127.0.0.1:{PROXY_PORT}" in str(status)
    assert CANARY not in str(status)


def _in_loop(registry: Registry, coroutine: object) -> None:
    assert asyncio.iscoroutine(coroutine)
    asyncio.run_coroutine_threadsafe(coroutine, registry._loop).result(PATIENCE_S)
