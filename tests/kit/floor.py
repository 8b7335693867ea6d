"""The least that each step of a pod's life can take: the kernel and the programs, nothing around.

What a runtime runs for a step is run here as well, with the very documents of a pod that it has
just made: the same plugins with the same configuration, the same OCI runtime with the same bundle,
the same mounts. There is no daemon, no socket, no record, no monitor, nothing is checked and
nothing could be undone. What stands above this floor is the runtime's own doing.

Things that do not need one another are done at once, as a runtime may do them: the network's
plugins beside the pause process. `FLOORS` says of each row what was measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from protos import api_pb2 as api
from sandbox import oci
from sandbox.host import syscalls as sc
from sandbox.host.cgroupfs import CgroupLayout
from sandbox.host.libc import LibcSyscalls
from sandbox.host.mountinfo import list_mounts
from sandbox.host.warmth import AttachWarmth
from sandbox.runtime import direct
from tests.kit.cni import bin_dir, remove_bridge, write_conflist
from tests.kit.floor_pull import PULL_FLOOR
from tests.kit.measure import STEPS, Target, running_pod
from tests.kit.measure_node import remove_cgroups
from tests.kit.runtimes import run_directory

#: The floor's own bridge and subnet beside those of `runtimes.NETWORKS`.
BRIDGE: Final = "pwkit9"
SUBNET: Final = "10.209.0.0/16"

#: Row of the table -> what its floor is.
FLOORS: Final = {
    "RunPodSandbox": "namespaces made and pinned; then all of the network's plugins (ADD) beside "
    "/dev/shm, `crun create` of the pause bundle and its start",
    "CreateContainer": "overlay mount and `crun create` of the same bundle, without a monitor",
    "StartContainer": "the byte into the pipe that the created container waits at",
    "ExecSync true": "`crun exec`",
    "StopContainer 0": "SIGKILL by pidfd, and waiting for the end",
    "RemoveContainer": "`crun delete`, unmounting and deleting the writable layer",
    "StopPodSandbox": "all of the network's plugins (DEL) beside the end of the pause process and "
    "`crun delete`; then unmounting",
    "RemovePodSandbox": "deleting the pod's files",
    "pod to running": "the sum of the first three",
}
_KINDS: Final = {"network": "net", "ipc": "ipc", "uts": "uts"}
_CLONES: Final = sc.CLONE_NEWNET | sc.CLONE_NEWIPC | sc.CLONE_NEWUTS
_PATIENCE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Model:
    """What a runtime has made of a pod and its container, to be made again without it."""

    pause: oci.Spec
    container: oci.Spec
    overlay: tuple[str, ...]
    crun: str


def model_of(target: Target, pod: str, container: str) -> Model:
    """Read a running pod's documents and mounts.

    Raises:
        LookupError: the runtime does not tell them, or uses something else than overlayfs.
    """
    runtime = target.runtime
    pod_request = api.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
    request = api.ContainerStatusRequest(container_id=container, verbose=True)
    pause = _spec(runtime.PodSandboxStatus(pod_request, timeout=60).info["info"])
    inside = _spec(runtime.ContainerStatus(request, timeout=60).info["info"])
    root = Path(inside.root.path)
    mounted = next((m for m in list_mounts() if m.target == root and m.type == "overlay"), None)
    if mounted is None:
        raise LookupError(f"no overlay is mounted at {root}")
    lowers = [w.partition("=")[2] for w in mounted.super_options if w.startswith("lowerdir")]
    words = [f"lowerdir={':'.join(lowers)}"]
    words += [word for word in mounted.super_options if word == "volatile"]
    sealed = sorted(target.socket.parent.glob("programs/*/crun"))
    return Model(pause, inside, tuple(words), str(sealed[0]) if sealed else "crun")


def _spec(info: str) -> oci.Spec:
    try:
        return msgspec.convert(msgspec.json.decode(info)["runtimeSpec"], type=oci.Spec)
    except (KeyError, msgspec.ValidationError) as error:
        raise LookupError(f"the runtime does not tell its OCI document: {error}") from error


class Floor:
    """Lives of a pod without a runtime service; samples are in `target.samples`."""

    def __init__(self, model: Model, work: Path, run: Path, target: Target) -> None:
        """`work` is on a real disk, `run` in memory, both empty; `target` is where samples go."""
        self.target = target
        self.model = model
        self.work = work
        self.run = run
        self.cgroups = f"podwright-floor-{os.getpid()}"
        self.syscalls = LibcSyscalls()
        self.plugins = _plugins(work)
        self.home = [os.open(f"/proc/self/ns/{kind}", os.O_RDONLY) for kind in _KINDS.values()]
        self.pool = ThreadPoolExecutor(2)
        # A thread of its own, as namespaces belong to threads.
        self.namespaces = ThreadPoolExecutor(1)

    def close(self) -> None:
        """Leave nothing."""
        self.pool.shutdown()
        self.namespaces.shutdown()
        for fd in self.home:
            os.close(fd)
        remove_cgroups(self.cgroups)
        remove_bridge(BRIDGE)

    def life(self, name: str, *, note: bool = True) -> None:
        """All steps once; noted unless it is a warm-up."""
        with Life(self, name) as life:
            took_ms = {step: life.step(step) for step in STEPS}
        if note:
            for step, milliseconds in took_ms.items():
                self.target.add(step, milliseconds)
            self.target.add("pod to running", sum(took_ms[step] for step in STEPS[:3]))


class Life:
    """One pod, made and taken apart by hand."""

    def __init__(self, floor: Floor, name: str) -> None:
        self._floor = floor
        self._model = floor.model
        self._syscalls = floor.syscalls
        self._id = f"floor-{os.getpid()}-{name}"
        self._layer = floor.work / name
        self._place = floor.run / name
        self._pins = self._place / "pins"
        self._pause = self._place / "pause"
        self._bundle = self._place / "bundle"
        self._books = self._place / "books"
        self._shm = self._place / "shm"
        self._results: list[object] = []
        self._left = contextlib.ExitStack()

    def __enter__(self) -> Life:
        """Documents are written beforehand: that is not the kernel's time."""
        for directory in (self._pins, self._pause, self._books, self._shm, self._bundle / "rootfs"):
            directory.mkdir(parents=True)
        for kind in _KINDS.values():
            (self._pins / kind).touch()
        self._write(self._pause, self._model.pause, self._model.pause.root.path, "pause")
        self._write(self._bundle, self._model.container, str(self._bundle / "rootfs"), "main")
        self._pid, self._pidfd = 0, -1
        return self

    def __exit__(self, *_: object) -> None:
        """What a failure has left."""
        for cid in ("main", "pause"):
            if (self._books / f"{self._id}-{cid}").exists():
                self._crun("delete", "--force", f"{self._id}-{cid}")
        if self._pidfd >= 0:
            os.close(self._pidfd)
        for mounted in reversed([m.target for m in list_mounts()]):
            if self._place in mounted.parents:
                self._syscalls.umount2(mounted, sc.MNT_DETACH)
        for place in (self._place, self._layer):
            shutil.rmtree(place, ignore_errors=True)

    def step(self, name: str) -> float:
        """How long that step took (ms)."""
        steps: dict[str, Callable[[], object]] = {
            "RunPodSandbox": self._run_pod,
            "CreateContainer": self._create,
            "StartContainer": partial(self._start, "main"),
            "ExecSync true": partial(self._crun, "exec", f"{self._id}-main", "true"),
            "StopContainer 0": self._stop,
            "RemoveContainer": self._remove,
            "StopPodSandbox": self._stop_pod,
            "RemovePodSandbox": partial(shutil.rmtree, self._place),
        }
        work = steps[name]
        if name == "StopContainer 0":
            self._pidfd = os.pidfd_open(self._pid)
        began_ns = time.monotonic_ns()
        work()
        return (time.monotonic_ns() - began_ns) / 1e6

    # The steps.

    def _run_pod(self) -> None:
        self._floor.namespaces.submit(self._pin).result()
        adding = self._floor.pool.submit(self._network, "ADD")
        self._syscalls.mount("shm", self._shm, "tmpfs", 0, "mode=1777,size=65536k")
        self._create_in(self._pause, "pause")
        self._start("pause")
        adding.result()

    def _pin(self) -> None:
        self._syscalls.unshare(_CLONES)
        try:
            self._syscalls.set_link_up("lo")
            for kind in _KINDS.values():
                own = f"/proc/thread-self/ns/{kind}"
                self._syscalls.mount(own, self._pins / kind, "", sc.MS_BIND)
        finally:
            for fd in self._floor.home:
                self._syscalls.setns(fd, 0)

    def _create(self) -> None:
        layer = self._layer
        (layer / "upper").mkdir(parents=True)
        (layer / "work").mkdir()
        options = (*self._model.overlay, f"upperdir={layer}/upper", f"workdir={layer}/work")
        root = self._bundle / "rootfs"
        self._syscalls.mount("overlay", root, "overlay", 0, ",".join(options))
        self._create_in(self._bundle, "main")
        self._pid = int((self._bundle / "pid").read_text())

    def _stop(self) -> None:
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        _wait(self._pidfd)

    def _remove(self) -> None:
        self._crun("delete", f"{self._id}-main")
        self._syscalls.umount2(self._bundle / "rootfs")
        shutil.rmtree(self._layer)

    def _stop_pod(self) -> None:
        removing = self._floor.pool.submit(self._network, "DEL")
        pidfd = os.pidfd_open(int((self._pause / "pid").read_text()))
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        _wait(pidfd)
        os.close(pidfd)
        self._crun("delete", f"{self._id}-pause")
        removing.result()
        for kind in _KINDS.values():
            self._syscalls.umount2(self._pins / kind)
        self._syscalls.umount2(self._shm)

    # Programs.

    def _write(self, bundle: Path, spec: oci.Spec, root: str, name: str) -> None:
        namespaces = tuple(
            msgspec.structs.replace(n, path=str(self._pins / _KINDS[n.type]))
            if n.path and n.type in _KINDS
            else msgspec.structs.replace(n, path="")
            for n in spec.linux.namespaces
        )
        path = f"/{self._floor.cgroups}/{self._id}-{name}"
        linux = msgspec.structs.replace(spec.linux, namespaces=namespaces, cgroups_path=path)
        own = msgspec.structs.replace(
            spec, linux=linux, root=msgspec.structs.replace(spec.root, path=root)
        )
        (bundle / "config.json").write_bytes(oci.encode(own))

    def _create_in(self, bundle: Path, name: str) -> None:
        self._crun("create", f"--bundle={bundle}", f"--pid-file={bundle}/pid", f"{self._id}-{name}")

    def _start(self, name: str) -> None:
        if not direct.start(self._books / f"{self._id}-{name}"):
            self._crun("start", f"{self._id}-{name}")

    def _crun(self, *words: str) -> None:
        _run([self._model.crun, f"--root={self._books}", *words])

    def _network(self, command: str) -> None:
        plugins = self._floor.plugins if command == "ADD" else self._floor.plugins[::-1]
        environment = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": self._id,
            "CNI_NETNS": str(self._pins / "net"),
            "CNI_IFNAME": "eth0",
            "CNI_PATH": bin_dir(),
        }
        for plugin in plugins:
            document = plugin if not self._results else {**plugin, "prevResult": self._results[-1]}
            said = _run(
                [f"{bin_dir()}/{plugin['type']}"],
                said=json.dumps(document).encode(),
                environment=environment,
            )
            if command == "ADD":
                self._results.append(json.loads(said))


