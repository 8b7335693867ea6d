"""The table of metrics against the list that conformance tests hold runtimes to."""

import re

import msgspec
import pytest

from metrics.cgroup_detail import CgroupDetail, CpuDetail, DeviceIo, HugetlbUsage, MemoryDetail
from metrics.cgroup_stats import CgroupStats, MemoryUsage
from metrics.descriptors import (
    CONTAINER_FAMILIES,
    POD_FAMILIES,
    Filesystem,
    Limits,
    Measured,
)
from metrics.disk_usage import LayerUsage
from metrics.followed import Detail, Sample
from metrics.network_stats import InterfaceUsage
from metrics.pressure import PressureUsage
from metrics.process_stats import ProcessStats
from sandbox.host.cgroup_text import Pressure

#: From cri-tools, pkg/validate/pod.go: what critest wants to see described.
NAMES = [
    "blkio_device_usage_total",
    "cpu_cfs_periods_total",
    "cpu_cfs_throttled_periods_total",
    "cpu_cfs_throttled_seconds_total",
    "cpu_system_seconds_total",
    "cpu_usage_seconds_total",
    "cpu_user_seconds_total",
    "file_descriptors",
    "fs_inodes_free",
    "fs_inodes_total",
    "fs_limit_bytes",
    "fs_reads_bytes_total",
    "fs_reads_total",
    "fs_usage_bytes",
    "fs_writes_bytes_total",
    "fs_writes_total",
    "hugetlb_max_usage_bytes",
    "hugetlb_usage_bytes",
    "last_seen",
    "memory_cache",
    "memory_failcnt",
    "memory_failures_total",
    "memory_kernel_usage",
    "memory_mapped_file",
    "memory_max_usage_bytes",
    "memory_rss",
    "memory_swap",
    "memory_usage_bytes",
    "memory_working_set_bytes",
    "network_receive_bytes_total",
    "network_receive_errors_total",
    "network_receive_packets_dropped_total",
    "network_receive_packets_total",
    "network_transmit_bytes_total",
    "network_transmit_errors_total",
    "network_transmit_packets_dropped_total",
    "network_transmit_packets_total",
    "oom_events_total",
    "pressure_cpu_stalled_seconds_total",
    "pressure_cpu_waiting_seconds_total",
    "pressure_io_stalled_seconds_total",
    "pressure_io_waiting_seconds_total",
    "pressure_memory_stalled_seconds_total",
    "pressure_memory_waiting_seconds_total",
    "processes",
    "sockets",
    "spec_cpu_period",
    "spec_cpu_quota",
    "spec_cpu_shares",
    "spec_memory_limit_bytes",
    "spec_memory_reservation_limit_bytes",
    "spec_memory_swap_limit_bytes",
    "start_time_seconds",
    "threads",
    "threads_max",
    "ulimits_soft",
]

S = 1_000_000_000
PRESSURE = {
    "some": Pressure(1.0, 2.0, 3.0, 5_900_000),
    "full": Pressure(0.0, 0.0, 0.0, 2_000_000),
}
MEASURED = Measured(
    cgroup="/pods/p1/c1",
    sample=Sample(
        taken_at_ns=1_700_000_000 * S + 5,
        stats=CgroupStats(
            cpu_usage_ns=7 * S + 999_999_999,
            memory=MemoryUsage(
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
            ),
            tasks=9,
            pressure=PressureUsage(PRESSURE, PRESSURE, PRESSURE),
        ),
        usage_nano_cores=None,
        processes=4,
        network=None,
        detail=Detail(
            CgroupDetail(
                cpu=CpuDetail(5 * S, 2 * S, 11, 6, 1_500_000_000),
                memory=MemoryDetail(120, 3, 35, 2, 60, 7, 0),
                tasks_limit=None,
                io=(DeviceIo(253, 0, 4096, 8192, 2, 3), DeviceIo(7, 9)),
                hugetlb=(HugetlbUsage("2MB", 10, 20),),
            ),
            ProcessStats(12, 3, 1024),
        ),
    ),
    started_at_ns=1_699_999_999 * S,
    limits=Limits(cpu_quota_usec=20_000),
    layer=LayerUsage(777, 8, 1),
    filesystem=Filesystem("/dev/vda", 10_000, 500, 400),
    devices={(253, 0): "/dev/vda"},
)
FAMILIES = {family.name: family for family in CONTAINER_FAMILIES}


