"""Pod sandbox calls: run, stop, remove, status, lists, limits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from cri import validate
from cri.convert_container import container_status
from cri.convert_pod import pod_config, pod_item, pod_state, pod_status
from cri.convert_shared import resources
from cri.rpc.lists import ListCache, has_labels, id_prefix
from protos import api_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from cri.rpc.ports import Containers, Pods
    from sandbox.host.clock import Clock
    from sandbox.model import PodSandbox


def info_json(facts: Mapping[str, object]) -> dict[str, str]:
    """Verbose facts as CRI clients expect them: one key `info` that holds a JSON document."""
    return {"info": msgspec.json.encode(facts).decode()}


class PodCalls:
    """The methods about pod sandboxes."""

    def __init__(self, pods: Pods, containers: Containers, clock: Clock) -> None:
        self._pods = pods
        self._containers = containers
        self._clock = clock
        self._items: ListCache[PodSandbox] = ListCache(pod_item)

    async def run_pod_sandbox(self, request: pb.RunPodSandboxRequest) -> pb.RunPodSandboxResponse:
        """Make a pod, or find the one that this request made before."""
        if not request.HasField("config"):
            validate.refuse("config", "is missing")
        config = pod_config(request.config)
        handler = validate.text(
            request.runtime_handler, "runtime_handler", limit=validate.NAME_LIMIT
        )
        return pb.RunPodSandboxResponse(pod_sandbox_id=await self._pods.run(config, handler))

    async def stop_pod_sandbox(
        self, request: pb.StopPodSandboxRequest
    ) -> pb.StopPodSandboxResponse:
        """Stop a pod; unknown is success."""
        await self._pods.stop(validate.object_id(request.pod_sandbox_id, "pod_sandbox_id"))
        return pb.StopPodSandboxResponse()

    async def remove_pod_sandbox(
        self, request: pb.RemovePodSandboxRequest
    ) -> pb.RemovePodSandboxResponse:
        """Remove a pod; unknown is success."""
        await self._pods.remove(validate.object_id(request.pod_sandbox_id, "pod_sandbox_id"))
        return pb.RemovePodSandboxResponse()

    async def pod_sandbox_status(
        self, request: pb.PodSandboxStatusRequest
    ) -> pb.PodSandboxStatusResponse:
        """Status of a pod and of its containers, as of one moment."""
        pod = self._pods.status(validate.object_id(request.pod_sandbox_id, "pod_sandbox_id"))
        response = pb.PodSandboxStatusResponse(
            status=pod_status(pod),
            containers_statuses=[
                container_status(container) for container in self._containers.of_pod(pod.id)
            ],
            timestamp=self._clock.wall_ns(),
        )
        if request.verbose:
            facts = await asyncio.to_thread(self._pods.verbose, pod)
            response.info.update(info_json(facts))
        return response

    async def list_pod_sandbox(self, request: pb.ListPodSandboxRequest) -> bytes:
        """Pods that pass the filter, newest first."""
        return self._items.join(self._chosen(request.filter), len(self._pods.list()))

    async def stream_pod_sandboxes(
        self, request: pb.StreamPodSandboxesRequest
    ) -> AsyncIterator[bytes]:
        """The same in several messages."""
        chosen = self._chosen(request.filter)
        for message in self._items.stream(chosen, len(self._pods.list())):
            yield message

    def _chosen(self, wanted: pb.PodSandboxFilter) -> list[PodSandbox]:
        prefix = id_prefix(wanted.id, "filter.id")
        by_state = wanted.HasField("state")
        found = [
            pod
            for pod in self._pods.list()
            if pod.id.startswith(prefix)
            and (not by_state or pod_state(pod) == wanted.state.state)
            and has_labels(pod.config.labels, wanted.label_selector)
        ]
        found.sort(key=lambda pod: (-pod.created_at_ns, pod.id))
        return found

    async def update_pod_sandbox_resources(
        self, request: pb.UpdatePodSandboxResourcesRequest
    ) -> pb.UpdatePodSandboxResourcesResponse:
        """Take note of other limits of the whole pod."""
        pod_id = validate.object_id(request.pod_sandbox_id, "pod_sandbox_id")
        overhead = asked = None
        if request.HasField("overhead"):
            overhead = resources(request.overhead, "overhead")
        if request.HasField("resources"):
            asked = resources(request.resources, "resources")
        await self._pods.update_resources(pod_id, overhead, asked)
        return pb.UpdatePodSandboxResourcesResponse()
