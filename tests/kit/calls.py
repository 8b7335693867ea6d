"""The CRI's calls as short methods, for a test that is a client."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import grpc

from protos import api_pb2 as api
from protos import api_pb2_grpc as rpc
from tests.kit import groups, judge
from tests.kit.faults import PATIENCE_S
from tests.kit.messages import container_config, pod_config

T = TypeVar("T")


def until(condition: Callable[[], T], what: str = "", *, patience_s: float = PATIENCE_S) -> T:
    """Wait until `condition` is true; its value."""
    deadline_s = time.monotonic() + patience_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"still not so: {what or condition}"
        time.sleep(0.01)
    return value


class _Listener(grpc.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]
    """Notes each refusal that a client should not have been given in such words.

    Attributes:
        in_flight: calls without an answer so far.
    """

    def __init__(self, found: list[str]) -> None:
        self._found = found
        self._numbers = itertools.count()
        self.in_flight: set[int] = set()

    def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.ClientCallDetails, object], grpc.CallFuture[object]],
        details: grpc.ClientCallDetails,
        request: object,
    ) -> grpc.CallFuture[object]:
        """See grpc."""
        number = next(self._numbers)
        self.in_flight.add(number)
        try:
            call = continuation(details, request)
        except BaseException:
            self.in_flight.discard(number)
            raise
        call.add_done_callback(lambda _: self._hear(number, str(details.method), call))
        return call

    def _hear(self, number: int, method: str, done: grpc.Call) -> None:
        if done.code() is not grpc.StatusCode.OK and (fault := judge.dishonest(done)):
            self._found.append(f"{method}: {fault}")
        self.in_flight.discard(number)


class Calls:
    """A client of one daemon. Every call raises grpc.RpcError."""

    def __init__(self, socket: Path, tag: str, logs: Path) -> None:
        """Talk to `socket`.

        Args:
            socket: of the daemon.
            tag: parent of the control groups of all pods.
            logs: below it are the pods' log directories.
        """
        self.socket = socket
        self.tag = tag
        self.logs = logs
        #: Of every pod and container that was ever heard of.
        self.ids: set[str] = set()
        #: Refusals that were no honest ones (I6); whoever judges a test looks here.
        self.dishonest: list[str] = []
        self._channel: grpc.Channel | None = None
        self._listener = _Listener(self.dishonest)

    def connect(self) -> None:
        """Open a channel; one that a killed daemon leaves behind is of no use any more."""
        self.disconnect()
        limit_bytes = 16 << 20
        self._channel = grpc.insecure_channel(
            f"unix://{self.socket}",
            options=[
                ("grpc.max_receive_message_length", limit_bytes),
                ("grpc.max_send_message_length", limit_bytes),
                ("grpc.default_authority", "localhost"),
                ("grpc.initial_reconnect_backoff_ms", 20),
                ("grpc.min_reconnect_backoff_ms", 20),
                ("grpc.max_reconnect_backoff_ms", 100),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self._listener = _Listener(self.dishonest)
        heard = grpc.intercept_channel(self._channel, self._listener)
        self.runtime = rpc.RuntimeServiceStub(heard)
        self.images = rpc.ImageServiceStub(heard)

    def hang_up(self) -> None:
        """Close the channel to a daemon that has ended.

        Its calls end by that as UNAVAILABLE, a moment after it; were the channel closed in that
        moment, they would be told that they had been cancelled.
        """
        left = set(self._listener.in_flight)
        deadline_s = time.monotonic() + PATIENCE_S
        while left & self._listener.in_flight and time.monotonic() < deadline_s:
            time.sleep(0.005)
        self.disconnect()

    def disconnect(self) -> None:
        """Close the channel."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def pod_config(self, name: str, **options: object) -> api.PodSandboxConfig:
        """A pod's configuration below this node's control group."""
        options.setdefault("cgroup_parent", groups.parent(self.tag, name))
        options.setdefault("log_directory", str(self.logs / name))
        return pod_config(name, **options)  # type: ignore[arg-type]

    def run_pod(
        self,
        name: str = "pod",
        *,
        handler: str = "",
        timeout: float = PATIENCE_S,
        **options: object,
    ) -> str:
        """RunPodSandbox; the id."""
        return self.run_config(self.pod_config(name, **options), handler=handler, timeout=timeout)

    def run_config(
        self, config: api.PodSandboxConfig, *, handler: str = "", timeout: float = PATIENCE_S
    ) -> str:
        """RunPodSandbox with a finished configuration; the id."""
        request = api.RunPodSandboxRequest(config=config, runtime_handler=handler)
        pod = self.runtime.RunPodSandbox(request, timeout=timeout).pod_sandbox_id
        self.ids.add(pod)
        return pod

    def create_request(
        self, pod: str, name: str, command: Sequence[str], **options: object
    ) -> api.CreateContainerRequest:
        """A container of a pod, with what the kubelet repeats of the pod."""
        return api.CreateContainerRequest(
            pod_sandbox_id=pod,
            config=container_config(name, command, **options),  # type: ignore[arg-type]
            sandbox_config=self.pod_config("repeated"),
        )

    def create(self, pod: str, name: str, command: Sequence[str], **options: object) -> str:
        """CreateContainer; the id."""
        request = self.create_request(pod, name, command, **options)
        container = self.runtime.CreateContainer(request, timeout=PATIENCE_S).container_id
        self.ids.add(container)
        return container

    def start(self, container: str) -> str:
        """StartContainer; the id again."""
        self.runtime.StartContainer(
            api.StartContainerRequest(container_id=container), timeout=PATIENCE_S
        )
        return container

    def run(self, pod: str, name: str, command: Sequence[str], **options: object) -> str:
        """Create and start; the id."""
        return self.start(self.create(pod, name, command, **options))

    def stop_container(self, container: str, grace_s: int = 0) -> None:
        """StopContainer."""
        self.runtime.StopContainer(
            api.StopContainerRequest(container_id=container, timeout=grace_s), timeout=PATIENCE_S
        )

    def remove_container(self, container: str) -> None:
        """RemoveContainer."""
        self.runtime.RemoveContainer(
            api.RemoveContainerRequest(container_id=container), timeout=PATIENCE_S
        )

    def stop_pod(self, pod: str) -> None:
        """StopPodSandbox."""
        self.runtime.StopPodSandbox(
            api.StopPodSandboxRequest(pod_sandbox_id=pod), timeout=PATIENCE_S
        )

    def remove_pod(self, pod: str) -> None:
        """RemovePodSandbox."""
        self.runtime.RemovePodSandbox(
            api.RemovePodSandboxRequest(pod_sandbox_id=pod), timeout=PATIENCE_S
        )

    def status(self, container: str) -> api.ContainerStatus:
        """ContainerStatus."""
        request = api.ContainerStatusRequest(container_id=container)
        return self.runtime.ContainerStatus(request, timeout=PATIENCE_S).status

    def pod_status(self, pod: str) -> api.PodSandboxStatus:
        """PodSandboxStatus."""
        request = api.PodSandboxStatusRequest(pod_sandbox_id=pod)
        return self.runtime.PodSandboxStatus(request, timeout=PATIENCE_S).status

    def pod_pid(self, pod: str) -> int:
        """The pause process, 0 when the pod is not ready."""
        request = api.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
        return int(_info(self.runtime.PodSandboxStatus(request, timeout=PATIENCE_S).info)["pid"])

    def container_pid(self, container: str) -> int:
        """The container's first process."""
        request = api.ContainerStatusRequest(container_id=container, verbose=True)
        return int(_info(self.runtime.ContainerStatus(request, timeout=PATIENCE_S).info)["pid"])

    def program_pid(self, container: str) -> int:
        """The same once it is the container's own program.

        A start is answered when the runtime's first process has been let go on, a moment before it
        becomes the program: until then a signal, a label or a command line is not yet its own.
        """
        return _once_run(self.container_pid(container))

    def pause_program_pid(self, pod: str) -> int:
        """The same of a pod's own process."""
        return _once_run(self.pod_pid(pod))

    def pods(self) -> list[api.PodSandbox]:
        """ListPodSandbox."""
        return list(
            self.runtime.ListPodSandbox(api.ListPodSandboxRequest(), timeout=PATIENCE_S).items
        )

    def containers(self) -> list[api.Container]:
        """ListContainers."""
        request = api.ListContainersRequest()
        return list(self.runtime.ListContainers(request, timeout=PATIENCE_S).containers)

    def exec(self, container: str, *command: str, timeout_s: int = 0) -> tuple[int, str, str]:
        """ExecSync: (exit code, standard output, standard error)."""
        request = api.ExecSyncRequest(container_id=container, cmd=command, timeout=timeout_s)
        answer = self.runtime.ExecSync(request, timeout=PATIENCE_S)
        return answer.exit_code, answer.stdout.decode(), answer.stderr.decode()

    def wait_listening(self, container: str, port: int) -> None:
        """Return when somebody listens on the TCP port in the container's network (proc(5))."""
        script = f"grep -q ':{port:04X} [0-9A-F]*:0000 0A ' /proc/net/tcp /proc/net/tcp6"
        until(
            lambda: self.exec(container, "sh", "-c", script)[0] == 0, f"port {port} is listened on"
        )

    def pull(self, image: str, *, timeout: float = PATIENCE_S) -> str:
        """PullImage; the image's id."""
        request = api.PullImageRequest(image=api.ImageSpec(image=image))
        return self.images.PullImage(request, timeout=timeout).image_ref

    def image_id(self, image: str) -> str:
        """ImageStatus; the id, empty when it is not here."""
        request = api.ImageStatusRequest(image=api.ImageSpec(image=image))
        return self.images.ImageStatus(request, timeout=PATIENCE_S).image.id

    def remove_image(self, image: str) -> None:
        """RemoveImage."""
        request = api.RemoveImageRequest(image=api.ImageSpec(image=image))
        self.images.RemoveImage(request, timeout=PATIENCE_S)

    def wait_exited(self, container: str) -> api.ContainerStatus:
        """The container's status once it has exited."""
        until(
            lambda: self.status(container).state == api.CONTAINER_EXITED, f"{container[:12]} exited"
        )
        return self.status(container)

    def log_of(self, pod_name: str, container_name: str, attempt: int = 0) -> str:
        """What the container wrote, without the head of each line; of whole lines alone."""
        path = self.logs / pod_name / f"{container_name}_{attempt}.log"
        # A line may be read while it is written.
        *lines, _part = path.read_text().split("\n")
        return "".join(line.split(" ", 3)[3] + "\n" for line in lines)

    def wait_log(self, pod_name: str, container_name: str, text: str) -> str:
        """The container's log once `text` is in it."""

        def found() -> str:
            try:
                log = self.log_of(pod_name, container_name)
            except FileNotFoundError:
                return ""
            return log if text in log else ""

        return until(found, f"{text!r} in the log of {container_name}")


def _once_run(pid: int) -> int:
    comm = Path(f"/proc/{pid}/comm")
    until(lambda: not comm.read_text().startswith(("crun", "runc")), "the program is run")
    return pid


def _info(info: Mapping[str, str]) -> dict[str, int]:
    merged: dict[str, int] = {}
    for text in info.values():
        with contextlib.suppress(ValueError):
            value = json.loads(text)
            if isinstance(value, dict):
                merged.update(value)
            continue
    if "pid" not in merged and "pid" in info:
        merged["pid"] = int(info["pid"])
    return merged
