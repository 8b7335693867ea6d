"""A node under the load of a kubelet that has too many pods: `python -m tests.kit.load --help`.

So many clients start so many pods at once; then they are polled as a kubelet does it while some
come and go; then all are removed. Every answer is held against what must be true, every failure
counted, Version is timed throughout, and the daemon's memory, descriptors and threads are written
down each minute. Exit status 1 when a call failed, an answer was untrue, or something stayed.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc

from protos import api_pb2 as api
from tests.kit import census
from tests.kit.faults import PATIENCE_S
from tests.kit.images import make_sets
from tests.kit.node import Node
from tests.kit.registry import running_registry, write_hosts

STORAGE: Final = Path("/var/cache/podwright/images")
#: How often a kubelet lists, and how often it asks for everybody's statistics (seconds).
LIST_PAUSE_S: Final = 1.0
STATS_PAUSE_S: Final = 10.0
VERSION_PAUSE_S: Final = 0.2


@dataclass
class Tally:
    """What happened; filled by many threads."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    took_s: dict[str, list[float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def timed(self, what: str, call: Callable[[], object]) -> object:
        """Run `call`; its time and its failure are noted, None is returned for one that failed."""
        began_s = time.monotonic()
        try:
            return call()
        except grpc.RpcError as error:
            with self.lock:
                self.problems.append(f"{what}: {error.code().name}: {error.details()}"[:300])
            return None
        finally:
            with self.lock:
                self.took_s.setdefault(what, []).append(time.monotonic() - began_s)

    def untrue(self, text: str) -> None:
        """Note an answer that is not so."""
        with self.lock:
            self.problems.append(f"untrue: {text}")


class Load:
    """Pods of one node, made and removed by many clients."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.tally = Tally()
        self.lock = threading.Lock()
        #: Pods that are ready and not being removed, each with its running container.
        self.settled: dict[str, str] = {}
        self.numbers: Iterator[int] = itertools.count()
        self.over = threading.Event()

    def add(self) -> None:
        """Make a pod with one container."""
        node, number = self.node, next(self.numbers)
        pod = self.tally.timed("RunPodSandbox", lambda: node.run_pod(f"load-{number}"))
        if not isinstance(pod, str):
            return
        made = self.tally.timed(
            "CreateContainer", lambda: node.create(pod, "main", ["sleep", "100000"])
        )
        if not isinstance(made, str):
            return
        if self.tally.timed("StartContainer", lambda: node.start(made)) is not None:
            with self.lock:
                self.settled[pod] = made

    def remove(self) -> None:
        """Remove the oldest pod."""
        with self.lock:
            if not self.settled:
                return
            pod = next(iter(self.settled))
            del self.settled[pod]
        self.tally.timed("StopPodSandbox", lambda: self.node.stop_pod(pod))
        self.tally.timed("RemovePodSandbox", lambda: self.node.remove_pod(pod))

    def turn_over(self) -> None:
        """One goes, one comes."""
        self.remove()
        self.add()

    def watch_version(self) -> None:
        """Time Version until the end."""
        runtime = self.node.runtime
        while not self.over.wait(VERSION_PAUSE_S):
            self.tally.timed(
                "Version", lambda: runtime.Version(api.VersionRequest(), timeout=PATIENCE_S)
            )

    def poll(self) -> None:
        """List as a kubelet does until the end, and hold the answers against what is known."""
        runtime, next_stats_s = self.node.runtime, 0.0
        while not self.over.wait(LIST_PAUSE_S):
            with self.lock:
                before = dict(self.settled)
            pods = self.tally.timed("ListPodSandbox", self.node.pods)
            containers = self.tally.timed("ListContainers", self.node.containers)
            with self.lock:
                stayed = {pod: made for pod, made in before.items() if pod in self.settled}
            if isinstance(pods, list) and isinstance(containers, list):
                ready = {p.id for p in pods if p.state == api.SANDBOX_READY}
                running = {c.id for c in containers if c.state == api.CONTAINER_RUNNING}
                for missing in stayed.keys() - ready:
                    self.tally.untrue(f"pod {missing} is not called ready")
                for missing in set(stayed.values()) - running:
                    self.tally.untrue(f"container {missing} is not called running")
            if time.monotonic() >= next_stats_s:
                next_stats_s = time.monotonic() + STATS_PAUSE_S
                self.tally.timed(
                    "ListContainerStats",
                    lambda: runtime.ListContainerStats(
                        api.ListContainerStatsRequest(), timeout=PATIENCE_S
                    ),
                )

    def state(self) -> str:
        """The daemon's memory, descriptors and threads, for people."""
        pid = self.node.pid
        status = Path(f"/proc/{pid}/status").read_text()
        rss_kib = int(status.partition("VmRSS:")[2].split()[0])
        descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        return (
            f"rss {rss_kib / 1024:.1f} MiB, {descriptors} descriptors,"
            f" {census.threads(pid)} threads, {len(self.settled)} pods"
        )


def run(node: Node, *, pods: int, clients: int, minutes: float, churn: int) -> Load:
    """The whole load; prints what happens."""
    load = Load(node)
    print(f"before: {load.state()}", flush=True)
    watchers = [threading.Thread(target=work) for work in (load.watch_version, load.poll)]
    for thread in watchers:
        thread.start()
    try:
        with ThreadPoolExecutor(clients) as pool:
            began_s = time.monotonic()
            for future in [pool.submit(load.add) for _ in range(pods)]:
                future.result()
            print(f"started in {time.monotonic() - began_s:.1f} s: {load.state()}", flush=True)
            end_s, number = time.monotonic() + 60 * minutes, 0
            while time.monotonic() < end_s:
                pool.submit(load.turn_over)
                number += 1
                time.sleep(60 / churn)
                if number % churn == 0:
                    print(f"minute {number // churn}: {load.state()}", flush=True)
        with ThreadPoolExecutor(clients) as pool:
            for future in [pool.submit(load.remove) for _ in range(pods)]:
                future.result()
    finally:
        load.over.set()
        for thread in watchers:
            thread.join()
    print(f"after: {load.state()}", flush=True)
    return load


def report(load: Load) -> None:
    """Times by call, and what went wrong."""
    print(f"{'call':20} {'number':>7} {'median':>9} {'99 %':>9} {'most':>9}  (seconds)")
    for what, took_s in sorted(load.tally.took_s.items()):
        took_s.sort()
        late = took_s[min(len(took_s) - 1, len(took_s) * 99 // 100)]
        median = took_s[len(took_s) // 2]
        print(f"{what:20} {len(took_s):7} {median:9.3f} {late:9.3f} {took_s[-1]:9.3f}")
    print(f"{len(load.tally.problems)} problems")
    for problem in load.tally.problems[:20]:
        print(f"  {problem}")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--churn", type=int, default=50, help="pods that come and go in a minute")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="podwright-load-") as work:
        registry = make_sets(STORAGE, ["first-pod", "critest"])
        with running_registry(registry, Path(work)) as port:
            write_hosts(Path(work, "certs.d"), port)
            with Node.running("load", Path(work, "certs.d")) as node:
                load = run(
                    node,
                    pods=chosen.pods,
                    clients=chosen.clients,
                    minutes=chosen.minutes,
                    churn=chosen.churn,
                )
                report(load)
                node.remove_everything()
                node.assert_clean()
                print("nothing is left")
    return bool(load.tally.problems)


if __name__ == "__main__":
    sys.exit(main())
