"""What the daemon repeats beside its calls: unwritten state, networks still to be detached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sandbox.host.errors import PodwrightError
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from cni.network import PodNetwork
    from cri.pod_lifecycle import PodLifecycle
    from sandbox.host.clock import Clock
    from sandbox.store import StateStore

#: Between two rounds of the upkeep (seconds).
UPKEEP_PAUSE_S: Final = 10.0

_log = get_logger("upkeep")


async def upkeep(store: StateStore, pods: PodLifecycle, network: PodNetwork, clock: Clock) -> None:
    """Repeat what could not be done at once: unwritten state, networks still to be detached."""
    collected = False
    while True:
        await store.flush()
        await pods.detach_owed()
        if not collected:
            # Once in a life, and only when a network is there to be asked.
            collected = await _collect_networks(network, store)
        await clock.sleep(UPKEEP_PAUSE_S)


async def _collect_networks(network: PodNetwork, store: StateStore) -> bool:
    """Give back what networks hold for pods that are no more; False when it must be tried again."""
    try:
        await network.gc([pod.id for pod in store.pods.values() if pod.network_attached])
    except PodwrightError as error:
        _log.info("networks not collected yet", error=str(error))
        return False
    return True
