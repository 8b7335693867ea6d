"""Rows 7, 8 and 13: what is malformed ends, and what is small stays small.

CVE-2021-20291: a malformed xz kept its reader in Close for ever. CVE-2017-14992, CVE-2026-53717:
memory by what a header claims or a padding becomes. CVE-2019-20907, CVE-2024-6232: the reader of
headers looped. Tried on real workers: damaged gzip, zstd, xz and bzip2, headers that claim 8 EiB
or lie about their own length, padding, sparse maps, entries without number, bombs. After each the
same worker takes the next layer, its peak of memory is read from the kernel, and no child is left.
"""

from __future__ import annotations

import gzip
import lzma
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zstandard

from imageservice.settings import ImageSettings
from imageservice.unpack.compression import expansion_limit
from imageservice.unpack.pool import UnpackPool
from imageservice.unpack.protocol import Job
from sandbox.host.errors import PodwrightError
from sandbox.host.processes import HostProcessRunner, Spawned
from tests.kit.tars import Tar, diff_id, pax_member

pytestmark = pytest.mark.root

MIB, GIB = 1 << 20, 1 << 30
#: What a worker may take at most for any of these: its interpreter and a few chunks.
PEAK_BYTES = 120 * MIB
SMALL = Tar().file("a", b"contents" * 1000).done()
ZSTD = zstandard.ZstdCompressor()


class Runner(HostProcessRunner):
    """Remembers what it started."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[Spawned] = []

    async def spawn(self, argv, **options) -> Spawned:
        process = await super().spawn(argv, **options)
        self.started.append(process)
        return process


class Worker:
    """One worker and directories for it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runner = Runner()
        self.pool = UnpackPool(self.runner, workers=1, idle_s=600, no_progress_timeout_s=600)
        self._jobs = 0

    async def unpack(self, blob: bytes, plain: bytes = b"", **limits: int) -> None:
        self._jobs += 1
        path, tree = self.root / "blob", self.root / f"tree-{self._jobs}"
        path.write_bytes(blob)
        tree.mkdir()
        job = Job(
            blob=str(path),
            blob_digest=diff_id(blob),
            blob_bytes=len(blob),
            available_bytes=len(blob),
            target=str(tree),
            form="tree",
            diff_id=diff_id(plain),
            **{"max_plain_bytes": 2 << 30, "max_entries": 100_000, **limits},
        )
        await self.pool.unpack(job, lambda _bytes: None)

    def peak_bytes(self) -> int:
        """The most memory the worker ever had at once."""
        [process] = self.runner.started
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        [peak] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
        return int(peak) * 1024


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Worker]:
    made = Worker(tmp_path)
    try:
        yield made
    finally:
        await made.pool.close()
        assert all(process.pidfd < 0 for process in made.runner.started), "a worker is left"


