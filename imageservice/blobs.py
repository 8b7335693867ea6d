"""Compressed blobs that are kept after unpacking, where the operator asks for it.

    blobs/sha256-<diffID>/sha256-<blob>     the bytes of a registry for a layer

They serve one purpose: an image can be written to an archive with the digests that its registry
has (`saving`). A blob belongs to the layer that was made of it and goes when no image has that
layer any more; a container that still runs on the layer does not need it. A layer that is here
already is not fetched again for its blob's sake.

Whether a blob is kept is decided when it was fetched, and it is the download's own file: nothing is
written twice. Its bytes were hashed by the worker that unpacked them.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from imageservice.digest import Digest
from imageservice.errors import DigestInvalid
from sandbox.host.errors import map_os_errors
from sandbox.host.files import make_private_dir, remove_tree
from sandbox.host.threads import to_its_end

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

_READ_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class KeptBlob:
    """One of them; `path` is its file."""

    diff_id: str
    digest: str
    path: Path
    size_bytes: int

    def problem(self) -> str:
        """What is wrong with its bytes, "" when nothing is. Blocking."""
        expected = Digest.parse(self.digest)
        hasher = expected.hasher()
        try:
            with self.path.open("rb", buffering=0) as file:
                while chunk := file.read(_READ_BYTES):
                    hasher.update(chunk)
        except OSError:
            return "its file cannot be read"
        return "" if hasher.hexdigest() == expected.hex else "its bytes are not what they were"


class KeptBlobs:
    """The blobs below one image directory. For one event loop."""

    def __init__(self, root: Path, *, enabled: bool) -> None:
        """`enabled`: new ones are kept; otherwise `open` removes the old ones."""
        self._directory = root / "blobs"
        self.enabled = enabled
        self._layers: set[str] = set()
        self._lent: tuple[Path, ...] = ()
        # A blob must not come into a directory that is being removed.
        self._changing = asyncio.Lock()

    async def open(self) -> None:
        """Make ready; raises PodwrightError."""
        await asyncio.to_thread(self._open)

    def _open(self) -> None:
        if not self.enabled:
            remove_tree(self._directory)
            return
        make_private_dir(self._directory)
        self._layers = {blob.diff_id for blob in read_blobs(self._directory)}

    def borrow(self, roots: Iterable[Path]) -> None:
        """Find blobs that are not kept here in these stores, which are only read."""
        self._lent = tuple(root / "blobs" for root in roots)

    def layers(self) -> Collection[str]:
        """DiffIDs of layers that have blobs here."""
        return self._layers

    def find(self, diff_id: str, digest: str) -> Path | None:
        """The file of that blob. Blocking."""
        for directory in (self._directory, *self._lent):
            path = directory / _name(diff_id) / _name(digest)
            if path.is_file():
                return path
        return None

    def find_any(self, diff_id: str) -> KeptBlob | None:
        """Some blob of the layer. Blocking."""
        for directory in (self._directory, *self._lent):
            for blob in _of_layer(directory / _name(diff_id)):
                return blob
        return None

    async def all(self) -> list[KeptBlob]:
        """Those that are kept here; raises PodwrightError."""
        return await asyncio.to_thread(read_blobs, self._directory)

    async def take(self, diff_id: str, digest: str, file: Path) -> None:
        """Keep `file`, which is moved; its bytes are known to be right.

        Raises:
            PodwrightError: it cannot be moved; it is then where it was.
        """
        async with self._changing:
            self._layers.add(diff_id)
            await to_its_end(partial(self._take, diff_id, digest, file))

    def _take(self, diff_id: str, digest: str, file: Path) -> None:
        directory = self._directory / _name(diff_id)
        make_private_dir(directory)
        with map_os_errors("cannot keep blob", blob=digest):
            fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                # After a power failure it is whole or not there; the commit of the layer has
                # written it with everything else, so this waits for little.
                os.fsync(fd)
            finally:
                os.close(fd)
            file.rename(directory / _name(digest))

    async def drop(self, diff_ids: Collection[str]) -> None:
        """Remove all blobs of these layers; unknown ones are fine. Raises PodwrightError."""
        async with self._changing:
            gone = self._layers.intersection(diff_ids)
            self._layers -= gone
            await to_its_end(partial(self._drop, gone))

    def _drop(self, diff_ids: Collection[str]) -> None:
        for diff_id in diff_ids:
            remove_tree(self._directory / _name(diff_id))

    async def remove(self, blob: KeptBlob) -> None:
        """Remove one that `all` named; raises PodwrightError."""
        async with self._changing:
            with map_os_errors("cannot remove blob", blob=blob.digest):
                await to_its_end(partial(blob.path.unlink, missing_ok=True))


def read_blobs(directory: Path) -> list[KeptBlob]:
    """All blobs below `directory`, which need not exist; what is no blob is left out. Blocking."""
    with map_os_errors("cannot read kept blobs", path=str(directory)):
        layers = sorted(directory.iterdir()) if directory.is_dir() else []
        return [blob for layer in layers for blob in _of_layer(layer)]


def _of_layer(directory: Path) -> list[KeptBlob]:
    try:
        diff_id = str(_digest(directory.name))
        paths = sorted(directory.iterdir())
        return [
            KeptBlob(diff_id, str(_digest(path.name)), path, path.stat().st_size) for path in paths
        ]
    except (DigestInvalid, FileNotFoundError, NotADirectoryError):
        return []


def _name(digest: str) -> str:
    return digest.replace(":", "-", 1)


def _digest(name: str) -> Digest:
    return Digest.parse(name.replace("-", ":", 1))
