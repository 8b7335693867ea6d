"""A pod's limits in systemd's words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.host.errors import InvalidArgument, Unsupported
from sandbox.model import HugepageLimit, LinuxResources
from sandbox.slices import slice_properties

ALL = LinuxResources(
    cpu_shares=512,
    cpu_quota_usec=60_000,
    cpu_period_usec=50_000,
    memory_limit_bytes=100,
    memory_swap_limit_bytes=150,
    cpuset_cpus="0-1,9",
    cpuset_mems="0",
)


def words(resources: LinuxResources, version: int = 2) -> dict[str, str]:
    found = slice_properties(resources, 20, version=version)
    return {each.name: " ".join((each.signature, *each.value)) for each in found}


def test_every_limit_of_version_2() -> None:
    assert words(ALL) == {
        "CPUWeight": "t 20",
        "CPUQuotaPerSecUSec": "t 1200000",
        "CPUQuotaPeriodUSec": "t 50000",
        "MemoryMax": "t 100",
        "MemorySwapMax": "t 50",
        "AllowedCPUs": "ay 2 3 2",
        "AllowedMemoryNodes": "ay 1 1",
    }


def test_version_1_has_other_words_and_none_for_swap() -> None:
    found = words(ALL, version=1)
    assert found["CPUShares"] == "t 512"
    assert found["MemoryLimit"] == "t 100"
    assert not any("Swap" in name for name in found)


def test_what_is_not_asked_for_is_not_said() -> None:
    assert words(LinuxResources()) == {}


def test_no_limit_is_infinity() -> None:
    none = LinuxResources(memory_limit_bytes=-1, memory_swap_limit_bytes=-1, cpu_quota_usec=-1)
    infinity = f"t {(1 << 64) - 1}"
    found = words(none)
    assert {found[name] for name in ("MemoryMax", "MemorySwapMax", "CPUQuotaPerSecUSec")} == {
        infinity
    }


def test_unified_keys_that_systemd_knows() -> None:
    asked = LinuxResources(unified={"memory.high": "7", "pids.max": "max"})
    assert words(asked) == {"MemoryHigh": "t 7", "TasksMax": f"t {(1 << 64) - 1}"}


@pytest.mark.parametrize(
    ("asked", "version", "error"),
    [
        (LinuxResources(unified={"memory.oom.group": "1"}), 2, Unsupported),
        (LinuxResources(unified={"memory.high": "7"}), 1, Unsupported),
        (LinuxResources(unified={"memory.high": "lots"}), 2, InvalidArgument),
        (LinuxResources(hugepage_limits=(HugepageLimit("2MB", 7),)), 2, Unsupported),
        (LinuxResources(cpuset_cpus="3-1"), 2, InvalidArgument),
        (LinuxResources(cpuset_cpus="0-99999999999"), 2, InvalidArgument),
        (LinuxResources(cpuset_mems="a"), 2, InvalidArgument),
    ],
)
def test_what_cannot_be_said_is_refused(
    asked: LinuxResources, version: int, error: type[Exception]
) -> None:
    with pytest.raises(error):
        words(asked, version)


@given(st.sets(st.integers(0, 8191), min_size=1, max_size=40))
def test_lists_are_the_bits_that_they_name(numbers: set[int]) -> None:
    text = ",".join(map(str, sorted(numbers)))
    [found] = slice_properties(LinuxResources(cpuset_cpus=text), 1, version=2)
    size, *values = map(int, found.value)
    assert size == len(values)
    assert all(0 <= value < 256 for value in values)
    assert int.from_bytes(bytes(values), "little") == sum(1 << number for number in numbers)
