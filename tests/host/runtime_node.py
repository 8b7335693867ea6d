"""A node for tests of the OCI runtimes and conmon: busybox as image, no network."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sandbox.cgroups import Cgroups
from sandbox.execs import ExecRequest, Execs
from sandbox.host.cgroupfs import CgroupLayout
from sandbox.host.clock import SystemClock
from sandbox.host.pidfd import Process, boot_id, start_ticks
from sandbox.host.processes import HostProcessRunner
from sandbox.model import ProcessRef
from sandbox.monitor.conmon import Conmon
from sandbox.monitor.exits import Exited, ExitWatch, WatchTarget
from sandbox.monitor.request import Created, MonitorRequest
from sandbox.monitor.survivors import end_monitor
from sandbox.runtime.crun import CommandRuntime
from sandbox.settings import DEFAULT_TIMEOUTS, RuntimeHandler, SandboxSettings, SandboxTimeouts
from tests.kit.faults import PATIENCE_S

BUSYBOX = Path("/bin/busybox")
APPLETS = [
    *("sh", "sleep", "cat", "echo", "true", "false", "ps", "ls", "yes", "env", "id", "kill"),
    *("setsid", "head", "dd", "printf", "tty", "stty", "test", "seq", "mkdir", "rm", "usleep"),
]
RUNTIMES = ("crun", "runc")


class Observed:
    """Records what metrics would be told."""

    def __init__(self) -> None:
        self.operations: list[tuple[str, str, bool]] = []

    def runtime_operation(self, operation: str, handler: str, seconds: float, ok: bool) -> None:
        assert seconds >= 0
        self.operations.append((operation, handler, ok))


class RuntimeNode:
    """One runtime with everything around it, in a directory of the test's own."""

    def __init__(
        self,
        root: Path,
        cgroup_parent: str,
        name: str,
        *,
        timeouts: SandboxTimeouts = DEFAULT_TIMEOUTS,
        program: Path | None = None,
        conmon: Path = Path("/usr/bin/conmon"),
        monitor_cgroup: str = "",
        early: bool = True,
    ) -> None:
        self.root = root
        self.parent = cgroup_parent
        self.rootfs = root / "rootfs"
        self.exits_dir = root / "exits"
        self.exits_dir.mkdir(parents=True)
        self._make_rootfs()
        self.clock = SystemClock()
        self.runner = HostProcessRunner()
        self.handler = RuntimeHandler(
            name=name, path=program or Path("/usr/bin") / name, root=root / "state" / name
        )
        self.settings = SandboxSettings(
            run_root=root,
            handlers=(self.handler,),
            default_handler=name,
            conmon_path=conmon,
            monitor_cgroup=monitor_cgroup,
            timeouts=timeouts,
        )
        self.observed = Observed()
        self.cgroups = Cgroups(
            CgroupLayout.detect(), "cgroupfs", clock=self.clock, kill_s=PATIENCE_S
        )
        self.runtime = CommandRuntime(
            self.handler,
            runner=self.runner,
            clock=self.clock,
            timeouts=timeouts,
            observer=self.observed,
        )
        self.conmon = Conmon(
            self.settings,
            runner=self.runner,
            cgroups=self.cgroups,
            clock=self.clock,
            observer=self.observed,
            early=early,
        )
        self.execs = Execs(
            self.settings,
            runner=self.runner,
            cgroups=self.cgroups,
            clock=self.clock,
            observer=self.observed,
        )
        self.made: dict[str, Path] = {}

    def _make_rootfs(self) -> None:
        for name in ("bin", "proc", "sys", "dev", "tmp"):
            (self.rootfs / name).mkdir(parents=True)
        shutil.copy(BUSYBOX, self.rootfs / "bin" / "busybox")
        for name in APPLETS:
            (self.rootfs / "bin" / name).symlink_to("busybox")

    def cgroup(self, cid: str) -> str:
        return f"{self.parent}/{cid}"

    def bundle(
        self,
        *args: str,
        terminal: bool = False,
        pid_namespace: bool = True,
        memory_bytes: int = 0,
        hooks: Mapping[str, object] | None = None,
    ) -> tuple[str, Path]:
        """A bundle that runs `args`; (container id, directory)."""
        cid = secrets.token_hex(32)
        bundle = self.root / "containers" / cid
        bundle.mkdir(parents=True)
        namespaces = ["mount", "ipc", "uts", "network", *(["pid"] if pid_namespace else [])]
        resources: dict[str, object] = {"devices": [{"allow": True, "access": "rwm"}]}
        if memory_bytes:
            resources["memory"] = {"limit": memory_bytes, "swap": memory_bytes}
        document = {
            "ociVersion": "1.0.2",
            "process": {**self.process(*args), "terminal": terminal},
            "root": {"path": str(self.rootfs), "readonly": False},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {
                    "destination": "/dev",
                    "type": "tmpfs",
                    "source": "tmpfs",
                    "options": ["nosuid", "mode=755", "size=64k"],
                },
                {
                    "destination": "/dev/pts",
                    "type": "devpts",
                    "source": "devpts",
                    "options": ["newinstance", "ptmxmode=0666"],
                },
            ],
            "linux": {
                "cgroupsPath": self.cgroup(cid),
                "resources": resources,
                "namespaces": [{"type": kind} for kind in namespaces],
            },
            **({"hooks": dict(hooks)} if hooks else {}),
        }
        (bundle / "config.json").write_text(json.dumps(document))
        self.made[cid] = bundle
        return cid, bundle

    @staticmethod
    def process(*args: str) -> dict[str, object]:
        return {
            "args": list(args),
            "cwd": "/",
            "env": ["PATH=/bin"],
            "user": {"uid": 0, "gid": 0},
            "capabilities": {
                "bounding": ["CAP_KILL"],
                "effective": ["CAP_KILL"],
                "permitted": ["CAP_KILL"],
            },
        }

    def request(self, cid: str, **changes: object) -> MonitorRequest:
        values: dict[str, object] = {
            "container_id": cid,
            "runtime": self.runtime,
            "bundle": self.made[cid],
            "exit_dir": self.exits_dir,
            "cgroup_path": self.cgroup(cid),
            "log_path": str(self.log_path(cid)),
        }
        return MonitorRequest(**{**values, **changes})  # type: ignore[arg-type]

    async def run(self, *args: str, **changes: object) -> tuple[str, Created]:
        """A started container under conmon."""
        keys = {"terminal", "pid_namespace", "memory_bytes", "hooks"}
        cid, _ = self.bundle(*args, **{k: v for k, v in changes.items() if k in keys})  # type: ignore[arg-type]
        rest = {k: v for k, v in changes.items() if k not in keys - {"terminal"}}
        created = await self.conmon.create(self.request(cid, **rest))
        await self.runtime.start(cid)
        # Who is started answers a moment before the runtime's init has become the program.
        await until(lambda: self.has_come_to_run(created.init), "the program runs, or has ended")
        return cid, created

    def has_come_to_run(self, init: ProcessRef) -> bool:
        """Whether a container's first process is no longer the runtime's own."""
        try:
            program = Path(f"/proc/{init.pid}/exe")
            return program.samefile(self.rootfs / "bin/busybox") or not alive(init)
        except OSError:
            return True  # it has ended

    def shell(self, cid: str, created: Created, *args: str, timeout_s: float = 0) -> ExecRequest:
        return ExecRequest(
            container_id=cid,
            runtime=self.runtime,
            directory=self.made[cid],
            cgroup_path=self.cgroup(cid),
            init=created.init,
            process_json=json.dumps({**self.process(*args), "terminal": False}).encode(),
            timeout_s=timeout_s,
        )

    def target(self, cid: str, created: Created) -> WatchTarget:
        return WatchTarget(
            container_id=cid,
            init=created.init,
            monitor=created.monitor,
            exit_file=self.exits_dir / cid,
            cgroup_path=self.cgroup(cid),
            bundle=self.made[cid],
        )

    def log_path(self, cid: str) -> Path:
        return self.root / "logs" / cid / "0.log"

    def log(self, cid: str) -> bytes:
        return self.log_path(cid).read_bytes()

    async def clean(self) -> None:
        """Whatever the test did: nothing of it is left on the machine."""
        for cid, bundle in self.made.items():
            await asyncio.to_thread(end_monitor, bundle)
            await self.cgroups.kill(self.cgroup(cid))
            await self.runtime.delete(cid, force=True)
            await self.cgroups.remove(self.cgroup(cid))
        await self.cgroups.remove(self.parent)


