"""What a scrape of all metrics answers, as the bytes of its messages; only ever to the wire.

As in `encode_stats`: a scrape of a hundred pods has five thousand messages, and takes half of the
time that protobuf's own take.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from cri.encoding import Field, uint64_value, varint
from metrics.descriptors import CONTAINER_FAMILIES, POD_FAMILIES
from protos import api_pb2 as pb

if TYPE_CHECKING:
    from cri.usage import PodScrape
    from metrics.descriptors import Measured
    from sandbox.model import Container, PodSandbox

_POD_ID: Final = Field(pb.PodSandboxMetrics, "pod_sandbox_id")
_POD_METRIC: Final = Field(pb.PodSandboxMetrics, "metrics")
_OF_CONTAINER: Final = Field(pb.PodSandboxMetrics, "container_metrics")
_CONTAINER_ID: Final = Field(pb.ContainerMetrics, "container_id")
_CONTAINER_METRIC: Final = Field(pb.ContainerMetrics, "metrics")

_NAME: Final = Field(pb.Metric, "name")
_TIME: Final = Field(pb.Metric, "timestamp")
_KIND: Final = Field(pb.Metric, "metric_type")
_LABEL: Final = Field(pb.Metric, "label_values")
_VALUE: Final = Field(pb.Metric, "value").tag


def _head(name: str, kind: pb.MetricType) -> bytes:
    return _NAME.text(name) + _KIND.number(kind)


_CONTAINER_HEADS: Final = [
    (_head(family.name, pb.COUNTER if family.counter else pb.GAUGE), family.rows)
    for family in CONTAINER_FAMILIES
]
_POD_HEADS: Final = [(_head(family.name, pb.COUNTER), family.value) for family in POD_FAMILIES]


def pod_metrics(scrape: PodScrape) -> bytes:
    """A PodSandboxMetrics of a pod and its containers; network is the pod's, the rest theirs."""
    parts = [_POD_ID.text(scrape.pod.id)]
    if scrape.sample is not None and scrape.sample.network is not None:
        sample = scrape.sample
        same = _labels(scrape.pod, "", scrape.cgroup, "", scrape.pod.id)
        same += _TIME.number(sample.taken_at_ns)
        for head, value in _POD_HEADS:
            for interface in scrape.sample.network.interfaces:
                own = _own_labels((interface.name,))
                number = _value(value(interface))
                parts.append(_POD_METRIC.message(b"".join((head, same, own, number))))
    for container, measured in scrape.containers:
        body = _container_metrics(scrape.pod, container, measured)
        parts.append(_OF_CONTAINER.message(body))
    return b"".join(parts)


def _container_metrics(pod: PodSandbox, container: Container, measured: Measured) -> bytes:
    # What all metrics of a container have in common is made once for each look.
    same = _labels(
        pod, container.config.name, measured.cgroup, container.image_name, container.id
    ) + _TIME.number(measured.sample.taken_at_ns)
    parts = [_CONTAINER_ID.text(container.id)]
    for head, rows in _CONTAINER_HEADS:
        for own, number in rows(measured):
            labels = same + _own_labels(own) if own else same
            value = _value(number)
            # Not `Field.message` and no call: this is where a scrape spends its time.
            parts += (_begin(len(head) + len(labels) + len(value)), head, labels, value)
    return b"".join(parts)


@lru_cache(maxsize=1024)
def _begin(size: int) -> bytes:
    return _CONTAINER_METRIC.tag + varint(size)


@lru_cache(maxsize=1024)
def _value(number: int) -> bytes:
    return _VALUE + uint64_value(number)


@lru_cache(maxsize=256)
def _own_labels(values: tuple[str, ...]) -> bytes:
    return b"".join(map(_LABEL.text, values))


def _labels(pod: PodSandbox, container: str, cgroup: str, image: str, name: str) -> bytes:
    """In the order of `BASE_LABELS`."""
    metadata = pod.config.metadata
    values = (container, cgroup, image, name, metadata.namespace, metadata.name)
    return b"".join(map(_LABEL.text, values))
