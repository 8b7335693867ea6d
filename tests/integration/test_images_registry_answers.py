"""A registry whose answers are false, endless or lead elsewhere, and registries nobody can reach.

Cells RG5, RG7, RG8, RG10 to RG13, RG16 and RG17 of the fault matrix, against a whole daemon.
"""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.fakes.registry import (
    FOREVER,
    OCI_INDEX,
    OCI_MANIFEST,
    Alter,
    Pass,
    Status,
    make_certificate,
)
from tests.fakes.registry_thread import ScriptedRegistry, scripted_registry
from tests.integration import registry_node
from tests.integration.registry_node import (
    KIB,
    Code,
    add_noise,
    assert_pulled,
    assert_refused,
    blob,
    listed,
    partials,
    remove_images_of,
)
from tests.kit.catalog import base_layer
from tests.kit.node import PATIENCE_S, Node
from tests.kit.oci import Entry, make_layer
from tests.kit.registry import free_port

registry = registry_node.registry
SETTINGS = registry_node.SETTINGS
SIZE = 300 * KIB
ZERO = "sha256:" + "0" * 64


@contextmanager
def hosts_toml(certs_d: Path, host: str, text: str) -> Iterator[None]:
    """What an operator writes for one registry, until the block ends; read anew for each pull."""
    directory = certs_d / host
    directory.mkdir()
    path = directory / "hosts.toml"
    path.write_text(text)
    try:
        yield
    finally:
        path.unlink()
        directory.rmdir()


@pytest.mark.cell("RG5")
def test_another_manifest_than_the_digest_asked_for(node: Node, registry: ScriptedRegistry) -> None:
    made = add_noise(registry, "app", SIZE)
    other = add_noise(registry, "other", SIZE)
    image = registry.reference(f"app@{made.manifest.digest}")
    body = registry.manifests["other", other.manifest.digest][1]
    registry.on("/manifests/", Alter(body=body, times=FOREVER))
    assert_refused(node, image, Code.DATA_LOSS, made.manifest.digest)
    assert_pulled(node, registry, image)


@pytest.mark.cell("RG7")
def test_a_registry_that_never_has_enough_of_401(node: Node) -> None:
    with scripted_registry(challenge="Bearer") as registry:
        add_noise(registry, "app", SIZE)
        image = registry.reference("app:1")
        realm = f'Bearer realm="{registry.url}/token",scope="repository:app:pull"'
        denial = Status(status=401, headers=[("WWW-Authenticate", realm)], times=FOREVER)
        registry.on("/manifests/", denial)
        assert_refused(node, image, Code.UNAUTHENTICATED, registry.domain)
        assert len(registry.requests) < 10
        assert_pulled(node, registry, image)
        remove_images_of(node, registry)


@pytest.mark.cell("RG7")
def test_a_token_that_expires_in_the_middle_is_renewed_once(node: Node) -> None:
    with scripted_registry(challenge="Bearer") as registry:
        made = add_noise(registry, "app", SIZE, SIZE)
        realm = f'Bearer realm="{registry.url}/token",scope="repository:app:pull"'
        denial = Status(status=401, headers=[("WWW-Authenticate", realm)])
        registry.on(blob(made, 1), denial)
        node.pull(registry.reference("app:1"))
        assert len(registry.seen("/token")) == 2
        remove_images_of(node, registry)


def _redirect(location: str, times: int = FOREVER) -> Status:
    return Status(status=307, headers=[("Location", location)], times=times)


@pytest.mark.cell("RG8")
@pytest.mark.parametrize("part", ["/manifests/", "/blobs/"])
def test_redirects_in_a_circle(node: Node, registry: ScriptedRegistry, part: str) -> None:
    add_noise(registry, "app", SIZE)
    image = registry.reference("app:1")
    registry.on(part, _redirect(f"/v2/app{part}round"))
    assert_refused(node, image, Code.UNKNOWN, registry.domain)
    assert len(registry.seen(part)) < 40
    assert_pulled(node, registry, image)


