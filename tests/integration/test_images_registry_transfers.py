"""A registry whose transfers stall, drip, break, lie and come to be wanted by many at once.

Cells RG1 to RG4, RG6, RG9, RG14 and RG15 of the fault matrix, against a whole daemon.
"""

from __future__ import annotations

import gzip

import pytest

from protos import api_pb2 as api
from tests.fakes.registry import FOREVER, Alter, Cut, Drip, Hold, Pass, Stall, Status
from tests.fakes.registry_thread import ScriptedRegistry
from tests.integration import registry_node
from tests.integration.registry_node import (
    KIB,
    MIB,
    SILENT,
    Code,
    Pulling,
    add_noise,
    assert_pulled,
    assert_refused,
    assert_served,
    blob,
    partials,
)
from tests.kit.calls import until
from tests.kit.node import PATIENCE_S, Node

registry = registry_node.registry
BOMB_LIMIT = 64 * MIB
SETTINGS = {**registry_node.SETTINGS, "image.max_layer_bytes": str(BOMB_LIMIT)}
SIZE = 600 * KIB
#: What is kept of a blob is kept by the MiB.
LARGE = 5 * MIB


@pytest.mark.cell("RG1")
@pytest.mark.parametrize("part", ["/manifests/", "/blobs/"])
def test_a_registry_that_never_answers(node: Node, registry: ScriptedRegistry, part: str) -> None:
    add_noise(registry, "app", SIZE)
    image = registry.reference("app:1")
    registry.on(part, Stall(times=FOREVER))
    assert_refused(node, image, SILENT, registry.domain)
    assert_pulled(node, registry, image)


