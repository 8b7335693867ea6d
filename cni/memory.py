"""What is remembered of an attachment, and all else that its plugins need, in one thread call.

Every look-up alone would be a change of threads between two plugins, 0.2 ms and several times that
where threads are busy. Every method blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cni.attachment import Attachment, check_attachment
from cni.cache import AttachmentCache, Record
from cni.config import NetworkConfig, parse_network
from sandbox.host.errors import FailedPrecondition, InvalidArgument
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni.chain import PluginChain, Programs

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Known:
    """What is there to detach a pod with.

    Attributes:
        network: the one that it was attached to.
        told: what ADD was told, with the namespace as it is now.
        result: what ADD said, if that was saved.
        programs: the plugins', see `PluginChain.find`.
    """

    network: NetworkConfig
    told: Attachment
    result: str
    programs: Programs


class Memory:
    """Reads and begins records of the cache."""

    def __init__(
        self, cache: AttachmentCache, chain: PluginChain, is_namespace: Callable[[Path], bool]
    ) -> None:
        self._cache = cache
        self._chain = chain
        self._is_namespace = is_namespace

    def begin(self, record: Record, network: NetworkConfig) -> Programs:
        """Save what an attachment is about to be made with; the network's programs.

        Raises:
            FailedPrecondition: the pod is attached already.
        """
        told = record.attachment
        known = self._cache.load(told.pod_id, told.interface)
        if known is not None and known.result:
            # The specification forbids a second ADD without a DEL; host-local would hand out a
            # second address and keep the first one for ever.
            raise FailedPrecondition("pod is attached already", pod=told.pod_id)
        self._cache.save(record)
        return self._chain.find(network)

    def recorded(self, attachment: Attachment) -> Record | None:
        """The record of an attachment; None where there is, or can be, none."""
        try:
            return self._cache.load(attachment.pod_id, attachment.interface)
        except InvalidArgument:
            return None

    def recall(self, attachment: Attachment, config_json: str) -> Known | None:
        """All that a detachment needs; None where nothing can be attached.

        Raises:
            ConfigInvalid: the stored configuration is damaged.
        """
        record = self.recorded(attachment)
        if record is None:
            try:
                check_attachment(attachment)
            except InvalidArgument as error:
                # ADD refuses it as well, so nothing can be attached under it.
                _log.info("nothing to detach", pod=attachment.pod_id, why=str(error))
                return None
            if not config_json:
                return None
            record = Record(attachment=attachment, config=config_json)
        network = parse_network(config_json or record.config)
        # The arguments of ADD for DEL, but the namespace the caller knows of. Where that is gone,
        # or a plain file, plugins free what they can without it.
        path = attachment.netns_path
        if path and not self._is_namespace(Path(path)):
            path = ""
        told = msgspec.structs.replace(record.attachment, netns_path=path)
        return Known(network, told, record.result, self._chain.find(network))
