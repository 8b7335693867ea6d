"""Statistics, metrics and events.

Lists of usage are measured anew for each call; what is large is turned into bytes in a thread, for
the event loop has other callers. What is small is not: to wake a thread and to be woken by it takes
as long as the statistics of forty containers, and on a busy node several milliseconds.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

from cri import validate
from cri.convert_stats import event_message, metric_descriptors
from cri.encode_metrics import pod_metrics
from cri.encode_stats import UsageEncoder
from cri.rpc.lists import chunks, entry_of, has_labels, id_prefix
from protos import api_pb2 as pb
from sandbox.errors import PodNotReady
from sandbox.states import ContainerState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from cri.events import ContainerEvent
    from cri.rpc.ports import Containers, EventSource, Pods, Usages
    from sandbox.model import Container, PodSandbox

V = TypeVar("V")

#: So many statistics are written at once, in a millisecond.
_FEW: Final = 128
#: Exited containers use nothing, and there may be very many.
_WITH_PROCESSES: Final = (ContainerState.CREATED, ContainerState.RUNNING)


class ObserveCalls:
    """The methods that tell how pods and containers are doing."""

    def __init__(
        self, pods: Pods, containers: Containers, usages: Usages, events: EventSource
    ) -> None:
        self._pods = pods
        self._containers = containers
        self._usages = usages
        self._events = events
        self._encoder = UsageEncoder()
        self._descriptors = metric_descriptors()
        self._last: tuple[ContainerEvent, pb.ContainerEventResponse] | None = None

    async def container_stats(self, request: pb.ContainerStatsRequest) -> pb.ContainerStatsResponse:
        """Usage of one container; of one that has exited, what it left on disk."""
        container = self._containers.status(
            validate.object_id(request.container_id, "container_id")
        )
        [usage] = await self._usages.containers([container])
        return pb.ContainerStatsResponse.FromString(entry_of(self._encoder.container(usage)))

    async def list_container_stats(self, request: pb.ListContainerStatsRequest) -> bytes:
        """Usage of the containers that have processes and pass the filter."""
        return b"".join(await self._container_entries(request.filter))

    async def stream_container_stats(
        self, request: pb.StreamContainerStatsRequest
    ) -> AsyncIterator[bytes]:
        """The same in several messages."""
        for message in chunks(await self._container_entries(request.filter)):
            yield message

    async def pod_sandbox_stats(
        self, request: pb.PodSandboxStatsRequest
    ) -> pb.PodSandboxStatsResponse:
        """Usage of one pod; PodNotReady when it was stopped, for it has none then."""
        pod = self._pods.status(validate.object_id(request.pod_sandbox_id, "pod_sandbox_id"))
        usages = await self._usages.pods([pod])
        if not usages:
            raise PodNotReady("pod sandbox is not ready, it uses nothing", pod=pod.id)
        return pb.PodSandboxStatsResponse.FromString(entry_of(self._encoder.pod(usages[0])))

    async def list_pod_sandbox_stats(self, request: pb.ListPodSandboxStatsRequest) -> bytes:
        """Usage of the ready pods that pass the filter."""
        return b"".join(await self._pod_entries(request.filter))

    async def stream_pod_sandbox_stats(
        self, request: pb.StreamPodSandboxStatsRequest
    ) -> AsyncIterator[bytes]:
        """The same in several messages."""
        for message in chunks(await self._pod_entries(request.filter)):
            yield message

    async def list_metric_descriptors(
        self, request: pb.ListMetricDescriptorsRequest
    ) -> pb.ListMetricDescriptorsResponse:
        """Which metrics there are."""
        return self._descriptors

    async def list_pod_sandbox_metrics(self, request: pb.ListPodSandboxMetricsRequest) -> bytes:
        """All metrics of all ready pods."""
        return b"".join(await self._entries(await self._usages.scrape(), pod_metrics))

    async def stream_pod_sandbox_metrics(
        self, request: pb.StreamPodSandboxMetricsRequest
    ) -> AsyncIterator[bytes]:
        """The same in several messages."""
        for message in chunks(await self._entries(await self._usages.scrape(), pod_metrics)):
            yield message

    async def get_container_events(
        self, request: pb.GetEventsRequest
    ) -> AsyncIterator[pb.ContainerEventResponse]:
        """Events from now on, until the client goes away or the daemon stops."""
        with self._events.subscribe() as events:
            async for event in events:
                yield self._message(event)

    def _message(self, event: ContainerEvent) -> pb.ContainerEventResponse:
        """Converted once for all subscribers: they come to an event one after the other."""
        if self._last is None or self._last[0] is not event:
            self._last = (event, event_message(event))
        return self._last[1]

    # Filters.

    async def _container_entries(self, wanted: pb.ContainerStatsFilter) -> list[bytes]:
        prefix = id_prefix(wanted.id, "filter.id")
        pod_prefix = id_prefix(wanted.pod_sandbox_id, "filter.pod_sandbox_id")
        labels = wanted.label_selector
        chosen: list[Container] = [
            container
            for container in self._containers.list()
            if container.state in _WITH_PROCESSES
            and container.id.startswith(prefix)
            and container.pod_id.startswith(pod_prefix)
            and (not labels or has_labels(container.config.labels, labels))
        ]
        usages = await self._usages.containers(chosen)
        return await self._entries(
            [u for u in usages if u.sample is not None], self._encoder.container, few=_FEW
        )

    async def _pod_entries(self, wanted: pb.PodSandboxStatsFilter) -> list[bytes]:
        prefix = id_prefix(wanted.id, "filter.id")
        chosen: list[PodSandbox] = [
            pod
            for pod in self._pods.list()
            if pod.id.startswith(prefix) and has_labels(pod.config.labels, wanted.label_selector)
        ]
        pods = await self._usages.pods(chosen)
        # With its containers a pod is several; where they are many it is a thread's work.
        few = _FEW - sum(len(pod.containers) for pod in pods)
        return await self._entries(pods, self._encoder.pod, few=few)

    async def _entries(
        self, values: Sequence[V], encode: Callable[[V], bytes], *, few: int = 0
    ) -> list[bytes]:
        """Each value as an entry of the response."""
        self._encoder.trim(len(self._containers.list()) + len(self._pods.list()))
        if len(values) <= few:
            return _encoded(values, encode)
        return await asyncio.to_thread(_encoded, values, encode)


def _encoded(values: Iterable[V], encode: Callable[[V], bytes]) -> list[bytes]:
    return [entry_of(encode(value)) for value in values]