@pytest.mark.cell("RG1")
def test_a_stall_in_the_middle_is_continued_from_there(
    node: Node, registry: ScriptedRegistry
) -> None:
    made = add_noise(registry, "app", LARGE)
    image, layer = registry.reference("app:1"), made.layers[0]
    registry.on(blob(made), Stall(after_bytes=LARGE // 2, times=2))
    node.pull(image)
    assert all(request.header("Range") for request in registry.seen(blob(made))[1:])
    assert layer.size <= registry.served_bytes[layer.digest] < 2 * layer.size
    assert partials(node) == []


@pytest.mark.cell("RG1")
def test_one_client_loses_its_patience_and_the_others_get_the_image(
    node: Node, registry: ScriptedRegistry
) -> None:
    made = add_noise(registry, "app", SIZE)
    image = registry.reference("app:1")
    registry.on(blob(made), Hold(after_bytes=SIZE // 2))
    impatient = Pulling(node, image, timeout=1)
    pulls = [Pulling(node, image) for _ in range(3)]
    assert impatient.code() is Code.DEADLINE_EXCEEDED
    registry.release()
    assert len({pull.result() for pull in pulls}) == 1
    assert partials(node) == []


@pytest.mark.cell("RG2")
def test_a_drip_is_ended_by_the_rate_though_bytes_arrive(
    node: Node, registry: ScriptedRegistry
) -> None:
    made = add_noise(registry, "app", SIZE)
    image = registry.reference("app:1")
    registry.on(blob(made), Drip(pause_s=0.02, times=FOREVER))
    assert_refused(node, image, SILENT, made.layers[0].digest[:19])
    assert registry.served_bytes[made.layers[0].digest] > 0
    assert_pulled(node, registry, image)


@pytest.mark.cell("RG2")
def test_a_drip_is_ended_by_the_client_and_nobody_reads_on(
    node: Node, registry: ScriptedRegistry
) -> None:
    made = add_noise(registry, "app", SIZE)
    image = registry.reference("app:1")
    registry.on(blob(made), Drip(pause_s=0.001, times=FOREVER))
    assert_refused(node, image, Code.DEADLINE_EXCEEDED, timeout=1)
    until(lambda: registry.open_connections == 0, "the transfer has ended with its client")
    assert_pulled(node, registry, image)


@pytest.mark.cell("RG3")
def test_a_body_that_breaks_off_is_continued(node: Node, registry: ScriptedRegistry) -> None:
    made = add_noise(registry, "app", SIZE)
    registry.on(blob(made), Cut(after_bytes=100 * KIB), Cut(after_bytes=200 * KIB))
    node.pull(registry.reference("app:1"))
    assert_served(registry, made.layers[0].digest, made.layers[0].size)
    assert all(request.header("Range") for request in registry.seen(blob(made))[1:])


@pytest.mark.cell("RG3")
def test_a_body_that_always_breaks_off_at_once_ends(node: Node, registry: ScriptedRegistry) -> None:
    made = add_noise(registry, "app", SIZE)
    image = registry.reference("app:1")
    registry.on(blob(made), Cut(after_bytes=0, times=FOREVER))
    assert_refused(node, image, Code.UNKNOWN, registry.domain)
    assert len(registry.seen(blob(made))) < 20
    assert_pulled(node, registry, image)


@pytest.mark.cell("RG3")
@pytest.mark.parametrize("fault", [
    pytest.param(Alter(length="1000", times=FOREVER), id="short length"),
    pytest.param(Alter(length="9000000", times=FOREVER), id="long length"),
    pytest.param(Alter(body=b"x" * 2 * SIZE, times=FOREVER), id="long body"),
    pytest.param(Alter(body=b"x" * 10, chunked=True, times=FOREVER), id="short chunks"),
    pytest.param(Alter(body=b"x" * 2 * SIZE, chunked=True, times=FOREVER), id="long chunks"),
])  # fmt: skip
def test_a_body_of_another_length_is_never_a_layer(
    node: Node, registry: ScriptedRegistry, fault: Alter
) -> None:
    made = add_noise(registry, "app", SIZE)
    image = registry.reference("app:1")
    registry.on(blob(made), fault)
    assert_refused(node, image, (Code.DATA_LOSS, Code.UNKNOWN), made.layers[0].digest[:19])
    assert len(registry.seen(blob(made))) < 20
    assert_pulled(node, registry, image)


@pytest.mark.cell("RG4")
def test_wrong_bytes_of_the_right_length_are_refused_and_forgotten(
    node: Node, registry: ScriptedRegistry
) -> None:
    made = add_noise(registry, "app", SIZE)
    image, layer = registry.reference("app:1"), made.layers[0]
    registry.on(blob(made), Alter(body=b"x" * layer.size, times=FOREVER))
    assert_refused(node, image, Code.DATA_LOSS, layer.digest)
    until(lambda: not partials(node), "nothing of it is kept")
    asked = len(registry.requests)
    assert_pulled(node, registry, image)
    whole = [r for r in registry.requests[asked:] if blob(made) in r.target]
    assert sum(_wanted(r.header("Range"), layer.size) for r in whole) == layer.size


def _wanted(span: str | None, size: int) -> int:
    """How many bytes a request asks for."""
    first, _, last = (span or "bytes=0-").removeprefix("bytes=").partition("-")
    return (int(last) + 1 if last else size) - int(first)


@pytest.mark.cell("RG4")
def test_wrong_bytes_once_are_fetched_again(node: Node, registry: ScriptedRegistry) -> None:
    made = add_noise(registry, "app", SIZE)
    registry.on(blob(made), Alter(body=b"x" * made.layers[0].size))
    node.pull(registry.reference("app:1"))


@pytest.mark.cell("RG4")
def test_a_digest_header_that_is_not_the_bodys_is_refused(
    node: Node, registry: ScriptedRegistry
) -> None:
    add_noise(registry, "app", SIZE)
    image = registry.reference("app:1")
    header = {"Docker-Content-Digest": "sha256:" + "0" * 64}
    registry.on("/manifests/", Alter(headers=header, times=FOREVER))
    assert_refused(node, image, Code.DATA_LOSS, "sha256:" + "0" * 64)
    assert_pulled(node, registry, image)


@pytest.mark.cell("RG6")
@pytest.mark.parametrize(("part", "status"), [
    *((("/manifests/", status)) for status in (408, 429, 500, 502, 503, 504)), ("/blobs/", 503),
])  # fmt: skip
def test_a_passing_failure_is_waited_for(
    node: Node, registry: ScriptedRegistry, part: str, status: int
) -> None:
    add_noise(registry, "app", SIZE)
    registry.on(part, Status(status=status, times=2))
    node.pull(registry.reference("app:1"))
    first, second, third = registry.seen(part)[:3]
    # Each wait is twice the one before, less at most half of it; all of the first could be 0.25 s.
    assert second.at_s - first.at_s >= 0.2
    assert third.at_s - second.at_s >= 0.4


@pytest.mark.cell("RG6")
@pytest.mark.parametrize(("status", "codes"), [
    (408, (Code.UNKNOWN,)), (429, (Code.RESOURCE_EXHAUSTED,)), (503, (Code.UNKNOWN,)),
])  # fmt: skip
def test_a_lasting_failure_ends_and_says_which_registry(
    node: Node, registry: ScriptedRegistry, status: int, codes: tuple[Code, ...]
) -> None:
    add_noise(registry, "app", SIZE)
    image = registry.reference("app:1")
    registry.on("/manifests/", Status(status=status, times=FOREVER))
    assert_refused(node, image, codes, registry.domain)
    assert len(registry.seen("/manifests/")) < 20
    assert_pulled(node, registry, image)


@pytest.mark.cell("RG6")
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_waited_for(node: Node, registry: ScriptedRegistry, status: int) -> None:
    made = add_noise(registry, "app", SIZE)
    registry.on(blob(made), Status(status=status, headers=[("Retry-After", "2")]))
    node.pull(registry.reference("app:1"))
    first, second = registry.seen(blob(made))[:2]
    assert second.at_s - first.at_s >= 2


@pytest.mark.cell("RG6")
def test_retry_after_a_day_is_not(node: Node, registry: ScriptedRegistry) -> None:
    add_noise(registry, "app", SIZE)
    image = registry.reference("app:1")
    later = [("Retry-After", "86400")]
    registry.on("/manifests/", Status(status=429, headers=later, times=FOREVER))
    assert_refused(node, image, Code.RESOURCE_EXHAUSTED, registry.domain)
    assert len(registry.seen("/manifests/")) < 5
    assert_pulled(node, registry, image)


@pytest.mark.cell("RG9")
def test_every_third_connection_breaks(node: Node, registry: ScriptedRegistry) -> None:
    made = add_noise(registry, "app", 4 * MIB, 2 * MIB)
    script = [Pass(), Pass(), Cut(after_bytes=700 * KIB)]
    registry.on("/blobs/", Cut(after_bytes=700 * KIB), *script * 8)
    node.pull(registry.reference("app:1"))
    for layer in made.layers:
        assert_served(registry, layer.digest, layer.size)


@pytest.mark.cell("RG14")
def test_twenty_want_it_nineteen_leave(node: Node, registry: ScriptedRegistry) -> None:
    made = add_noise(registry, "app", SIZE)
    image, digest = registry.reference("app:1"), made.layers[0].digest
    registry.on(blob(made), Hold(after_bytes=SIZE // 2, times=FOREVER))
    pulls = [Pulling(node, image) for _ in range(20)]
    until(lambda: registry.held, "the blob is on its way")
    # Calls of one connection come in order: what is answered now came after all of them.
    node.runtime.Version(api.VersionRequest(), timeout=PATIENCE_S)
    for pull in pulls[:7] + pulls[8:]:
        pull.leave()
    assert not pulls[7].is_over
    registry.calm()
    registry.release()
    assert pulls[7].result() == node.image_id(image)
    assert_served(registry, digest, made.layers[0].size)
    assert partials(node) == []


@pytest.mark.cell("RG15")
def test_a_deadline_in_the_middle_and_the_same_again(
    node: Node, registry: ScriptedRegistry
) -> None:
    made = add_noise(registry, "app", LARGE)
    image, digest = registry.reference("app:1"), made.layers[0].digest
    registry.on(blob(made), Hold(after_bytes=LARGE // 2, times=FOREVER))
    # As late as it can be before the stall rule has its say: something must have come by then.
    assert_refused(node, image, Code.DEADLINE_EXCEEDED, timeout=1.8)
    assert len(partials(node)) == 1
    held_bytes = partials(node)[0].stat().st_size
    assert held_bytes > 0
    registry.calm()
    served = registry.served_bytes[digest]
    again = [Pulling(node, image) for _ in range(3)]
    assert len({pull.result() for pull in again}) == 1
    assert_served(registry, digest, served + made.layers[0].size - held_bytes)
    assert partials(node) == []
    registry.release()


@pytest.mark.cell("RG13")
def test_bombs_stop_at_their_limit_and_cost_nobody(node: Node, registry: ScriptedRegistry) -> None:
    """Every compression's and every header's are in tests/security/layers; here the daemon's."""
    image = registry.reference("bomb:1")
    bomb = gzip.compress(bytes(BOMB_LIMIT + MIB), 9)
    registry.add_image("bomb", "1", layers=[bomb])
    assert_refused(node, image, Code.RESOURCE_EXHAUSTED, "layer")
    until(lambda: not partials(node), "nothing of it is kept")
    add_noise(registry, "bomb", SIZE)
    assert_pulled(node, registry, image)


@pytest.mark.cell("S11", "RG1")
def test_story_11_a_pull_hangs_for_hours(node: Node, registry: ScriptedRegistry) -> None:
    """The connection is alive and dead: no byte comes any more, and nobody closes it.

    The stall rule ends the pull, not the client, whose patience would last; all others are served
    meanwhile, from the same registry too; and the kubelet's next try asks for the rest alone.
    """
    made = add_noise(registry, "app", LARGE)
    add_noise(registry, "other", SIZE)
    image, layer = registry.reference("app:1"), made.layers[0]
    registry.on(blob(made), Stall(after_bytes=LARGE - MIB), Stall(after_bytes=0, times=FOREVER))
    hanging = Pulling(node, image, timeout=3600)
    until(lambda: registry.served_bytes[layer.digest] >= LARGE - MIB, "it hangs")
    node.pull(registry.reference("other:1"))
    pod = node.run_pod("pod")
    assert node.exec(node.run(pod, "main", ["sleep", "1000"]), "true")[0] == 0
    assert hanging.code() in SILENT
    assert partials(node), "what has come is kept"
    served, requests = registry.served_bytes[layer.digest], len(registry.seen(blob(made)))
    assert_pulled(node, registry, image)
    [*tries] = registry.seen(blob(made))[requests:]
    assert tries
    assert all(request.header("Range") for request in tries)
    assert registry.served_bytes[layer.digest] - served <= 2 * MIB
