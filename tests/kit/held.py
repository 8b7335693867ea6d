"""What a daemon holds of the kernel's, for tests that compare before and after many calls."""

from __future__ import annotations

import contextlib
from pathlib import Path

from protos import api_pb2 as api
from tests.kit.calls import until
from tests.kit.node import Node


def descriptors(pid: int) -> list[Path]:
    """The entries of the process's open descriptors."""
    return list(Path(f"/proc/{pid}/fd").iterdir())


def children(pid: int) -> list[int]:
    """Process ids of what any of its threads has started."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            found += map(int, (thread / "children").read_text().split())
    return found


def held(pid: int) -> tuple[int, int, int]:
    """(descriptors, threads, children) of the process."""
    threads = list(Path(f"/proc/{pid}/task").iterdir())
    return len(descriptors(pid)), len(threads), len(children(pid))


def resident_bytes(pid: int) -> int:
    """Memory that the process has now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("VmRSS")


def let_it_sample(node: Node, *, groups: int, logs: int) -> None:
    """Return when the daemon has open what it keeps open for its statistics.

    The sampler opens the files of a control group once it has been asked or has come round, and
    each log that it counts, so a count that was taken before is too low.

    Args:
        node: whose daemon.
        groups: of containers and pods together.
        logs: of containers that have written one.
    """

    def sampled() -> bool:
        stats = node.runtime.ListContainerStats(api.ListContainerStatsRequest()).stats
        pods = node.runtime.ListPodSandboxStats(api.ListPodSandboxStatsRequest()).stats
        names = []
        for entry in descriptors(node.pid):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                names.append(entry.readlink().name)
        return (
            len(stats) + len(pods) == groups
            and names.count("memory.stat") == groups
            and sum(name.endswith("_0.log") for name in names) == logs
        )

    until(sampled, "the sampler has opened its files")
