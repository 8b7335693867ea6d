"""What the sandbox engine is told about this node, as frozen values.

The configuration file is parsed elsewhere; nothing here reads it. Every duration is in seconds and
every timeout guards one helper program, never a whole request: a request may take as long as the
client waits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from sandbox.host.errors import InvalidArgument

CgroupDriver = Literal["cgroupfs", "systemd"]

#: Names of handlers become directory names below the run root.
_HANDLER_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")

KIB: Final = 1024
MIB: Final = 1024 * KIB


@dataclass(frozen=True, slots=True)
class RuntimeHandler:
    """One OCI runtime a pod can ask for by name (RuntimeClass handler).

    Attributes:
        name: what RunPodSandbox.runtime_handler says.
        path: the program, absolute.
        root: the runtime's own state directory (its `--root`); on a tmpfs, as it must not outlive a
            boot.
        options: further global options of the program, each a whole word such as `--debug`.
        allowed_annotations: annotation names or prefixes ending in `*` that are passed on into the
            OCI document; none by default, since a pod's annotations must not steer the host.
        privileged_without_host_devices: a privileged container does not get the host's devices.
    """

    name: str
    path: Path
    root: Path
    options: tuple[str, ...] = ()
    allowed_annotations: tuple[str, ...] = ()
    privileged_without_host_devices: bool = False

    def __post_init__(self) -> None:
        """Refuse what would become a wrong path or a wrong option."""
        if not _HANDLER_NAME.fullmatch(self.name):
            raise InvalidArgument(
                "runtime handler has a name that cannot be a directory name",
                handler=self.name,
                hint="use lower-case letters, digits, '.', '_' and '-'",
            )
        for what, path in (("path", self.path), ("root", self.root)):
            if not path.is_absolute():
                raise InvalidArgument(
                    f"runtime handler needs an absolute {what}", handler=self.name, path=str(path)
                )
        for option in self.options:
            if not option.startswith("--"):
                raise InvalidArgument(
                    "runtime option must start with --", handler=self.name, option=option
                )


def default_handlers(run_root: Path = Path("/run/podwright")) -> tuple[RuntimeHandler, ...]:
    """The handlers crun and runc, where distributions put them."""
    return tuple(
        RuntimeHandler(name=name, path=Path("/usr/bin") / name, root=run_root / "runtime" / name)
        for name in ("crun", "runc")
    )


@dataclass(frozen=True, slots=True)
class SandboxTimeouts:
    """How long each helper may take, in seconds.

    Attributes:
        create_s: one `create` by the OCI runtime, hooks included. CRI-O gives 240.
        operation_s: every other call of the OCI runtime (start, kill, state, update, delete), and
            an `exec` until its command begins.
        probe_s: `--version` and `features` at start.
        exit_file_s: from the death of a container's process until conmon has drained its output and
            written the exit file; a minute's worth only matters on a machine that is stuck.
        exec_drain_s: from the end of an exec's command until its output pipes are closed by whoever
            still holds them.
        exec_kill_s: until the processes of an exec must have died from SIGKILL.
        reopen_s: until conmon must have opened the new log file.
        kill_s: until the processes of a cgroup must have died from SIGKILL.
    """

    create_s: float = 120.0
    operation_s: float = 30.0
    probe_s: float = 10.0
    exit_file_s: float = 5.0
    exec_drain_s: float = 2.0
    exec_kill_s: float = 5.0
    reopen_s: float = 2.0
    kill_s: float = 10.0


DEFAULT_TIMEOUTS: Final = SandboxTimeouts()


@dataclass(frozen=True, slots=True)
class SandboxSettings:
    """Everything the engine needs to know about its node.

    Attributes:
        run_root: what must not outlive a boot.
        state_root: what may.
        handlers: the OCI runtimes, by name unique.
        default_handler: the handler of a pod that names none.
        cgroup_driver: who makes cgroups: the runtime itself (`cgroupfs`) or systemd.
        conmon_path: the container monitor.
        monitor_cgroup: cgroup path (no controller, no mount point) into which each conmon is put
            before it does anything; empty leaves it in the daemon's own. Never one below a pod's:
            a workload out of memory must not take its monitor along.
        exec_output_bytes: most that ExecSync returns, stdout and stderr together. The kubelet's
            client refuses messages over 16 MiB, so the answer stays below with its envelope.
        exec_outputs_bytes: most that all running ExecSyncs hold at once, beyond 64 KiB of each.
        rlimits: of every container, as `sandbox.spec.rlimits` writes them.
        cdi_spec_dirs: directories of CDI files, the strongest last.
        hooks_dirs: directories of OCI hooks, the strongest last.
        device_ownership: devices belong to runAsUser and runAsGroup inside.
    """

    run_root: Path = Path("/run/podwright")
    state_root: Path = Path("/var/lib/podwright")
    handlers: tuple[RuntimeHandler, ...] = field(default_factory=default_handlers)
    default_handler: str = "crun"
    cgroup_driver: CgroupDriver = "cgroupfs"
    conmon_path: Path = Path("/usr/bin/conmon")
    monitor_cgroup: str = ""
    exec_output_bytes: int = 16 * MIB - 64 * KIB
    exec_outputs_bytes: int = 128 * MIB
    rlimits: tuple[str, ...] = ()
    cdi_spec_dirs: tuple[Path, ...] = (Path("/etc/cdi"), Path("/var/run/cdi"))
    hooks_dirs: tuple[Path, ...] = ()
    device_ownership: bool = False
    timeouts: SandboxTimeouts = DEFAULT_TIMEOUTS

    def __post_init__(self) -> None:
        """Check what one handler alone cannot know."""
        names = [handler.name for handler in self.handlers]
        if len(set(names)) != len(names):
            raise InvalidArgument("two runtime handlers have the same name", names=",".join(names))
        self.handler("")

    def handler(self, name: str) -> RuntimeHandler:
        """The handler of that name, the default for an empty one. Raises InvalidArgument."""
        wanted = name or self.default_handler
        for handler in self.handlers:
            if handler.name == wanted:
                return handler
        known = ", ".join(handler.name for handler in self.handlers) or "none"
        raise InvalidArgument(
            "no such runtime handler", handler=wanted, hint=f"configured handlers: {known}"
        )
