"""Limits of a pod as properties of its slice: the systemd driver's words for cgroup files.

Whoever writes the files of a unit himself has them overwritten when systemd next looks at it, so it
must be told (org.freedesktop.systemd1(5), systemd.resource-control(5)).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sandbox.host.errors import InvalidArgument, Unsupported
from sandbox.host.systemd import Property

if TYPE_CHECKING:
    from sandbox.model import LinuxResources

#: "No limit" in every property that is a number.
_INFINITY: Final = str((1 << 64) - 1)
#: Files of version 2 that a pod's `unified` may name, and the property of each.
_UNIFIED: Final = {
    "memory.high": "MemoryHigh",
    "memory.low": "MemoryLow",
    "memory.max": "MemoryMax",
    "memory.min": "MemoryMin",
    "memory.swap.max": "MemorySwapMax",
    "pids.max": "TasksMax",
    "cpu.weight": "CPUWeight",
}
#: More CPUs or memory nodes than Linux can have (NR_CPUS of x86).
_HIGHEST: Final = 8191


def slice_properties(
    resources: LinuxResources, weight: int, *, version: int
) -> tuple[Property, ...]:
    """Each limit that is asked for; 0 means not asked for.

    Args:
        resources: of the pod.
        weight: `resources.cpu_shares` as a weight of version 2.
        version: of the control groups.

    Raises:
        Unsupported: a limit that systemd has no word for.
        InvalidArgument: not a number, or not a list of numbers.
    """
    if resources.unified and version == 1:
        raise Unsupported("unified limits of a pod need cgroup v2, this node has v1")
    if any(limit.limit_bytes for limit in resources.hugepage_limits):
        raise Unsupported(
            "systemd cannot limit the huge pages of a slice",
            hint="limit those of its containers, or give the pod a cgroup parent of its own",
        )
    found: dict[str, Property] = {}

    def number(name: str, value: int | str) -> None:
        found[name] = Property(name, "t", (str(value),))

    two = version == 2
    memory, both = resources.memory_limit_bytes, resources.memory_swap_limit_bytes
    if resources.cpu_shares:
        number(*(("CPUWeight", weight) if two else ("CPUShares", resources.cpu_shares)))
    if resources.cpu_quota_usec:
        period = resources.cpu_period_usec or 100_000
        quota = resources.cpu_quota_usec
        per_second = quota * 1_000_000 // period if quota > 0 else _INFINITY
        number("CPUQuotaPerSecUSec", per_second)
        number("CPUQuotaPeriodUSec", period)
    if memory:
        number("MemoryMax" if two else "MemoryLimit", memory if memory > 0 else _INFINITY)
    if both and two:
        number("MemorySwapMax", max(0, both - max(0, memory)) if both > 0 else _INFINITY)
    for key, value in resources.unified.items():
        if key not in _UNIFIED:
            raise Unsupported(f"systemd has no property for {key} of a pod", key=key)
        number(_UNIFIED[key], _INFINITY if value == "max" else _number(key, value))
    for name, text in (
        ("AllowedCPUs", resources.cpuset_cpus),
        ("AllowedMemoryNodes", resources.cpuset_mems),
    ):
        if text:
            found[name] = Property(name, "ay", _bits(name, text))
    return tuple(found.values())


def _number(key: str, text: str) -> int:
    if not text.isdecimal():
        raise InvalidArgument(f"{key} is neither a number nor max", value=text[:64])
    return int(text)


def _bits(name: str, text: str) -> tuple[str, ...]:
    """A list such as "0-2,5" as an array of bytes, lowest first, in busctl's words."""
    mask = 0
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise InvalidArgument("not a list of numbers", property=name, value=text[:64])
        low, high = int(first), int(last or first)
        if not low <= high <= _HIGHEST:
            raise InvalidArgument("not a range that can be", property=name, value=text[:64])
        mask |= (1 << (high + 1)) - (1 << low)
    size = (mask.bit_length() + 7) // 8
    return (str(size), *(str(byte) for byte in mask.to_bytes(size, "little")))
