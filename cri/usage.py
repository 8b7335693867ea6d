"""What pods and containers use, as values between `cri.stats`, which finds out, and the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from metrics.descriptors import Measured
    from metrics.disk_usage import LayerUsage
    from metrics.followed import Sample
    from sandbox.model import Container, PodSandbox


class ContainerUsage(msgspec.Struct, frozen=True, gc=False):
    """A container; without a sample it has no processes, without a layer it was not measured yet.

    `mountpoint` is the directory that writable layers are in, by which the kubelet finds their
    file system.
    """

    container: Container
    sample: Sample | None
    layer: LayerUsage | None
    mountpoint: str


class PodUsage(msgspec.Struct, frozen=True, gc=False):
    """A ready pod with its containers that have processes."""

    pod: PodSandbox
    sample: Sample | None
    containers: tuple[ContainerUsage, ...]

    @property
    def processes(self) -> int:
        """Of all containers, and the pause process."""
        return 1 + sum(
            usage.sample.processes or 0 for usage in self.containers if usage.sample is not None
        )


class PodScrape(msgspec.Struct, frozen=True, gc=False):
    """All metrics of a ready pod; `cgroup` is that of all its containers."""

    pod: PodSandbox
    cgroup: str
    sample: Sample | None
    containers: tuple[tuple[Container, Measured], ...]