@pytest.mark.cell("RG8")
def test_eleven_redirects_in_a_row(node: Node, registry: ScriptedRegistry) -> None:
    made = add_noise(registry, "app", SIZE)
    image = registry.reference("app:1")
    for number in range(10):
        registry.on(f"/hop-{number}-", _redirect(f"/v2/app/blobs/hop-{number + 1}-"))
    registry.on("/hop-10-", _redirect(f"/v2/app{blob(made)}?last"))
    registry.on(f"{blob(made)}?last", Pass(times=FOREVER))
    registry.on(blob(made), _redirect("/v2/app/blobs/hop-0-"))
    assert_refused(node, image, Code.UNKNOWN, registry.domain)
    assert registry.seen("?last") == []
    assert_pulled(node, registry, image)


@pytest.mark.cell("RG8")
@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "unix:///run/podwright/podwright.sock",
        "ftp://127.0.0.1/blob",
        "gopher://127.0.0.1/",
        "http://169.254.169.254/latest/meta-data",
        "//",
        "http://",
    ],
)
def test_redirects_to_where_nobody_goes(
    node: Node, registry: ScriptedRegistry, location: str
) -> None:
    made = add_noise(registry, "app", SIZE)
    image = registry.reference("app:1")
    registry.on(blob(made), _redirect(location))
    assert_refused(node, image, Code.UNKNOWN, registry.domain)
    assert_pulled(node, registry, image)


@pytest.mark.cell("RG8")
def test_a_redirect_to_another_host_carries_no_token(node: Node) -> None:
    with scripted_registry(challenge="Bearer") as registry, scripted_registry() as store:
        made = add_noise(registry, "app", SIZE)
        store.blobs.update(registry.blobs)
        registry.on(blob(made), Pass(), _redirect(f"{store.url}/v2/x{blob(made)}"))
        registry.on(blob(made), _redirect(f"{store.url}/v2/x{blob(made)}"))
        node.pull(registry.reference("app:1"))
        assert any(r.header("Authorization") for r in registry.seen("/manifests/"))
        assert [r.header("Authorization") for r in store.requests] == [None] * len(store.requests)
        remove_images_of(node, registry)


@pytest.mark.cell("RG8")
def test_from_tls_to_plain_http(node: Node, certs_d: Path, tmp_path: Path) -> None:
    pem = make_certificate(tmp_path)
    with (
        scripted_registry(tls=pem.server_context()) as registry,
        scripted_registry() as store,
        hosts_toml(
            certs_d, registry.domain, f'server = "{registry.url}"\nca = "{pem.certificate}"\n'
        ),
    ):
        made = add_noise(registry, "app", SIZE)
        image = registry.reference("app:1")
        store.blobs.update(registry.blobs)
        registry.on(blob(made), _redirect(f"{store.url}/v2/x{blob(made)}"))
        assert_refused(node, image, Code.UNKNOWN, registry.domain)
        assert store.requests == []
        assert_pulled(node, registry, image)
        remove_images_of(node, registry)


@pytest.mark.cell("RG10")
@pytest.mark.parametrize(
    ("names", "days", "trusted"),
    [
        ("DNS:localhost,IP:127.0.0.1", -1, True),
        ("DNS:registry.example", 2, True),
        ("DNS:localhost,IP:127.0.0.1", 2, False),
    ],
    ids=["expired", "wrong name", "self-signed"],
)
def test_tls_that_cannot_be_trusted(
    node: Node, certs_d: Path, tmp_path: Path, names: str, days: int, trusted: bool
) -> None:
    pem = make_certificate(tmp_path, subject_names=names, days=days)
    with scripted_registry(tls=pem.server_context()) as registry:
        add_noise(registry, "app", SIZE)
        image = registry.reference("app:1")
        text = f'server = "{registry.url}"\n' + (f'ca = "{pem.certificate}"\n' if trusted else "")
        with hosts_toml(certs_d, registry.domain, text):
            assert_refused(node, image, Code.UNKNOWN, registry.domain, "certificate")
            assert registry.requests == []
        lax = f'server = "{registry.url}"\nskip_verify = true\n'
        with hosts_toml(certs_d, registry.domain, lax):
            assert_pulled(node, registry, image)
        remove_images_of(node, registry)


