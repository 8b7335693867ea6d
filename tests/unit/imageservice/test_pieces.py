"""Large blobs over several connections: when, in which order, and what a failure costs."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from contextlib import asynccontextmanager

import pytest

from imageservice.errors import RegistryThrottled, SizeMismatch
from imageservice.manifest import Descriptor
from imageservice.reference import parse_reference
from imageservice.registry import pieces
from imageservice.registry.client import RegistryClient
from imageservice.registry.exchange import Question
from imageservice.registry.room import Room, Share
from imageservice.registry.transfer import MemorySink
from imageservice.settings import ImageSettings, RetryPolicy
from sandbox.host.errors import PodwrightError
from tests.fakes.clock import FakeClock
from tests.fakes.registry import (
    FOREVER,
    Alter,
    Blob,
    Cut,
    FakeRegistry,
    Fault,
    Slow,
    Stall,
    Status,
)

KIB = 1024
BLOB = b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(64 * KIB))  # 2 MiB
SLOW = Slow(bytes_per_s=4096 * KIB, times=FOREVER)
PIECE = 64 * KIB


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "LOOK_S", 0.05)
    monkeypatch.setattr(pieces, "PIECE_PATIENCE_S", 0.3)


class Download:
    """One blob of a registry that follows a script."""

    def __init__(self, registry: FakeRegistry, client: RegistryClient, blob: Blob) -> None:
        self.registry = registry
        self.client = client
        self.blob = blob
        self.sink = MemorySink()

    async def run(self, *script: Fault, offset_bytes: int = 0) -> None:
        self.registry.on(f"/blobs/{self.blob.digest}", *script)
        layer = Descriptor(
            media_type=self.blob.media_type, digest=self.blob.digest, size_bytes=self.blob.size
        )
        await self.client.fetch_blob(
            parse_reference(self.registry.reference("a:1")),
            layer,
            None,
            self.sink,
            offset_bytes=offset_bytes,
        )

    @property
    def ranges(self) -> list[str]:
        return [request.header("Range") or "" for request in self.registry.seen("/blobs/")]


@asynccontextmanager
async def download(**changes: object):
    values = {
        "registry_config_dirs": (),
        "retry": RetryPolicy(attempts=4, jitter=0.0),
        "range_bytes": PIECE,
        "min_progress_bytes": 16 * KIB,
        **changes,
    }
    async with FakeRegistry() as registry:
        client = RegistryClient(ImageSettings(**values), clock=FakeClock())
        try:
            yield Download(registry, client, registry.add_blob(BLOB))
        finally:
            await client.close()


async def test_a_slow_transfer_goes_on_in_ranges_that_come_in_order():
    async with download() as one:
        await one.run(SLOW)
        assert bytes(one.sink.data) == BLOB
        first, *rest = one.ranges
        assert first == ""
        assert len(rest) > 4
        spans = sorted(tuple(map(int, text.removeprefix("bytes=").split("-"))) for text in rest)
        assert spans[-1][1] == len(BLOB) - 1
        assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(spans))


async def test_one_request_where_that_is_fast_enough_or_all_that_is_allowed(monkeypatch):
    with monkeypatch.context() as patched:
        # How fast this machine is does not matter here: what it brings is enough.
        patched.setattr(pieces, "FAST_BYTES_PER_S", 1)
        async with download() as one:
            await one.run(SLOW)
            assert bytes(one.sink.data) == BLOB
            assert one.ranges == [""]
    async with download(max_connections_per_layer=1) as one:
        await one.run(SLOW)
        assert bytes(one.sink.data) == BLOB
        assert one.ranges == [""]


@pytest.mark.parametrize(
    "fault",
    [
        Alter(ignore_range=True, times=FOREVER),
        Status(status=416, times=2),
        Alter(headers={"Content-Range": "bytes 0-9/10"}),
    ],
    ids=["whole blob", "416", "another range"],
)
async def test_a_registry_that_offers_ranges_and_gives_none(fault: Fault):
    async with download() as one:
        whole = Alter(ignore_range=True, times=FOREVER)
        await one.run(Slow(bytes_per_s=4096 * KIB), fault, whole)
        assert bytes(one.sink.data) == BLOB


async def test_a_transfer_that_was_held_in_part_is_split_as_well():
    async with download() as one:
        await one.run(SLOW, offset_bytes=500_000)
        assert bytes(one.sink.data) == BLOB[500_000:]
        assert one.ranges[0] == "bytes=500000-"
        assert len(one.ranges) > 4


async def test_a_piece_that_breaks_off_or_stalls_is_gone_on_with():
    async with download() as one:
        await one.run(
            Slow(bytes_per_s=4096 * KIB),
            Cut(after_bytes=10_000),
            Stall(after_bytes=20_000),
            SLOW,
        )
        assert bytes(one.sink.data) == BLOB
        starts = [int(text[6:].split("-")[0]) for text in one.ranges[1:]]
        begun = starts[:2]
        assert begun[0] + 10_000 in starts
        assert begun[1] + 20_000 in starts


async def test_a_registry_that_does_not_bear_many_connections_gets_one():
    """Refused twice, it is asked with half as many each time; what came is kept."""
    async with download() as one:
        await one.run(
            Slow(bytes_per_s=4096 * KIB),
            Status(status=429, headers=[("Retry-After", "1")], times=2),
            Slow(bytes_per_s=4096 * KIB),
            Status(status=429, headers=[("Retry-After", "1")], times=2),
            SLOW,
        )
        assert bytes(one.sink.data) == BLOB
        assert one.ranges[-1].endswith("-")


async def test_what_came_before_a_failure_is_a_prefix():
    async with download(retry=RetryPolicy(attempts=1)) as one:
        with pytest.raises(RegistryThrottled):
            await one.run(
                Slow(bytes_per_s=4096 * KIB),
                Slow(bytes_per_s=4096 * KIB),
                Slow(bytes_per_s=4096 * KIB),
                Status(status=429, times=FOREVER),
            )
        assert 0 < len(one.sink.data) < len(BLOB)
        assert BLOB.startswith(bytes(one.sink.data))


async def test_all_layers_together_hold_no_more_than_the_node_allows():
    """Twenty at once, each of which alone would take four connections."""
    async with download(range_memory_bytes=8 * PIECE) as one:
        room = one.client._room
        least = room.free_bytes
        take = room.take

        def noted(size_bytes: int) -> bool:
            nonlocal least
            taken = take(size_bytes)
            least = min(least, room.free_bytes)
            return taken

        room.take = noted  # type: ignore[method-assign]
        one.registry.on(f"/blobs/{one.blob.digest}", SLOW)
        layer = Descriptor(
            media_type=one.blob.media_type, digest=one.blob.digest, size_bytes=one.blob.size
        )
        reference = parse_reference(one.registry.reference("a:1"))
        sinks = [MemorySink() for _ in range(20)]
        async with asyncio.TaskGroup() as group:
            for sink in sinks:
                group.create_task(one.client.fetch_blob(reference, layer, None, sink))
        assert all(bytes(sink.data) == BLOB for sink in sinks)
        assert any(text for text in one.ranges), "some went on in pieces"
        assert 0 <= least < 8 * PIECE
        assert room.free_bytes == 8 * PIECE, "all was given back"


async def test_a_piece_that_waits_for_a_place_does_not_stall():
    """Each waits three times as long as a stall takes, and is asked for once."""

    class Answer:
        status = 206

        def __init__(self, span: str) -> None:
            first, last = map(int, span.removeprefix("bytes=").split("-"))
            self.rest = [BLOB[first : last + 1], b""]
            self.range = f"bytes {first}-{last}/{len(BLOB)}"

        def header(self, _name: str) -> str:
            return self.range

        async def read_chunk(self) -> bytes:
            return self.rest.pop(0)

    class Busy:
        asked = 0

        @asynccontextmanager
        async def ask(self, _endpoint, question):
            self.asked += 1
            with question.waiting():
                await asyncio.sleep(0.15)
            yield Answer(dict(question.headers)["Range"])

    sink, busy = MemorySink(), Busy()
    rest = pieces.Pieces(
        busy,
        None,
        Question("a", "blobs/x", "blob x"),
        size_bytes=len(BLOB),
        piece_bytes=len(BLOB) // 4,
        stall_timeout_s=0.05,
        min_progress_bytes=1,
    )
    share = Share(Room(1 << 40), len(BLOB))
    await rest.fetch(0, rate=1.0, most=4, share=share, hand=sink.write)
    assert bytes(sink.data) == BLOB
    assert busy.asked == 4


async def test_without_room_a_layer_has_one_connection():
    async with download(range_memory_bytes=pieces.LEAST_PIECES * PIECE - 1) as one:
        await one.run(SLOW)
        assert bytes(one.sink.data) == BLOB
        assert one.ranges == [""]


async def test_room_is_given_back_by_a_transfer_that_fails():
    async with download(retry=RetryPolicy(attempts=1)) as one:
        free_bytes = one.client._room.free_bytes
        with pytest.raises(RegistryThrottled):
            await one.run(
                Slow(bytes_per_s=4096 * KIB),
                Status(status=429, times=FOREVER),
            )
        assert one.client._room.free_bytes == free_bytes


async def test_a_piece_that_is_too_long_is_refused():
    async with download(retry=RetryPolicy(attempts=1)) as one:
        with pytest.raises((PodwrightError, SizeMismatch)):
            await one.run(Slow(bytes_per_s=4096 * KIB), Alter(body=bytes(PIECE + 1), times=FOREVER))
        assert BLOB.startswith(bytes(one.sink.data))
