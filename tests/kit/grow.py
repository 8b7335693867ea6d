"""Measures a runtime while its node fills with pods, is polled as a kubelet does it, and empties.

Pods come from several clients at once, each with the node's network, the default filter and one
sleeping container. At each size of the node the pods are only polled for a while, then a few more
live one after the other: that is what a start takes on a node that has so many. What is looked for
is growth: a call that takes longer the more pods there are, or a daemon that keeps more of each.

A failed call is counted and the run goes on.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import grpc
import msgspec

from protos import api_pb2 as api
from protos import api_pb2_grpc as rpc
from tests.kit.floor import floor_under
from tests.kit.measure import (
    CALL_PATIENCE_S,
    Target,
    container_config,
    helper_pids,
    pod_config,
    pss_bytes,
)
from tests.kit.measure_node import CGROUPS, cpu_seconds, remove_cgroups, supported
from tests.kit.pings import Pings
from tests.kit.runtimes import connect

T = TypeVar("T")

#: Clients that start and remove pods at once.
CLIENTS: Final = 8
#: Pods that live one after the other at each size.
PROBES: Final = 7
#: As a kubelet asks (seconds).
LIST_PAUSE_S: Final = 1.0
STATS_PAUSE_S: Final = 10.0
#: Version while pods are started: often, to see what holds up every answer.
EAGER_PAUSE_S: Final = 0.05
MIB: Final = 1 << 20

STARTS: Final = ("RunPodSandbox", "CreateContainer", "StartContainer")


class Samples(msgspec.Struct):
    """Times of calls in ms by the call's name, and how many of them failed."""

    took_ms: dict[str, list[float]] = {}
    failed: dict[str, int] = {}

    def timed(self, name: str, call: Callable[[], T]) -> T | None:
        """Make a call; None when it failed. Any thread."""
        began_ns = time.monotonic_ns()
        try:
            answer = call()
        except grpc.RpcError as error:
            self.note(name, str(error.details()))
            return None
        self.note(name, (time.monotonic_ns() - began_ns) / 1e6)
        return answer

    def note(self, name: str, found: float | str) -> None:
        """What a call took (ms) or how it failed. Any thread."""
        if isinstance(found, str):
            self.failed[name] = self.failed.get(name, 0) + 1
            print(f"{name}: {found}"[:300])
        else:
            self.took_ms.setdefault(name, []).append(found)


class Stage(msgspec.Struct):
    """A node of one size.

    Attributes:
        pods: how many there are.
        filling: calls while pods were started to get there, polling included.
        per_pod_ms: time of the filling by the number of pods that came.
        holding: calls while nothing but polling happened.
        held_s: how long that was.
        cpu_s: processor time meanwhile, of the daemon and of what it has running for pods.
        probing: calls of pods that lived one after the other.
        life_cpu_ms: the daemon's processor time for one of them, less what polling takes meanwhile:
            the one figure that neighbours on a busy machine do not bend.
        floor: what the kernel and the programs alone took for a pod's steps, see `floor`; empty
            where this runtime does not tell enough for it.
        pss_mib: memory by program, all processes of it together; "daemon" is the runtime itself.
        processes: how many of each program.
    """

    pods: int
    filling: Samples
    per_pod_ms: float
    holding: Samples
    held_s: float
    cpu_s: dict[str, float]
    probing: Samples
    life_cpu_ms: float
    floor: Samples
    pss_mib: dict[str, float]
    processes: dict[str, int]


class Growth(msgspec.Struct):
    """One runtime's way from an empty node to a full one and back."""

    name: str
    version: str
    idle_pss_mib: float
    stages: list[Stage] = []
    emptying: Samples = msgspec.field(default_factory=Samples)
    emptied_per_pod_ms: float = 0.0
    after_pss_mib: float = 0.0


