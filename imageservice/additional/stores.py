"""The additional stores of a node: opened at its start, each for itself; none is needed for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from imageservice.additional.reading import read_store
from imageservice.snapshots.indexed import mount_index
from sandbox.host.errors import FailedPrecondition, PodwrightError, Unavailable
from sandbox.host.files import make_private_dir, remove_tree
from sandbox.host.journal import get_logger
from sandbox.host.mounts import unmount, unmount_tree

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from imageservice.additional.reading import StoredImages
    from imageservice.snapshots.ledger import LayerRow
    from imageservice.trust.kept import Place
    from imageservice.trust.model import Signature
    from sandbox.host.syscalls import Syscalls

_log = get_logger(__name__)
#: A network file system whose server is away lets a read wait for ever; a start must not.
_OPEN_S: Final = 30.0


@dataclass(slots=True)
class AdditionalStore:
    """A configured store.

    Attributes:
        root: where it is.
        contents: what it has; None when it cannot be used at all.
        layers: those that can be used here.
        problems: what is wrong with it, in words; may be of a part of it only.
        images: how many of its images can be run here.
    """

    root: Path
    contents: StoredImages | None = None
    layers: tuple[LayerRow, ...] = ()
    problems: list[str] = field(default_factory=list)
    images: int = 0


class AdditionalStores:
    """See the module's text. Make it with `open`."""

    def __init__(self, stores: Iterable[AdditionalStore] = ()) -> None:
        self._stores = tuple(stores)

    @classmethod
    async def open(
        cls, roots: Iterable[Path], *, own_root: Path, syscalls: Syscalls
    ) -> AdditionalStores:
        """Read each of `roots`; what cannot be used is logged and never raised.

        Args:
            roots: in the order in which they count.
            own_root: this node's own store, where a mount is tried.
            syscalls: the kernel.
        """
        found: list[AdditionalStore] = []
        for root in dict.fromkeys(roots):
            store = AdditionalStore(root)
            try:
                store.contents = await _opened(root, own_root)
                store.layers = store.contents.layers
                await asyncio.to_thread(_keep_mountable, store, own_root, syscalls)
                if store.contents.lost:
                    store.problems.append(f"{len(store.contents.lost)} layers are not on its disk")
            except PodwrightError as error:
                store.problems.append(str(error))
            for problem in store.problems:
                _log.warning("additional image store", path=str(root), problem=problem)
            found.append(store)
        return cls(found)

    def __iter__(self) -> Iterator[AdditionalStore]:
        return iter(self._stores)

    @property
    def usable_roots(self) -> tuple[Path, ...]:
        """Those that could be read."""
        return tuple(store.root for store in self._stores if store.contents is not None)

    @property
    def layers(self) -> list[LayerRow]:
        """Of all stores, in their order."""
        return [row for store in self._stores for row in store.layers]

    @property
    def signatures(self) -> dict[Place, tuple[Signature, ...]]:
        """Of all stores; see `StoredImages`."""
        found: dict[Place, tuple[Signature, ...]] = {}
        for store in self._stores:
            if store.contents is not None:
                for place, signatures in store.contents.signatures.items():
                    found[place] = (*found.get(place, ()), *signatures)
        return found

    def report(self) -> dict[str, object]:
        """Each store by its path as JSON values, for `podwright status`."""
        return {
            str(store.root): {
                "images": store.images,
                "layers": len(store.layers),
                "problems": list(store.problems),
            }
            for store in self._stores
        }


async def _opened(root: Path, own_root: Path) -> StoredImages:
    try:
        async with asyncio.timeout(_OPEN_S):
            return await asyncio.to_thread(_read, root, own_root)
    except TimeoutError as error:
        raise Unavailable(
            f"image store cannot be read within {_OPEN_S:.0f} s",
            path=str(root),
            hint="restart podwright when its disk answers again",
        ) from error


def _read(root: Path, own_root: Path) -> StoredImages:
    real = root.resolve()
    if real.is_relative_to(own_root) or own_root.is_relative_to(real):
        raise FailedPrecondition(
            "an additional image store cannot be the node's own, nor within it, nor around it",
            path=str(root),
        )
    return read_store(root)


def _keep_mountable(store: AdditionalStore, own_root: Path, syscalls: Syscalls) -> None:
    """Leave out layers of a form that cannot be seen here; told by mounting one of them."""
    sample = next((row for row in store.layers if row.facts.form == "indexed"), None)
    if sample is None or sample.lender is None:
        return
    directory = own_root / "probe-stores"
    target = directory / "index"
    # A daemon that was killed in the middle of this has left a mount.
    unmount_tree(directory, syscalls=syscalls)
    make_private_dir(directory)
    make_private_dir(target)
    try:
        mount_index(sample.lender.layers_dir / sample.directory, target, syscalls=syscalls)
        unmount(target, syscalls=syscalls)
    except PodwrightError as error:
        store.layers = tuple(row for row in store.layers if row.facts.form != "indexed")
        store.problems.append(
            f"layers kept as a tar and an index cannot be mounted from it here ({error});"
            " make it with image.layer_form = tree, or use Linux 6.12 with EROFS"
        )
    finally:
        remove_tree(directory)
