"""Descriptions of metrics, and events, to protobuf; only ever to the wire."""

from __future__ import annotations

from typing import Final

from cri.convert_container import container_status
from cri.convert_pod import pod_status
from cri.events import ContainerEvent, EventType
from metrics.descriptors import BASE_LABELS, CONTAINER_FAMILIES, POD_FAMILIES
from protos import api_pb2 as pb

_EVENT_TYPES: Final = {
    EventType.CREATED: pb.CONTAINER_CREATED_EVENT,
    EventType.STARTED: pb.CONTAINER_STARTED_EVENT,
    EventType.STOPPED: pb.CONTAINER_STOPPED_EVENT,
    EventType.DELETED: pb.CONTAINER_DELETED_EVENT,
}


def metric_descriptors() -> pb.ListMetricDescriptorsResponse:
    """Every family with its help and label keys."""
    families = [
        *((family.name, family.help, family.labels) for family in CONTAINER_FAMILIES),
        *((family.name, family.help, family.labels) for family in POD_FAMILIES),
    ]
    return pb.ListMetricDescriptorsResponse(
        descriptors=[
            pb.MetricDescriptor(name=name, help=text, label_keys=[*BASE_LABELS, *labels])
            for name, text, labels in families
        ]
    )


def event_message(event: ContainerEvent) -> pb.ContainerEventResponse:
    """An event with the statuses that it carries."""
    return pb.ContainerEventResponse(
        container_id=event.object_id,
        container_event_type=_EVENT_TYPES[event.type],
        created_at=event.at_ns,
        pod_sandbox_status=pod_status(event.pod),
        containers_statuses=[container_status(container) for container in event.containers],
    )
