"""A pod's value as network plugins are told of it; the one place that knows both vocabularies."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from cni.attachment import Attachment, Bandwidth, Dns, PortMapping
from sandbox.host.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sandbox.model import PodSandbox

#: The kubelet's own annotations for traffic shaping, bits per second as a Kubernetes quantity.
INGRESS_ANNOTATION: Final = "kubernetes.io/ingress-bandwidth"
EGRESS_ANNOTATION: Final = "kubernetes.io/egress-bandwidth"
#: Kubernetes refuses rates outside of these (k8s.io/kubernetes pkg/util/bandwidth), bits per
#: second.
RATE_MIN_BITS: Final = 1_000
RATE_MAX_BITS: Final = 10**15

_SUFFIX: Final[Mapping[str, int]] = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "P": 10**15,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "Pi": 2**50,
}
_QUANTITY: Final = re.compile(r"([0-9]{1,15})(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")


def make_attachment(pod: PodSandbox, netns: Path) -> Attachment:
    """What to tell the plugins about `pod`, whose network namespace is pinned at `netns`.

    Raises:
        InvalidArgument: a bandwidth annotation that is not a quantity in range.
    """
    config = pod.config
    dns = config.dns
    return Attachment(
        pod_id=pod.id,
        netns_path=str(netns),
        pod_name=config.metadata.name,
        pod_namespace=config.metadata.namespace,
        pod_uid=config.metadata.uid,
        port_mappings=tuple(
            PortMapping(
                container_port=port.container_port,
                host_port=port.host_port,
                protocol=port.protocol.name.lower(),
                host_ip=port.host_ip,
            )
            for port in config.port_mappings
        ),
        bandwidth=bandwidth(config.annotations),
        dns=Dns(servers=dns.servers, searches=dns.searches, options=dns.options) if dns else None,
        cgroup_path=config.cgroup_parent,
        annotations=config.annotations,
    )


def bandwidth(annotations: Mapping[str, str]) -> Bandwidth | None:
    """The shaping that a pod's annotations ask for.

    Raises:
        InvalidArgument: an annotation that is not a quantity in range.
    """
    ingress = _rate(annotations, INGRESS_ANNOTATION)
    egress = _rate(annotations, EGRESS_ANNOTATION)
    if not ingress and not egress:
        return None
    return Bandwidth(ingress_bits_per_s=ingress, egress_bits_per_s=egress)


def _rate(annotations: Mapping[str, str], key: str) -> int:
    """Bits per second of a bandwidth annotation, 0 where there is none."""
    text = annotations.get(key)
    if text is None:
        return 0
    found = _QUANTITY.fullmatch(text)
    rate = int(found[1]) * _SUFFIX[found[2] or ""] if found else 0
    if not RATE_MIN_BITS <= rate <= RATE_MAX_BITS:
        raise InvalidArgument(
            f"annotation {key} is not a bandwidth between 1k and 1P: {text[:40]!r}",
            hint="write a quantity such as 10M",
        )
    return rate
