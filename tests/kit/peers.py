"""Cells of the fault matrix that need nothing of ours inside the daemon, against any CRI runtime.

A cell is a function of a peer. What fails in it is what the cell asks for, or an invariant by its
number; afterwards no pod and nothing of one may be left, whichever runtime it is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from protos import api_pb2 as api
from tests.kit import groups, judge, runtimes
from tests.kit.calls import until
from tests.kit.faults import PATIENCE_S
from tests.kit.images import make_sets
from tests.kit.judge import InvariantBroken
from tests.kit.messages import BUSYBOX
from tests.kit.peer import Peer
from tests.kit.registry import running_registry
from tests.kit.truth import alive, in_cgroup

SLEEP: Final = ("sleep", "1000")
STUBBORN: Final = ("sh", "-c", "trap 'echo got TERM' TERM; echo ready; while :; do sleep 0.1; done")

CELLS: dict[str, tuple[str, Callable[[Peer], None]]] = {}


def cell(name: str, what: str) -> Callable[[Callable[[Peer], None]], Callable[[Peer], None]]:
    """Note a function as that cell, for every peer."""

    def noted(run: Callable[[Peer], None]) -> Callable[[Peer], None]:
        CELLS[name] = (what, run)
        return run

    return noted


@cell("RP1-12", "killed at ten moments of RunPodSandbox, and asked again")
def _killed_while_making_a_pod(peer: Peer) -> None:
    config = peer.pod_config("victim")
    began_s = time.monotonic()
    peer.remove_pod(peer.run_config(config))
    usual_s = time.monotonic() - began_s
    for moment in range(10):
        request = api.RunPodSandboxRequest(config=config)
        call = peer.runtime.RunPodSandbox.future(request, timeout=PATIENCE_S)
        time.sleep(usual_s * (moment + 0.5) / 10)
        peer.kill()
        with contextlib.suppress(grpc.RpcError):
            call.result(PATIENCE_S)
        peer.start_daemon()
        with judge.judging("I3"):
            pod = _insist(peer, config)
        assert peer.pod_status(pod).state == api.SANDBOX_READY
        peer.remove_everything()
        peer.assert_clean()


def _insist(peer: Peer, config: api.PodSandboxConfig) -> str:
    """As the kubelet does: the same attempt, and the next once the old sandbox is stopped."""
    deadline_s = time.monotonic() + 10
    while True:
        try:
            return peer.run_config(config)
        except grpc.RpcError:
            if time.monotonic() > deadline_s:
                raise
        for pod in peer.pods():
            if pod.metadata.name == config.metadata.name and pod.state == api.SANDBOX_NOTREADY:
                peer.stop_pod(pod.id)
                config.metadata.attempt = pod.metadata.attempt + 1
        time.sleep(0.5)


@cell("RB3", "killed and started: every status is as before")
def _killed_and_started(peer: Peer) -> None:
    pod = peer.run_pod("pod")
    container = peer.run(pod, "main", SLEEP)
    ended = peer.run(pod, "ended", ["sh", "-c", "exit 3"])
    peer.wait_exited(ended)
    before = (peer.pod_status(pod), peer.status(container), peer.status(ended))
    for _ in range(3):
        peer.kill()
        peer.start_daemon()
        with judge.judging("I4"):
            assert (peer.pod_status(pod), peer.status(container), peer.status(ended)) == before
    assert peer.exec(container, "echo", "alive")[1] == "alive\n"


@cell("SC3", "a container ends while the daemon is down")
def _ends_while_down(peer: Peer) -> None:
    pod = peer.run_pod("pod")
    script = "while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 23"
    container = peer.run(pod, "main", ["sh", "-c", f"mkdir -p /tmp; {script}"])
    pid = peer.container_pid(container)
    until(lambda: "sh" in Path(f"/proc/{pid}/comm").read_text(), "it runs")
    until(Path(f"/proc/{pid}/root/tmp").exists, "its directory is there")
    peer.kill()
    Path(f"/proc/{pid}/root/tmp/go").touch()
    until(lambda: not alive(pid), "it has ended")
    peer.start_daemon()
    with judge.judging("I1"):
        assert peer.wait_exited(container).exit_code == 23


@cell("ST1", "killed in the grace of a stop: the container is not cut short")
def _killed_in_a_grace(peer: Peer) -> None:
    pod = peer.run_pod("pod")
    container = peer.run(pod, "main", STUBBORN)
    peer.wait_log("pod", "main", "ready")
    request = api.StopContainerRequest(container_id=container, timeout=3600)
    peer.runtime.StopContainer.future(request, timeout=PATIENCE_S)
    peer.wait_log("pod", "main", "got TERM")
    peer.kill()
    peer.start_daemon()
    assert peer.status(container).state == api.CONTAINER_RUNNING
    peer.stop_container(container, 1)
    assert peer.status(container).exit_code == 137


@cell("LD6", "the client leaves during a stop: the container is not cut short")
def _client_leaves_a_stop(peer: Peer) -> None:
    pod = peer.run_pod("pod")
    container = peer.run(pod, "main", STUBBORN)
    peer.wait_log("pod", "main", "ready")
    request = api.StopContainerRequest(container_id=container, timeout=3600)
    with contextlib.suppress(grpc.RpcError):
        peer.runtime.StopContainer(request, timeout=0.5)
    time.sleep(0.5)
    assert peer.status(container).state == api.CONTAINER_RUNNING
    peer.stop_container(container, 1)
    assert peer.status(container).exit_code == 137


@cell("HD1", "the monitor dies, and then the container")
def _monitor_dies(peer: Peer) -> None:
    pod = peer.run_pod("pod")
    container = peer.run(pod, "main", SLEEP)
    pid = peer.container_pid(container)
    os.kill(peer.monitor_of(container, pod), signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid), "it is dead")
    with judge.judging("I1"):
        until(
            lambda: peer.status(container).state == api.CONTAINER_EXITED,
            "that it has ended is known",
            patience_s=20,
        )


@cell("HD5", "the pause process dies")
def _pause_dies(peer: Peer) -> None:
    pod = peer.run_pod("pod")
    container = peer.run(pod, "main", SLEEP)
    os.kill(peer.pod_pid(pod), signal.SIGKILL)
    with judge.judging("I1"):
        until(
            lambda: peer.pod_status(pod).state == api.SANDBOX_NOTREADY,
            "the pod is not ready",
            patience_s=20,
        )
    peer.stop_pod(pod)
    assert peer.status(container).state == api.CONTAINER_EXITED


@cell("HD10", "fifty containers of a few milliseconds")
def _short_ones(peer: Peer) -> None:
    pod = peer.run_pod("pod")

    def live(number: int) -> bool:
        container = peer.run(pod, f"short-{number}", ["sh", "-c", f"echo last; exit {number}"])
        code = peer.wait_exited(container).exit_code
        return code == number and peer.log_of("pod", f"short-{number}") == "last\n"

    with ThreadPoolExecutor(8) as clients:
        assert all(clients.map(live, range(50)))


@cell("LD2", "twenty same requests at once")
def _same_requests(peer: Peer) -> None:
    config = peer.pod_config("pod")
    with ThreadPoolExecutor(20) as clients:
        calls = [clients.submit(peer.run_config, config) for _ in range(20)]
        made = {call.result() for call in calls if call.exception() is None}
    assert len(made) == 1
    assert len(peer.pods()) == 1


@cell("LD4", "clients with deadlines too short, and their retries")
def _impatient(peer: Peer) -> None:
    for milliseconds in (5, 20, 50, 100, 200):
        config = peer.pod_config(f"pod-{milliseconds}")
        for _ in range(4):
            with contextlib.suppress(grpc.RpcError):
                peer.run_config(config, timeout=milliseconds / 1000)
        with judge.judging("I3"):
            pod = _insist(peer, config)
        request = peer.create_request(pod, "main", SLEEP)
        for _ in range(4):
            with contextlib.suppress(grpc.RpcError):
                peer.runtime.CreateContainer(request, timeout=milliseconds / 1000)
        with judge.judging("I3"):
            deadline_s = time.monotonic() + 10
            while True:
                try:
                    peer.runtime.CreateContainer(request, timeout=PATIENCE_S)
                    break
                except grpc.RpcError:
                    if time.monotonic() > deadline_s:
                        raise
                time.sleep(0.5)


@cell("LG3", "a log is reopened while its container is stopping")
def _reopened_while_stopping(peer: Peer) -> None:
    pod = peer.run_pod("pod")
    container = peer.run(pod, "main", STUBBORN)
    peer.wait_log("pod", "main", "ready")
    stop = peer.runtime.StopContainer.future(
        api.StopContainerRequest(container_id=container, timeout=3600), timeout=PATIENCE_S
    )
    peer.wait_log("pod", "main", "got TERM")
    log = peer.logs / "pod" / "main_0.log"
    log.rename(log.with_name("rotated"))
    request = api.ReopenContainerLogRequest(container_id=container)
    peer.runtime.ReopenContainerLog(request, timeout=10)
    assert log.exists()
    peer.stop_container(container, 0)
    stop.cancel()


@cell("CN8", "the network's configuration goes before the pod")
def _configuration_goes(peer: Peer) -> None:
    pod = peer.run_pod("pod")
    aside = peer.networks().with_name("aside")
    peer.networks().rename(aside)
    peer.networks().mkdir()
    try:
        with judge.judging("I8"):
            peer.kill()
            peer.start_daemon()
            peer.stop_pod(pod)
            peer.remove_pod(pod)
    finally:
        peer.networks().rmdir()
        aside.rename(peer.networks())
    until(lambda: _network_ready(peer), "the network is there again")


def _network_ready(peer: Peer) -> bool:
    answer = peer.runtime.Status(api.StatusRequest(), timeout=PATIENCE_S)
    return next(c.status for c in answer.status.conditions if c.type == "NetworkReady")


@cell("MT7", "the root file system is unmounted behind its back")
def _root_unmounted(peer: Peer) -> None:
    pod = peer.run_pod("pod")
    container = peer.run(pod, "main", SLEEP)
    for target in runtimes.mounts_below(str(peer.socket.parent)):
        if container in target and target.endswith("/rootfs"):
            subprocess.run(["umount", "--lazy", target], check=True)
    peer.stop_container(container)
    peer.remove_container(container)
    assert peer.exec(peer.run(pod, "again", SLEEP), "true")[0] == 0


@cell("ES1", "the time of a command is over: it and its children are gone")
def _command_over(peer: Peer) -> None:
    container = peer.run(peer.run_pod("pod"), "main", SLEEP)
    script = "setsid sleep 2229 & trap '' TERM; sleep 2228"
    with contextlib.suppress(grpc.RpcError):
        peer.exec(container, "sh", "-c", script, timeout_s=1)
    with judge.judging("I2"):
        until(
            lambda: not [p for p in in_cgroup(container) if "sleep 222" in _command(p)],
            "nothing of the command is left",
            patience_s=10,
        )
    assert peer.exec(container, "echo", "alive")[1] == "alive\n"


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@cell("MF1", "bytes that are no message; a message that is too large")
def _no_message(peer: Peer) -> None:
    channel = runtimes.connect(peer.socket)
    call = channel.unary_unary("/runtime.v1.RuntimeService/RunPodSandbox", None, None)
    with channel:
        for data in (b"\xff" * 50, b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x03\x0a\x01\xff"):
            try:
                call(data, timeout=PATIENCE_S)
            except grpc.RpcError as error:
                if fault := judge.dishonest(error):  # type: ignore[arg-type]
                    raise InvariantBroken("I6", fault) from error
    peer.runtime.Version(api.VersionRequest(), timeout=PATIENCE_S)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one cell with one peer; `broken` is empty when it held."""

    peer: str
    cell: str
    what: str
    broken: str
    took_s: float


