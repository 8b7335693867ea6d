"""Measures pulls of one runtime: how long, how much memory, and how the daemon answers meanwhile.

Time and the rest are taken in different pulls. Who looks at memory and asks for the version while a
pull runs takes processor time from it, and on a machine of two cores that is seen in its time.

Memory is what the kernel says: the daemon's own peak (VmHWM, set back before each pull) less what
it had before, and beside it the greatest sum over its child processes, which is where some runtimes
unpack. Resident memory, not proportional: sampling the latter walks page tables for milliseconds.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import grpc

from protos import api_pb2 as api
from protos import api_pb2_grpc as rpc
from tests.kit.measure import LARGE, MANY_FILES, Target, pull, remove_image
from tests.kit.pull_images import AT_ONCE, at_once_name
from tests.kit.runtimes import connect

_REGISTRY: Final = "registry.localhost/"
SMALL_LAYERS: Final = f"{_REGISTRY}bench/small-layers:1"
ON_LARGE: Final = f"{_REGISTRY}bench/on-large:1"
MIB: Final = 1 << 20

#: Between two questions, so that asking is not a load of its own.
_ASK_PAUSE_S: Final = 0.005
_CHILDREN_PAUSE_S: Final = 0.02
#: proc_pid_clear_refs(5): sets the peak of resident memory back to what it is now.
_RESET_PEAK: Final = "5"


@dataclass(frozen=True, slots=True)
class Case:
    """What is pulled, all of it at once, and what is on the node already."""

    row: str
    images: tuple[str, ...]
    before: tuple[str, ...] = ()


CASES: Final = (
    Case("pull, 245 MB, 15,000 files, 5 layers", (LARGE,)),
    Case("pull, 30,000 files", (MANY_FILES,)),
    Case("pull, 40 small layers", (SMALL_LAYERS,)),
    Case("pull, one layer more than what is there", (ON_LARGE,), before=(LARGE,)),
    Case("pull, already present", (LARGE,), before=(LARGE,)),
    Case(
        f"pull, {AT_ONCE} images at once",
        tuple(f"{_REGISTRY}{at_once_name(number)}" for number in range(AT_ONCE)),
    ),
)


@dataclass(slots=True)
class Watched:
    """What was seen while one pull ran."""

    daemon_growth_bytes: int = 0
    children_peak_bytes: int = 0
    answers_ms: list[float] = field(default_factory=list)


def measure_case(target: Target, case: Case, *, watched: bool) -> list[float]:
    """One pull of a case, from and to a node without its images.

    Returns:
        how long each Version took meanwhile, in ms; nothing unless `watched`.
    """
    for image in case.before:
        pull(target, image)
    os.sync()
    answers_ms: list[float] = []
    if watched:
        with watching(target) as seen:
            pull_all(target, case.images)
        target.add(f"{case.row}: daemon grows by, MiB", seen.daemon_growth_bytes / MIB)
        target.add(f"{case.row}: its children, MiB", seen.children_peak_bytes / MIB)
        answers_ms = seen.answers_ms
    else:
        target.timed(case.row, partial(pull_all, target, case.images))
    wanted = dict.fromkeys((*case.images, *case.before))
    started_ns = time.monotonic_ns()
    for image in wanted:
        remove_image(target, image)
    if not case.before and not watched:
        removal = case.row.replace("pull", "remove", 1)
        target.add(removal, (time.monotonic_ns() - started_ns) / 1e6)
    return answers_ms


def pull_all(target: Target, images: Sequence[str]) -> None:
    """Pull all of them at the same time; raises what the first failure raises."""
    if len(images) == 1:
        pull(target, images[0])
        return
    with ThreadPoolExecutor(len(images)) as pool:
        for done in [pool.submit(pull, target, image) for image in images]:
            done.result()


@contextlib.contextmanager
def watching(target: Target) -> Iterator[Watched]:
    """Look at a daemon while the block runs; the figures are there when it has ended."""
    daemon = target.daemon_pid()
    Path(f"/proc/{daemon}/clear_refs").write_text(_RESET_PEAK)
    before_bytes = status_bytes(daemon, "VmRSS")
    seen, over = Watched(), threading.Event()
    threads = [
        threading.Thread(target=_ask, args=(target.socket, seen, over), name="ask"),
        threading.Thread(target=_look_at_children, args=(daemon, seen, over), name="children"),
    ]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join()
    seen.daemon_growth_bytes = max(0, status_bytes(daemon, "VmHWM") - before_bytes)


def _ask(socket: Path, seen: Watched, over: threading.Event) -> None:
    """Version, one after the other, on a connection of its own: the pull's would queue it."""
    with connect(socket) as channel:
        runtime = rpc.RuntimeServiceStub(channel)
        runtime.Version(api.VersionRequest(), timeout=60)  # the connection itself is not counted
        while not over.is_set():
            started_ns = time.monotonic_ns()
            try:
                runtime.Version(api.VersionRequest(), timeout=60)
            except grpc.RpcError:
                break  # the pull says what is wrong
            seen.answers_ms.append((time.monotonic_ns() - started_ns) / 1e6)
            over.wait(_ASK_PAUSE_S)


def _look_at_children(daemon: int, seen: Watched, over: threading.Event) -> None:
    while not over.is_set():
        total = sum(status_bytes(pid, "VmRSS") for pid in children_of(daemon))
        seen.children_peak_bytes = max(seen.children_peak_bytes, total)
        over.wait(_CHILDREN_PAUSE_S)


def children_of(pid: int) -> list[int]:
    """All processes below `pid`, those of its threads' children included."""
    found: list[int] = []
    pending = [pid]
    while pending:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pending.pop()}/task").iterdir():
                with contextlib.suppress(OSError):
                    below = [int(word) for word in (task / "children").read_text().split()]
                    found += below
                    pending += below
    return found


def status_bytes(pid: int, name: str) -> int:
    """A figure of /proc/PID/status that is in kB there; 0 when the process has gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


def note_answers(target: Target, case: Case, answers_ms: Sequence[float]) -> None:
    """Rows for what Version took during all watched pulls of a case; none when nobody asked."""
    if answers_ms:
        for name, part in (("median", 0.5), ("99 %", 0.99), ("longest", 1.0)):
            target.add(f"{case.row}: Version, {name}", quantile(answers_ms, part))


def quantile(values: Sequence[float], part: float) -> float:
    """The smallest value that at least `part` of all are not above."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]
