"""Interfaces of a pod's network namespace: counters, and which one carries the default route.

Read from `/proc/PID/net` of the pod's pause process: three small files, opened and closed each
time. Roads not taken: a thread that enters the pinned namespace costs two setns(2) and can be
lost there; a file kept open holds the namespace, so that the interfaces of a stopped pod would
stay until somebody closed it.

A number that changed hands is noticed: the process is identified again after the files were read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from sandbox.host.pidfd import start_ticks

if TYPE_CHECKING:
    from collections.abc import Collection

_PROC: Final = Path("/proc")
#: Columns of /proc/net/dev after the name (net/core/net-procfs.c): 8 for receiving, 8 for sending.
_COLUMNS: Final = 16
#: RTF_UP of linux/route.h.
_ROUTE_UP: Final = 0x1
_ANY_V6: Final = "0" * 32


class NetworkPlace(msgspec.Struct, frozen=True):
    """The process whose network is meant; `start_ticks` is field 22 of /proc/PID/stat."""

    pid: int
    start_ticks: int


class InterfaceUsage(msgspec.Struct, frozen=True):
    """Counters of one interface since it was made."""

    name: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


class NetworkUsage(msgspec.Struct, frozen=True):
    """A namespace's interfaces but lo; `default` has the default route, else it is the first."""

    default: InterfaceUsage | None
    interfaces: tuple[InterfaceUsage, ...]


def read_network(place: NetworkPlace, *, proc: Path = _PROC) -> NetworkUsage | None:
    """The namespace's interfaces as of now; None when the process is gone. Blocking, briefly."""
    base = proc / str(place.pid) / "net"
    try:
        interfaces = parse_interfaces((base / "dev").read_text())
        names = {interface.name for interface in interfaces}
        default = default_by_ipv4((base / "route").read_text(), names)
        if not default and (base / "ipv6_route").exists():
            default = default_by_ipv6((base / "ipv6_route").read_text(), names)
    except (OSError, UnicodeDecodeError):
        return None
    if start_ticks(place.pid) != place.start_ticks:
        return None
    chosen = next((i for i in interfaces if i.name == default), None)
    return NetworkUsage(chosen or next(iter(interfaces), None), interfaces)


def parse_interfaces(text: str) -> tuple[InterfaceUsage, ...]:
    """/proc/net/dev without lo; lines that are no counters are left out."""
    found = []
    for line in text.splitlines():
        # The name may hold a colon (an alias): the last one ends it.
        name, colon, rest = line.rpartition(":")
        words = rest.split()
        name = name.strip()
        if not colon or name == "lo" or len(words) < _COLUMNS or not all(map(str.isdecimal, words)):
            continue
        values = [int(word) for word in words]
        found.append(InterfaceUsage(name, *values[0:4], *values[8:12]))
    return tuple(found)


def default_by_ipv4(text: str, names: Collection[str]) -> str:
    """The interface of the default route with the least metric in /proc/net/route, or ""."""
    best: tuple[int, str] | None = None
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) < 8 or words[1] != "00000000" or words[7] != "00000000":
            continue
        try:
            up, metric = int(words[3], 16) & _ROUTE_UP, int(words[6])
        except ValueError:
            continue
        if up and words[0] in names and (best is None or metric < best[0]):
            best = (metric, words[0])
    return best[1] if best else ""


def default_by_ipv6(text: str, names: Collection[str]) -> str:
    """The same of /proc/net/ipv6_route, whose unreachable default routes are all on lo."""
    best: tuple[int, str] | None = None
    for line in text.splitlines():
        words = line.split()
        if len(words) < 10 or words[0] != _ANY_V6 or words[1] != "00":
            continue
        try:
            metric, up = int(words[5], 16), int(words[8], 16) & _ROUTE_UP
        except ValueError:
            continue
        if up and words[9] in names and (best is None or metric < best[0]):
            best = (metric, words[9])
    return best[1] if best else ""
