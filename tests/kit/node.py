"""A node for tests of the whole daemon: directories, network and control groups of its own.

The daemon is a child process that a test may kill, stop and start at any time; everything else here
outlives it, as it would on a real node. CNI plugins are led into a network namespace that they take
for the host's, so bridges, addresses and packet rules never touch the machine's own.

    with Node.running("name", certs_d) as node:
        pod = node.run_pod("web")
        container = node.start(node.create(pod, "main", ["sleep", "1000"]))
        node.kill()                    # SIGKILL
        node.start_daemon()            # and here it is again
        node.remove_everything()
        node.assert_clean()            # against what there was before
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import grpc

from protos import api_pb2 as api
from sandbox.host.libc import LibcSyscalls
from sandbox.host.mounts import unmount_tree
from tests.kit import census, groups, judge, truth
from tests.kit.calls import Calls, until
from tests.kit.census import Census, Places
from tests.kit.cni import bin_dir
from tests.kit.failpoints import FailPoints
from tests.kit.faults import PATIENCE_S, Faults
from tests.kit.judge import InvariantBroken
from tests.kit.messages import BUSYBOX
from tests.kit.node_files import config_text, network_document
from tests.kit.registry import bound_to_parent, stop

__all__ = ["PATIENCE_S", "Node", "NodeFailed", "until"]

_TOP: Final = Path(__file__).parents[2]
#: More threads than this are no pool any more.
_THREADS_LIMIT: Final = 60

_numbers = itertools.count(1)


class NodeFailed(Exception):
    """The daemon does not do what a test needs to begin with."""


class Node(Calls):
    """See the module text. Make it with `running`."""

    def __init__(
        self,
        name: str,
        certs_d: Path,
        settings: Mapping[str, str],
        state_root: Path | None = None,
        failpoints: bool = False,
        run_flags: str = "",
        tree: Path | None = None,
    ) -> None:
        self.tag = f"podwright-test-{os.getpid()}-{next(_numbers)}"
        # The socket's path must be short (108 bytes), the state needs a real disk.
        self.run_root = Path(tempfile.mkdtemp(prefix=f"{self.tag}-", dir="/run"))
        self.work = Path(tempfile.mkdtemp(prefix=f"{self.tag}-", dir="/var/tmp"))
        for directory in (self.run_root, self.work):
            directory.chmod(0o711)
        if run_flags:
            options = f"mode=711,{run_flags}"
            command = ["mount", "-t", "tmpfs", "-o", options, "podwright-test", str(self.run_root)]
            subprocess.run(command, check=True)
        self.name = name
        self.state_root = state_root or self.work / "state"
        super().__init__(self.run_root / "podwright.sock", self.tag, self.work / "logs")
        self.log = self.work / "daemon.log"
        self.conf_dir = self.work / "net.d"
        self.config = self.work / "config.toml"
        self.faults = Faults(self._made("faults"))
        #: Where the daemon takes orders from, if it is one that does.
        self.failpoints = FailPoints(self.work / "failpoints") if failpoints else None
        self.plugins = self._made("plugins")
        self.network = Path("/run/netns", self.tag)
        self.places = Places(
            run_root=self.run_root,
            state_root=self.state_root,
            cgroup_parent=groups.top(self.tag),
            leases=self.work / "leases",
            network=self.network,
        )
        self.process: subprocess.Popen[bytes] | None = None
        #: Where the daemon's code comes from, if not from this tree: another release.
        self.tree = tree
        #: The control group in which the daemon begins, if it is one of its own.
        self.within: Path | None = None
        #: When a daemon was started after another, until its answers were found true.
        self._began_s: float | None = None
        #: What there is when no pod is; taken by `warm_up`.
        self.baseline: Census = {}
        #: Pods that `remove_everything` leaves alone, because they belong to the baseline.
        self.kept: set[str] = set()
        self._make_network()
        self._write_config(certs_d, settings)

    @classmethod
    @contextlib.contextmanager
    def running(
        cls,
        name: str,
        certs_d: Path,
        *,
        images: Sequence[str] = (BUSYBOX,),
        settings: Mapping[str, str] | None = None,
        state_root: Path | None = None,
        failpoints: bool = False,
        run_flags: str = "",
        tree: Path | None = None,
    ) -> Iterator[Node]:
        """A node whose daemon runs and has pulled `images`; all of it is gone afterwards.

        Args:
            name: for messages.
            certs_d: leads to the registry.
            images: pulled before the block begins.
            settings: TOML values by `section.key`.
            state_root: on a file system of the test's choice; the node's own by default.
            failpoints: whether the daemon takes orders of `Node.failpoints`.
            run_flags: of a tmpfs for the run root, such as systemd makes of /run; none by default.
            tree: where the daemon's code is; this tree by default.
        """
        node = cls(name, certs_d, settings or {}, state_root, failpoints, run_flags, tree)
        try:
            node.write_network()
            node.start_daemon()
            for image in images:
                node.pull(image)
            if images:
                node.warm_up()
            yield node
        finally:
            node.close()

    def warm_up(self) -> None:
        """Have everything made that stays (a bridge, directories), then take the baseline."""
        pod = self.run_pod("warm-up")
        self.start(self.create(pod, "warm-up", ["true"]))
        self.remove_everything()
        self.take_baseline()

    def take_baseline(self) -> None:
        """What there is now is what must be there after each test."""
        self.baseline = self.settled_census()

    def settled_census(self) -> Census:
        """The census once nothing in it is about to go.

        Beside its first calls the daemon asks programs for their versions, it keeps its unpack
        workers for a while, and of what was removed a monitor may be there a moment longer.
        """
        there = {pod.id for pod in self.pods()} | {c.id for c in self.containers()}
        gone = self.ids - there

        def settled() -> Census:
            taken = {} if census.children(self.pid) else self.census()
            return {} if census.names(taken, gone) else taken

        return until(settled, "no program runs and of what was removed nothing is left")

    # The daemon.

    def start_daemon(self, *, wait: bool = True) -> None:
        """Start the daemon; returns when it answers."""
        assert self.process is None, "it runs already"
        program: list[str | Path] = [sys.executable, "-m", "cri"]
        if self.failpoints is not None:
            program = [sys.executable, "-m", "tests.kit.failing_daemon", self.failpoints.directory]
        elif self.tree is None:
            program = [Path(sys.executable).with_name("podwright")]
        argv = bound_to_parent([*program, "serve", "--config", self.config])
        if self.within is not None:
            argv = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', f"{self.within}/cgroup.procs", *argv]
        tree = self.tree or _TOP
        self._began_s = time.monotonic() if self.log.exists() else None
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=tree,
                env={**os.environ, "PYTHONPATH": f"{tree}:{_TOP}"},
                start_new_session=True,
            )
        if wait:
            self.wait_answering()

    def wait_answering(self) -> None:
        """Return when the daemon answers Version; raise with its log when it ended instead."""
        assert self.process is not None
        deadline_s = time.monotonic() + PATIENCE_S
        self.connect()
        while time.monotonic() < deadline_s and self.process.poll() is None:
            with contextlib.suppress(grpc.RpcError):
                self.runtime.Version(api.VersionRequest(), timeout=2, wait_for_ready=True)
                return
        raise NodeFailed(f"{self.name}: the daemon does not answer:\n{self.log_tail()}")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal the daemon and wait for its end."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(PATIENCE_S)
        self.forget_process()

    def forget_process(self) -> None:
        """Note that the daemon has ended."""
        assert self.process is not None
        self.process.wait(PATIENCE_S)
        self.process = None
        self.hang_up()

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self.process is not None
        process = self.process
        self.kill(signal.SIGTERM)
        return process.returncode

    def restart(self, number: int = signal.SIGKILL) -> None:
        """Kill the daemon and start it again."""
        self.kill(number)
        self.start_daemon()

    def log_tail(self, size: int = 6000) -> str:
        """The end of what the daemon has written."""
        return self.log.read_text(errors="replace")[-size:]

    @property
    def pid(self) -> int:
        """The daemon's process."""
        assert self.process is not None
        return self.process.pid

    # Judging.

    def census(self) -> Census:
        """What of this node is on the machine now."""
        return census.take(self.places, self.process.pid if self.process else None, self.ids)

    def processes_doing(self, command: str) -> list[int]:
        """Processes of this node whose command line contains `command`."""
        found = census.processes_of(self.places, self.process.pid if self.process else None)
        return [pid for pid, text in found.items() if command in text]

    def assert_clean(self) -> None:
        """Everything is as it was before any pod; what goes by itself is waited for."""
        deadline_s = time.monotonic() + PATIENCE_S
        while left := census.difference(self.baseline, self.census()):
            if time.monotonic() >= deadline_s:
                self.baseline = self.census()  # the next test is not to blame
                raise InvariantBroken(
                    "I2",
                    f"not as before: {json.dumps(left, indent=1)}\n{self.log_tail()}",
                    {kind: len(what["left"]) for kind, what in left.items()},
                )
            time.sleep(0.05)
            if "cgroups" in left:
                # A kubelet tries as long as a process that was killed is still on its way out.
                self.remove_pod_cgroups()
        if self.process is not None:
            assert census.threads(self.process.pid) <= _THREADS_LIMIT

    def assert_true(self) -> None:
        """Invariant I1: nothing is called ready or running that is not, nor ended that lives."""
        with judge.judging("I1"):
            truth.assert_true(self)
        if self._began_s is not None:
            judge.notes.recoveries_s.append(time.monotonic() - self._began_s)
            self._began_s = None

    def assert_honest(self) -> None:
        """Invariant I6: no refusal so far was without a class, or in the interpreter's words."""
        found = list(self.dishonest)
        self.dishonest.clear()
        if found:
            raise InvariantBroken("I6", "; ".join(found))

    def remove_everything(self) -> None:
        """Stop and remove every pod, as a client would."""
        for pod in self.pods():
            if pod.id not in self.kept:
                self.stop_pod(pod.id)
                self.remove_pod(pod.id)
        self.remove_pod_cgroups()

    def other_pods(self) -> list[str]:
        """Ids of the pods that are no part of the baseline."""
        return [pod.id for pod in self.pods() if pod.id not in self.kept]

    def other_containers(self) -> list[str]:
        """Ids of their containers."""
        return [c.id for c in self.containers() if c.pod_sandbox_id not in self.kept]

    def remove_pod_cgroups(self) -> None:
        """Remove the empty groups that a kubelet would have made for its pods, and so removes."""
        groups.remove_pods(self.tag)

    # The network.

    def host(self, *argv: str) -> str:
        """Run a program in what the plugins take for the host; its output."""
        command = ["nsenter", f"--net={self.network}", *argv]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def write_network(self) -> None:
        """Put the network's configuration into its place."""
        self.conf_dir.mkdir(exist_ok=True)
        new = self.work / "conflist.new"
        new.write_text(json.dumps(network_document(self.places.leases)))
        new.rename(self.conf_dir / "10-test.conflist")

    def remove_network(self) -> None:
        """Take the network's configuration away."""
        (self.conf_dir / "10-test.conflist").unlink()

    def _make_network(self) -> None:
        subprocess.run(["ip", "netns", "add", self.tag], check=True)
        self.host("ip", "link", "set", "lo", "up")
        for plugin in Path(bin_dir()).iterdir():
            real = self.plugins / plugin.name
            real.symlink_to(plugin)
            self.faults.stand_in(
                plugin.name,
                ["nsenter", f"--net={self.network}", str(real)],
                verb="$CNI_COMMAND",
                folder="cni",
            )

    def _write_config(self, certs_d: Path, settings: Mapping[str, str]) -> None:
        programs = {
            name: self.faults.stand_in(name, [str(shutil.which(name))]) for name in ("crun", "runc")
        }
        conmon = self.faults.stand_in("conmon", [str(shutil.which("conmon"))], verb="run")
        values = {
            "daemon.run_root": json.dumps(str(self.run_root)),
            "daemon.state_root": json.dumps(str(self.state_root)),
            "daemon.log_level": '"info"',
            "check.holes_at_start": "false",  # it runs programs while a test counts processes
            "daemon.stop_grace_s": "1",
            "runtime.cgroup_driver": json.dumps(groups.DRIVER),
            "runtime.conmon_path": json.dumps(str(conmon)),
            # The second one as well: a stand-in has become a program of that directory.
            "cni.bin_dirs": json.dumps([str(self.faults.programs / "cni"), str(self.plugins)]),
            "cni.conf_dir": json.dumps(str(self.conf_dir)),
            "cni.poll_unready_s": "0.2",
            "image.registry_config_dirs": json.dumps([str(certs_d)]),
            "image.unpack_idle_s": "0.5",
            "metrics.address": '""',
            **{f"runtimes.{name}.path": json.dumps(str(path)) for name, path in programs.items()},
            **settings,
        }
        self.config.write_text(config_text(values))

    def _made(self, name: str) -> Path:
        (path := self.work / name).mkdir()
        return path

    def close(self) -> None:
        """Leave nothing, whatever the test did; nothing here may be what a test relies on."""
        self.faults.clear()
        if self.process is not None:
            stop(self.process)
            self.forget_process()
        for _ in range(50):
            found = census.processes_of(self.places)
            if not found:
                break
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        syscalls = LibcSyscalls()
        unmount_tree(self.run_root, syscalls=syscalls)
        unmount_tree(self.work, syscalls=syscalls)
        groups.remove_all(self.tag)
        subprocess.run(["ip", "netns", "delete", self.tag], check=False)
        for root in (self.run_root, self.work):
            shutil.rmtree(root, ignore_errors=True)
