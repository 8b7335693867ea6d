"""Measures a runtime under a whole node's load: lists, statistics, exec, events, and its own work.

The pods are on the node's network and their containers sleep, so making hundreds takes seconds and
what is measured is the runtime's bookkeeping, not plugins. A call that a runtime does not have
leaves no sample, and the table shows a dash.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import grpc

from protos import api_pb2 as api
from tests.kit.measure import (
    CALL_PATIENCE_S,
    Target,
    container_config,
    helper_pids,
    pod_config,
)
from tests.kit.runtimes import end_containers

#: Pods of a dozen containers are rare, of one are usual with few sidecars; the table names both.
CONTAINERS_PER_POD: Final = 5
#: As many as a kubelet starts at once would only measure the queue on a small machine.
MAKERS: Final = 4

#: How often each call is made. Statistics wait before each, so they are fewer.
LIST_RUNS: Final = 30
STATS_RUNS: Final = 10
EXEC_RUNS: Final = 20
EVENT_RUNS: Final = 15
#: Runtimes answer again from what they have just measured. A kubelet asks far less often than that,
#: so a call must not profit from the one before.
STATS_PAUSE_S: Final = 0.7

#: Pods of the node that is only watched.
IDLE_PODS: Final = 60
#: How many pods a kubelet looks at more closely after each list.
LOOKED_AT: Final = 3
#: An event that took this long does not come.
EVENT_PATIENCE_S: Final = 10.0

#: Every pod has a control group of its own below this one, as with a kubelet: there are runtimes
#: that cannot tell the usage of a pod without.
CGROUPS: Final = f"podwright-bench-{os.getpid()}"

#: One pod and its containers.
Made = tuple[str, list[str]]


def supported(call: Callable[[], object]) -> bool:
    """Make a call; False when the runtime says that it has no such method, not when it fails."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code() is not grpc.StatusCode.UNIMPLEMENTED
    return True


@contextlib.contextmanager
def failures_noted(target: Target, row: str) -> Iterator[None]:
    """Count a failed call in a row of its own instead of ending a run of many minutes for it."""
    try:
        yield
    except grpc.RpcError as error:
        print(f"{target.name}: {row}: {error.details()}", file=sys.stderr)
        target.samples[row] = [sum(target.samples.get(row, [])) + 1]


@contextlib.contextmanager
def node(target: Target, name: str, *, pods: int, containers: int) -> Iterator[list[Made]]:
    """`pods` pods with `containers` running containers each, gone when the block ends."""
    made: list[Made] = []
    with ThreadPoolExecutor(MAKERS) as pool:
        try:
            futures = [
                pool.submit(_make, target, f"{name}-{n}", containers, made) for n in range(pods)
            ]
            for future in futures:
                future.result()
            yield made
        finally:
            pool.shutdown(cancel_futures=True)
            with ThreadPoolExecutor(MAKERS) as enders:
                list(enders.map(partial(_remove, target), [pod for pod, _ in made]))
            remove_cgroups(CGROUPS)


def _make(target: Target, name: str, containers: int, made: list[Made]) -> None:
    config = _config(name)
    run = api.RunPodSandboxRequest(config=config)
    pod = target.runtime.RunPodSandbox(run, timeout=CALL_PATIENCE_S).pod_sandbox_id
    inside: list[str] = []
    made.append((pod, inside))
    for number in range(containers):
        inside.append(_create(target, pod, config, f"main-{number}"))
        start = api.StartContainerRequest(container_id=inside[-1])
        target.runtime.StartContainer(start, timeout=CALL_PATIENCE_S)


def _config(name: str) -> api.PodSandboxConfig:
    return pod_config(name, host_network=True, cgroup_parent=f"/{CGROUPS}/{name}")


def _create(target: Target, pod: str, config: api.PodSandboxConfig, name: str) -> str:
    request = api.CreateContainerRequest(
        pod_sandbox_id=pod, config=container_config(name), sandbox_config=config
    )
    return target.runtime.CreateContainer(request, timeout=CALL_PATIENCE_S).container_id


def _remove(target: Target, pod: str) -> None:
    runtime = target.runtime
    end_containers(runtime, pod)
    runtime.StopPodSandbox(api.StopPodSandboxRequest(pod_sandbox_id=pod), timeout=CALL_PATIENCE_S)
    remove = api.RemovePodSandboxRequest(pod_sandbox_id=pod)
    runtime.RemovePodSandbox(remove, timeout=CALL_PATIENCE_S)


def remove_cgroups(name: str, mountinfo: Path = Path("/proc/self/mountinfo")) -> None:
    """Remove the control group `name` and those in it from every hierarchy: kubelets do that."""
    for line in mountinfo.read_text().splitlines():
        before, _, after = line.partition(" - ")
        if not after.startswith("cgroup"):
            continue
        for at, _, _ in os.walk(Path(before.split()[4]) / name, topdown=False):
            with contextlib.suppress(
                OSError
            ):  # what is still in use is the runtime's to answer for
                Path(at).rmdir()


