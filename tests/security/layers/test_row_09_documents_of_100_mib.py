"""Row 9, CVE-2023-25153: an index, manifest or config read to its end, however long it is.

A registry sends 100 MiB for each, with the length told, with a small lie for a length, and without
one. What reaches us is counted: no more than the bound and what one connection buffers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from imageservice.errors import SizeMismatch, TooLarge
from imageservice.manifest import MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, Descriptor
from imageservice.reference import parse_reference
from imageservice.registry.answer import Answer
from imageservice.registry.client import RegistryClient
from imageservice.settings import ImageSettings, RetryPolicy
from tests.fakes.registry import FOREVER, Alter, FakeRegistry

HUGE = b" " * (100 << 20)
WAYS = {
    "length told": Alter(body=HUGE, times=FOREVER),
    "chunks": Alter(body=HUGE, chunked=True, times=FOREVER),
    "no length": Alter(body=HUGE, length="", times=FOREVER),
}
#: The bound, and the 256 KiB reads of which the last may go beyond it.
MOST_BYTES = MAX_MANIFEST_BYTES + (4 << 20)


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the pieces of bodies that were read."""
    pieces: list[int] = []
    read = Answer.read_chunk

    async def counted(self: Answer) -> bytes:
        chunk = await read(self)
        pieces.append(len(chunk))
        return chunk

    monkeypatch.setattr(Answer, "read_chunk", counted)
    return pieces


async def ask(
    client: RegistryClient, registry: FakeRegistry, what: str, size: int | None = None
) -> None:
    """Fetch the document that `what` says; `size` is what its descriptor claims."""
    image = registry.add_image("a", "1")
    reference = parse_reference(registry.reference("a:1"))
    blob = image.config if what == "config" else image.manifest
    descriptor = Descriptor(
        media_type=blob.media_type, digest=blob.digest, size_bytes=size or blob.size
    )
    match what:
        case "by tag":
            await client.resolve(reference, None)
        case "of an index":
            await client.fetch_manifest(reference, descriptor, None)
        case _:
            await client.fetch_small_blob(reference, descriptor, None, limit_bytes=MAX_CONFIG_BYTES)


@pytest.fixture
async def client() -> AsyncIterator[RegistryClient]:
    made = RegistryClient(ImageSettings(registry_config_dirs=(), retry=RetryPolicy(attempts=1)))
    yield made
    await made.close()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", ["by tag", "of an index", "config"])
async def test_100_mib_are_cut_off_at_the_bound(
    client: RegistryClient, received: list[int], what: str, way: str
) -> None:
    async with FakeRegistry() as registry:
        registry.on("/v2/", WAYS[way])
        with pytest.raises((TooLarge, SizeMismatch)):
            await ask(client, registry, what)
    assert sum(received) <= MOST_BYTES


@pytest.mark.parametrize("what", ["of an index", "config"])
async def test_a_descriptor_that_claims_100_mib_is_not_even_asked_for(
    client: RegistryClient, what: str
) -> None:
    async with FakeRegistry() as registry:
        with pytest.raises(TooLarge):
            await ask(client, registry, what, len(HUGE))
        assert registry.requests == []
