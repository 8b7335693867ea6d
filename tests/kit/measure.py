"""Measures one CRI runtime from outside, as the kubelet would meet it: over its socket.

Every function takes the socket's channel and gives plain numbers. What to measure when, and what to
make of it, is in bench.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import grpc

from protos import api_pb2 as api
from protos import api_pb2_grpc as rpc
from tests.kit.runtimes import connect, end_containers

T = TypeVar("T")

BUSYBOX: Final = "registry.localhost/busybox:latest"
LARGE: Final = "registry.localhost/bench/large:1"
MANY_FILES: Final = "registry.localhost/bench/many-files:1"

#: Patience for one call. A pull of the large image on a slow disk is the longest.
CALL_PATIENCE_S: Final = 300.0
#: A runtime of which nothing has been asked for so long is called idle.
UNTIL_IDLE_S: Final = 5.0

#: The steps of one life, in order. The first three are "pod to running".
STEPS: Final = (
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "ExecSync true",
    "StopContainer 0",
    "RemoveContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
)


#: What a command line is searched for ids by: one pattern of all ids would be slow for hundreds.
_WORDS: Final = re.compile(r"[\w.-]+")


@dataclass(slots=True)
class Target:
    """A runtime to be measured, and the samples taken of it, by row of the table."""

    name: str
    socket: Path
    samples: dict[str, list[float]] = field(default_factory=dict)
    version: str = ""
    _channel: grpc.Channel | None = None

    @property
    def channel(self) -> grpc.Channel:
        if self._channel is None:
            self._channel = connect(self.socket)
        return self._channel

    @property
    def runtime(self) -> rpc.RuntimeServiceStub:
        return rpc.RuntimeServiceStub(self.channel)

    @property
    def images(self) -> rpc.ImageServiceStub:
        return rpc.ImageServiceStub(self.channel)

    def add(self, row: str, value: float) -> None:
        self.samples.setdefault(row, []).append(value)

    def timed(self, row: str, call: Callable[[], T]) -> T:
        """Run `call` and note how many milliseconds it took. A failed call is not noted."""
        started_ns = time.monotonic_ns()
        answer = call()
        self.add(row, (time.monotonic_ns() - started_ns) / 1e6)
        return answer

    def daemon_pid(self) -> int:
        """The process behind the socket, as the kernel knows it."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.socket))
            size = struct.calcsize("3i")
            credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return int(struct.unpack("3i", credentials)[0])


def pull(target: Target, image: str) -> None:
    request = api.PullImageRequest(image=api.ImageSpec(image=image))
    target.images.PullImage(request, timeout=CALL_PATIENCE_S)


def remove_image(target: Target, image: str) -> None:
    request = api.RemoveImageRequest(image=api.ImageSpec(image=image))
    target.images.RemoveImage(request, timeout=CALL_PATIENCE_S)


def pod_config(
    name: str, *, host_network: bool = False, cgroup_parent: str = ""
) -> api.PodSandboxConfig:
    """What a kubelet sends for a small pod; the node's network needs no plugins and is quick."""
    default = api.SecurityProfile(profile_type=api.SecurityProfile.RuntimeDefault)
    return api.PodSandboxConfig(
        metadata=api.PodSandboxMetadata(name=name, namespace="bench", uid=f"{name}-uid"),
        # A pod on the node's network has the node's name, which nobody may set.
        hostname="" if host_network else name,
        labels={"made-by": "hack-bench"},
        linux=api.LinuxPodSandboxConfig(
            cgroup_parent=cgroup_parent,
            security_context=api.LinuxSandboxSecurityContext(
                seccomp=default,
                namespace_options=api.NamespaceOption(
                    network=api.NODE if host_network else api.POD, pid=api.CONTAINER
                ),
            ),
        ),
    )


def container_config(name: str = "main") -> api.ContainerConfig:
    """What a kubelet sends for a small container under the usual defaults."""
    default = api.SecurityProfile(profile_type=api.SecurityProfile.RuntimeDefault)
    return api.ContainerConfig(
        metadata=api.ContainerMetadata(name=name),
        image=api.ImageSpec(image=BUSYBOX, user_specified_image=BUSYBOX),
        command=["sleep", "100000"],
        linux=api.LinuxContainerConfig(
            resources=api.LinuxContainerResources(cpu_shares=102, oom_score_adj=1000),
            security_context=api.LinuxContainerSecurityContext(
                seccomp=default, namespace_options=api.NamespaceOption(pid=api.CONTAINER)
            ),
        ),
    )


