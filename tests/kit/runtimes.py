"""Starts CRI runtimes for tests and measurements, each with sockets, state and network of its own.

A runtime under test must not meet the one that the machine may be running already, and nothing of
it may stay: the context managers here end the daemon, remove its pods first, and undo what is left
mounted. What a daemon left behind on its own account is told to the caller (`Runtime.leftovers`),
because for ours that is a failure.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc

from protos import api_pb2 as api
from protos import api_pb2_grpc as rpc
from tests.kit.cni import remove_bridge, write_conflist
from tests.kit.configurations import CONFIGURE, NETWORKS
from tests.kit.registry import SLOWNESS, START_PATIENCE_S, bound_to_parent, stop, write_hosts

#: Where shims of any containerd have their sockets, and runc its books.
_CONTAINERD_RUN: Final = Path("/run/containerd")

#: Monitors and shims need a moment to go after the last of their pods went.
LEFTOVER_PATIENCE_S: Final = 30.0 * SLOWNESS


class RuntimeDidNotStart(Exception):
    """The daemon ended, or stayed silent, before it answered Version."""


@dataclass(slots=True)
class Runtime:
    """A running daemon."""

    name: str
    socket: Path
    pid: int
    log: Path
    work: Path
    argv: Sequence[str] = ()
    leftovers: list[str] = field(default_factory=list)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        """Start the daemon; returns when it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self._process.pid
        _wait_for_answer(self, self._process)

    def kill(self) -> None:
        """SIGKILL of the daemon; returns when it is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End the daemon in order."""
        if self._process is not None:
            stop(self._process, grace_s=30)


