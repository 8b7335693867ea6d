"""A pod's part in the node's network: attached, detached, and its record kept in step with that.

The record says that a pod is attached before the first plugin is run, and that it is not only after
the last one has said so. Between these two a DEL is owed, whoever comes to it; it may be repeated.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from cri.attachment import make_attachment
from sandbox.host.errors import PodwrightError
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cni.attachment import Attachment
    from cni.network import Attached, PodNetwork
    from sandbox.model import PodSandbox
    from sandbox.pods import PodEngine
    from sandbox.store import StateStore

_log = get_logger("network")


class PodWiring:
    """Puts pods into the network and takes them out."""

    def __init__(self, network: PodNetwork, engine: PodEngine, store: StateStore) -> None:
        self._network = network
        self._engine = engine
        self._store = store

    def attachment(self, pod: PodSandbox) -> Attachment:
        """What the network plugins are told about a pod."""
        return make_attachment(pod, self._engine.network_pin(pod))

    async def owe(self, pod: PodSandbox) -> PodSandbox:
        """Record that the pod is about to be attached, and with what.

        Before the plugins run, so that DEL is possible even if we die in the middle of ADD and the
        file is changed meanwhile.

        Raises:
            NetworkNotReady: there is no network.
        """
        config = self._network.current_config_json()
        owing = msgspec.structs.replace(pod, network_attached=True, cni_config=config)
        await self._store.save(owing)
        return owing

    async def attach(self, pod: PodSandbox) -> Attached:
        """ADD; see `PodNetwork.add`."""
        return await self._network.add(self.attachment(pod), config_json=pod.cni_config)

    async def detach(self, pod: PodSandbox) -> PodSandbox:
        """DEL where it is owed, and the record of that."""
        await self.plug_out(pod)
        return await self.note_detached(pod)

    async def plug_out(
        self, pod: PodSandbox, first: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        """DEL where it is owed; `first` is awaited before a plugin is run.

        Raises:
            PodwrightError: as `PodNetwork.delete`, of the stage "network".
        """
        if not pod.network_attached:
            return
        try:
            await self._network.delete(
                self.attachment(pod),
                config_json=pod.cni_config,
                result_json=pod.cni_result,
                first=first,
                forget=False,
            )
        except PodwrightError as error:
            error.stage = "network"
            raise

    async def note_detached(self, pod: PodSandbox) -> PodSandbox:
        """Record that no DEL is owed any more, after `plug_out` of the same value.

        Not synced: what a power failure takes back is a DEL that was done, to be done once more,
        and that a plugin's own records may need, which it does not sync either. The note costs
        0.9 ms with a sync and 0.5 without.
        """
        if not pod.network_attached:
            return pod
        current = self._store.pods.get(pod.id, pod)
        detached = msgspec.structs.replace(current, network_attached=False)
        await asyncio.gather(
            self._store.note(detached, synced=False), self._forget(self.attachment(pod))
        )
        return detached

    async def _forget(self, attachment: Attachment) -> None:
        try:
            await self._network.forget(attachment)
        except PodwrightError as error:
            # The network's own collection finds it, and repeats a DEL that does nothing any more.
            _log.warning("detached pod is not forgotten", pod=attachment.pod_id, error=str(error))