# Answers under load.


def measure_scale(target: Target, *, containers: int) -> None:
    """Lists, statistics, exec and (once) events while that many containers are running."""
    pods = max(1, containers // CONTAINERS_PER_POD)
    each = max(1, containers // pods)
    with node(target, f"scale-{containers}", pods=pods, containers=each) as made:
        where = f"{sum(len(inside) for _, inside in made)} containers in {pods} pods"
        measure_lists(target, where)
        measure_exec(target, where, made)
        measure_events(target, where, made[0][0])


def measure_lists(target: Target, where: str) -> None:
    """The calls that answer for everything on the node."""
    runtime = target.runtime
    lists: dict[str, Callable[[], object]] = {
        "ListContainers": lambda: runtime.ListContainers(api.ListContainersRequest(), timeout=60),
        "ListPodSandbox": lambda: runtime.ListPodSandbox(api.ListPodSandboxRequest(), timeout=60),
    }
    usages: dict[str, Callable[[], object]] = {
        "ListContainerStats": lambda: runtime.ListContainerStats(
            api.ListContainerStatsRequest(), timeout=60
        ),
        "ListPodSandboxStats": lambda: runtime.ListPodSandboxStats(
            api.ListPodSandboxStatsRequest(), timeout=60
        ),
        "ListPodSandboxMetrics": lambda: runtime.ListPodSandboxMetrics(
            api.ListPodSandboxMetricsRequest(), timeout=60
        ),
    }
    for calls, runs, pause_s in ((lists, LIST_RUNS, 0.0), (usages, STATS_RUNS, STATS_PAUSE_S)):
        # The first answer may have to open files and measure layers: that is not the usual one.
        there = {name: call for name, call in calls.items() if supported(call)}
        for _ in range(runs):
            for name, call in there.items():
                time.sleep(pause_s)
                with failures_noted(target, f"failed calls: {name}, {where}"):
                    target.timed(f"{name}, {where}", call)


def measure_exec(target: Target, where: str, made: list[Made]) -> None:
    """ExecSync of a program that does nothing, in one container after the other."""
    everyone = [container for _, inside in made for container in inside]
    for number in range(EXEC_RUNS):
        request = api.ExecSyncRequest(
            container_id=everyone[number % len(everyone)], cmd=["true"], timeout=60
        )
        answer = target.timed(
            f"ExecSync true, {where}",
            partial(target.runtime.ExecSync, request, timeout=CALL_PATIENCE_S),
        )
        if answer.exit_code != 0:
            raise RuntimeError(f"{target.name}: true ended with {answer.exit_code}")


# Events.


class Arrivals:
    """When events came, by container and type; read in a thread of its own."""

    def __init__(self, events: grpc.CallIterator[api.ContainerEventResponse]) -> None:
        self._events = events
        self._came_ns: dict[tuple[str, int], int] = {}
        self._changed = threading.Condition()
        self._error: grpc.RpcError | None = None
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        error: grpc.RpcError | None = None
        try:
            for event in self._events:
                now_ns = time.monotonic_ns()
                with self._changed:
                    key = (event.container_id, event.container_event_type)
                    self._came_ns.setdefault(key, now_ns)
                    self._changed.notify_all()
        except grpc.RpcError as failed:
            error = failed
        finally:
            with self._changed:
                self._error, self._ended = error, True
                self._changed.notify_all()

    def wait(self, container: str, kind: int, patience_s: float = EVENT_PATIENCE_S) -> int:
        """When the event came (monotonic, ns).

        Raises:
            grpc.RpcError: the runtime ended the stream with an error.
            LookupError: it did not come.
        """
        key = (container, kind)
        with self._changed:
            self._changed.wait_for(lambda: self._ended or key in self._came_ns, patience_s)
            if key in self._came_ns:
                return self._came_ns[key]
            if self._error is not None:
                raise self._error
        raise LookupError(f"event {kind} of container {container} did not come")

    def close(self) -> None:
        self._events.cancel()
        self._reader.join()


def measure_events(target: Target, where: str, pod: str) -> None:
    """How long after a start was answered, and after a process ended, their events arrive.

    An event that overtakes the answer to the start has no delay.
    """
    arrivals = Arrivals(target.runtime.GetContainerEvents(api.GetEventsRequest()))
    config = _config("events")
    try:
        for number in range(EVENT_RUNS):
            container = _create(target, pod, config, f"events-{number}")
            start = api.StartContainerRequest(container_id=container)
            target.runtime.StartContainer(start, timeout=CALL_PATIENCE_S)
            answered_ns = time.monotonic_ns()
            if number == 0:
                # The first one shows that the stream is there and that somebody writes to it.
                if not supported(partial(arrivals.wait, container, api.CONTAINER_STARTED_EVENT)):
                    break
                continue
            came_ns = arrivals.wait(container, api.CONTAINER_STARTED_EVENT)
            target.add(f"STARTED event after the answer, {where}", delay_ms(answered_ns, came_ns))
            ended_ns = kill(container_pid(target, container))
            came_ns = arrivals.wait(container, api.CONTAINER_STOPPED_EVENT)
            target.add(f"STOPPED event after the exit, {where}", delay_ms(ended_ns, came_ns))
    finally:
        arrivals.close()


def delay_ms(since_ns: int, came_ns: int) -> float:
    return max(0, came_ns - since_ns) / 1e6


def container_pid(target: Target, container: str) -> int:
    """The first process, which both runtimes tell in the verbose status."""
    request = api.ContainerStatusRequest(container_id=container, verbose=True)
    info = target.runtime.ContainerStatus(request, timeout=60).info
    return int(json.loads(info["info"])["pid"])


def kill(pid: int) -> int:
    """Kill a process; returns when it had ended (monotonic, ns)."""
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        ended = select.poll()
        ended.register(fd, select.POLLIN)
        ended.poll(int(EVENT_PATIENCE_S * 1000))
        return time.monotonic_ns()
    finally:
        os.close(fd)


# A node where nothing happens.


@dataclass(frozen=True, slots=True)
class Poll:
    """What a kubelet asks in one of its seconds."""

    looked_at: tuple[int, ...]
    status: bool
    usage: bool
    image_filesystem: bool


def poll_of(second: int, pods: int) -> Poll:
    """Which of `pods` are looked at closely moves on, so that all have their turn."""
    looked_at = tuple((second * LOOKED_AT + n) % pods for n in range(min(LOOKED_AT, pods)))
    return Poll(
        looked_at=looked_at,
        status=second % 5 == 0,
        usage=second % 10 == 0,
        image_filesystem=second % 30 == 0,
    )


def measure_idle(target: Target, *, seconds: int) -> None:
    """Processor time while a node of 60 pods is polled as a kubelet does it.

    Of the daemon, and of the programs that it leaves with the pods: where shims read the
    statistics, that is where the work is.
    """
    daemon = target.daemon_pid()
    runtime = target.runtime
    usage = partial(runtime.ListPodSandboxStats, api.ListPodSandboxStatsRequest(), timeout=60)
    with node(target, "idle", pods=IDLE_PODS, containers=1) as made:
        has_pod_usage = supported(usage)
        pairs = [(pod, container) for pod, inside in made for container in inside]
        helpers = helper_pids(target, pairs) - {daemon}
        before_s, helpers_before_s = cpu_seconds(daemon), sum(map(cpu_seconds, helpers))
        began_s = time.monotonic()
        for second in range(seconds):
            time.sleep(max(0.0, began_s + second - time.monotonic()))
            with failures_noted(target, f"failed seconds of polling {IDLE_PODS} pods"):
                ask(target, poll_of(second, len(made)), made, pod_usage=has_pod_usage)
        time.sleep(max(0.0, began_s + seconds - time.monotonic()))
        used_s = cpu_seconds(daemon) - before_s
        helpers_used_s = sum(map(cpu_seconds, helpers)) - helpers_before_s
    polled = f"{IDLE_PODS} pods polled for {seconds} s, ms"
    target.add(f"daemon's processor time, {polled}", 1e3 * used_s)
    target.add(f"processor time with its helpers, {polled}", 1e3 * (used_s + helpers_used_s))


def ask(target: Target, poll: Poll, made: list[Made], *, pod_usage: bool) -> None:
    """One second's calls. Where pods' usage is not told, a kubelet asks for the containers'."""
    runtime = target.runtime
    runtime.ListPodSandbox(api.ListPodSandboxRequest(), timeout=60)
    runtime.ListContainers(api.ListContainersRequest(), timeout=60)
    for number in poll.looked_at:
        pod, inside = made[number]
        runtime.PodSandboxStatus(api.PodSandboxStatusRequest(pod_sandbox_id=pod), timeout=60)
        for container in inside:
            runtime.ContainerStatus(api.ContainerStatusRequest(container_id=container), timeout=60)
    if poll.status:
        runtime.Status(api.StatusRequest(), timeout=60)
    if poll.usage and pod_usage:
        runtime.ListPodSandboxStats(api.ListPodSandboxStatsRequest(), timeout=60)
    elif poll.usage:
        runtime.ListContainerStats(api.ListContainerStatsRequest(), timeout=60)
    if poll.image_filesystem:
        target.images.ImageFsInfo(api.ImageFsInfoRequest(), timeout=60)


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used itself, all threads (proc(5), stat)."""
    return cpu_ticks(Path(f"/proc/{pid}/stat").read_text()) / os.sysconf("SC_CLK_TCK")


def cpu_ticks(stat: str) -> int:
    """User and system time; the program's name before them may hold anything."""
    words = stat.rpartition(")")[2].split()
    return int(words[11]) + int(words[12])
