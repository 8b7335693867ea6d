"""The container calls: check, convert, call the lifecycle, convert back; lists from the cache."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cri import validate
from cri.convert_container import (
    container_config,
    container_item,
    container_state,
    container_status,
)
from cri.convert_pod import pod_config
from cri.convert_shared import resources
from cri.rpc.lists import ListCache, has_labels, id_prefix
from cri.rpc.pods import info_json
from protos import api_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cri.rpc.ports import Containers
    from sandbox.model import Container


class ContainerCalls:
    """The methods about containers."""

    def __init__(self, containers: Containers) -> None:
        self._containers = containers
        self._items: ListCache[Container] = ListCache(container_item)

    async def create_container(
        self, request: pb.CreateContainerRequest
    ) -> pb.CreateContainerResponse:
        """Make a container, or find the one that this request made before."""
        pod_id = validate.object_id(request.pod_sandbox_id, "pod_sandbox_id")
        if not request.HasField("config"):
            validate.refuse("config", "is missing")
        if not request.HasField("sandbox_config"):
            validate.refuse("sandbox_config", "is missing")
        config = container_config(request.config)
        of_pod = pod_config(request.sandbox_config, "sandbox_config")
        return pb.CreateContainerResponse(
            container_id=await self._containers.create(pod_id, config, of_pod)
        )

    async def start_container(self, request: pb.StartContainerRequest) -> pb.StartContainerResponse:
        """Let a container run."""
        await self._containers.start(validate.object_id(request.container_id, "container_id"))
        return pb.StartContainerResponse()

    async def stop_container(self, request: pb.StopContainerRequest) -> pb.StopContainerResponse:
        """Stop a container with grace; unknown is success."""
        container_id = validate.object_id(request.container_id, "container_id")
        await self._containers.stop(container_id, _seconds(request.timeout))
        return pb.StopContainerResponse()

    async def remove_container(
        self, request: pb.RemoveContainerRequest
    ) -> pb.RemoveContainerResponse:
        """Remove a container; unknown is success."""
        await self._containers.remove(validate.object_id(request.container_id, "container_id"))
        return pb.RemoveContainerResponse()

    async def container_status(
        self, request: pb.ContainerStatusRequest
    ) -> pb.ContainerStatusResponse:
        """Status of a container."""
        container = self._containers.status(
            validate.object_id(request.container_id, "container_id")
        )
        response = pb.ContainerStatusResponse(status=container_status(container))
        if request.verbose:
            facts = await asyncio.to_thread(self._containers.verbose, container)
            response.info.update(info_json(facts))
        return response

    async def list_containers(self, request: pb.ListContainersRequest) -> bytes:
        """Containers that pass the filter, newest first."""
        return self._items.join(self._chosen(request.filter), len(self._containers.list()))

    async def stream_containers(self, request: pb.StreamContainersRequest) -> AsyncIterator[bytes]:
        """The same in several messages."""
        chosen = self._chosen(request.filter)
        for message in self._items.stream(chosen, len(self._containers.list())):
            yield message

    def _chosen(self, wanted: pb.ContainerFilter) -> list[Container]:
        prefix = id_prefix(wanted.id, "filter.id")
        pod_prefix = id_prefix(wanted.pod_sandbox_id, "filter.pod_sandbox_id")
        by_state = wanted.HasField("state")
        selector = dict(wanted.label_selector)  # reading it from the message costs more than asking
        found = [
            container
            for container in self._containers.list()
            if container.id.startswith(prefix)
            and container.pod_id.startswith(pod_prefix)
            and (not by_state or container_state(container) == wanted.state.state)
            and (not selector or has_labels(container.config.labels, selector))
        ]
        found.sort(key=lambda container: (-container.created_at_ns, container.id))
        return found

    async def update_container_resources(
        self, request: pb.UpdateContainerResourcesRequest
    ) -> pb.UpdateContainerResourcesResponse:
        """Change limits of a container."""
        container_id = validate.object_id(request.container_id, "container_id")
        if not request.HasField("linux"):
            validate.refuse("linux", "is missing")
        await self._containers.update_resources(
            container_id,
            resources(request.linux, "linux"),
            validate.string_map(request.annotations, "annotations"),
        )
        return pb.UpdateContainerResourcesResponse()

    async def reopen_container_log(
        self, request: pb.ReopenContainerLogRequest
    ) -> pb.ReopenContainerLogResponse:
        """Continue the log in a new file."""
        await self._containers.reopen_log(validate.object_id(request.container_id, "container_id"))
        return pb.ReopenContainerLogResponse()


def _seconds(value: int) -> int:
    """A grace period: 0 kills at once; what is longer than ten years is ten years."""
    if value < 0:
        validate.refuse("timeout", f"{value} is negative")
    return min(value, validate.SECONDS_LIMIT)
