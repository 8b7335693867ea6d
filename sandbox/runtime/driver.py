"""What the engine asks of an OCI runtime.

Life cycle of a container, as the runtime sees it (OCI runtime-spec, runtime.md):

    create(bundle) ──► created ──start──► running ──process dies──► stopped ──delete──► (gone)
                          │                  ⇅ pause, resume
                          └──────────────delete(force) from anywhere──────────────────► (gone)

`create` sets up namespaces, mounts and cgroups and leaves the first process waiting; `start` lets
it run its program. Two ways lead to `create`: the pause process of a pod is created directly
(nobody needs its output), every other container by conmon, which calls the runtime itself with the
argument list of `create_arguments`.

Worked example, a pause process:

    pid = await runtime.create(bundle, cid, bundle / "pid")
    await runtime.start(cid)
    ...
    process.send_signal(SIGKILL)                 # by pidfd, never through the runtime
    await runtime.delete(cid, force=True, init=ref)

Errors, for every method:

    RuntimeMissing     the program is not there
    RuntimeTimeout     it did not finish in time; it and what it started have been killed
    RuntimeBusy        the container is in the wrong state for this, or the kernel said EBUSY
    CommandNotFound    the program to run does not exist in the container
    RuntimeFailed      anything else, in the runtime's own words
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandbox.model import ProcessRef
    from sandbox.settings import RuntimeHandler


class RuntimeStatus(enum.Enum):
    """Status of a container in the runtime's books.

    BROKEN is ours: there is a directory of it that the runtime cannot read, as after one that was
    killed in the middle of `create`.
    """

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    BROKEN = "broken"

    @property
    def alive(self) -> bool:
        """Whether a process must exist for this status to be true."""
        return self in {RuntimeStatus.CREATED, RuntimeStatus.RUNNING, RuntimeStatus.PAUSED}


@dataclass(frozen=True, slots=True)
class RuntimeState:
    """Answer of `state`; `pid` is 0 unless a live process is behind it."""

    status: RuntimeStatus
    pid: int = 0


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """Which program a handler is and what it can do.

    Attributes:
        name: `crun`, `runc`, or what the program calls itself.
        version: as printed, such as `1.8.1`.
        recursive_read_only: knows the mount option `rro`.
        idmap_mounts: can map owner ids of single mounts.
        user_namespaces: can make containers in a user namespace.
        seccomp: was built with libseccomp.
        systemd_cgroup: can have systemd make the cgroup.
        compiled_seccomp: takes a filter as BPF in an annotation (crun only).
        runtime_spec: newest version (major, minor) of the OCI runtime-spec it says it knows.
        raw: the program's own `features` document, or its version text.
    """

    name: str
    version: str
    recursive_read_only: bool = False
    idmap_mounts: bool = False
    user_namespaces: bool = True
    seccomp: bool = False
    systemd_cgroup: bool = False
    compiled_seccomp: bool = False
    runtime_spec: tuple[int, int] = (1, 0)
    raw: str = ""


class RuntimeObserver(Protocol):
    """Told about every call of a runtime, for metrics."""

    def runtime_operation(self, operation: str, handler: str, seconds: float, ok: bool) -> None:
        """`operation` such as `create`; from any thread; must not raise and must not block."""
        ...


class OciRuntime(Protocol):
    """See the module text for the life cycle and the errors."""

    @property
    def handler(self) -> RuntimeHandler:
        """The settings this runtime was made from."""
        ...

    @property
    def program(self) -> Path:
        """What to run now in its name: the program, or the same file at a better place."""
        ...

    @property
    def takes_console_socket(self) -> bool:
        """Whether `exec` takes a console socket while it waits for the command."""
        ...

    def create_arguments(self, log_file: Path) -> tuple[str, ...]:
        """Global options that conmon has to pass on to the runtime (`--runtime-arg`)."""
        ...

    def exec_argv(
        self,
        cid: str,
        *,
        process_file: Path,
        pid_file: Path,
        log_file: Path,
        console_socket: str = "",
    ) -> tuple[str, ...]:
        """The whole argument list that runs `process_file` (OCI process JSON) in the container.

        With `console_socket` the terminal's master side is sent there, not relayed to the standard
        streams; not every runtime can do that and wait at the same time (`takes_console_socket`).
        """
        ...

    async def create(self, bundle: Path, cid: str, pid_file: Path) -> int:
        """Create without a monitor, standard streams on /dev/null; returns the first process's pid.

        The process becomes a child of the machine's init (or nearest subreaper). On failure
        nothing of the container is left in the runtime's books; its cgroup is the caller's to
        sweep.
        """
        ...

    async def start(self, cid: str) -> None:
        """Let a created container run its program."""
        ...

    def quick_start(self, cid: str) -> Callable[[], bool] | None:
        """The same in a moment and without a program; None where there is no such way.

        What is given blocks, for a file or two, and says whether it has started the container; if
        not, `start` is to be called, which also says what is wrong.
        """
        ...

    async def complete_start(self, init: ProcessRef) -> bool:
        """Go through with a start whose caller died in the middle, and whether there was one.

        For a container that the runtime calls running and nobody has seen running.
        """
        ...

    async def kill(self, cid: str, signal_number: int, *, all_processes: bool = False) -> None:
        """Signal the first process (or all); a container that is already gone is success.

        For containers whose process is known by pidfd, signal that instead.
        """
        ...

    async def delete(
        self, cid: str, *, force: bool = False, init: ProcessRef | None = None
    ) -> None:
        """Forget a stopped container; unknown is success.

        With `force`, a live process is killed first, but only if it is `init`, or if the runtime
        itself has checked that the pid is still the one it started. Directories that the runtime
        cannot read any more are removed by us.
        """
        ...

    def has(self, cid: str) -> bool:
        """Whether the runtime has anything in its books about `cid`. Blocking, but quick."""
        ...

    async def state(self, cid: str) -> RuntimeState | None:
        """What the runtime believes, corrected for zombies; None if it has never heard of `cid`."""
        ...

    async def update(self, cid: str, resources_json: bytes) -> None:
        """Change limits of a live container; `resources_json` is OCI `linux.resources`."""
        ...

    async def pause(self, cid: str) -> None:
        """Freeze every process of the container."""
        ...

    async def resume(self, cid: str) -> None:
        """Undo `pause`."""
        ...

    async def probe(self) -> RuntimeInfo:
        """Name, version and features of the program."""
        ...

    async def containers(self) -> frozenset[str]:
        """Ids of all containers in the runtime's books, broken ones too."""
        ...