def rows(name, measured=MEASURED):
    return dict(FAMILIES[name].rows(measured))


def value(name, measured=MEASURED):
    [(labels, number)] = FAMILIES[name].rows(measured)
    assert len(labels) == len(FAMILIES[name].labels)
    return number


def test_every_name_that_is_expected_and_no_other():
    described = [f.name for f in (*CONTAINER_FAMILIES, *POD_FAMILIES)]
    assert len(NAMES) == 56
    assert sorted(described) == sorted(f"container_{name}" for name in NAMES)


@pytest.mark.parametrize("family", [*CONTAINER_FAMILIES, *POD_FAMILIES], ids=lambda f: f.name)
def test_each_has_a_help_of_its_own_words(family):
    assert re.fullmatch(r"[A-Z][A-Za-z0-9 ,']+[a-zA-Z0-9]", family.help)


@pytest.mark.parametrize("family", CONTAINER_FAMILIES, ids=lambda f: f.name)
def test_each_has_a_number_and_as_many_labels_as_it_says(family):
    found = list(family.rows(MEASURED))
    assert found
    for labels, number in found:
        assert len(labels) == len(family.labels)
        assert all(isinstance(label, str) for label in labels)
        assert isinstance(number, int)
        assert number >= 0
    assert len({labels for labels, _ in found}) == len(found)


@pytest.mark.parametrize("family", CONTAINER_FAMILIES, ids=lambda f: f.name)
def test_counters_are_called_so(family):
    # cAdvisor's own names, of which one counter has no _total.
    assert family.counter == (
        (family.name.endswith("_total") and family.name != "container_fs_inodes_total")
        or family.name == "container_memory_failcnt"
    )


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("cpu_usage_seconds_total", 7),
        ("cpu_cfs_throttled_seconds_total", 1),
        ("last_seen", 1_700_000_000),
        ("start_time_seconds", 1_699_999_999),
        ("pressure_cpu_waiting_seconds_total", 5),
        ("pressure_io_stalled_seconds_total", 2),
        ("memory_max_usage_bytes", 120),
        ("spec_memory_swap_limit_bytes", 1500),
        ("spec_cpu_quota", 20_000),
        ("threads_max", 0),
        ("oom_events_total", 2),
        ("fs_usage_bytes", 777),
        ("ulimits_soft", 1024),
    ],
)
def test_seconds_are_cut_and_no_limit_is_0(name, number):
    assert value(f"container_{name}") == number


def test_a_device_without_a_name_is_known_by_its_numbers():
    assert rows("container_fs_reads_bytes_total") == {("/dev/vda",): 4096, ("7:9",): 0}
    assert rows("container_blkio_device_usage_total")["/dev/vda", "253", "0", "Write"] == 8192


def test_faults_by_kind_and_scope():
    assert rows("container_memory_failures_total") == {
        ("pgfault", "container"): 60,
        ("pgmajfault", "container"): 7,
        ("pgfault", "hierarchy"): 70,
        ("pgmajfault", "hierarchy"): 8,
    }


def test_what_was_not_measured_is_left_out():
    bare = msgspec.structs.replace(
        MEASURED,
        sample=Sample(1, CgroupStats(None, None, None, None), None, None, None),
        layer=None,
        filesystem=None,
    )
    named = {name for name in FAMILIES if list(FAMILIES[name].rows(bare))}
    assert named == {
        "container_last_seen",
        "container_spec_cpu_period",
        "container_spec_cpu_quota",
        "container_spec_cpu_shares",
        "container_start_time_seconds",
    }


def test_each_counter_of_an_interface_is_another():
    interface = InterfaceUsage("eth0", 1, 2, 3, 4, 5, 6, 7, 8)
    assert sorted(family.value(interface) for family in POD_FAMILIES) == list(range(1, 9))
