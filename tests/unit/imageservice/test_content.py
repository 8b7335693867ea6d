"""Documents by digest, downloads that resume, and lengths that are not what they should be."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imageservice.content import ContentStore
from imageservice.digest import Digest
from imageservice.errors import DigestMismatch, SizeMismatch
from imageservice.verified import Verifier
from sandbox.host.errors import NotFound

BLOB = bytes(range(256)) * 20_000  # 5 MB: several batches
DIGEST = Digest.of(BLOB)


@pytest.fixture
async def store(tmp_path: Path) -> ContentStore:
    made = ContentStore(tmp_path)
    await made.open()
    return made


async def feed(store: ContentStore, data: bytes, *, step: int = 300_000) -> Path:
    ingest = await store.begin(DIGEST, len(BLOB))
    try:
        for at in range(0, len(data), step):
            await ingest.write(data[at : at + step])
        return await ingest.finish()
    except BaseException:
        await ingest.release()
        raise


async def test_documents(store: ContentStore) -> None:
    digest = Digest.of(b"{}")
    with pytest.raises(NotFound):
        await store.get(digest)
    await store.put(digest, b"{}")
    await store.put(digest, b"{}")
    assert await store.get(digest) == b"{}"
    await store.delete([digest, digest])
    with pytest.raises(NotFound):
        await store.get(digest)


async def test_a_document_must_have_its_digest(store: ContentStore) -> None:
    with pytest.raises(DigestMismatch):
        await store.put(Digest.of(b"a"), b"b")


async def test_rot_is_found_and_can_be_mended(store: ContentStore, tmp_path: Path) -> None:
    digest = Digest.of(b"{}")
    await store.put(digest, b"{}")
    (tmp_path / "content/sha256" / digest.hex).write_bytes(b"[]")
    with pytest.raises(DigestMismatch):
        await store.get(digest)
    await store.put(digest, b"{}")
    assert await store.get(digest) == b"{}"


async def test_keep_only(store: ContentStore, tmp_path: Path) -> None:
    kept, gone = Digest.of(b"1"), Digest.of(b"2")
    await store.put(kept, b"1")
    await store.put(gone, b"2")
    (tmp_path / "content/sha256/.half.tmp").write_bytes(b"")
    await store.keep_only([kept])
    assert [path.name for path in (tmp_path / "content/sha256").iterdir()] == [kept.hex]


async def test_a_whole_blob(store: ContentStore) -> None:
    assert (await feed(store, BLOB)).read_bytes() == BLOB


async def test_an_interrupted_download_goes_on_where_it_was(store: ContentStore) -> None:
    ingest = await store.begin(DIGEST, len(BLOB))
    await ingest.write(BLOB[:3_000_000])
    await ingest.release()
    again = await store.begin(DIGEST, len(BLOB))
    assert 0 < again.received_bytes <= 3_000_000
    await again.write(BLOB[again.received_bytes :])
    assert (await again.finish()).read_bytes() == BLOB
    await again.discard()
    assert not again.path.exists()


async def test_two_downloads_of_one_blob_do_not_share_a_file(store: ContentStore) -> None:
    first = await store.begin(DIGEST, len(BLOB))
    second = await store.begin(DIGEST, len(BLOB))
    assert first.path != second.path
    await first.discard()
    await second.discard()


async def test_who_follows_a_download_hears_of_what_can_be_read(store: ContentStore) -> None:
    ingest = await store.begin(DIGEST, len(BLOB))
    await ingest.write(BLOB[:1_500_000])
    await ingest.release()
    again = await store.begin(DIGEST, len(BLOB))
    heard: list[tuple[int, int]] = []
    again.follow(lambda written: heard.append((written, again.path.stat().st_size)))
    assert heard == [(1_500_000, 1_500_000)]
    for at in range(again.received_bytes, len(BLOB), 400_000):
        await again.write(BLOB[at : at + 400_000])
    await again.finish()
    assert [told for told, _on_disk in heard] == sorted({told for told, _on_disk in heard})
    assert all(told <= on_disk for told, on_disk in heard)
    assert heard[-1] == (len(BLOB), len(BLOB))
    await again.discard()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (BLOB[:-1], SizeMismatch),
        (BLOB + b"x", SizeMismatch),
        (b"", SizeMismatch),
    ],
)
async def test_wrong_lengths(store: ContentStore, data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        await feed(store, data)


async def test_old_idle_downloads_are_swept(store: ContentStore) -> None:
    idle = await store.begin(DIGEST, len(BLOB))
    await idle.release()
    active = await store.begin(Digest.of(b"other"), 5)
    now_ns = idle.path.stat().st_mtime_ns
    await store.sweep(now_ns=now_ns + 10**9, older_than_s=5)
    assert idle.path.exists()
    await store.sweep(now_ns=now_ns + 6 * 10**9, older_than_s=5)
    assert not idle.path.exists()
    assert active.path.exists()
    await active.discard()


async def test_what_breaks_off_after_a_sweep_for_room_is_not_left(store: ContentStore) -> None:
    data = b"0123456789"
    digest = Digest.of(data)
    ending = await store.begin(digest, len(data))
    await store.sweep(now_ns=0, older_than_s=3600.0)
    await ending.release()
    assert ending.path.exists()
    ending = await store.begin(digest, len(data))
    await store.sweep(now_ns=0, older_than_s=0.0)
    assert ending.path.exists()
    await ending.release()
    assert not ending.path.exists()
    again = await store.begin(digest, len(data))
    await again.release()
    assert again.path.exists()


async def test_downloads_of_what_is_not_needed_any_more(store: ContentStore) -> None:
    idle, busy = [await store.begin(DIGEST, len(BLOB)) for _ in range(2)]
    await idle.write(BLOB[:10])
    await idle.release()
    await store.drop(DIGEST)
    await store.drop(Digest.of(b"unknown"))
    assert not idle.path.exists()
    assert busy.path.exists()
    await busy.discard()


def test_one_byte_too_many_is_refused_before_it_counts() -> None:
    verifier = Verifier(Digest.of(b"abc"), 3)
    verifier.update(b"ab")
    with pytest.raises(SizeMismatch):
        verifier.update(b"cd")
    assert verifier.received_bytes == 2
    verifier.update(b"c")
    verifier.finish()


def descriptors() -> set[str]:
    return {each.name for each in Path("/proc/self/fd").iterdir()}


async def test_a_download_called_off_while_it_is_opened_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ContentStore(tmp_path)
    await store.open()
    opened, may_open = threading.Event(), threading.Event()
    real = os.open

    def slow(path: Path, flags: int, mode: int = 0o777) -> int:
        if "ingest" not in str(path):
            return real(path, flags, mode)
        opened.set()
        may_open.wait()
        return real(path, flags, mode)

    before = descriptors()
    monkeypatch.setattr("imageservice.content.os.open", slow)
    beginning = asyncio.ensure_future(store.begin(Digest.of(b"blob"), 4))
    await asyncio.to_thread(opened.wait)
    beginning.cancel()
    await asyncio.sleep(0)
    may_open.set()
    with pytest.raises(asyncio.CancelledError):
        await beginning
    assert not list((tmp_path / "ingest").iterdir())
    assert descriptors() <= before


async def test_a_download_that_is_given_up_is_gone_whoever_is_called_off(
    store: ContentStore,
) -> None:
    """Its end is called off before a thread is free for it: another layer has failed meanwhile."""
    ingest = await store.begin(DIGEST, len(BLOB))
    await ingest.write(BLOB[: 4 << 20])
    may_go_on, threads = threading.Event(), ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(threads)
    threads.submit(may_go_on.wait)
    ending = asyncio.ensure_future(ingest.discard())
    await asyncio.sleep(0)
    ending.cancel()
    await asyncio.sleep(0)
    may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert not ingest.path.exists()
    (ingest.path.parent / ingest.path.name).write_bytes(b"left by an earlier daemon")
    again = await store.begin(DIGEST, len(BLOB))
    assert again.path == ingest.path  # nobody holds the name any more
    await again.discard()