def _plugins(work: Path) -> list[dict[str, object]]:
    """The kit's own network, each plugin's document as the specification wants it."""
    write_conflist(work / "cni", bridge=BRIDGE, subnet=SUBNET, data_dir=work / "ipam")
    chain = json.loads((work / "cni" / "10-kit.conflist").read_text())
    return [
        {**plugin, "name": chain["name"], "cniVersion": chain["cniVersion"]}
        for plugin in chain["plugins"]
    ]


def _run(
    argv: Sequence[str], *, said: bytes | None = None, environment: dict[str, str] | None = None
) -> bytes:
    """Standard output of a program with an input; a created container must not hold a pipe."""
    done = subprocess.run(
        argv,
        input=said,
        stdin=subprocess.DEVNULL if said is None else None,
        stdout=subprocess.DEVNULL if said is None else subprocess.PIPE,
        stderr=subprocess.DEVNULL if said is None else None,
        env=environment,
        check=True,
        timeout=_PATIENCE_S,
    )
    return done.stdout or b""


def _wait(pidfd: int) -> None:
    ended = select.poll()
    ended.register(pidfd, select.POLLIN)
    if not ended.poll(int(_PATIENCE_S * 1000)):
        raise TimeoutError("a killed process did not end")


@contextlib.contextmanager
def floor_under(target: Target, noted: Target) -> Iterator[Floor]:
    """The floor of a runtime's steps, with a pod of its own as the model until the block ends.

    Raises:
        LookupError: as `model_of`.
    """
    with contextlib.ExitStack() as stack:
        made = Path(tempfile.mkdtemp(prefix="podwright-floor-", dir="/var/tmp"))
        made.chmod(0o711)  # containers with other users must get through
        stack.callback(shutil.rmtree, made, ignore_errors=True)
        run = stack.enter_context(run_directory("podwright-floor-"))
        pod, container = stack.enter_context(running_pod(target, "model", note=False))
        floor = Floor(model_of(target, pod, container), made, run, noted)
        stack.callback(floor.close)
        warmth = AttachWarmth(CgroupLayout.detect())
        stack.callback(warmth.close)
        stack.enter_context(warmth.held())
        floor.life("warm-up", note=False)
        yield floor


def legend(rows: Sequence[str]) -> str:
    """A line for each floor in the table."""
    lines = ["floor: the kernel and the programs alone, in the same run"]
    lines += [f"* {row}: {FLOORS[row]}" for row in rows if row in FLOORS]
    if any(row.startswith("pull,") for row in rows):
        lines.append(f"* pull: {PULL_FLOOR}")
    return "\n".join(lines)
