"""Statistics, metrics and events: none in this version; each call says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri.rpc.later import later

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from protos import api_pb2 as pb


class ObserveCalls:
    """The methods that tell how pods and containers are doing."""

    async def container_stats(self, request: pb.ContainerStatsRequest) -> pb.ContainerStatsResponse:
        """Not in this version."""
        later("ContainerStats")

    async def list_container_stats(
        self, request: pb.ListContainerStatsRequest
    ) -> pb.ListContainerStatsResponse:
        """Not in this version."""
        later("ListContainerStats")

    def stream_container_stats(
        self, request: pb.StreamContainerStatsRequest
    ) -> AsyncIterator[pb.StreamContainerStatsResponse]:
        """Not in this version."""
        later("StreamContainerStats")

    async def pod_sandbox_stats(
        self, request: pb.PodSandboxStatsRequest
    ) -> pb.PodSandboxStatsResponse:
        """Not in this version."""
        later("PodSandboxStats")

    async def list_pod_sandbox_stats(
        self, request: pb.ListPodSandboxStatsRequest
    ) -> pb.ListPodSandboxStatsResponse:
        """Not in this version."""
        later("ListPodSandboxStats")

    def stream_pod_sandbox_stats(
        self, request: pb.StreamPodSandboxStatsRequest
    ) -> AsyncIterator[pb.StreamPodSandboxStatsResponse]:
        """Not in this version."""
        later("StreamPodSandboxStats")

    async def list_metric_descriptors(
        self, request: pb.ListMetricDescriptorsRequest
    ) -> pb.ListMetricDescriptorsResponse:
        """Not in this version."""
        later("ListMetricDescriptors")

    async def list_pod_sandbox_metrics(
        self, request: pb.ListPodSandboxMetricsRequest
    ) -> pb.ListPodSandboxMetricsResponse:
        """Not in this version."""
        later("ListPodSandboxMetrics")

    def stream_pod_sandbox_metrics(
        self, request: pb.StreamPodSandboxMetricsRequest
    ) -> AsyncIterator[pb.StreamPodSandboxMetricsResponse]:
        """Not in this version."""
        later("StreamPodSandboxMetrics")

    def get_container_events(
        self, request: pb.GetEventsRequest
    ) -> AsyncIterator[pb.ContainerEventResponse]:
        """Not in this version; the kubelet goes on listing."""
        later("GetContainerEvents")
