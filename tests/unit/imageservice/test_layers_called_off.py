"""A layer that nobody waits for any more is not fetched once more."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from imageservice.blobs import KeptBlobs
from imageservice.content import ContentStore
from imageservice.errors import BlobMismatch
from imageservice.layers import LayerPuller
from imageservice.manifest import Descriptor
from imageservice.progress import SilentObserver
from imageservice.reference import parse_reference
from imageservice.settings import ImageSettings
from sandbox.host.clock import SystemClock
from tests.fakes.snapshotter import MemorySnapshotter

DIGEST = "sha256:" + "a" * 64
LAYER = Descriptor(media_type="", digest=DIGEST, size_bytes=1)


class Pool:
    """Needs no worker."""

    async def warm(self) -> None:
        """None is needed."""


async def test_a_mismatch_while_it_is_called_off_is_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task group that ends because of a failure raises that, and not the cancellation."""
    tries: list[bool] = []
    begun = asyncio.Event()

    async def make(_self: LayerPuller, _work: object, *, origin_only: bool) -> None:
        tries.append(origin_only)
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise BlobMismatch("as a task group would") from None

    monkeypatch.setattr(LayerPuller, "_make", make)
    async with asyncio.TaskGroup() as group:
        puller = LayerPuller(
            None,  # type: ignore[arg-type]
            ContentStore(tmp_path),
            MemorySnapshotter(tmp_path / "images"),
            Pool(),  # type: ignore[arg-type]
            group=group,
            settings=ImageSettings(root=tmp_path),
            observer=SilentObserver(),
            clock=SystemClock(),
            places=asyncio.Semaphore(1),
            blobs=KeptBlobs(tmp_path, enabled=False),
        )
        pulling = asyncio.ensure_future(
            puller.pull(
                parse_reference("reg.example/app:1"),
                None,
                LAYER,
                DIGEST,
                asyncio.Semaphore(1),
                lambda _progress: None,
            )
        )
        await begun.wait()
        pulling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pulling
        await asyncio.wait_for(puller.settle(), 30)
    assert tries == [False]
