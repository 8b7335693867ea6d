"""Both versions' files into the same values: units, what is missing, what cannot be understood."""

import pytest

from metrics.cgroup_detail import (
    CpuDetail,
    DetailReader,
    DeviceIo,
    HugetlbUsage,
    hugepage_sizes,
    read_detail,
)
from metrics.cgroup_stats import UsageReader, read_stats

NO_LIMIT_V1 = b"9223372036854771712\n"

V1 = {
    ("cpuacct", "cpuacct.usage"): b"7730123456\n",
    ("cpuacct", "cpuacct.usage_user"): b"5000000000\n",
    ("cpuacct", "cpuacct.usage_sys"): b"2730123456\n",
    ("cpu", "cpu.stat"): b"nr_periods 11\nnr_throttled 6\nthrottled_time 1500000000\n",
    ("memory", "memory.usage_in_bytes"): b"10000\n",
    ("memory", "memory.limit_in_bytes"): b"50000\n",
    ("memory", "memory.memsw.limit_in_bytes"): b"70000\n",
    ("memory", "memory.stat"): (
        b"cache 1\nrss 2\npgfault 30\npgmajfault 4\nhierarchical_memory_limit 50000\n"
        b"total_cache 3000\ntotal_rss 4000\ntotal_mapped_file 500\ntotal_swap 600\n"
        b"total_pgfault 70\ntotal_pgmajfault 8\ntotal_inactive_file 1000\n"
    ),
    ("memory", "memory.max_usage_in_bytes"): b"12000\n",
    ("memory", "memory.failcnt"): b"9\n",
    ("memory", "memory.kmem.usage_in_bytes"): b"350\n",
    ("memory", "memory.soft_limit_in_bytes"): NO_LIMIT_V1,
    ("memory", "memory.oom_control"): b"oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    ("pids", "pids.current"): b"5\n",
    ("pids", "pids.max"): b"100\n",
    ("blkio", "blkio.throttle.io_service_bytes_recursive"): (
        b"253:0 Read 4096\n253:0 Write 8192\n253:0 Sync 1\n253:0 Total 12288\n"
        b"7:1 Read 1\nTotal 12289\n"
    ),
    ("blkio", "blkio.throttle.io_serviced_recursive"): b"253:0 Read 2\n253:0 Write 3\nTotal 5\n",
    ("hugetlb", "hugetlb.2MB.usage_in_bytes"): b"2097152\n",
    ("hugetlb", "hugetlb.2MB.max_usage_in_bytes"): b"4194304\n",
    ("unified", "cpu.pressure"): b"some avg10=1.50 avg60=0.00 avg300=0.00 total=77\n",
}

V2 = {
    ("cpu", "cpu.stat"): (
        b"usage_usec 7730\nuser_usec 5000\nsystem_usec 2730\ncore_sched.force_idle_usec 0\n"
        b"nr_periods 11\nnr_throttled 6\nthrottled_usec 1500\n"
    ),
    ("memory", "memory.current"): b"10000\n",
    ("memory", "memory.max"): b"max\n",
    ("memory", "memory.stat"): (
        b"anon 4000\nfile 3000\nkernel 350\nfile_mapped 500\ninactive_file 1000\n"
        b"pgfault 70\npgmajfault 8\n"
    ),
    ("memory", "memory.swap.current"): b"600\n",
    ("memory", "memory.swap.max"): b"20000\n",
    ("memory", "memory.peak"): b"12000\n",
    ("memory", "memory.events"): b"low 0\nhigh 0\nmax 9\noom 4\noom_kill 3\n",
    ("memory", "memory.low"): b"0\n",
    ("pids", "pids.current"): b"5\n",
    ("pids", "pids.max"): b"max\n",
    ("io", "io.stat"): b"253:0 rbytes=4096 wbytes=8192 rios=2 wios=3 dbytes=0 dios=0\n7:1 \n",
    ("hugetlb", "hugetlb.2MB.current"): b"2097152\n",
    ("unified", "cpu.pressure"): b"some avg10=1.50 avg60=0.00 avg300=0.00 total=77\n",
}


def reader(files):
    return lambda names: [files.get(name) for name in names]


@pytest.mark.parametrize(
    ("version", "files", "usage_ns", "limit", "swap_limit"),
    [(1, V1, 7_730_123_456, 50000, 20000), (2, V2, 7_730_000, None, 20000)],
)
def test_usage_is_the_same_of_both_versions(version, files, usage_ns, limit, swap_limit):
    stats = read_stats(version, reader(files))

    assert stats.cpu_usage_ns == usage_ns
    memory = stats.memory
    assert (memory.usage_bytes, memory.working_set_bytes) == (10000, 9000)
    assert (memory.rss_bytes, memory.cache_bytes, memory.mapped_file_bytes) == (4000, 3000, 500)
    assert (memory.page_faults, memory.major_page_faults) == (70, 8)
    assert (memory.limit_bytes, memory.swap_limit_bytes) == (limit, swap_limit)
    assert memory.available_bytes == (41000 if limit else 0)
    assert (memory.swap_usage_bytes, memory.swap_available_bytes) == (600, 19400)
    assert stats.tasks == 5
    assert stats.pressure.cpu["some"].total_usec == 77
    assert stats.pressure.io == {}


