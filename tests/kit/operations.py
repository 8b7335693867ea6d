"""The mutating calls of the CRI as values: how to come before one, make it, and judge a retry.

A test that kills the daemon in the middle of a call does not care which call it is:

    operation = OPERATIONS["RunPodSandbox"]
    scene = operation.prepare(node)
    call = operation.begin(node, scene)       # in flight
    ...the daemon is killed and started again...
    operation.retry(node, scene)              # the same request, and what must hold after it
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import grpc

from protos import api_pb2 as api
from tests.kit import judge
from tests.kit.calls import until
from tests.kit.faults import PATIENCE_S
from tests.kit.limits import in_force
from tests.kit.messages import BUSYBOX, namespaces
from tests.kit.node import Node, NodeFailed

#: An image that nothing else in these tests uses; two layers, the lower one is BUSYBOX's.
SPARE_IMAGE: Final = "registry.k8s.io/k8s-staging-cri-tools/test-image-1:latest"
SLEEP: Final = ("sleep", "1000")


class Call(Protocol):
    """A call in flight."""

    def result(self, timeout: float | None = None) -> object:
        """Its answer; raises grpc.RpcError."""
        ...


@dataclass(slots=True)
class Scene:
    """What a call is about."""

    handler: str
    pod: str = ""
    container: str = ""


@dataclass(frozen=True, slots=True)
class Operation:
    """One call; see the module text."""

    name: str
    prepare: Callable[[Node, str], Scene]
    begin: Callable[[Node, Scene], Call]
    again: Callable[[Node, Scene], None]

    def retry(self, node: Node, scene: Scene) -> None:
        """The same request once more, and what must hold then (invariant I3)."""
        with judge.judging("I3"):
            self.again(node, scene)


def _nothing(_node: Node, handler: str) -> Scene:
    return Scene(handler)


def _pod(node: Node, handler: str) -> Scene:
    return Scene(handler, pod=node.run_pod("victim", handler=handler))


def _created(node: Node, handler: str) -> Scene:
    scene = _pod(node, handler)
    scene.container = node.create(scene.pod, "main", SLEEP)
    return scene


def _running(node: Node, handler: str) -> Scene:
    scene = _created(node, handler)
    node.start(scene.container)
    return scene


def _full_pod(node: Node, handler: str) -> Scene:
    ports = [api.PortMapping(protocol=api.TCP, container_port=80, host_port=18081)]
    spaces = namespaces(pid="POD")
    pod = node.run_pod("victim", handler=handler, ports=ports, spaces=spaces)
    scene = Scene(handler, pod=pod)
    scene.container = node.run(pod, "main", SLEEP, spaces=spaces)
    node.create(pod, "created", SLEEP, spaces=spaces)
    return scene


# RunPodSandbox.


def ping(node: Node, address: str) -> None:
    """Return when the address answers the host.

    Not always the first time: the host may still have the hardware address of a pod that had this
    address long ago, and asks anew only when nothing came back.
    """
    command = ["nsenter", f"--net={node.network}", "busybox", "ping", "-c", "1", "-W", "1", address]
    until(
        lambda: subprocess.run(command, capture_output=True).returncode == 0,
        f"{address} answers",
    )


def supersede(node: Node, name: str) -> str:
    """Call off a pod's first attempt in the middle of its creation by the next; the next's id."""
    node.faults.order("crun", "create", "hold-before")
    with ThreadPoolExecutor(1) as client:
        older = client.submit(node.run_pod, name)
        node.faults.wait_reached("crun", "create")
        newer = node.run_config(node.pod_config(name, attempt=1))
        error = older.exception()
    assert isinstance(error, grpc.RpcError), error
    assert error.code() is grpc.StatusCode.CANCELLED
    return newer


def _victim(node: Node) -> api.PodSandboxConfig:
    ports = [api.PortMapping(protocol=api.TCP, container_port=80, host_port=18081)]
    return node.pod_config("victim", ports=ports, spaces=namespaces(pid="POD"))


def _begin_run_pod(node: Node, scene: Scene) -> Call:
    request = api.RunPodSandboxRequest(config=_victim(node), runtime_handler=scene.handler)
    return node.runtime.RunPodSandbox.future(request, timeout=PATIENCE_S)


def _retry_run_pod(node: Node, scene: Scene) -> None:
    pod = node.run_config(_victim(node), handler=scene.handler)
    assert [p.id for p in node.pods() if p.metadata.name == "victim"] == [pod]
    status = node.pod_status(pod)
    assert status.state == api.SANDBOX_READY
    ping(node, status.network.ip)


# StopPodSandbox, RemovePodSandbox.


def _begin_stop_pod(node: Node, scene: Scene) -> Call:
    request = api.StopPodSandboxRequest(pod_sandbox_id=scene.pod)
    return node.runtime.StopPodSandbox.future(request, timeout=PATIENCE_S)


def _retry_stop_pod(node: Node, scene: Scene) -> None:
    address = node.pod_status(scene.pod).network.ip
    node.stop_pod(scene.pod)
    assert node.pod_status(scene.pod).state == api.SANDBOX_NOTREADY
    for container in node.containers():
        if container.pod_sandbox_id == scene.pod:
            assert container.state == api.CONTAINER_EXITED
    assert not any(a.endswith(f"/{address}") for a in node.census()["addresses"]) or not address
    assert not any("18081" in rule for rule in node.census()["packet rules"])


def _begin_remove_pod(node: Node, scene: Scene) -> Call:
    request = api.RemovePodSandboxRequest(pod_sandbox_id=scene.pod)
    return node.runtime.RemovePodSandbox.future(request, timeout=PATIENCE_S)


def _retry_remove_pod(node: Node, scene: Scene) -> None:
    node.remove_pod(scene.pod)
    assert scene.pod not in {p.id for p in node.pods()}
    assert scene.container not in {c.id for c in node.containers()}


# Containers.


#: An image volume, so that its lease and its mount are there to be left behind.
_VOLUMES: Final = (
    api.Mount(container_path="/image", image=api.ImageSpec(image=BUSYBOX), image_sub_path="bin"),
)


def _begin_create(node: Node, scene: Scene) -> Call:
    request = node.create_request(scene.pod, "main", SLEEP, mounts=_VOLUMES)
    return node.runtime.CreateContainer.future(request, timeout=PATIENCE_S)


def _retry_create(node: Node, scene: Scene) -> None:
    container = node.create(scene.pod, "main", SLEEP, mounts=_VOLUMES)
    assert [c.id for c in node.containers() if c.pod_sandbox_id == scene.pod] == [container]
    node.start(container)
    assert node.exec(container, "/image/busybox", "test", "-x", "/image/sh")[0] == 0
    assert node.exec(container, "echo", "alive")[1] == "alive\n"


def _begin_start(node: Node, scene: Scene) -> Call:
    request = api.StartContainerRequest(container_id=scene.container)
    return node.runtime.StartContainer.future(request, timeout=PATIENCE_S)


def _retry_start(node: Node, scene: Scene) -> None:
    if node.status(scene.container).state == api.CONTAINER_CREATED:
        node.start(scene.container)
    status = node.status(scene.container)
    assert status.state == api.CONTAINER_RUNNING
    assert status.started_at >= status.created_at
    assert node.exec(scene.container, "echo", "alive")[1] == "alive\n"


def _begin_stop(node: Node, scene: Scene) -> Call:
    request = api.StopContainerRequest(container_id=scene.container, timeout=0)
    return node.runtime.StopContainer.future(request, timeout=PATIENCE_S)


def _retry_stop(node: Node, scene: Scene) -> None:
    node.stop_container(scene.container)
    status = node.status(scene.container)
    assert (status.state, status.exit_code) == (api.CONTAINER_EXITED, 137)


def _begin_remove(node: Node, scene: Scene) -> Call:
    request = api.RemoveContainerRequest(container_id=scene.container)
    return node.runtime.RemoveContainer.future(request, timeout=PATIENCE_S)


def _retry_remove(node: Node, scene: Scene) -> None:
    node.remove_container(scene.container)
    assert scene.container not in {c.id for c in node.containers()}
    # Its name is free, and the pod is as good as before.
    assert node.exec(node.run(scene.pod, "main", SLEEP), "true")[0] == 0


def _begin_exec(node: Node, scene: Scene) -> Call:
    script = "setsid sleep 0.35 & sleep 0.2; echo done"
    request = api.ExecSyncRequest(container_id=scene.container, cmd=["sh", "-c", script])
    return node.runtime.ExecSync.future(request, timeout=PATIENCE_S)


def _retry_exec(node: Node, scene: Scene) -> None:
    assert node.exec(scene.container, "echo", "alive")[1] == "alive\n"
    bundle = node.run_root / "containers" / scene.container
    until(lambda: not list(bundle.glob("exec-*")), "nothing is left of commands")


def _begin_update(node: Node, scene: Scene) -> Call:
    limits = api.LinuxContainerResources(memory_limit_in_bytes=96 << 20, cpu_shares=333)
    request = api.UpdateContainerResourcesRequest(container_id=scene.container, linux=limits)
    return node.runtime.UpdateContainerResources.future(request, timeout=PATIENCE_S)


def _retry_update(node: Node, scene: Scene) -> None:
    _begin_update(node, scene).result()
    told = node.status(scene.container).resources.linux
    assert (told.memory_limit_in_bytes, told.cpu_shares) == (96 << 20, 333)
    pid = node.container_pid(scene.container)
    assert in_force(pid, "memory", "memory.limit_in_bytes", "memory.max") == str(96 << 20)


# Images.


def _without_image(node: Node, handler: str) -> Scene:
    node.remove_image(SPARE_IMAGE)
    return Scene(handler)


def _begin_pull(node: Node, _scene: Scene) -> Call:
    request = api.PullImageRequest(image=api.ImageSpec(image=SPARE_IMAGE))
    return node.images.PullImage.future(request, timeout=PATIENCE_S)


def _retry_pull(node: Node, scene: Scene) -> None:
    node.pull(SPARE_IMAGE)
    pod = node.run_pod("victim", handler=scene.handler)
    container = node.run(pod, "main", SLEEP, image=SPARE_IMAGE)
    assert node.exec(container, "ls", "/test-image-1")[0] == 0
    node.remove_image(SPARE_IMAGE)


def _with_image(node: Node, handler: str) -> Scene:
    node.pull(SPARE_IMAGE)
    return Scene(handler)


def _begin_remove_image(node: Node, _scene: Scene) -> Call:
    request = api.RemoveImageRequest(image=api.ImageSpec(image=SPARE_IMAGE))
    return node.images.RemoveImage.future(request, timeout=PATIENCE_S)


def _retry_remove_image(node: Node, scene: Scene) -> None:
    node.remove_image(SPARE_IMAGE)
    assert not node.image_id(SPARE_IMAGE)
    assert node.image_id(BUSYBOX)
    _retry_pull(node, scene)


OPERATIONS: Final = {
    operation.name: operation
    for operation in (
        Operation("RunPodSandbox", _nothing, _begin_run_pod, _retry_run_pod),
        Operation("StopPodSandbox", _full_pod, _begin_stop_pod, _retry_stop_pod),
        Operation("RemovePodSandbox", _full_pod, _begin_remove_pod, _retry_remove_pod),
        Operation("CreateContainer", _pod, _begin_create, _retry_create),
        Operation("StartContainer", _created, _begin_start, _retry_start),
        Operation("StopContainer", _running, _begin_stop, _retry_stop),
        Operation("RemoveContainer", _running, _begin_remove, _retry_remove),
        Operation("ExecSync", _running, _begin_exec, _retry_exec),
        Operation("UpdateContainerResources", _running, _begin_update, _retry_update),
        Operation("PullImage", _without_image, _begin_pull, _retry_pull),
        Operation("RemoveImage", _with_image, _begin_remove_image, _retry_remove_image),
    )
}


@dataclass(slots=True)
class Bystander:
    """A pod that nobody touches, and what must stay so whatever happens to others."""

    node: Node
    pod: str
    container: str
    seen: object = None

    @classmethod
    def placed(cls, node: Node) -> Bystander:
        """A pod that becomes a part of the node's baseline."""
        pod = node.run_pod("bystander")
        # One process that writes: a shell's children would come and go in the census.
        container = node.run(pod, "ticking", ["ping", "-i", "0.05", "127.0.0.1"])
        node.kept.add(pod)
        node.wait_log("bystander", "ticking", "seq=1 ")
        bystander = cls(node, pod, container)
        bystander.seen = bystander._look()
        return bystander

    def assert_untouched(self) -> None:
        """Same processes, address and status as ever, and its log grows (invariant I4)."""
        with judge.judging("I4"):
            self._assert_untouched()

    def _assert_untouched(self) -> None:
        assert self._look() == self.seen
        log = Path(self.node.status(self.container).log_path)
        size_bytes = log.stat().st_size
        until(lambda: log.stat().st_size > size_bytes, "the bystander ticks")
        numbers = [int(number) for number in re.findall(r"seq=(\d+) ", log.read_text())]
        assert numbers == list(range(len(numbers)))

    def _look(self) -> object:
        node = self.node
        return (
            node.pod_status(self.pod),
            node.status(self.container),
            node.pod_pid(self.pod),
            node.container_pid(self.container),
        )


def finish(call: Call) -> bool:
    """Wait for the end of a call; False when the daemon went away in the middle of it."""
    try:
        call.result(PATIENCE_S)
    except grpc.RpcError as error:
        return error.code() is not grpc.StatusCode.UNAVAILABLE
    return True


def survived(node: Node) -> bool:
    """Whether the daemon lives, once no order to die is in force: one may have struck very late."""
    assert node.process is not None
    with contextlib.suppress(NodeFailed):
        node.wait_answering()
    return node.process.poll() is None