def damaged() -> dict[str, bytes]:
    """Blobs that cannot be read to a good end."""
    packed = {
        "gzip": gzip.compress(SMALL, mtime=0),
        "zstd": ZSTD.compress(SMALL),
        "xz": lzma.compress(SMALL),
    }
    found: dict[str, bytes] = {"empty": b"", "bzip2": b"BZh9" + b"\xff" * 500, "one byte": b"\x1f"}
    for name, blob in packed.items():
        for at in (len(blob) // 3, len(blob) - 1):
            found[f"{name} cut at {at}"] = blob[:at]
        found[f"{name} magic alone"] = blob[:6]
        found[f"{name} turned to noise"] = blob[:10] + b"\xff" * len(blob)
        found[f"{name} and junk behind"] = blob + b"junk" * 5000
        found[f"{name} of nothing, often"] = (
            (
                {"gzip": gzip.compress(b""), "zstd": ZSTD.compress(b""), "xz": lzma.compress(b"")}[
                    name
                ]
            )
            * 2000
        )
    # A backward-size and an index that contradict the stream: what its reader hung on.
    found["xz with a broken index"] = packed["xz"][:-20] + b"\0" * 8 + packed["xz"][-12:]
    return found


async def test_damage_of_every_compression_ends_and_costs_nobody(worker: Worker) -> None:
    for name, blob in damaged().items():
        with pytest.raises(PodwrightError):
            await worker.unpack(blob, b"what it is not")
        assert len(worker.runner.started) == 1, f"{name}: the worker did not survive"
    await worker.unpack(gzip.compress(SMALL), SMALL)
    assert worker.peak_bytes() < PEAK_BYTES


def claims() -> dict[str, bytes]:
    """Archives whose headers promise what does not come."""
    zeros = bytes(512)
    return {
        "8 EiB file": Tar().add("a", size=8 << 60).done(),
        "8 EiB by pax": pax_member({"size": b"9223372036854775807"}) + Tar().file("a").done(),
        "8 EiB pax header": Tar().add("x", kind=tarfile.XHDTYPE, size=8 << 60).done(),
        "8 EiB name": Tar().add("x", kind=tarfile.GNUTYPE_LONGNAME, size=8 << 60).done(),
        "record of length 0": Tar().add("x", kind=tarfile.XHDTYPE, content=b"0 a=b\n").done(),
        "record of length 2^60": Tar()
        .add("x", kind=tarfile.XHDTYPE, content=b"1152921504606846976 a=b\n")
        .done(),
        "digits": Tar().add("x", kind=tarfile.XHDTYPE, content=b"1" * 4096 + b" a=b\n").done(),
        "blanks": Tar().add("x", kind=tarfile.XHDTYPE, content=b" " * 600_000 + b"\n").done(),
        "16 EiB sparse": pax_member(
            {"GNU.sparse.map": b"0,6", "GNU.sparse.size": b"9" * 19, "GNU.sparse.name": b"s"}
        )
        + Tar().file("x").done(),
        "sparse map of a million parts": pax_member(
            {"GNU.sparse.map": b"1,0," * 250_000 + b"1,6", "GNU.sparse.size": b"6"}
        )
        + Tar().file("x").done(),
        "headers without a member": pax_member({"a": b"b"}) * 50,
        "holes everywhere": zeros + b"x" * 512,
    }


async def test_what_headers_claim_is_not_believed(worker: Worker) -> None:
    for name, plain in claims().items():
        with pytest.raises(PodwrightError):
            await worker.unpack(gzip.compress(plain, 1), plain)
        assert len(worker.runner.started) == 1, f"{name}: the worker did not survive"
    assert worker.peak_bytes() < PEAK_BYTES


def zeros_gzipped(size_bytes: int) -> bytes:
    """A thousandth of the size: members of 64 MiB each, as pigz writes them."""
    return gzip.compress(bytes(64 * MIB), 9, mtime=0) * (size_bytes // (64 * MIB))


async def test_bombs_stop_at_their_budget(worker: Worker) -> None:
    """A GiB of padding behind an archive, one file of zeros, and both against a small limit."""
    bomb = zeros_gzipped(GIB)
    assert len(bomb) * 1000 < GIB
    header = Tar().add("big", size=GIB).done()[:512]
    for blob in (bomb, gzip.compress(SMALL) + bomb, gzip.compress(header) + bomb):
        with pytest.raises(PodwrightError, match="limit"):
            await worker.unpack(blob, max_plain_bytes=64 * MIB)
        with pytest.raises(PodwrightError):  # within the limit: the diffID is wrong
            await worker.unpack(blob, max_plain_bytes=2 * GIB)
    assert worker.peak_bytes() < PEAK_BYTES


async def test_a_bomb_stops_at_the_budget_that_a_pull_gives_it(worker: Worker) -> None:
    """4 MiB that would be 4 GiB: the first is free, and beyond it the ratio counts."""
    bomb, defaults = zeros_gzipped(4 * GIB), ImageSettings()
    limit = expansion_limit(
        len(bomb),
        max_layer_bytes=defaults.max_layer_bytes,
        max_ratio=defaults.max_expansion_ratio,
    )
    assert limit == GIB
    with pytest.raises(PodwrightError, match="limit"):
        await worker.unpack(gzip.compress(SMALL) + bomb, max_plain_bytes=limit)
    assert worker.peak_bytes() < PEAK_BYTES


async def test_entries_without_number_stop_at_their_budget(worker: Worker) -> None:
    """A million tiny members in a few KiB of blob; files, directories and headers alone."""
    one_file, one_directory = Tar().file("f", b"").done()[:512], Tar().directory("d").done()[:512]
    for part in (one_file, one_directory):
        blob = gzip.compress(part * 10_000, 1) * 100  # members of gzip, as pigz writes them
        with pytest.raises(PodwrightError, match="too many entries"):
            await worker.unpack(blob, max_entries=5_000)
    defaults = Tar().add("g", kind=tarfile.XGLTYPE, content=b"6 a=b\n").done()[:1024]
    headers = gzip.compress(defaults * 10_000, 1) * 100
    with pytest.raises(PodwrightError):  # passed over, and the diffID is wrong
        await worker.unpack(headers)
    assert worker.peak_bytes() < PEAK_BYTES


@pytest.mark.slow
async def test_a_million_entries_within_the_budget_cost_no_memory(worker: Worker) -> None:
    """The budget of a pull is larger. (Of different names: test_images_shapes.py, with a flag.)"""
    part = Tar().file("f", b"").done()[:512]
    with pytest.raises(PodwrightError, match="diff"):  # all were taken, and the diffID is wrong
        await worker.unpack(
            gzip.compress(part * 10_000, 1) * 100, max_entries=ImageSettings().max_layer_entries
        )
    assert worker.peak_bytes() < PEAK_BYTES
