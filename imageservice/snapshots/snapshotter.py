"""The contract of every driver that keeps layers and makes root file systems of them.

Vocabulary. A *layer* is one image layer without those below it, named by its diffID, immutable once
committed, kept once however many images use it. A *staging* is a place where a layer is being
written; it has no name and vanishes with a crash. A *root file system* is a chain of layers, lowest
first, with a writable directory on top; it is named by its *key* (the container's id), and the
*lease* under that key keeps its layers from being removed, also across restarts and also when the
image is long gone.

Life cycle::

    stage ──► Staging ──(unpacked into it)──► commit ──► layer ──► remove
                 └───────────► discard                     ▲
                                       prepare(key) ── lease ── release(key)

Example::

    staging = await snapshots.stage(diff_id)
    try:
        facts = await unpacker.unpack(blob, staging)
        await snapshots.commit(staging, facts)
    except BaseException:
        await snapshots.discard(staging)
        raise
    mounts = await snapshots.prepare("c1", (diff_id,), upper_dir=..., work_dir=...)
    ...                                          # mount_all(mounts), run, unmount
    await snapshots.release("c1")
    await snapshots.remove({diff_id})            # unless a lease or the caller still needs it

Promises. A layer that `has` knows is wholly on disk, whatever happens to the power: data is synced
before the record that makes it visible. Every method may be repeated. Nothing blocks the event
loop. All methods are for one event loop; those that are not coroutines never touch the disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from imageservice.forms import LayerForm
    from sandbox.host.idmap import IdMap
    from sandbox.host.mounts import Mount


@dataclass(frozen=True, slots=True)
class Staging:
    """A place to write one layer to.

    Attributes:
        diff_id: the layer it is to become.
        path: an empty directory to write to.
        form: what it is to become; a tree is taken as well.
    """

    diff_id: str
    path: Path
    form: LayerForm = "tree"


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What is known of a layer once it was written.

    Attributes:
        form: what was written.
        entries: names in it; with `size_bytes` a cheap check that it is still whole.
        size_bytes: lengths of its regular files.
        opaque_root: it hides everything below it.
        implied: directories in it that its archive does not describe (b"" is the root): their
            owner, mode and times are made up.
        index_digest: `sha256:...` of the index of an indexed layer; the tar's is the diffID.
    """

    entries: int
    size_bytes: int
    opaque_root: bool = False
    implied: frozenset[bytes] = frozenset()
    form: LayerForm = "tree"
    index_digest: str = ""


@dataclass(frozen=True, slots=True)
class MappedRoot:
    """A root file system for a user namespace.

    Attributes:
        ids: the mapping; owners on the layers' disks are the ids inside.
        layers_at: an empty directory, made if missing, in which the layers are mounted with that
            mapping. overlayfs keeps what it needs of them: once it is mounted they can go.
    """

    ids: IdMap
    layers_at: Path


@dataclass(frozen=True, slots=True)
class SnapshotUsage:
    """What all layers take on disk."""

    used_bytes: int
    inodes: int


class Snapshotter(Protocol):
    """See the module's text."""

    async def open(self) -> None:
        """Make ready: forget stagings, drop layers that are gone or damaged.

        Raises:
            Unsupported: this host cannot use the driver.
            Corrupt: the records cannot be read.
        """
        ...

    async def close(self) -> None:
        """Record an orderly end: layers written so far need no check at the next start."""
        ...

    def has(self, diff_id: str) -> bool:
        """Whether the layer is committed, here or in an additional store."""
        ...

    def tar_of(self, diff_id: str) -> Path | None:
        """The layer's plain tar, where it is kept as one; its digest is the diffID."""
        ...

    def layers(self) -> Collection[str]:
        """DiffIDs of all committed layers of this store, without those of additional ones."""
        ...

    def leases(self) -> Mapping[str, tuple[str, ...]]:
        """Key -> the layers it holds."""
        ...

    async def stage(self, diff_id: str) -> Staging:
        """A fresh place to write the layer to; any number for one layer at a time.

        Raises:
            ResourceExhausted: disk or inodes full.
        """
        ...

    async def commit(self, staging: Staging, facts: LayerFacts) -> None:
        """Make the layer durable, then visible; the staging is used up.

        If the layer was committed by someone else meanwhile, that one stays.

        Raises:
            NotFound: the staging was discarded.
            ResourceExhausted: disk full; the staging is still there to be discarded.
        """
        ...

    async def discard(self, staging: Staging) -> None:
        """Throw away what was written; one that was committed or discarded is fine."""
        ...

    async def prepare(
        self,
        key: str,
        chain: tuple[str, ...],
        *,
        upper_dir: Path,
        work_dir: Path,
        read_only: bool = False,
        mapped: MappedRoot | None = None,
    ) -> tuple[Mount, ...]:
        """Take a lease on the layers and say how to mount them; nothing is mounted here.

        The lease is recorded before anything is made. Again under the same key: the new chain
        takes the place of the old. The target of the last mount is empty (`Path()`), to be
        replaced; those before it, if any, have absolute ones and hold what it is made of.

        Args:
            key: name of the lease.
            chain: diffIDs, lowest first; may be empty.
            upper_dir: where writes go; made if missing, kept as it is if not.
            work_dir: made anew.
            read_only: no upper directory, and the other two are not used; but a driver that copies
                puts the copy at `upper_dir`.
            mapped: for a pod with a user namespace.

        Raises:
            NotFound: a layer is not committed.
            ResourceExhausted: disk full.
        """
        ...

    async def release(self, key: str) -> None:
        """Give the lease back; an unknown key is fine."""
        ...

    async def remove(self, diff_ids: Collection[str]) -> None:
        """Free the space of layers; those leased or unknown are left alone.

        The layers are gone for `has` before this suspends for the first time, so a caller that
        chose them without suspending cannot race with one that relies on `has`.

        Raises:
            ResourceExhausted: the record could not be deleted even after the space was freed.
        """
        ...

    async def usage(self) -> SnapshotUsage:
        """What the committed layers take; measured once for each."""
        ...
