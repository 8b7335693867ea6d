"""Secrets put in at every place where one can enter, and looked for wherever one could come out.

The daemon logs at debug level. A registry of ours asks for each kind of credential, redirects to
signed addresses, fails in the middle, and repeats what it was told in its error texts.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.fakes.registry import FOREVER, Cut, FakeRegistry, Status
from tests.kit.node import PATIENCE_S, Node
from tests.kit.registry import free_port

METRICS_PORT = free_port()
SETTINGS = {
    "daemon.log_level": '"debug"',
    "metrics.address": f'"127.0.0.1:{METRICS_PORT}"',
    "cni.environment": '["CANARY_FOR_PLUGINS=canary-of-the-plugins"]',
}
#: Every secret of this module contains this, in plain or in the forms it is sent in.
CANARY = "canary"
#: Base64 of it, wherever it begins in a group of three bytes.
FORMS = ("Y2FuYXJ5", "NhbmFye", "jYW5hcn")
#: The same for environments of containers, which closed files do hold.
SPARROW = "sparrow"


class Registry:
    """A fake registry with a loop of its own in a thread."""

    def __init__(self, certs_d: Path) -> None:
        self._certs_d = certs_d
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def call(self, work: Callable[[], object]) -> None:
        """Run in the loop."""

        async def run() -> None:
            work()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(PATIENCE_S)

    @contextlib.contextmanager
    def serving(self, challenge: str | None, headers: str = "") -> Iterator[FakeRegistry]:
        """A registry that the node knows, with one image: library/thing:1."""
        registry = FakeRegistry(challenge=challenge)
        wait = lambda coroutine: asyncio.run_coroutine_threadsafe(  # noqa: E731
            coroutine, self._loop
        ).result(PATIENCE_S)
        wait(registry.__aenter__())
        directory = self._certs_d / registry.domain
        directory.mkdir()
        (directory / "hosts.toml").write_text(
            f'[host."{registry.url}"]\ncapabilities = ["pull", "resolve"]\n{headers}'
        )
        try:
            yield registry
        finally:
            wait(registry.__aexit__(None, None, None))
            (directory / "hosts.toml").unlink()
            directory.rmdir()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()


@pytest.fixture(scope="module")
def registry(certs_d: Path) -> Iterator[Registry]:
    made = Registry(certs_d)
    yield made
    made.close()


def pull_error(node: Node, image: str, auth: api.AuthConfig | None = None) -> str:
    """What the client is told when the pull fails; empty when it does not."""
    request = api.PullImageRequest(image=api.ImageSpec(image=image), auth=auth)
    try:
        node.images.PullImage(request, timeout=PATIENCE_S)
    except grpc.RpcError as error:
        return str(error)
    return ""


AUTHS = {
    "password": api.AuthConfig(username="somebody", password="canary-password"),
    "auth": api.AuthConfig(auth=base64.b64encode(b"somebody:canary-password").decode()),
    "identity": api.AuthConfig(identity_token="canary-identity-token"),
    "registry": api.AuthConfig(registry_token="canary-registry-token"),
}


@pytest.mark.parametrize("kind", AUTHS)
@pytest.mark.parametrize("challenge", ["Basic", "Bearer"])
def test_credentials_of_a_pull(node: Node, registry: Registry, kind: str, challenge: str) -> None:
    auth = AUTHS[kind]
    with registry.serving(challenge) as server:
        image = server.add_image("library/thing", "1", layers=[b"not a tar"])
        wanted = server.reference("library/thing:1")
        echo = json.dumps(
            {"errors": [{"code": "DENIED", "message": _every_secret(auth), "detail": {}}]}
        ).encode()
        signed = f"{server.url}/signed?X-Amz-Signature=canary-signature&X-Amz-Credential=canary-id"
        told = [pull_error(node, wanted, auth)]  # wrong for this registry, or an unusable layer
        registry.call(lambda: server.on("/manifests/", Status(status=403, body=echo)))
        told.append(pull_error(node, wanted, auth))
        registry.call(
            lambda: server.on("/manifests/", Status(status=307, headers=[("Location", signed)]))
        )
        registry.call(lambda: server.on("/signed", Status(status=400, body=echo, times=FOREVER)))
        told.append(pull_error(node, wanted, auth))
        registry.call(
            lambda: server.on(f"/blobs/{image.layers[0].digest}", Cut(after_bytes=3, times=FOREVER))
        )
        told.append(pull_error(node, wanted, auth))
        assert all(told), told
        assert server.requests
        assert CANARY not in "".join(told)
    assert_nowhere(node)


def test_credentials_that_cannot_be_used(node: Node) -> None:
    told = [
        pull_error(node, "registry.localhost/none:1", auth)
        for auth in (
            api.AuthConfig(username="a\ncanary-name", password="canary-password"),
            api.AuthConfig(auth="canary-is-not-base64!"),
            api.AuthConfig(auth=base64.b64encode(b"canary-without-colon").decode()),
            api.AuthConfig(username="u", password="canary-p", identity_token="canary-t"),
            api.AuthConfig(
                username="u",
                password="canary-p",
                server_address="https://somebody:canary-in-address@registry.localhost/v1?k=canary",
            ),
        )
    ]
    assert all(told), told
    assert CANARY not in "".join(told)
    assert_nowhere(node)


@pytest.mark.parametrize(
    "reference",
    [
        "somebody:canary-password@registry.localhost/thing:1",
        "https://somebody:canary-password@registry.localhost/thing:1",
        "https://registry.localhost/thing:1?token=canary-token",
    ],
)
def test_references_that_carry_a_secret(node: Node, reference: str) -> None:
    told = pull_error(node, reference)
    assert told
    assert CANARY not in told
    assert_nowhere(node)


@pytest.mark.parametrize(
    "hosts",
    [
        '[host."URL".header]\nX-Token = "canary-header"\n',
        '[host."URL".header]\nX-Token = "canary-header\\n"\n',
        '[host."http://somebody:canary-password@127.0.0.1:9/"]\n',
        '[host."http://127.0.0.1:9/v2?key=canary-key"]\n',
        'server = "http://somebody:canary-password@127.0.0.1:9"\n',
    ],
)
def test_secrets_in_the_configuration_of_a_registry(
    node: Node, registry: Registry, hosts: str
) -> None:
    with registry.serving(None) as server:
        server.add_image("library/thing", "1", layers=[b"not a tar"])
        text = hosts.replace("URL", server.url)
        path = registry._certs_d / server.domain / "hosts.toml"
        if text.startswith("server"):
            path.write_text(text)
        else:
            path.write_text(path.read_text() + text)
        told = pull_error(node, server.reference("library/thing:1"))
        assert told
        assert CANARY not in told
    assert_nowhere(node)


def test_the_environment_of_a_container_is_in_closed_files_only(node: Node, handler: str) -> None:
    """Whoever may ask for the verbose status is as good as root, so it may show it."""
    pod = node.run_pod("env", handler=handler)
    env = {"PASSWORD": "sparrow-in-env"}
    container = node.start(node.create(pod, "main", ["sleep", "1000"], env=env))
    assert node.exec(container, "sh", "-c", "echo $PASSWORD")[1] == "sparrow-in-env\n"
    told = []
    for name, command in {"missing": ["/no/such/program"], "bad": ["/etc"]}.items():
        try:
            node.start(node.create(pod, name, command, env=env))
        except grpc.RpcError as error:
            told.append(str(error))
    assert len(told) == 2
    assert SPARROW not in "".join(told)
    with pytest.raises(grpc.RpcError) as failure:
        node.exec(container, "/no/such/program")
    assert SPARROW not in str(failure.value)
    node.restart()
    # With the mode it had then: the state's copy is written under a name of its own first.
    holders = {path: mode for path, mode, text in _files(node) if SPARROW in text}
    assert holders
    for path, mode in holders.items():
        assert mode & 0o077 == 0, path
        # The third is the record from which a lost state is made anew; it is closed like the state.
        is_record = path.name == f"{container}.json" and path.parent.parent.name == "records"
        is_document = path.name in {"config.json", "process.json"} or is_record
        assert is_document or path.name.startswith("state.db"), path
    _assert_not_told(node, SPARROW)


def test_the_environment_of_network_plugins(node: Node) -> None:
    node.faults.order("bridge", "ADD", "fail")
    with pytest.raises(grpc.RpcError) as failure:
        node.run_pod("plugins")
    assert CANARY not in str(failure.value)
    assert_nowhere(node)


def assert_nowhere(node: Node) -> None:
    """No secret in any file of the daemon, in its log or in its metrics."""
    assert [path for path, _, text in _files(node) if _holds(text)] == []
    _assert_not_told(node)


def _assert_not_told(node: Node, *secrets: str) -> None:
    log = node.log.read_text(errors="replace")
    assert [line for line in log.splitlines() if _holds(line, *secrets)] == []
    connection = http.client.HTTPConnection("127.0.0.1", METRICS_PORT, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        metrics = answer.read().decode()
    assert answer.status == http.client.OK
    assert "podwright_rpc_duration_seconds" in metrics
    assert not _holds(metrics, *secrets)


def _holds(text: str, *secrets: str) -> bool:
    return any(form in text for form in (CANARY, *FORMS, *secrets))


def _every_secret(auth: api.AuthConfig) -> str:
    basic = base64.b64encode(f"{auth.username}:{auth.password}".encode()).decode()
    known = (auth.password, auth.auth, auth.identity_token, auth.registry_token)
    return f"you said Basic {basic} and " + " ".join(filter(None, known))


def _files(node: Node) -> Iterator[tuple[Path, int, str]]:
    """Path, mode and content of each."""
    for root in (node.run_root, node.state_root):
        for path in root.rglob("*"):
            with contextlib.suppress(OSError):
                if path.is_file() and not path.is_symlink() and "rootfs" not in path.parts:
                    yield path, path.stat().st_mode, path.read_bytes().decode("latin-1")
