"""Pulls over a real loopback wire: what is asked, what is believed, and how failures end."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from imageservice.credentials import Credential
from imageservice.errors import (
    DigestMismatch,
    ImageNotFound,
    ImageUnsupported,
    PullStalled,
    RegistryDenied,
    RegistryProtocolError,
    RegistryThrottled,
    RegistryUnauthenticated,
    RegistryUnavailable,
    SizeMismatch,
    TooLarge,
)
from imageservice.manifest import Descriptor, Manifest, parse_manifest
from imageservice.reference import parse_reference
from imageservice.registry.client import RegistryClient
from imageservice.registry.transfer import CHUNK_BYTES
from imageservice.settings import ImageSettings, RetryPolicy
from sandbox.host.errors import PodwrightError, ResourceExhausted
from tests.fakes.clock import FakeClock
from tests.fakes.registry import (
    FOREVER,
    Alter,
    Blob,
    Cut,
    Drip,
    FakeRegistry,
    Hold,
    Pass,
    Raw,
    Slow,
    Stall,
    Status,
)

#: Does not compress, so a layer is as large as it says.
NOISE = b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(40_000))
BIG = gzip.compress(NOISE, 1, mtime=0)


class Sink:
    """Keeps what it is given, chunk by chunk."""

    def __init__(self, fail: Exception | None = None) -> None:
        self.chunks: list[bytes] = []
        self.fail = fail

    async def write(self, chunk: bytes, /) -> None:
        if self.fail is not None:
            raise self.fail
        self.chunks.append(chunk)

    @property
    def data(self) -> bytes:
        return b"".join(self.chunks)


@asynccontextmanager
async def open_client(clock: FakeClock | None = None, certs: Path | None = None, **changes):
    settings = ImageSettings(
        registry_config_dirs=() if certs is None else (certs,),
        retry=changes.pop("retry", RetryPolicy(attempts=4, jitter=0.0)),
        **changes,
    )
    client = RegistryClient(settings, clock=clock or FakeClock(), random_unit=lambda: 0.0)
    try:
        yield client
    finally:
        await client.close()


async def until(condition) -> None:
    """Wait for something another task does; the test run's own limit ends it."""
    for _ in range(20_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("never happened")


def described(blob: Blob, **changes) -> Descriptor:
    facts = {"media_type": blob.media_type, "digest": blob.digest, "size_bytes": blob.size}
    return Descriptor(**{**facts, **changes})


async def test_a_tag_resolves_to_a_verified_manifest():
    async with FakeRegistry() as registry, open_client() as client:
        image = registry.add_image("library/busybox", "1")
        reference = parse_reference(registry.reference("library/busybox:1"))

        resolved = await client.resolve(reference, None)

        assert resolved.descriptor.digest == image.manifest.digest
        assert resolved.descriptor.size_bytes == image.manifest.size
        manifest = parse_manifest(resolved.body, resolved.content_type)
        assert isinstance(manifest, Manifest)
        accept = registry.requests[0].header("Accept") or ""
        assert "oci.image.index.v1+json" in accept
        assert "docker.distribution.manifest.list.v2+json" in accept
        assert registry.requests[0].header("Authorization") is None


async def test_the_digest_of_a_reference_wins_over_its_tag():
    async with FakeRegistry() as registry, open_client() as client:
        old = registry.add_image("a", architecture="amd64")
        registry.add_image("a", "1", architecture="arm64")
        text = registry.reference(f"a:1@{old.manifest.digest}")

        resolved = await client.resolve(parse_reference(text), None)

        assert resolved.descriptor.digest == old.manifest.digest
        assert registry.requests[0].path == f"/v2/a/manifests/{old.manifest.digest}"


async def test_head_tells_the_digest_without_the_body():
    async with FakeRegistry() as registry, open_client() as client:
        image = registry.add_image("a", "1")
        found = await client.head(parse_reference(registry.reference("a:1")), None)
        assert found is not None
        assert (found.digest, found.size_bytes) == (image.manifest.digest, image.manifest.size)
        assert registry.requests[0].method == "HEAD"


async def test_head_says_nothing_where_the_registry_does_not():
    async with FakeRegistry() as registry, open_client() as client:
        registry.add_image("a", "1")
        registry.on("/manifests/1", Status(status=200))
        assert await client.head(parse_reference(registry.reference("a:1")), None) is None


async def test_a_large_blob_comes_in_large_chunks_over_one_connection():
    async with FakeRegistry() as registry, open_client() as client:
        blob = registry.add_blob(BIG)
        reference = parse_reference(registry.reference("a:1"))
        sink, progress = Sink(), []

        await client.fetch_blob(reference, described(blob), None, sink, on_progress=progress.append)
        await client.fetch_blob(reference, described(blob), None, Sink())

        assert sink.data == BIG
        assert all(len(chunk) >= CHUNK_BYTES for chunk in sink.chunks[:-1])
        assert progress == sorted(progress)
        assert progress[-1] == len(BIG)
        assert registry.accepted_connections == 1


async def test_a_blob_is_kept_as_sent_whatever_encoding_its_headers_claim():
    async with FakeRegistry() as registry, open_client() as client:
        blob = registry.add_blob(BIG)
        registry.on("/blobs/", Alter(headers={"Content-Encoding": "gzip"}))
        sink = Sink()
        reference = parse_reference(registry.reference("a:1"))
        await client.fetch_blob(reference, described(blob), None, sink)
        assert sink.data == BIG


async def test_a_blob_is_continued_from_the_offset_held_already():
    async with FakeRegistry() as registry, open_client() as client:
        blob = registry.add_blob(BIG)
        sink = Sink()
        reference = parse_reference(registry.reference("a:1"))
        await client.fetch_blob(reference, described(blob), None, sink, offset_bytes=1000)
        assert sink.data == BIG[1000:]
        assert registry.requests[0].header("Range") == "bytes=1000-"


async def test_a_blob_held_whole_asks_nobody():
    async with FakeRegistry() as registry, open_client() as client:
        blob = registry.add_blob(b"abc")
        reference = parse_reference(registry.reference("a:1"))
        await client.fetch_blob(reference, described(blob), None, Sink(), offset_bytes=3)
        assert registry.requests == []


async def test_a_server_without_ranges_sends_all_and_the_held_part_is_dropped():
    async with FakeRegistry() as registry, open_client() as client:
        blob = registry.add_blob(BIG)
        registry.on("/blobs/", Alter(ignore_range=True))
        sink = Sink()
        reference = parse_reference(registry.reference("a:1"))
        await client.fetch_blob(reference, described(blob), None, sink, offset_bytes=300_000)
        assert sink.data == BIG[300_000:]


async def test_a_cut_is_continued_by_range_without_losing_or_doubling_a_byte():
    async with FakeRegistry() as registry, open_client() as client:
        blob = registry.add_blob(BIG)
        registry.on("/blobs/", Cut(after_bytes=100_001), Cut(after_bytes=400_003))
        sink = Sink()
        await client.fetch_blob(
            parse_reference(registry.reference("a:1")), described(blob), None, sink
        )
        assert sink.data == BIG
        assert [r.header("Range") for r in registry.requests] == [
            None,
            "bytes=100001-",
            "bytes=500004-",
        ]


async def test_cuts_without_end_are_survived_while_each_try_moves_on():
    async with FakeRegistry() as registry, open_client(min_progress_bytes=1) as client:
        blob = registry.add_blob(BIG)
        registry.on("/blobs/", Cut(after_bytes=len(BIG) // 20, times=19))
        sink = Sink()
        reference = parse_reference(registry.reference("a:1"))
        await client.fetch_blob(reference, described(blob), None, sink)
        assert sink.data == BIG


async def test_cuts_without_progress_end_in_an_error_after_the_policys_tries():
    clock = FakeClock()
    async with FakeRegistry() as registry, open_client(clock) as client:
        blob = registry.add_blob(BIG)
        registry.on("/blobs/", Cut(after_bytes=10, times=FOREVER))
        sink = Sink()
        with pytest.raises(RegistryUnavailable, match="too early"):
            await client.fetch_blob(
                parse_reference(registry.reference("a:1")), described(blob), None, sink
            )
        assert len(registry.requests) == 4
        assert clock.slept_s == [0.5, 1.0, 2.0]
        assert sink.data == BIG[:40]


@pytest.mark.parametrize(
    "fault",
    [
        Alter(body=b"abcde"),
        Alter(length="9999999"),
        Alter(body=b"abcdefgh"),
        Alter(body=b"abcdefgh", chunked=True),
    ],
    ids=["short", "claims more", "long", "long without length"],
)
async def test_a_body_of_another_size_is_refused_and_nothing_beyond_the_size_is_written(fault):
    async with FakeRegistry() as registry, open_client() as client:
        blob = registry.add_blob(b"abcdef")
        registry.on("/blobs/", fault)
        sink = Sink()
        with pytest.raises(SizeMismatch):
            await client.fetch_blob(
                parse_reference(registry.reference("a:1")), described(blob), None, sink
            )
        assert len(sink.data) <= 6


async def test_a_chunked_body_that_ends_early_is_an_error_not_a_short_blob():
    async with FakeRegistry() as registry, open_client() as client:
        blob = registry.add_blob(b"abcdef")
        registry.on(
            "/blobs/", Alter(body=b"abc", chunked=True), Alter(body=b"", chunked=True, times=9)
        )
        with pytest.raises(RegistryUnavailable):
            await client.fetch_blob(
                parse_reference(registry.reference("a:1")), described(blob), None, Sink()
            )


async def test_a_range_answer_from_another_place_is_refused():
    async with FakeRegistry() as registry, open_client() as client:
        blob = registry.add_blob(BIG)
        registry.on("/blobs/", Alter(headers={"Content-Range": f"bytes 0-9/{len(BIG)}"}))
        with pytest.raises(RegistryProtocolError, match="range"):
            await client.fetch_blob(
                parse_reference(registry.reference("a:1")),
                described(blob),
                None,
                Sink(),
                offset_bytes=5,
            )


async def test_malformed_chunks_are_an_error():
    async with FakeRegistry() as registry, open_client() as client:
        blob = registry.add_blob(b"abcdef")
        data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabcdef\r\n0\r\n\r\n"
        registry.on("/blobs/", Raw(data=data, times=FOREVER))
        with pytest.raises(RegistryUnavailable):
            await client.fetch_blob(
                parse_reference(registry.reference("a:1")), described(blob), None, Sink()
            )


@pytest.mark.parametrize("fault", [Stall(), Stall(after_bytes=2), Drip(pause_s=0.01)])
async def test_a_transfer_without_progress_is_given_up(fault):
    async with (
        FakeRegistry() as registry,
        open_client(pull_progress_timeout_s=0.1) as client,
    ):
        blob = registry.add_blob(BIG)
        registry.on("/blobs/", fault)
        with pytest.raises(PullStalled) as caught:
            await client.fetch_blob(
                parse_reference(registry.reference("a:1")), described(blob), None, Sink()
            )
        assert blob.digest in str(caught.value)
        assert registry.domain in str(caught.value)


async def test_a_slow_sink_is_not_the_registrys_stall():
    class Slow(Sink):
        async def write(self, chunk: bytes, /) -> None:
            if not self.chunks:  # once is enough, if it is longer than a registry may be silent
                await asyncio.sleep(1.2)
            await super().write(chunk)

    async with FakeRegistry() as registry, open_client(pull_progress_timeout_s=1.0) as client:
        blob = registry.add_blob(BIG)
        sink = Slow()
        reference = parse_reference(registry.reference("a:1"))
        await client.fetch_blob(reference, described(blob), None, sink)
        assert sink.data == BIG


async def test_what_the_sink_raises_ends_the_transfer_as_it_is():
    failure = ResourceExhausted("no space left")
    failure.__cause__ = OSError(28, "No space left on device")
    async with FakeRegistry() as registry, open_client() as client:
        blob = registry.add_blob(b"abcdef")
        with pytest.raises(ResourceExhausted) as caught:
            await client.fetch_blob(
                parse_reference(registry.reference("a:1")), described(blob), None, Sink(failure)
            )
        assert caught.value is failure
        assert isinstance(caught.value.__cause__, OSError)
        assert len(registry.requests) == 1


async def test_cancelling_closes_the_connection():
    async with FakeRegistry() as registry, open_client() as client:
        blob = registry.add_blob(BIG)
        registry.on("/blobs/", Stall(after_bytes=500_000))
        begun = asyncio.Event()
        fetch = asyncio.ensure_future(
            client.fetch_blob(
                parse_reference(registry.reference("a:1")),
                described(blob),
                None,
                Sink(),
                on_progress=lambda _: begun.set(),
            )
        )
        await begun.wait()
        fetch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetch
        assert not client._transport._connections._open  # no public view of the pool


async def test_a_foreign_layer_is_never_fetched_from_its_urls():
    async with FakeRegistry() as elsewhere, FakeRegistry() as registry, open_client() as client:
        layer = elsewhere.add_blob(b"windows")
        descriptor = described(
            layer,
            media_type="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            urls=(f"{elsewhere.url}/v2/x/blobs/{layer.digest}",),
        )
        with pytest.raises(ImageUnsupported):
            await client.fetch_blob(
                parse_reference(registry.reference("a:1")), descriptor, None, Sink()
            )
        assert elsewhere.requests == []


async def test_a_manifest_of_an_index_is_checked_for_size_and_digest():
    async with FakeRegistry() as registry, open_client() as client:
        image = registry.add_image("a")
        reference = parse_reference(registry.reference("a:1"))
        good = described(image.manifest)
        assert len(await client.fetch_manifest(reference, good, None)) == image.manifest.size
        with pytest.raises(SizeMismatch):
            await client.fetch_manifest(
                reference, described(image.manifest, size_bytes=image.manifest.size - 1), None
            )
        registry.on("/manifests/", Alter(body=b"x" * image.manifest.size))
        with pytest.raises(DigestMismatch):
            await client.fetch_manifest(reference, good, None)


async def test_a_small_blob_comes_into_memory_verified_and_bounded():
    async with FakeRegistry() as registry, open_client() as client:
        blob = registry.add_blob(b"{}")
        reference = parse_reference(registry.reference("a:1"))
        assert (
            await client.fetch_small_blob(reference, described(blob), None, limit_bytes=2) == b"{}"
        )
        with pytest.raises(TooLarge):
            await client.fetch_small_blob(reference, described(blob), None, limit_bytes=1)
        registry.on("/blobs/", Alter(body=b"[]", times=FOREVER))
        with pytest.raises(DigestMismatch):
            await client.fetch_small_blob(reference, described(blob), None, limit_bytes=2)


@pytest.mark.parametrize(
    "fault",
    [
        Alter(body=b'{"schemaVersion": 2}'),
        Alter(headers={"Docker-Content-Digest": "sha256:" + "0" * 64}),
    ],
)
async def test_a_manifest_that_is_not_its_digest_is_refused(fault):
    async with FakeRegistry() as registry, open_client() as client:
        image = registry.add_image("a", "1")
        registry.on("/manifests/", fault)
        text = registry.reference(f"a@{image.manifest.digest}")
        with pytest.raises(DigestMismatch):
            await client.resolve(parse_reference(text), None)


@pytest.mark.parametrize("value", ["sha256:../../x", "sha256:ABC", "md5:" + "0" * 32])
async def test_a_malformed_digest_header_is_refused(value):
    async with FakeRegistry() as registry, open_client() as client:
        registry.add_image("a", "1")
        registry.on("/manifests/", Alter(headers={"Docker-Content-Digest": value}))
        with pytest.raises(RegistryProtocolError):
            await client.resolve(parse_reference(registry.reference("a:1")), None)


@pytest.mark.parametrize("with_length", [True, False])
async def test_a_manifest_without_end_is_cut_off_at_the_bound(with_length):
    async with FakeRegistry() as registry, open_client() as client:
        registry.add_image("a", "1")
        body = b" " * (5 << 20)
        registry.on("/manifests/", Alter(body=body, chunked=not with_length))
        with pytest.raises(TooLarge):
            await client.resolve(parse_reference(registry.reference("a:1")), None)


async def test_a_compressed_manifest_is_refused_not_inflated():
    async with FakeRegistry() as registry, open_client() as client:
        registry.add_image("a", "1")
        bomb = gzip.compress(b" " * (1 << 20))
        registry.on("/manifests/", Alter(body=bomb, headers={"Content-Encoding": "gzip"}))
        with pytest.raises(RegistryProtocolError):
            await client.resolve(parse_reference(registry.reference("a:1")), None)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (404, ImageNotFound),
        (401, RegistryUnauthenticated),
        (403, RegistryDenied),
        (400, RegistryProtocolError),
        (204, RegistryProtocolError),
    ],
)
async def test_a_final_status_is_not_tried_again(status, kind):
    async with FakeRegistry() as registry, open_client() as client:
        registry.on("/manifests/", Status(status=status, times=FOREVER))
        reference = parse_reference(registry.reference("team/app:1"))
        with pytest.raises(kind) as caught:
            await client.resolve(reference, None)
        assert len(registry.requests) == 1
        assert "team/app" in str(caught.value)
        assert registry.domain in str(caught.value)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_a_passing_failure_is_tried_again_and_then_succeeds(status):
    clock = FakeClock()
    async with FakeRegistry() as registry, open_client(clock) as client:
        registry.add_image("a", "1")
        registry.on("/manifests/", Status(status=status, times=2))
        await client.resolve(parse_reference(registry.reference("a:1")), None)
        assert clock.slept_s == [0.5, 1.0]


@pytest.mark.parametrize(("status", "kind"), [(429, RegistryThrottled), (503, RegistryUnavailable)])
async def test_a_lasting_failure_ends_after_the_policys_tries(status, kind):
    async with FakeRegistry() as registry, open_client() as client:
        registry.on("/manifests/", Status(status=status, times=FOREVER))
        with pytest.raises(kind):
            await client.resolve(parse_reference(registry.reference("a:1")), None)
        assert len(registry.requests) == 4


async def test_an_error_says_which_host_how_often_it_was_asked_and_what_it_asks_for():
    async with FakeRegistry() as registry, open_client() as client:
        reference = parse_reference(registry.reference("team/app:1"))
        registry.on("/manifests/", Status(status=503, times=FOREVER))
        with pytest.raises(RegistryUnavailable) as caught:
            await client.resolve(reference, None)
        assert str(caught.value) == (
            f"RegistryUnavailable: manifest 1 of {registry.domain}/team/app: the registry fails"
            f" (503) (tries=4, host={registry.url})"
        )
        registry.calm()
        after = [("Retry-After", "3600")]
        registry.on("/manifests/", Status(status=429, headers=after, times=FOREVER))
        with pytest.raises(RegistryThrottled, match=r"\(429, asks to wait 3600 s\)"):
            await client.resolve(reference, None)


async def test_a_connection_that_is_refused_is_told_in_the_kernels_words():
    async with FakeRegistry() as registry:
        pass
    async with open_client() as client:
        with pytest.raises(RegistryUnavailable) as caught:
            await client.resolve(parse_reference(registry.reference("a:1")), None)
    assert f"cannot connect to {registry.url}: connection refused (tries=4, " in str(caught.value)


async def test_waiting_for_a_place_among_the_connections_is_no_stall():
    """One connection for all: the second blob waits much longer than a stall takes."""
    async with (
        FakeRegistry() as registry,
        open_client(
            max_connections_per_host=1,
            pull_progress_timeout_s=0.3,
            min_progress_bytes=1,
            retry=RetryPolicy(attempts=1),
        ) as client,
    ):
        first, second = registry.add_blob(BIG), registry.add_blob(NOISE)
        reference = parse_reference(registry.reference("a:1"))
        registry.on(f"/blobs/{first.digest}", Slow(bytes_per_s=len(BIG)))
        sinks = Sink(), Sink()
        async with asyncio.TaskGroup() as group:
            for blob, sink in zip((first, second), sinks, strict=True):
                group.create_task(client.fetch_blob(reference, described(blob), None, sink))
        assert [sink.data for sink in sinks] == [BIG, NOISE]


async def test_time_spent_waiting_for_a_place_uses_up_no_patience():
    """The next try comes although the first waited longer than all tries together may take."""
    clock = FakeClock()
    async with (
        FakeRegistry() as registry,
        open_client(clock, max_connections_per_host=1, retry=RetryPolicy(attempts=2)) as client,
    ):
        registry.add_image("a", "1")
        held = registry.add_blob(BIG)
        registry.on(f"/blobs/{held.digest}", Hold())
        registry.on("/manifests/", Status(status=503))
        reference = parse_reference(registry.reference("a:1"))
        async with asyncio.TaskGroup() as group:
            group.create_task(client.fetch_blob(reference, described(held), None, Sink()))
            await until(lambda: registry.held)
            resolving = group.create_task(client.resolve(reference, None))
            gate = next(iter(client._transport._gates.values()))
            await until(lambda: gate._waiters)
            clock.advance(3600.0)
            registry.release()
        assert resolving.result().descriptor.size_bytes > 0


async def test_retry_after_is_honoured_up_to_the_cap():
    clock = FakeClock()
    async with FakeRegistry() as registry, open_client(clock) as client:
        registry.add_image("a", "1")
        registry.on("/manifests/", Status(status=429, headers=[("Retry-After", "7")]))
        await client.resolve(parse_reference(registry.reference("a:1")), None)
        assert clock.slept_s == [pytest.approx(7.05)]
        registry.on("/manifests/", Status(status=429, headers=[("Retry-After", "3600")]))
        with pytest.raises(RegistryThrottled):
            await client.resolve(parse_reference(registry.reference("a:1")), None)
        assert len(clock.slept_s) == 1


async def test_an_unavailable_registry_is_named_so_that_the_kubelet_sees_it():
    async with FakeRegistry() as registry:
        domain = registry.domain
    async with open_client() as client:
        with pytest.raises(RegistryUnavailable) as caught:
            await client.resolve(parse_reference(f"{domain}/team/app:1"), None)
    text = str(caught.value)
    assert text.startswith("RegistryUnavailable: cannot connect to ")
    assert domain in text
    assert "team/app" in text


@pytest.mark.parametrize(
    "raw",
    [
        Raw(data=b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"a" * (1 << 20) + b"\r\n\r\n"),
        Raw(
            data=b"HTTP/1.1 200 OK\r\n"
            + b"".join(b"X-%d: a\r\n" % i for i in range(100_000))
            + b"\r\n"
        ),
        Raw(data=b"HTTP/1.1 200 OK\r\nno colon here\r\nContent-Length: 0\r\n\r\n"),
        Raw(data=b"SSH-2.0-OpenSSH_9.2\r\n"),
        Raw(data=b""),
    ],
    ids=["long header", "many headers", "no colon", "another protocol", "nothing"],
)
async def test_an_answer_that_is_no_bounded_http_is_an_error(raw):
    async with FakeRegistry() as registry, open_client() as client:
        registry.on("/manifests/", *[raw] * 8)
        with pytest.raises(RegistryUnavailable):
            await client.resolve(parse_reference(registry.reference("a:1")), None)


async def test_a_flood_of_continue_answers_ends():
    async with (
        FakeRegistry() as registry,
        open_client(response_timeout_s=0.1, retry=RetryPolicy(attempts=1)) as client,
    ):
        registry.on(
            "/manifests/", Raw(data=b"HTTP/1.1 100 Continue\r\n\r\n" * 100, repeat=1_000_000)
        )
        with pytest.raises(RegistryProtocolError, match="within bounds"):
            await client.resolve(parse_reference(registry.reference("a:1")), None)


async def test_no_secret_of_any_kind_reaches_an_error_text():
    secret = "hunter2-" + os.urandom(4).hex()
    credential = Credential(username="alice", password=secret)
    async with (
        FakeRegistry(challenge="Basic", users={"alice": secret}) as registry,
        open_client(retry=RetryPolicy(attempts=1)) as client,
    ):
        signed = "http://127.0.0.1:9/blob?X-Amz-Signature=" + secret
        echo = b'{"errors":[{"code":"DENIED","message":"%s"},{"code":"%s"}]}' % (
            (secret.encode(),) * 2
        )
        registry.on(
            "/manifests/",
            Pass(),
            Status(status=307, headers=[("Location", signed)]),
            Status(status=403, body=echo),
            Status(status=307, headers=[("Location", "gopher://h/?" + secret)]),
            Status(status=307, headers=[("Location", f"http://u:{secret}@h/")]),
        )
        reference = parse_reference(registry.reference("a:1"))
        texts = []
        for _ in range(4):
            with pytest.raises(PodwrightError) as caught:
                await client.resolve(reference, credential)
            texts.append(str(caught.value) + repr(caught.value) + repr(caught.value.fields))
        assert "DENIED" in texts[1]
        assert not any(secret in text for text in texts)