@contextmanager
def blackhole() -> Iterator[int]:
    """A port of loopback that answers no SYN: the queue of who wants in is full, nobody accepts."""
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield int(listener.getsockname()[1])


@pytest.mark.cell("RG10")
def test_a_port_where_nobody_listens(node: Node) -> None:
    domain = f"127.0.0.1:{free_port()}"
    assert_refused(node, f"{domain}/app:1", Code.UNKNOWN, domain)


@pytest.mark.cell("RG10")
def test_an_address_that_swallows_everything(node: Node) -> None:
    with blackhole() as port:
        assert_refused(node, f"127.0.0.1:{port}/app:1", Code.UNKNOWN, f"127.0.0.1:{port}")


@pytest.mark.cell("RG10")
def test_a_name_that_does_not_resolve(node: Node) -> None:
    """A label of 64 letters is no name at all, so no server anywhere is asked."""
    domain = f"{'x' * 64}.invalid"
    assert_refused(node, f"{domain}/app:1", (Code.UNKNOWN, Code.INVALID_ARGUMENT), domain[:40])


@pytest.mark.cell("RG11")
def test_ten_thousand_entries_and_none_for_this_machine(
    node: Node, registry: ScriptedRegistry
) -> None:
    made = add_noise(registry, "app", SIZE)
    entries = {f"linux/arch{number}": made.manifest for number in range(10_000)}
    registry.add_index("app", "all", entries)
    asked = len(registry.requests)
    assert_refused(node, registry.reference("app:all"), Code.NOT_FOUND)
    assert len(registry.requests) - asked < 5
    registry.add_index("app", "all", {**entries, "linux/amd64": made.manifest})
    assert_pulled(node, registry, registry.reference("app:all"))


@pytest.mark.cell("RG11")
def test_indexes_in_indexes_and_one_that_says_it_contains_itself(
    node: Node, registry: ScriptedRegistry
) -> None:
    made = add_noise(registry, "app", SIZE)
    image = registry.reference("app:deep")
    inner = registry.add_index("app", "level0", {"linux/amd64": made.manifest})
    for level in range(1, 20):
        inner = registry.add_index("app", f"level{level}", {"linux/amd64": inner})
    outer = registry.add_index("app", "deep", {"linux/amd64": inner})
    assert_refused(node, image, Code.FAILED_PRECONDITION, "nested")
    # No digest can be its own preimage; a registry can only pretend.
    body = registry.manifests["app", outer.digest][1]
    registry.manifests["app", inner.digest] = OCI_INDEX, body
    assert_refused(node, image, Code.DATA_LOSS)
    assert len(registry.requests) < 20
    registry.add_index("app", "deep", {"linux/amd64": made.manifest})
    assert_pulled(node, registry, image)


@pytest.mark.cell("RG12")
@pytest.mark.parametrize("what", ["config", "layer"])
def test_a_blob_that_is_not_there(node: Node, registry: ScriptedRegistry, what: str) -> None:
    made = add_noise(registry, "app", SIZE, SIZE)
    image = registry.reference("app:1")
    lost = made.config if what == "config" else made.layers[1]
    body = registry.blobs.pop(lost.digest)
    assert_refused(node, image, Code.NOT_FOUND, lost.digest[:19])
    registry.blobs[lost.digest] = body
    assert_pulled(node, registry, image)


@pytest.mark.cell("RG12")
@pytest.mark.parametrize("change", ["one more", "one less", "another"])
def test_a_config_that_does_not_fit_its_layers(
    node: Node, registry: ScriptedRegistry, change: str
) -> None:
    made = add_noise(registry, "app", SIZE, SIZE)
    image = registry.reference("app:1")
    document = json.loads(registry.blobs[made.config.digest])
    diff_ids = document["rootfs"]["diff_ids"]
    document["rootfs"]["diff_ids"] = {
        "one more": [*diff_ids, ZERO],
        "one less": diff_ids[:1],
        "another": [diff_ids[0], ZERO],
    }[change]
    config = registry.add_blob(json.dumps(document).encode(), made.config.media_type)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config.json,
        "layers": [layer.json for layer in made.layers],
    }
    registry.add_manifest("app", json.dumps(manifest).encode(), tag="1")
    assert_refused(node, image, Code.DATA_LOSS)
    registry.manifests["app", "1"] = registry.manifests["app", made.manifest.digest]
    assert_pulled(node, registry, image)


