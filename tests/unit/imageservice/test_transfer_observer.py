"""What a registry's behaviour is counted as, over a real loopback wire."""

from __future__ import annotations

import gzip
import hashlib

import pytest

from imageservice.errors import PullStalled
from imageservice.manifest import Descriptor
from imageservice.progress import SilentObserver
from imageservice.reference import parse_reference
from imageservice.registry.client import RegistryClient
from imageservice.registry.transfer import MemorySink
from imageservice.settings import ImageSettings, RetryPolicy
from tests.fakes.clock import FakeClock
from tests.fakes.registry import Cut, FakeRegistry, Stall, Status

NOISE = b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(40_000))
BLOB = gzip.compress(NOISE, 1, mtime=0)


class Heard(SilentObserver):
    def __init__(self):
        self.events = []

    def asked_again(self, reason):
        self.events.append(reason)

    def transfer_stalled(self):
        self.events.append("stalled")

    def transfer_resumed(self, *, held_bytes):
        self.events.append(held_bytes)


async def fetched(registry, observer, *, offset_bytes=0, **changes):
    settings = ImageSettings(
        registry_config_dirs=(), retry=RetryPolicy(attempts=4, jitter=0.0), **changes
    )
    blob = registry.add_blob(BLOB)
    layer = Descriptor(media_type=blob.media_type, digest=blob.digest, size_bytes=blob.size)
    client = RegistryClient(settings, clock=FakeClock(), observer=observer)
    try:
        await client.fetch_blob(
            parse_reference(registry.reference("a:1")),
            layer,
            None,
            MemorySink(),
            offset_bytes=offset_bytes,
        )
    finally:
        await client.close()


async def test_a_cut_is_a_retry_and_a_range_that_went_on():
    heard = Heard()
    async with FakeRegistry() as registry:
        registry.on("/blobs/", Cut(after_bytes=100_001), Cut(after_bytes=400_003))
        await fetched(registry, heard)
    assert heard.events == ["unavailable", 100_001, "unavailable", 500_004]


async def test_bytes_held_from_before_are_a_range_that_went_on():
    heard = Heard()
    async with FakeRegistry() as registry:
        await fetched(registry, heard, offset_bytes=300_000)
    assert heard.events == [300_000]


async def test_too_many_requests_is_told_from_a_failure():
    heard = Heard()
    async with FakeRegistry() as registry:
        registry.on("/blobs/", Status(status=429, times=1), Status(status=503, times=1))
        await fetched(registry, heard)
    assert heard.events == ["throttled", "unavailable"]


async def test_a_transfer_that_is_given_up_is_a_stall():
    heard = Heard()
    async with FakeRegistry() as registry:
        registry.on("/blobs/", Stall(after_bytes=2))
        with pytest.raises(PullStalled):
            await fetched(registry, heard, pull_progress_timeout_s=0.1)
    assert heard.events == ["stalled"]
