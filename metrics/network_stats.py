"""Interfaces of a pod's network namespace: counters, and which one carries the default route.

Read from `/proc/PID/net` of the pod's pause process: one small file, opened and closed each time,
and the routes only where a pod has several interfaces. Roads not taken: a thread that enters the
pinned namespace costs two setns(2) and can be lost there; a file of `net` kept open holds the
namespace, so that the interfaces of a stopped pod would stay until somebody closed it.

What is kept open is the process's own directory, without the right to read it (O_PATH): that holds
no namespace, and stands for the process and not for its number. Once it has been compared with when
the process started, what is opened below it is that process's or nothing, whoever has the number
then. With that and one file in place of four, a pod's network takes 12 us and not 45.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from sandbox.host.pidfd import start_ticks

if TYPE_CHECKING:
    from collections.abc import Collection

    from metrics.cgroup_files import DescriptorBudget

_PROC: Final = Path("/proc")
#: Columns of /proc/net/dev after the name (net/core/net-procfs.c): 8 for receiving, 8 for sending.
_COLUMNS: Final = 16
#: RTF_UP of linux/route.h.
_ROUTE_UP: Final = 0x1
_ANY_V6: Final = "0" * 32
#: A table of interfaces or routes comes in pieces of a page or less (fs/seq_file.c).
_READ_BYTES: Final = 16 * 1024


class NetworkPlace(msgspec.Struct, frozen=True):
    """The process whose network is meant; `start_ticks` is field 22 of /proc/PID/stat."""

    pid: int
    start_ticks: int


class InterfaceUsage(msgspec.Struct, frozen=True, gc=False):
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


class NetworkUsage(msgspec.Struct, frozen=True, gc=False):
    """A namespace's interfaces but lo; `default` has the default route, else it is the first."""

    default: InterfaceUsage | None
    interfaces: tuple[InterfaceUsage, ...]


class NetworkReader:
    """Looks at one process's network again and again; for one thread. Close it."""

    __slots__ = ("_budget", "_directory", "_fd", "place")

    def __init__(
        self, place: NetworkPlace, budget: DescriptorBudget, *, proc: Path = _PROC
    ) -> None:
        """`budget`: whether the process's directory may stay open between looks."""
        self.place = place
        self._budget = budget
        self._directory = f"{proc}/{place.pid}"
        self._fd = -1

    def read(self) -> NetworkUsage | None:
        """The namespace's interfaces as of now; None when the process is gone. Blocking."""
        if self._fd >= 0:
            return self._usage(self._fd)
        try:
            fd = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        # After it was opened: had the number changed hands by then, this would tell.
        if start_ticks(self.place.pid) == self.place.start_ticks:
            if self._budget.take():
                self._fd = fd
                return self._usage(fd)
            usage = self._usage(fd)
        else:
            usage = None
        os.close(fd)
        return usage

    def close(self) -> None:
        """Let go of the process; reading looks for it anew. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
            self._budget.give_back()

    def _usage(self, fd: int) -> NetworkUsage | None:
        try:
            interfaces = parse_interfaces(_read_at(fd, "net/dev"))
            if len(interfaces) < 2:  # whatever the routes are, there is no other
                return NetworkUsage(next(iter(interfaces), None), interfaces)
            default = self._default(fd, {interface.name for interface in interfaces})
        except OSError:
            return None  # it has ended
        chosen = next((i for i in interfaces if i.name == default), interfaces[0])
        return NetworkUsage(chosen, interfaces)

    def _default(self, fd: int, names: Collection[str]) -> str:
        found = default_by_ipv4(_text(_read_at(fd, "net/route")), names)
        if found:
            return found
        try:
            return default_by_ipv6(_text(_read_at(fd, "net/ipv6_route")), names)
        except FileNotFoundError:
            return ""  # a kernel without IPv6


def _read_at(directory: int, name: str) -> bytes:
    """The whole file; without file objects, which take longer than the kernel does."""
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        text = os.read(fd, _READ_BYTES)
        if text:
            while more := os.read(fd, _READ_BYTES):
                text += more
        return text
    finally:
        os.close(fd)


def _text(word: bytes) -> str:
    # An interface's name is any bytes (dev_valid_name): an odd one must not cost the others.
    return word.decode("utf-8", "replace")


def parse_interfaces(text: bytes) -> tuple[InterfaceUsage, ...]:
    """/proc/net/dev without lo; lines that are no counters are left out."""
    found = []
    for line in text.splitlines():
        # The name may hold a colon (an alias): the last one ends it.
        name, colon, rest = line.rpartition(b":")
        name = name.strip()
        if not colon or name == b"lo":
            continue
        words = rest.split()
        if len(words) < _COLUMNS or not all(map(bytes.isdigit, words)):
            continue
        values = list(map(int, words))
        found.append(InterfaceUsage(_text(name), *values[0:4], *values[8:12]))
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