def end_in_order() -> None:
    """Let SIGTERM end this program as an interrupt does: what it has made is taken back."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)


@contextlib.contextmanager
def running(name: str, registry_port: int, *, wrap: Sequence[str] = ()) -> Iterator[Runtime]:
    """Run `name` over fresh directories until the block ends.

    Args:
        name: one of `NETWORKS`; "podwright-tree" is podwright with its layers as directories.
        registry_port: of the registry on loopback that all hosts of the kit lead to.
        wrap: goes before the command line, such as a tracer's.
    """
    bridge, subnet = NETWORKS[name]
    with contextlib.ExitStack() as stack:
        stack.enter_context(_alone(name))
        run = stack.enter_context(run_directory(f"{name}-kit-"))
        work = Path(tempfile.mkdtemp(prefix=f"{name}-kit-", dir="/var/tmp"))
        work.chmod(0o711)  # containers with other users must get through
        stack.callback(_remove_tree, work)
        stack.callback(remove_bridge, bridge)
        write_hosts(work / "certs.d", registry_port)
        write_conflist(work / "cni", bridge=bridge, subnet=subnet, data_dir=work / "ipam")
        argv, socket = CONFIGURE[name](work, run, registry_port)
        log = work / f"{name}.log"
        log.touch()
        whole = [*wrap, *bound_to_parent(argv)]
        runtime = Runtime(name=name, socket=socket, pid=0, log=log, work=work, argv=whole)
        if name == "containerd":
            stack.callback(_remove_rests, log, set(_CONTAINERD_RUN.rglob("*")))
        stack.callback(_unmount_below, work)
        stack.callback(_unmount_below, run)
        stack.callback(_note_leftovers, runtime, run)
        stack.callback(runtime.stop)
        runtime.start()
        stack.callback(remove_all_pods, socket)
        yield runtime


@contextlib.contextmanager
def _alone(name: str) -> Iterator[None]:
    """Wait until no other run has a daemon of this name: bridge and ports are fixed."""
    with Path(f"/run/podwright-kit-{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another run with {name} to end", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def run_directory(prefix: str) -> Iterator[Path]:
    """A directory below /run until the block ends, in memory as on every node (file-hierarchy(7)).

    The path is short: one of a socket has 107 bytes (unix(7)).
    """
    made = Path(tempfile.mkdtemp(prefix=prefix, dir="/run"))
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_tree, made)
        if made.stat().st_dev == Path("/").stat().st_dev:  # a machine that was never booted
            subprocess.run(["mount", "-t", "tmpfs", "podwright-kit", made], check=True)
            stack.callback(lambda: subprocess.run(["umount", "--lazy", made], check=False))
        made.chmod(0o711)  # containers with other users must get through
        yield made


def connect(socket: Path) -> grpc.Channel:
    """A channel with the limits that the kubelet uses."""
    limit_bytes = 16 << 20
    return grpc.insecure_channel(
        f"unix://{socket}",
        options=[
            ("grpc.max_receive_message_length", limit_bytes),
            ("grpc.max_send_message_length", limit_bytes),
            ("grpc.default_authority", "localhost"),
        ],
    )


def remove_all_pods(socket: Path) -> None:
    """Stop and remove every pod. A pod that cannot be removed is reported and left."""
    with connect(socket) as channel:
        runtime = rpc.RuntimeServiceStub(channel)
        try:
            pods = runtime.ListPodSandbox(api.ListPodSandboxRequest(), timeout=30).items
        except grpc.RpcError as error:
            print(f"cannot list pods: {error.details()}", file=sys.stderr)
            return
        for pod in pods:
            try:
                end_containers(runtime, pod.id)
                runtime.StopPodSandbox(api.StopPodSandboxRequest(pod_sandbox_id=pod.id), timeout=60)
                runtime.RemovePodSandbox(
                    api.RemovePodSandboxRequest(pod_sandbox_id=pod.id), timeout=60
                )
            except grpc.RpcError as error:
                print(f"cannot remove pod {pod.id}: {error.details()}", file=sys.stderr)


def end_containers(runtime: rpc.RuntimeServiceStub, pod: str) -> None:
    """Kill what runs in a pod, as a kubelet does before it stops one.

    CRI-O would wait for it until just before the call's deadline: `sleep` as process 1 heeds no
    SIGTERM.
    """
    chosen = api.ContainerFilter(
        pod_sandbox_id=pod, state=api.ContainerStateValue(state=api.CONTAINER_RUNNING)
    )
    request = api.ListContainersRequest(filter=chosen)
    for container in runtime.ListContainers(request, timeout=60).containers:
        end = api.StopContainerRequest(container_id=container.id, timeout=0)
        runtime.StopContainer(end, timeout=60)


def _wait_for_answer(runtime: Runtime, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + START_PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline_s:
        with contextlib.suppress(grpc.RpcError), connect(runtime.socket) as channel:
            rpc.RuntimeServiceStub(channel).Version(api.VersionRequest(), timeout=2)
            rpc.ImageServiceStub(channel).ImageFsInfo(api.ImageFsInfoRequest(), timeout=5)
            return
        time.sleep(0.1)
    tail = runtime.log.read_text(errors="replace")[-4000:]
    raise RuntimeDidNotStart(f"{runtime.name} does not answer at {runtime.socket}:\n{tail}")


def _note_leftovers(runtime: Runtime, run: Path) -> None:
    """Write down what is still there after a moment's patience, and kill the processes among it."""
    places = (str(run), str(runtime.work))
    deadline_s = time.monotonic() + LEFTOVER_PATIENCE_S
    while True:
        processes, mounted = processes_of(*places), mounts_below(*places)
        if not (processes or mounted) or time.monotonic() >= deadline_s:
            break
        time.sleep(0.05)
    runtime.leftovers += [f"mount {target}" for target in mounted]
    for pid, command in processes.items():
        runtime.leftovers.append(f"process {pid}: {command[:200]}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def processes_of(*places: str) -> dict[int, str]:
    """Processes that name our directories, or live in a container whose files are there."""
    found: dict[int, str] = {}
    ours = Path("/proc/self/ns/mnt").readlink()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            text = command
            if (entry / "ns/mnt").readlink() != ours:
                text += (entry / "mountinfo").read_text()
            if any(place in text for place in places):
                found[int(entry.name)] = command
    return found


def mounts_below(*places: str) -> list[str]:
    targets = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [t for t in targets if any(t.startswith(f"{place}/") for place in places)]


def _unmount_below(place: Path) -> None:
    for target in reversed(mounts_below(str(place))):
        subprocess.run(["umount", "--lazy", target], check=False)


def _remove_rests(log: Path, before: set[Path]) -> None:
    """Take away what containerd's shims keep in the one place that cannot be configured.

    Only what this run has made: sockets that nobody listens on any more, and the books of
    containers that its log names. A directory goes when it is empty.
    """
    told = log.read_text(errors="replace")
    for path in sorted(set(_CONTAINERD_RUN.rglob("*")) - before, reverse=True):
        with contextlib.suppress(OSError):
            if path.is_socket():
                if not _is_served(path):
                    path.unlink()
            elif path.is_dir():
                path.rmdir()
            elif path.parent.name in told:
                path.unlink()
    if not before:
        with contextlib.suppress(OSError):
            _CONTAINERD_RUN.rmdir()


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True


def _remove_tree(place: Path) -> None:
    """Delete a directory of ours, but nothing through a mount that could not be undone."""
    if mounts_below(str(place)):
        print(f"not deleting {place}: something is still mounted there", file=sys.stderr)
    else:
        shutil.rmtree(place, ignore_errors=True)