class Ends:
    """An exit watch and what it told."""

    def __init__(self, node: RuntimeNode, group: asyncio.TaskGroup, **changes: object) -> None:
        self.told: list[Exited] = []
        self.lost: list[str] = []
        self.watch = ExitWatch(
            self._exited,
            group=group,
            clock=node.clock,
            counts=node.cgroups,
            exit_dir=node.exits_dir,
            exit_file_s=PATIENCE_S,
            on_monitor_lost=self._lost,
            **changes,  # type: ignore[arg-type]
        )

    async def _exited(self, exited: Exited) -> None:
        self.told.append(exited)

    async def _lost(self, container_id: str) -> None:
        self.lost.append(container_id)


def identity(pid: int) -> ProcessRef:
    ticks = start_ticks(pid)
    assert ticks is not None
    return ProcessRef(pid=pid, start_ticks=ticks, boot_id=boot_id())


def kill(ref: ProcessRef | None, number: int = signal.SIGKILL) -> bool:
    assert ref is not None
    process = Process.open(ref.pid, ref.start_ticks, ref.boot_id)
    if process is None:
        return False
    with process:
        return process.send_signal(number)


def alive(ref: ProcessRef) -> bool:
    process = Process.open(ref.pid, ref.start_ticks, ref.boot_id)
    if process is None:
        return False
    with process:
        return process.alive()


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait until `condition` is true: what other processes do sets no event of ours."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"still not so: {what or condition}"
        await asyncio.sleep(0.01)


def command_lines(word: str) -> list[Sequence[str]]:
    """Command lines of living processes that contain `word`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if word in line:
                found.append(line.split("\0"))
    return found
