"""Samples as the sampler would give them, for tests of what is made of them."""

from metrics.cgroup_detail import CgroupDetail, CpuDetail, HugetlbUsage, MemoryDetail
from metrics.cgroup_stats import CgroupStats, MemoryUsage
from metrics.descriptors import Limits, Measured
from metrics.followed import Detail, Sample
from metrics.network_stats import InterfaceUsage, NetworkUsage
from metrics.pressure import PressureUsage
from metrics.process_stats import ProcessStats
from sandbox.host.cgroup_text import Pressure
from sandbox.model import Container, ContainerConfig, PodConfig, PodMetadata, PodSandbox
from sandbox.states import ContainerState, PodState

CONTAINER = Container(
    id="c",
    pod_id="p",
    config=ContainerConfig(name="web", attempt=2, labels={"a": "1"}, annotations={"b": "2"}),
    state=ContainerState.RUNNING,
    created_at_ns=1,
    image_name="registry/web:1",
)
POD = PodSandbox(
    id="p",
    config=PodConfig(metadata=PodMetadata(name="pod", uid="u", namespace="ns"), labels={"l": "1"}),
    state=PodState.READY,
    created_at_ns=1,
)
MEMORY = MemoryUsage(
    usage_bytes=100,
    working_set_bytes=90,
    limit_bytes=1000,
    rss_bytes=40,
    cache_bytes=30,
    mapped_file_bytes=5,
    page_faults=70,
    major_page_faults=8,
    swap_usage_bytes=6,
    swap_limit_bytes=500,
)
WAITED = {"some": Pressure(1.5, 2.5, 3.5, 77)}
ETH0 = InterfaceUsage("eth0", 1, 2, 3, 4, 5, 6, 7, 8)
NET1 = InterfaceUsage("net1", 11, 12, 13, 14, 15, 16, 17, 18)
NETWORK = NetworkUsage(ETH0, (NET1, ETH0))
DETAIL = Detail(
    CgroupDetail(
        CpuDetail(), MemoryDetail(1, 2, 3, 4, 5, 6, 7), None, (), (HugetlbUsage("2MB", 1, 2),)
    ),
    ProcessStats(12, 3, 1024),
)


def sample(*, rate=None, network=None, pressure=True, detail=None, processes=4):
    return Sample(
        taken_at_ns=5_000_000_123,
        stats=CgroupStats(
            7_730_000_001, MEMORY, 9, PressureUsage(WAITED, {}, {}) if pressure else None
        ),
        usage_nano_cores=rate,
        processes=processes,
        network=network,
        detail=detail,
    )


def measured(**fields):
    return Measured(
        cgroup="/pods/p/c",
        sample=sample(detail=DETAIL, **fields),
        started_at_ns=4_000_000_000,
        limits=Limits(),
        layer=None,
        filesystem=None,
        devices={},
    )