@pytest.mark.parametrize(
    ("version", "files", "cpu", "tasks_limit", "most_pages"),
    [
        (1, V1, CpuDetail(5_000_000_000, 2_730_123_456, 11, 6, 1_500_000_000), 100, 4194304),
        (2, V2, CpuDetail(5_000_000, 2_730_000, 11, 6, 1_500_000), None, None),
    ],
)
def test_detail_is_the_same_of_both_versions(version, files, cpu, tasks_limit, most_pages):
    detail = read_detail(version, reader(files), ("2MB", "1GB"))

    assert detail.cpu == cpu
    assert detail.tasks_limit == tasks_limit
    assert DeviceIo(253, 0, 4096, 8192, 2, 3) in detail.io
    assert detail.hugetlb == (HugetlbUsage("2MB", 2097152, most_pages),)
    memory = detail.memory
    assert (memory.max_usage_bytes, memory.limit_hits, memory.oom_kills) == (12000, 9, 3)
    assert (memory.kernel_bytes, memory.reservation_bytes) == (350, 0)


@pytest.mark.parametrize("version", [1, 2])
def test_nothing_is_made_up_for_a_group_without_files(version):
    stats = read_stats(version, reader({}))
    detail = read_detail(version, reader({}), ("2MB",))

    assert (stats.cpu_usage_ns, stats.memory, stats.tasks, stats.pressure) == (None,) * 4
    assert (detail.memory, detail.tasks_limit, detail.io, detail.hugetlb) == (None, None, (), ())


def test_without_a_limit_nothing_is_available():
    files = {**V1, ("memory", "memory.limit_in_bytes"): NO_LIMIT_V1}
    memory = read_stats(1, reader(files)).memory
    assert (memory.limit_bytes, memory.available_bytes) == (None, 0)
    assert (memory.swap_limit_bytes, memory.swap_available_bytes) == (None, 0)


def test_a_working_set_is_never_negative():
    """Usage and statistics are read one after the other and may not fit."""
    files = {**V1, ("memory", "memory.usage_in_bytes"): b"10\n"}
    memory = read_stats(1, reader(files)).memory
    assert memory.working_set_bytes == 0
    assert memory.available_bytes == 50000


@pytest.mark.parametrize("text", [b"", b"usage_usec", b"usage_usec x\n", b"\xff\xff"])
def test_nonsense_is_no_number(text):
    assert read_stats(2, reader({("cpu", "cpu.stat"): text})).cpu_usage_ns is None


def test_a_line_of_another_shape_costs_only_itself():
    text = b"usage_usec 5\nfuture a b c\nuser_usec 3\n"
    files = {("cpu", "cpu.stat"): text}
    assert read_stats(2, reader(files)).cpu_usage_ns == 5000
    assert read_detail(2, reader(files), ()).cpu.user_ns == 3000


def test_names_of_huge_pages():
    names = ["hugepages-1048576kB", "hugepages-2048kB", "hugepages-64kB", "other", "hugepages-0kB"]
    assert hugepage_sizes(names) == ("64KB", "2MB", "1GB")


@pytest.mark.parametrize(("version", "files"), [(1, V1), (2, V2)])
def test_a_look_tells_the_present_whatever_has_changed(version, files):
    """Values are kept only for texts that are the same: change each file in turn and in between.

    Tasks come and go only in a group that runs.
    """
    now = dict(files)
    time = ("cpuacct", "cpuacct.usage") if version == 1 else ("cpu", "cpu.stat")
    usage = UsageReader(version, lambda names: [now.get(name) for name in names])
    detail = DetailReader(version, lambda names: [now.get(name) for name in names], ["2MB"])
    for name in files:
        for text in (files[name].replace(b"1", b"2").replace(b"7", b"8"), None, files[name]):
            now[name] = text
            if name == ("pids", "pids.current"):
                now[time] = now[time].replace(b"77", b"777")
            fresh = reader(dict(now))
            assert usage.read() == read_stats(version, fresh)
            assert detail.read(usage.shared) == read_detail(version, fresh, ["2MB"])


def test_what_the_kernel_says_in_the_same_words_is_not_made_again():
    usage = UsageReader(2, reader(V2))
    detail = DetailReader(2, reader(V2), ["2MB"])
    first, again = usage.read(), usage.read()
    assert first.memory is again.memory
    assert first.pressure is again.pressure
    assert detail.read(usage.shared) is detail.read(usage.shared)


@pytest.mark.parametrize(
    ("above", "own", "limit"),
    [
        (NO_LIMIT_V1, NO_LIMIT_V1, None),
        (b"50000\n", b"50000\n", 50000),
        (b"50000\n", b"70000\n", 70000),
        (b"50000\n", NO_LIMIT_V1, None),
    ],
)
def test_a_limit_is_the_groups_own_and_read_only_where_there_may_be_one(above, own, limit):
    """hierarchical_memory_limit is the least of the group's own and of all above it."""
    stat = V1["memory", "memory.stat"].replace(b"limit 50000\n", b"limit " + above)
    files = V1 | {("memory", "memory.stat"): stat, ("memory", "memory.limit_in_bytes"): own}
    asked = []

    def read(names):
        asked.extend(names)
        return reader(files)(names)

    assert read_stats(1, read).memory.limit_bytes == limit
    assert (("memory", "memory.limit_in_bytes") in asked) == (above != NO_LIMIT_V1)


def test_huge_pages_of_a_group_that_never_had_any_are_asked_for_once():
    """Which are most; the other answer follows from the first."""
    asked = []
    most = ("hugetlb", "hugetlb.2MB.max_usage_in_bytes")
    for text, usage in ((b"0\n", 0), (b"4194304\n", 2097152)):
        files = V1 | {most: text}

        def read(names, files=files):
            asked.extend(names)
            return reader(files)(names)

        [pages] = read_detail(1, read, ("2MB",)).hugetlb
        assert (pages.usage_bytes, pages.max_usage_bytes) == (usage, int(text))
    assert asked.count(most) == 2
    assert asked.count(("hugetlb", "hugetlb.2MB.usage_in_bytes")) == 1
