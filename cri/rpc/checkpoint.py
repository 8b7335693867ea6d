"""Checkpoint and restore: not in this version; each call says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri.rpc.later import later

if TYPE_CHECKING:
    from protos import api_pb2 as pb


class CheckpointCalls:
    """The methods that freeze and thaw."""

    async def checkpoint_container(
        self, request: pb.CheckpointContainerRequest
    ) -> pb.CheckpointContainerResponse:
        """Not in this version."""
        later("CheckpointContainer")

    async def checkpoint_pod(self, request: pb.CheckpointPodRequest) -> pb.CheckpointPodResponse:
        """Not in this version."""
        later("CheckpointPod")

    async def restore_pod(self, request: pb.RestorePodRequest) -> pb.RestorePodResponse:
        """Not in this version."""
        later("RestorePod")