@pytest.mark.cell("RG13")
@pytest.mark.parametrize("packed", [b"", gzip.compress(b"")], ids=["no bytes", "no plain bytes"])
def test_a_layer_of_nothing_is_an_empty_layer(
    node: Node, registry: ScriptedRegistry, packed: bytes
) -> None:
    registry.add_image("app", "1", layers=[base_layer(own_shell=False).blob, packed])
    image = registry.reference("app:1")
    node.pull(image)
    assert partials(node) == []
    pod = node.run_pod("empty")
    container = node.run(pod, "main", ["ls", "/bin/busybox"], image=image)
    assert node.wait_exited(container).exit_code == 0


@pytest.mark.cell("RG16")
def test_a_tag_that_moves_under_a_container(node: Node, registry: ScriptedRegistry) -> None:
    def publish(text: str) -> str:
        own = make_layer([Entry("which", content=text.encode())])
        layers = [base_layer(own_shell=False).blob, own.blob]
        registry.add_image("app", "1", layers=layers)
        return node.pull(image)

    image = registry.reference("app:1")
    old = publish("old")
    pod = node.run_pod("moved")
    running = node.run(pod, "main", ["sleep", "1000"], image=image)
    new = publish("new")
    assert new != old
    assert node.image_id(image) == new
    assert node.exec(running, "cat", "/which")[1] == "old"
    assert node.status(running).image_id == old
    fresh = node.run(pod, "fresh", ["sleep", "1000"], image=image)
    assert node.exec(fresh, "cat", "/which")[1] == "new"
    [kept] = [each for each in listed(node) if each.id == old]
    assert list(kept.repo_tags) == []
    node.stop_pod(pod)
    node.remove_pod(pod)
    node.remove_image(old)
    assert old not in {each.id for each in listed(node)}
    assert node.image_id(image) == new


@pytest.mark.cell("RG17")
@pytest.mark.parametrize("dead", ["closed", "blackhole", "failing"])
def test_the_first_mirror_is_dead(
    node: Node, certs_d: Path, registry: ScriptedRegistry, dead: str
) -> None:
    """The first costs seconds at most once; the registry itself is not even asked."""
    add_noise(registry, "team/app", SIZE)
    with ExitStack() as stack:
        if dead == "failing":
            broken = stack.enter_context(scripted_registry())
            broken.on("/v2/", Status(status=500, times=FOREVER))
            port = broken.port
        else:
            port = stack.enter_context(blackhole()) if dead == "blackhole" else free_port()
        origin = stack.enter_context(scripted_registry())
        mirrors = "".join(
            f'[host."http://127.0.0.1:{each}"]\ncapabilities = ["pull", "resolve"]\n'
            for each in (port, registry.port)
        )
        stack.enter_context(
            hosts_toml(certs_d, origin.domain, f'server = "{origin.url}"\n\n{mirrors}')
        )
        image = origin.reference("team/app:1")
        node.pull(image, timeout=PATIENCE_S)
        assert origin.requests == []
        assert registry.seen("/blobs/")
        node.remove_image(image)


@pytest.mark.cell("RG17")
def test_all_mirrors_are_dead_and_the_error_names_each(node: Node, certs_d: Path) -> None:
    ports = [free_port() for _ in range(3)]
    tables = "".join(f'[host."http://127.0.0.1:{port}"]\n' for port in ports[:2])
    text = f'server = "http://127.0.0.1:{ports[2]}"\n\n{tables}'
    with hosts_toml(certs_d, "dead.example", text):
        words = [f"127.0.0.1:{port}" for port in ports]
        assert_refused(node, "dead.example/app:1", Code.UNKNOWN, *words)