class Poller:
    """Asks as a kubelet does, in threads of its own, and for the version in a process (`pings`).

    Attributes:
        samples: where to note; may be exchanged at any time.
    """

    def __init__(self, target: Target) -> None:
        self.samples = Samples()
        self._pings: Pings | None = None
        self._socket = target.socket
        self._over = threading.Event()
        usage = partial(
            target.runtime.ListPodSandboxStats, api.ListPodSandboxStatsRequest(), timeout=60
        )
        # A kubelet asks for the containers' usage where the runtime does not tell the pods'.
        self._pod_usage = supported(usage)
        works = (self._lists, self._usage, self._events)
        self._threads = [threading.Thread(target=work, daemon=True) for work in works]

    def __enter__(self) -> Poller:
        for thread in self._threads:
            thread.start()
        self._pings = Pings(self._socket, self._note_version, pause_s=EAGER_PAUSE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._pings is not None:
            self._pings.close()
        for thread in self._threads:
            thread.join()

    def ask_eagerly(self, eager: bool) -> None:
        """Whether to ask for the version far more often than a kubelet; it begins so."""
        assert self._pings is not None
        self._pings.every(EAGER_PAUSE_S if eager else LIST_PAUSE_S)

    def _lists(self) -> None:
        with connect(self._socket) as channel:
            runtime = rpc.RuntimeServiceStub(channel)
            pods, containers = api.ListPodSandboxRequest(), api.ListContainersRequest()
            for _ in self._every(LIST_PAUSE_S):
                self._ask(
                    "ListPodSandbox", partial(runtime.ListPodSandbox, pods, timeout=CALL_PATIENCE_S)
                )
                self._ask(
                    "ListContainers",
                    partial(runtime.ListContainers, containers, timeout=CALL_PATIENCE_S),
                )

    def _usage(self) -> None:
        with connect(self._socket) as channel:
            runtime = rpc.RuntimeServiceStub(channel)
            for number in self._every(STATS_PAUSE_S / 2):
                if number % 2:
                    self._ask(
                        "Status",
                        partial(runtime.Status, api.StatusRequest(), timeout=CALL_PATIENCE_S),
                    )
                elif self._pod_usage:
                    request = api.ListPodSandboxStatsRequest()
                    self._ask(
                        "stats",
                        partial(runtime.ListPodSandboxStats, request, timeout=CALL_PATIENCE_S),
                    )
                else:
                    of_containers = api.ListContainerStatsRequest()
                    self._ask(
                        "stats",
                        partial(runtime.ListContainerStats, of_containers, timeout=CALL_PATIENCE_S),
                    )

    def _note_version(self, found: float | str) -> None:
        self.samples.note("Version", found)

    def _events(self) -> None:
        with connect(self._socket) as channel:
            events = rpc.RuntimeServiceStub(channel).GetContainerEvents(api.GetEventsRequest())
            ender = threading.Thread(target=self._end, args=(events,), daemon=True)
            ender.start()
            with contextlib.suppress(grpc.RpcError):
                for _ in events:
                    pass
            self._over.wait()  # also where the runtime has no such stream
            ender.join()

    def _end(self, events: grpc.CallIterator[api.ContainerEventResponse]) -> None:
        self._over.wait()
        events.cancel()

    def _every(self, pause_s: float) -> Iterator[int]:
        number, next_s = 0, time.monotonic()
        while not self._over.wait(max(0.0, next_s - time.monotonic())):
            yield number
            number, next_s = number + 1, max(next_s + pause_s, time.monotonic())

    def _ask(self, name: str, call: Callable[[], object]) -> None:
        self.samples.timed(name, call)


class Filling:
    """One runtime's node, filled step by step."""

    def __init__(self, target: Target, tell: Callable[[str], None]) -> None:
        """`tell` shows people what happens."""
        self._target = target
        self._tell = tell
        self._made: list[tuple[str, str]] = []
        self._numbers = iter(range(1_000_000))
        self._names = threading.Lock()
        self._daemon = target.daemon_pid()
        self.growth = Growth(target.name, target.version, pss_bytes(self._daemon) / MIB)

    def run(self, sizes: Sequence[int], *, hold_s: float, last_hold_s: float) -> Growth:
        """All of it; whatever happens, the pods are removed."""
        try:
            with Poller(self._target) as poller:
                for size in sizes:
                    held_s = last_hold_s if size == sizes[-1] else hold_s
                    self.growth.stages.append(self._stage(poller, size, held_s))
                poller.samples = self.growth.emptying
                self._empty()
        finally:
            self._empty()
            remove_cgroups(CGROUPS)
        self.growth.after_pss_mib = pss_bytes(self._daemon) / MIB
        return self.growth

    def _stage(self, poller: Poller, size: int, hold_s: float) -> Stage:
        self._tell(f"{self._target.name}: to {size} pods")
        filling = poller.samples = Samples()
        poller.ask_eagerly(True)
        missing = size - len(self._made)
        began_s = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as clients:
            try:
                for done in [clients.submit(self._start, filling) for _ in range(missing)]:
                    done.result()
            finally:
                clients.shutdown(cancel_futures=True)
        per_pod_ms = 1e3 * (time.monotonic() - began_s) / max(1, missing)

        self._tell(f"{self._target.name}: {size} pods are polled for {hold_s:g} s")
        helpers = helper_pids(self._target, self._made) - {self._daemon}
        poller.ask_eagerly(False)
        holding = poller.samples = Samples()
        before_s = self._cpu(helpers)
        began_s = time.monotonic()
        time.sleep(hold_s)
        after_s = self._cpu(helpers)
        held_s = time.monotonic() - began_s
        pss_mib, processes = self._memory(helpers)

        cpu_s = {name: after_s[name] - before_s[name] for name in after_s}

        probing = Samples()
        poller.samples = Samples()
        before, began_s = cpu_seconds(self._daemon), time.monotonic()
        for _ in range(PROBES):
            if self._start(probing):
                self._remove(probing, self._made.pop())
        polling_s = cpu_s["daemon"] / held_s * (time.monotonic() - began_s)
        life_cpu_ms = 1e3 * (cpu_seconds(self._daemon) - before - polling_s) / PROBES
        return Stage(
            pods=len(self._made),
            filling=filling,
            per_pod_ms=per_pod_ms,
            holding=holding,
            held_s=held_s,
            cpu_s=cpu_s,
            probing=probing,
            life_cpu_ms=life_cpu_ms,
            floor=Samples(self._floor()),
            pss_mib=pss_mib,
            processes=processes,
        )

    def _floor(self) -> dict[str, list[float]]:
        noted = Target(name="floor", socket=Path("/none"))
        with contextlib.suppress(LookupError), floor_under(self._target, noted) as floor:
            for number in range(PROBES):
                floor.life(str(number))
        return noted.samples

    def _start(self, samples: Samples) -> bool:
        """One more pod; False when it did not come to run, and then nothing of it is kept."""
        with self._names:
            name = f"grow-{next(self._numbers)}"
        runtime = self._target.runtime
        config = pod_config(name, cgroup_parent=f"/{CGROUPS}/{name}")
        run = api.RunPodSandboxRequest(config=config)
        began_ns = time.monotonic_ns()
        pod = samples.timed(STARTS[0], lambda: runtime.RunPodSandbox(run, timeout=CALL_PATIENCE_S))
        if pod is None:
            return False
        create = api.CreateContainerRequest(
            pod_sandbox_id=pod.pod_sandbox_id, config=container_config(), sandbox_config=config
        )
        made = samples.timed(
            STARTS[1], lambda: runtime.CreateContainer(create, timeout=CALL_PATIENCE_S)
        )
        container = made.container_id if made is not None else ""
        start = api.StartContainerRequest(container_id=container)
        if made is None or not samples.timed(
            STARTS[2], lambda: runtime.StartContainer(start, timeout=CALL_PATIENCE_S)
        ):
            self._remove(samples, (pod.pod_sandbox_id, container))
            return False
        samples.took_ms.setdefault("pod to running", []).append(
            (time.monotonic_ns() - began_ns) / 1e6
        )
        self._made.append((pod.pod_sandbox_id, container))
        return True

    def _remove(self, samples: Samples, pair: tuple[str, str]) -> None:
        runtime, pod = self._target.runtime, pair[0]
        stop = api.StopPodSandboxRequest(pod_sandbox_id=pod)
        remove = api.RemovePodSandboxRequest(pod_sandbox_id=pod)
        if pair[1]:
            end = api.StopContainerRequest(container_id=pair[1], timeout=0)
            samples.timed(
                "StopContainer 0", lambda: runtime.StopContainer(end, timeout=CALL_PATIENCE_S)
            )
        samples.timed(
            "StopPodSandbox", lambda: runtime.StopPodSandbox(stop, timeout=CALL_PATIENCE_S)
        )
        samples.timed(
            "RemovePodSandbox", lambda: runtime.RemovePodSandbox(remove, timeout=CALL_PATIENCE_S)
        )

    def _empty(self) -> None:
        made, self._made = self._made, []
        if not made:
            return
        self._tell(f"{self._target.name}: removing {len(made)} pods")
        began_s = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(partial(self._remove, self.growth.emptying), made))
        self.growth.emptied_per_pod_ms = 1e3 * (time.monotonic() - began_s) / len(made)

    def _cpu(self, helpers: set[int]) -> dict[str, float]:
        total_s = 0.0
        for pid in helpers:
            with contextlib.suppress(OSError):
                total_s += cpu_seconds(pid)
        return {"daemon": cpu_seconds(self._daemon), "helpers": total_s}

    def _memory(self, helpers: set[int]) -> tuple[dict[str, float], dict[str, int]]:
        pss_mib = {"daemon": pss_bytes(self._daemon) / MIB}
        processes = {"daemon": 1}
        for pid in helpers:
            with contextlib.suppress(OSError):
                program = Path(f"/proc/{pid}/comm").read_text().strip()
                pss_mib[program] = pss_mib.get(program, 0.0) + pss_bytes(pid) / MIB
                processes[program] = processes.get(program, 0) + 1
        return pss_mib, processes
