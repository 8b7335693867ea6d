"""Signature policies through the whole daemon: what a kubelet and a person at the machine see."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.catalog import base_layer
from tests.kit.crictl import Crictl, CrictlFailed
from tests.kit.faults import PATIENCE_S
from tests.kit.node import Node
from tests.kit.oci import OCI, Entry, Image, ImageConfig, make_image, make_layer
from tests.kit.registry import Pusher, running_registry, write_hosts
from tests.kit.signing import attachment, new_key, payload, public_pem, signature_tag, signed

HOST, BLOCKED = "signed.localhost", "blocked.localhost"
SIGNED, UNSIGNED, FORGED = (f"{HOST}/team/{name}:1" for name in ("good", "bare", "forged"))
SLEEP = ("sleep", "1000")
ACCEPT, REJECT = {"type": "insecureAcceptAnything"}, {"type": "reject"}
KEY = new_key()
PREFIX = "SignatureValidationFailed: "


def _image(mark: str) -> Image:
    layers = [base_layer(), make_layer([Entry("mark", mode=0o644, content=mark.encode())])]
    return make_image(layers, ImageConfig(), flavor=OCI)


@pytest.fixture(scope="module")
def certs_d(certs_d: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The registry of the kit, and one of this module with signed images."""
    work = tmp_path_factory.mktemp("signed")
    both = work / "certs.d"
    shutil.copytree(certs_d, both)
    with running_registry(work / "storage", work) as port:
        write_hosts(both, port, [HOST, BLOCKED])
        pusher = Pusher(port)
        for name, key in (("good", KEY), ("bare", None), ("forged", new_key())):
            image = _image(name)
            pusher.push(image, f"team/{name}:1")
            if key is not None:
                document = payload(f"{HOST}/team/{name}:1", image.top)
                tag = signature_tag(image.top)
                pusher.push(attachment([signed(key, document)]), f"team/{name}:{tag}")
        pusher.close()
        yield both


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`policy.json`, `namespaces/` and `key.pub`; everything is accepted at first."""
    root = tmp_path_factory.mktemp("policies")
    (root / "namespaces").mkdir()
    (root / "key.pub").write_bytes(public_pem(KEY))
    write(root / "policy.json", ACCEPT)
    return root


@pytest.fixture(scope="module")
def shared_node(certs_d: Path, policies: Path) -> Iterator[Node]:
    settings = {
        "image.signature_policy": f'"{policies}/policy.json"',
        "image.signature_policy_dir": f'"{policies}/namespaces"',
        "image.blocked_registries": f'["{BLOCKED}"]',
    }
    with Node.running("trust", certs_d, settings=settings) as node:
        yield node


@pytest.fixture(autouse=True)
def as_before(node: Node, policies: Path) -> Iterator[None]:
    """After each test everything is accepted again, and no image of this module is left."""
    yield
    write(policies / "policy.json", ACCEPT)
    for path in (policies / "namespaces").iterdir():
        path.unlink()
    for image in (SIGNED, UNSIGNED, FORGED):
        node.remove_image(image)


def write(path: Path, requirement: object, default: object = ACCEPT) -> None:
    docker = {HOST: [requirement]}
    path.write_text(json.dumps({"default": [default], "transports": {"docker": docker}}))


def demand(policies: Path) -> dict[str, object]:
    return {"type": "sigstoreSigned", "keyPath": str(policies / "key.pub")}


def refusal(caught: pytest.ExceptionInfo[grpc.RpcError]) -> str:
    """The text of a refusal, with what the kubelet goes by."""
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    return caught.value.details() or ""


def test_signed_images_run_and_others_are_not_even_pulled(node: Node, policies: Path) -> None:
    write(policies / "policy.json", demand(policies))
    node.pull(SIGNED)
    pod = node.run_pod("signed")
    container = node.run(pod, "main", SLEEP, image=SIGNED)
    assert node.exec(container, "cat", "/mark")[1] == "good"
    for image, why in ((UNSIGNED, "has no signature"), (FORGED, "another key")):
        with pytest.raises(grpc.RpcError) as caught:
            node.pull(image)
        text = refusal(caught)
        assert text.startswith(PREFIX), text
        for word in (image, why, str(policies / "policy.json"), f"scope={HOST}"):
            assert word in text
        assert not node.image_id(image)


def test_an_image_that_was_here_before_the_policy_is_judged_at_create(
    node: Node, policies: Path
) -> None:
    for image in (SIGNED, UNSIGNED):
        node.pull(image)
    write(policies / "policy.json", demand(policies))
    pod = node.run_pod("late")
    before = len(node.containers())
    with pytest.raises(grpc.RpcError) as caught:
        node.create(pod, "refused", SLEEP, image=UNSIGNED)
    text = refusal(caught)
    assert text.startswith(PREFIX)
    assert UNSIGNED in text
    assert "has no signature" in text
    assert len(node.containers()) == before
    node.run(pod, "fine", SLEEP, image=SIGNED)


def test_kept_signatures_serve_a_daemon_that_is_started_anew(node: Node, policies: Path) -> None:
    write(policies / "policy.json", demand(policies))
    node.pull(SIGNED)
    node.restart()
    pod = node.run_pod("again")
    # As the kubelet asks: by id, with what the pod's author wrote beside it.
    request = node.create_request(pod, "main", SLEEP, image=node.image_id(SIGNED))
    request.config.image.user_specified_image = SIGNED
    node.ids.add(node.runtime.CreateContainer(request, timeout=PATIENCE_S).container_id)
    request.config.metadata.name = "other"
    request.config.image.user_specified_image = SIGNED.replace(":1", ":2")
    with pytest.raises(grpc.RpcError) as caught:
        node.runtime.CreateContainer(request, timeout=PATIENCE_S)
    assert "does not accept" in refusal(caught)


def test_a_namespace_has_its_own_policy_for_pulls_and_containers(
    node: Node, policies: Path
) -> None:
    pods = {name: node.pod_config(name) for name in ("lax", "strict")}
    for name, config in pods.items():
        config.metadata.namespace = name
    write(policies / "policy.json", REJECT)
    write(policies / "namespaces/lax.json", ACCEPT)
    write(policies / "namespaces/strict.json", demand(policies))

    def pull(image: str, namespace: str) -> None:
        request = api.PullImageRequest(image=api.ImageSpec(image=image))
        request.sandbox_config.CopyFrom(pods[namespace])
        node.images.PullImage(request, timeout=PATIENCE_S)

    with pytest.raises(grpc.RpcError) as caught:
        node.pull(UNSIGNED)
    assert "requirement 1 is reject" in refusal(caught)
    with pytest.raises(grpc.RpcError) as caught:
        pull(UNSIGNED, "strict")
    assert "strict.json" in refusal(caught)
    pull(UNSIGNED, "lax")
    running = {name: node.run_config(config) for name, config in pods.items()}
    node.run(running["lax"], "main", SLEEP, image=UNSIGNED)
    with pytest.raises(grpc.RpcError) as caught:
        node.create(running["strict"], "main", SLEEP, image=UNSIGNED)
    assert "has no signature" in refusal(caught)


def test_an_image_volume_is_judged_as_the_image_itself(node: Node, policies: Path) -> None:
    for image in (SIGNED, UNSIGNED):
        node.pull(image)
    write(policies / "policy.json", demand(policies))
    pod = node.run_pod("volumes")

    def mount(image: str) -> api.Mount:
        return api.Mount(container_path="/v", image=api.ImageSpec(image=image), readonly=True)

    with pytest.raises(grpc.RpcError) as caught:
        node.create(pod, "refused", SLEEP, mounts=[mount(UNSIGNED)])
    assert refusal(caught).startswith("ImageVolumeMountFailed: ")
    assert "has no signature" in refusal(caught)
    container = node.run(pod, "main", SLEEP, mounts=[mount(SIGNED)])
    assert node.exec(container, "cat", "/v/mark")[1] == "good"


def test_a_policy_that_cannot_be_read_refuses_everything_until_it_is_mended(
    node: Node, policies: Path
) -> None:
    pod = node.run_pod("broken")
    (policies / "policy.json").write_text('{"default": [], "transports": {}}')
    for work in (lambda: node.pull(SIGNED), lambda: node.create(pod, "main", SLEEP)):
        with pytest.raises(grpc.RpcError) as caught:
            work()
        text = refusal(caught)
        assert text.startswith(f"{PREFIX}policy {policies}/policy.json: default must be a list")
    write(policies / "policy.json", ACCEPT)
    node.pull(SIGNED)
    node.run(pod, "main", SLEEP)


def test_a_blocked_registry_is_not_asked(node: Node) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        node.pull(f"{BLOCKED}/team/good:1")
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert f"images of {BLOCKED} are blocked" in (caught.value.details() or "")


def test_crictl_shows_the_refusal(node: Node, policies: Path, tmp_path: Path) -> None:
    crictl = Crictl(node.socket, tmp_path)
    write(policies / "policy.json", demand(policies))
    crictl.run("pull", SIGNED)
    assert node.image_id(SIGNED)
    with pytest.raises(CrictlFailed, match=r"SignatureValidationFailed: .*has no signature"):
        crictl.run("pull", UNSIGNED)


def test_the_daemon_itself_never_loads_the_library(node: Node, policies: Path) -> None:
    write(policies / "policy.json", demand(policies))
    node.pull(SIGNED)
    assert "cryptography" not in Path(f"/proc/{node.pid}/maps").read_text()