def compare(names: Sequence[str], storage: Path) -> Iterator[Outcome]:
    """Every cell with every peer, one runtime after the other."""
    registry = make_sets(storage, ["first-pod", "critest"])
    with (
        tempfile.TemporaryDirectory(prefix="podwright-peers-") as work,
        running_registry(registry, Path(work)) as port,
    ):
        for name in names:
            with runtimes.running(name, port) as runtime:
                peer = Peer(runtime)
                peer.connect()
                peer.pull(BUSYBOX)
                peer.remove_pod(peer.run_pod("warm-up"))
                peer.usual = peer.leftovers()
                for number, (what, run) in CELLS.items():
                    began_s = time.monotonic()
                    broken = _judged(peer, run)
                    yield Outcome(name, number, what, broken, time.monotonic() - began_s)
                peer.disconnect()
            # What a kubelet would have made for its pods, and so removes; and what is left of those
            # that the runtime could not remove.
            groups.remove_all(peer.tag)


def _judged(peer: Peer, run: Callable[[Peer], None]) -> str:
    broken = ""
    for each in (run, Peer.remove_everything, Peer.assert_clean):
        try:
            each(peer)
        except (AssertionError, grpc.RpcError, OSError) as error:
            words = error.details() if isinstance(error, grpc.Call) else str(error)
            broken = broken or " ".join(str(words).split())[:160] or type(error).__name__
    peer.usual = peer.leftovers()  # the next cell is not to blame
    return broken
