"""Whether pods of this node can have user namespaces of their own: tried, once at start.

Kernel versions do not tell: it depends on the file system that holds the layers, on a sysctl, on
what the node itself runs in. So a user namespace is made and a root file system's mounts with it.
"""

from __future__ import annotations

import asyncio
import stat
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import PodwrightError
from sandbox.host.idmap import IdRange

if TYPE_CHECKING:
    from pathlib import Path

    from imageservice.snapshots.drivers import Driver
    from sandbox.host.namespaces import NamespaceWorker
    from sandbox.host.usernamespaces import UserNamespaces

#: The kubelet's own first range (userNamespaces.idsPerPod, 65536, times one).
PROBE_IDS: Final = IdRange(0, 65536, 65536)


async def lack_of_user_namespaces(
    maker: UserNamespaces,
    worker: NamespaceWorker,
    *,
    run_root: Path,
    pins: Path,
    layers: Path,
    driver: Driver,
) -> str:
    """Why no pod can have one; empty when they can. What is made for it is gone afterwards.

    Args:
        maker: makes the namespace to try with.
        worker: takes it away again.
        run_root: where containers' root file systems are reached.
        pins: a directory to be made for the namespace.
        layers: a directory to be made on the file system that holds the layers.
        driver: makes root file systems.
    """
    closed = await asyncio.to_thread(impassable, run_root)
    if closed is not None:
        return f"users other than root cannot pass through {closed}"
    try:
        await worker.unpin(pins)  # of a daemon that was killed just here
        made = await maker.create(pins, frozenset({"ipc"}), uids=PROBE_IDS, gids=PROBE_IDS)
        try:
            return await driver.lack_of_mapping(layers, made["user"])
        finally:
            await worker.unpin(pins)
    except PodwrightError as error:
        return str(error)


def impassable(directory: Path) -> Path | None:
    """The first directory on the way down to `directory` that others may not pass; blocking.

    Root of a user namespace is one of the others, and has to reach the root file systems of its
    containers below the run directory.
    """
    real = directory.resolve()
    for step in (*reversed(real.parents), real):
        try:
            if not step.stat().st_mode & stat.S_IXOTH:
                return step
        except OSError:
            return None  # not there yet: it is made passable
    return None