@contextlib.contextmanager
def running_pod(target: Target, name: str, *, note: bool) -> Iterator[tuple[str, str]]:
    """One whole life of a pod with a container; yields their ids while it runs.

    Args:
        target: whose pod.
        name: unique among its pods.
        note: whether the steps are noted as samples; a warm-up does not.
    """

    def step(row: str, call: Callable[[], T]) -> T:
        return target.timed(row, call) if note else call()

    runtime, patience_s = target.runtime, CALL_PATIENCE_S
    config = pod_config(name)
    run = api.RunPodSandboxRequest(config=config)
    pod = step(STEPS[0], lambda: runtime.RunPodSandbox(run, timeout=patience_s)).pod_sandbox_id
    create = api.CreateContainerRequest(
        pod_sandbox_id=pod, config=container_config(), sandbox_config=config
    )
    container = step(
        STEPS[1], lambda: runtime.CreateContainer(create, timeout=patience_s)
    ).container_id
    start = api.StartContainerRequest(container_id=container)
    step(STEPS[2], lambda: runtime.StartContainer(start, timeout=patience_s))
    try:
        yield pod, container
    except BaseException:
        _take_away(target, pod)
        raise
    stop = api.StopContainerRequest(container_id=container, timeout=0)
    step(STEPS[4], lambda: runtime.StopContainer(stop, timeout=patience_s))
    remove = api.RemoveContainerRequest(container_id=container)
    step(STEPS[5], lambda: runtime.RemoveContainer(remove, timeout=patience_s))
    stop_pod = api.StopPodSandboxRequest(pod_sandbox_id=pod)
    step(STEPS[6], lambda: runtime.StopPodSandbox(stop_pod, timeout=patience_s))
    remove_pod = api.RemovePodSandboxRequest(pod_sandbox_id=pod)
    step(STEPS[7], lambda: runtime.RemovePodSandbox(remove_pod, timeout=patience_s))


def _take_away(target: Target, pod: str) -> None:
    """Leave nothing of a pod whose life was not lived to its end."""
    end_containers(target.runtime, pod)
    stop = api.StopPodSandboxRequest(pod_sandbox_id=pod)
    target.runtime.StopPodSandbox(stop, timeout=CALL_PATIENCE_S)
    remove = api.RemovePodSandboxRequest(pod_sandbox_id=pod)
    target.runtime.RemovePodSandbox(remove, timeout=CALL_PATIENCE_S)


def one_life(target: Target, name: str, *, note: bool = True) -> None:
    """All steps once."""
    with running_pod(target, name, note=note) as (_, container):
        request = api.ExecSyncRequest(container_id=container, cmd=["true"], timeout=60)
        call = lambda: target.runtime.ExecSync(request, timeout=CALL_PATIENCE_S)  # noqa: E731
        answer = target.timed(STEPS[3], call) if note else call()
        if answer.exit_code != 0:
            raise RuntimeError(f"{target.name}: true ended with {answer.exit_code}")
    if note:
        total_ms = sum(target.samples[step][-1] for step in STEPS[:3])
        target.add("pod to running", total_ms)


def lives_at_once(target: Target, *, clients: int, pods: int, round_number: int) -> None:
    """Whole lives from several clients at the same time; noted per pod."""
    started_ns = time.monotonic_ns()
    with ThreadPoolExecutor(clients) as pool:
        names = [f"many-{round_number}-{number}" for number in range(pods)]
        for done in [pool.submit(one_life, target, name, note=False) for name in names]:
            done.result()
    took_ms = (time.monotonic_ns() - started_ns) / 1e6
    target.add(f"whole life, {clients} clients at once, per pod", took_ms / pods)


def with_many_pods(target: Target, *, pods: int) -> None:
    """Memory when idle, then lists and memory while `pods` pods with one container each run."""
    daemon = target.daemon_pid()
    time.sleep(UNTIL_IDLE_S)
    before_bytes = pss_bytes(daemon)
    with contextlib.ExitStack() as lives:
        ids = [
            lives.enter_context(running_pod(target, f"idle-{number}", note=False))
            for number in range(pods)
        ]
        for _ in range(30):
            target.timed(
                f"ListContainers, {pods} containers",
                lambda: target.runtime.ListContainers(api.ListContainersRequest(), timeout=60),
            )
            target.timed(
                f"ListPodSandbox, {pods} pods",
                lambda: target.runtime.ListPodSandbox(api.ListPodSandboxRequest(), timeout=60),
            )
        growth_bytes = pss_bytes(daemon) - before_bytes
        helpers_bytes = sum(pss_bytes(pid) for pid in helper_pids(target, ids) - {daemon})
        target.add("memory per pod, MiB", (helpers_bytes + growth_bytes) / pods / (1 << 20))
        target.add("of which helpers, MiB", helpers_bytes / pods / (1 << 20))
    target.add("daemon, idle, MiB", before_bytes / (1 << 20))


def helper_pids(target: Target, ids: Sequence[tuple[str, str]]) -> set[int]:
    """Processes that exist because of these pods and are not the containers' own.

    Whoever names a pod or a container on its command line (shims, monitors), and the process that
    keeps the pod's namespaces, where the runtime tells its pid.
    """
    wanted = {word for pair in ids for word in pair}
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                text = (entry / "cmdline").read_bytes().decode(errors="replace")
                if not wanted.isdisjoint(_WORDS.findall(text)):
                    found.add(int(entry.name))
    for pod, _ in ids:
        request = api.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
        info = target.runtime.PodSandboxStatus(request, timeout=60).info
        with contextlib.suppress(KeyError, ValueError):
            pid = int(json.loads(info["info"])["pid"])
            found |= {pid} if pid > 0 else set()
    return found


def pss_bytes(pid: int) -> int:
    """Memory of a process, shared pages counted in proportion. 0 when it has gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
