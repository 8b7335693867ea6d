"""CRI limits to cgroup limits, and updates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import oci
from sandbox.host.errors import InvalidArgument, Unsupported
from sandbox.model import HugepageLimit, LinuxResources
from sandbox.spec.resources import merge_resources, to_oci

ALL = frozenset({"cpu", "cpuset", "memory", "pids", "hugetlb"})


def convert(
    resources: LinuxResources | None = None,
    *,
    version: int = 2,
    controllers: frozenset[str] = ALL,
    swap_limit: bool = True,
    pids_limit: int | None = None,
    **fields: object,
) -> oci.Resources:
    return to_oci(
        resources or LinuxResources(**fields),  # type: ignore[arg-type]
        cgroup_version=version,  # type: ignore[arg-type]
        controllers=controllers,
        swap_limit=swap_limit,
        pids_limit=pids_limit,
    )


def test_nothing_asked_is_nothing_said() -> None:
    assert convert() == oci.Resources()
    assert oci.encode(convert()) == b"{}"


def test_cpu() -> None:
    cpu = convert(cpu_shares=512, cpu_quota_usec=50_000, cpu_period_usec=100_000).cpu
    assert cpu == oci.Cpu(shares=512, quota=50_000, period=100_000)
    assert convert(cpu_quota_usec=-1).cpu == oci.Cpu(quota=-1)
    assert convert(cpuset_cpus="0-3,5", cpuset_mems="0").cpu == oci.Cpu(cpus="0-3,5", mems="0")


@pytest.mark.parametrize(("asked", "said"), [(1, 2), (2, 2), (262_144, 262_144), (10**9, 262_144)])
def test_shares_are_clamped_as_the_kernel_does(asked: int, said: int) -> None:
    cpu = convert(cpu_shares=asked).cpu
    assert cpu is not None
    assert cpu.shares == said


@pytest.mark.parametrize(
    ("limit", "swap", "accounted", "expected"),
    [
        (100, 0, True, oci.Memory(limit=100, swap=100)),
        (100, 0, False, oci.Memory(limit=100)),
        (100, 150, True, oci.Memory(limit=100, swap=150)),
        (100, 150, False, oci.Memory(limit=100)),
        (100, -1, True, oci.Memory(limit=100, swap=-1)),
        (-1, 0, True, oci.Memory(limit=-1, swap=-1)),
    ],
)
def test_memory(limit: int, swap: int, accounted: bool, expected: oci.Memory) -> None:
    said = convert(
        memory_limit_bytes=limit, memory_swap_limit_bytes=swap, swap_limit=accounted
    ).memory
    assert said == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"cpu_period_usec": 999},
        {"cpu_period_usec": 1_000_001},
        {"cpu_period_usec": -1},
        {"cpu_quota_usec": -2},
        {"cpu_quota_usec": 999},
        {"cpu_quota_usec": 2**63 - 1},
        {"cpu_shares": -1},
        {"cpu_shares": 2**63},
        {"memory_limit_bytes": -2},
        {"memory_limit_bytes": 2**63},
        {"memory_limit_bytes": 100, "memory_swap_limit_bytes": 99},
        {"memory_swap_limit_bytes": 100},
        {"cpuset_cpus": "0-"},
        {"cpuset_cpus": "all"},
        {"cpuset_cpus": "0\n1"},
        {"cpuset_mems": " 0"},
        {"cpuset_cpus": "\u0660"},
        {"hugepage_limits": (HugepageLimit(page_size="2mb", limit_bytes=0),)},
        {"hugepage_limits": (HugepageLimit(page_size="../2MB", limit_bytes=0),)},
        {"hugepage_limits": (HugepageLimit(page_size="2MB", limit_bytes=-1),)},
        {"unified": {"memory/../../x": "1"}},
        {"unified": {"../memory.high": "1"}},
        {"unified": {"memory..high": "1"}},
        {"unified": {"cgroup.procs": "1"}},
        {"unified": {"cgroup.kill": "1"}},
        {"unified": {"memory": "1"}},
        {"unified": {"memory.high": "\0"}},
        {"unified": {"memory.high": "1" * 5000}},
    ],
)
def test_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        convert(**fields)


@pytest.mark.parametrize(
    ("fields", "controller"),
    [
        ({"cpu_shares": 5}, "cpu"),
        ({"cpu_quota_usec": 5_000}, "cpu"),
        ({"cpuset_cpus": "0"}, "cpuset"),
        ({"memory_limit_bytes": 5}, "memory"),
        ({"hugepage_limits": (HugepageLimit(page_size="2MB", limit_bytes=5),)}, "hugetlb"),
    ],
)
def test_missing_controllers_are_named(fields: dict[str, object], controller: str) -> None:
    with pytest.raises(Unsupported, match=f"{controller},"):
        convert(controllers=ALL - {controller}, **fields)


def test_what_may_be_missing() -> None:
    none = frozenset[str]()
    zero = (HugepageLimit(page_size="2MB", limit_bytes=0),)
    assert convert(controllers=none, hugepage_limits=zero) == oci.Resources()
    assert convert(hugepage_limits=zero).hugepage_limits == (
        oci.HugepageLimit(page_size="2MB", limit=0),
    )
    assert convert(controllers=none, pids_limit=5) == oci.Resources()
    assert convert(pids_limit=5).pids == oci.Pids(limit=5)
    assert convert(pids_limit=-1).pids == oci.Pids(limit=-1)
    for bad in (0, -2):
        with pytest.raises(InvalidArgument):
            convert(pids_limit=bad)


def test_unified_is_for_v2_only() -> None:
    unified = {"memory.high": "100", "cpu.idle": "1", "io.max": "8:0 rbps=1\n8:16 rbps=2"}
    assert convert(unified=unified).unified == unified
    with pytest.raises(Unsupported, match="v2"):
        convert(unified=unified, version=1)


def test_update_keeps_what_it_does_not_name() -> None:
    old = LinuxResources(
        cpu_shares=512,
        memory_limit_bytes=100,
        memory_swap_limit_bytes=150,
        oom_score_adj=500,
        cpuset_cpus="0",
        hugepage_limits=(HugepageLimit(page_size="2MB", limit_bytes=1),),
        unified={"memory.high": "80", "memory.low": "1"},
    )
    assert merge_resources(old, LinuxResources()) == old
    update = LinuxResources(
        cpu_shares=1024,
        oom_score_adj=-5,
        hugepage_limits=(HugepageLimit(page_size="1GB", limit_bytes=2),),
        unified={"memory.high": "90"},
    )
    merged = merge_resources(old, update)
    assert merged.cpu_shares == 1024
    assert merged.memory_swap_limit_bytes == 150
    assert merged.oom_score_adj == -5
    assert [item.page_size for item in merged.hugepage_limits] == ["2MB", "1GB"]
    assert merged.unified == {"memory.high": "90", "memory.low": "1"}
    assert merge_resources(None, update).cpu_shares == 1024


def test_new_memory_limit_resets_swap() -> None:
    old = LinuxResources(memory_limit_bytes=100, memory_swap_limit_bytes=150)
    merged = merge_resources(old, LinuxResources(memory_limit_bytes=200))
    assert (merged.memory_limit_bytes, merged.memory_swap_limit_bytes) == (200, 0)
    assert convert(merged).memory == oci.Memory(limit=200, swap=200)


numbers = st.integers(min_value=-(2**63), max_value=2**63 - 1) | st.integers(-2, 2000)
requests = st.builds(
    LinuxResources,
    cpu_period_usec=numbers,
    cpu_quota_usec=numbers,
    cpu_shares=numbers,
    memory_limit_bytes=numbers,
    memory_swap_limit_bytes=numbers,
    cpuset_cpus=st.text(alphabet="0123-,", max_size=6),
    unified=st.dictionaries(st.sampled_from(["memory.high", "cpu.idle"]), st.text(max_size=5)),
)


@given(requests)
def test_any_request_is_within_the_kernels_bounds_or_refused(request: LinuxResources) -> None:
    try:
        said = convert(request)
    except InvalidArgument:
        return
    if said.cpu is not None:
        assert said.cpu.shares is None or 2 <= said.cpu.shares <= 262_144
        assert said.cpu.period is None or 1_000 <= said.cpu.period <= 1_000_000
        assert said.cpu.quota is None or said.cpu.quota == -1 or said.cpu.quota >= 1_000
    if said.memory is not None and said.memory.limit and said.memory.limit > 0:
        assert said.memory.swap is not None
        assert said.memory.swap == -1 or said.memory.swap >= said.memory.limit


@given(requests, requests, requests)
def test_updates_in_a_row(
    first: LinuxResources, second: LinuxResources, third: LinuxResources
) -> None:
    merged = merge_resources(merge_resources(first, second), third)
    assert merge_resources(merged, LinuxResources()) == merged
    if third.cpu_shares:
        assert merged.cpu_shares == third.cpu_shares
