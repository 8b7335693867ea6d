"""An `OciRuntime` that keeps containers in memory: it records, and can be told to fail.

`tests/contracts/test_oci_runtime.py` holds it against crun and runc, so it cannot drift from them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from sandbox.errors import CommandNotFound, RuntimeBusy, RuntimeFailed
from sandbox.host.errors import PodwrightError
from sandbox.model import ProcessRef
from sandbox.runtime.command import CommandLine, check_container_id
from sandbox.runtime.driver import RuntimeInfo, RuntimeState, RuntimeStatus
from sandbox.settings import RuntimeHandler

#: Above PID_MAX_LIMIT: no process of the machine can have such a number.
_FIRST_PID = 5_000_000


@dataclass(frozen=True)
class Call:
    """One operation asked for."""

    operation: str
    cid: str
    details: tuple[object, ...] = ()


@dataclass
class _Container:
    pid: int
    status: RuntimeStatus = RuntimeStatus.CREATED


@dataclass
class FakeRuntime:
    """See the module text.

    Attributes:
        fail: operation -> errors to raise, one for each call, first to last.
        missing: programs that do not exist in any container.
        calls: what was asked for, in order.
        resources: what `update` was given last, by container.
        is_quick: whether containers can be started without a program.
    """

    handler: RuntimeHandler = field(
        default_factory=lambda: RuntimeHandler(
            name="fake", path=Path("/usr/bin/fake"), root=Path("/run/fake")
        )
    )
    fail: dict[str, list[PodwrightError]] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    calls: list[Call] = field(default_factory=list)
    resources: dict[str, bytes] = field(default_factory=dict)
    is_quick: bool = False
    info: RuntimeInfo = field(default_factory=lambda: RuntimeInfo(name="fake", version="1.0"))

    def __post_init__(self) -> None:
        self._containers: dict[str, _Container] = {}
        self._pids = itertools.count(_FIRST_PID)

    def _note(self, operation: str, cid: str, *details: object) -> None:
        check_container_id(cid)
        self.calls.append(Call(operation, cid, details))
        planned = self.fail.get(operation)
        if planned:
            raise planned.pop(0)

    def exit(self, cid: str) -> None:
        """The container's process ends, as by itself."""
        self._containers[cid].status = RuntimeStatus.STOPPED

    # As the protocol says.

    def create_arguments(self, log_file: Path) -> tuple[str, ...]:
        return CommandLine(self.handler).global_options(log_file)

    @property
    def program(self) -> Path:
        return self.handler.path

    @property
    def takes_console_socket(self) -> bool:
        return False

    def exec_argv(
        self,
        cid: str,
        *,
        process_file: Path,
        pid_file: Path,
        log_file: Path,
        console_socket: str = "",
    ) -> tuple[str, ...]:
        return CommandLine(self.handler).exec(
            cid,
            process_file=process_file,
            pid_file=pid_file,
            log_file=log_file,
            console_socket=console_socket,
        )

    async def create(self, bundle: Path, cid: str, pid_file: Path) -> int:
        self._note("create", cid, bundle)
        if cid in self._containers:
            raise RuntimeBusy("container already exists", container=cid)
        program = _program(bundle)
        if program in self.missing:
            raise CommandNotFound(f"executable file {program} not found", container=cid)
        made = _Container(next(self._pids))
        _write_pid(pid_file, made.pid)
        self._containers[cid] = made
        return made.pid

    def _find(self, operation: str, cid: str) -> _Container:
        try:
            return self._containers[cid]
        except KeyError:
            raise RuntimeFailed(f"fake {operation} failed: no such container") from None

    async def start(self, cid: str) -> None:
        self._note("start", cid)
        container = self._find("start", cid)
        if container.status is not RuntimeStatus.CREATED:
            raise RuntimeBusy("container is not in created state", container=cid)
        container.status = RuntimeStatus.RUNNING

    def quick_start(self, cid: str) -> Callable[[], bool] | None:
        return partial(self._start_quickly, cid) if self.is_quick else None

    def _start_quickly(self, cid: str) -> bool:
        container = self._containers.get(cid)
        if container is None or container.status is not RuntimeStatus.CREATED:
            return False
        self._note("quick_start", cid)
        container.status = RuntimeStatus.RUNNING
        return True

    async def complete_start(self, init: ProcessRef) -> bool:
        return False

    def has(self, cid: str) -> bool:
        return cid in self._containers

    async def kill(self, cid: str, signal_number: int, *, all_processes: bool = False) -> None:
        self._note("kill", cid, signal_number, all_processes)
        if cid in self._containers and signal_number == 9:
            self.exit(cid)

    async def delete(
        self, cid: str, *, force: bool = False, init: ProcessRef | None = None
    ) -> None:
        self._note("delete", cid, force)
        container = self._containers.get(cid)
        if container is None:
            return
        running = {RuntimeStatus.RUNNING, RuntimeStatus.PAUSED}
        if not force and container.status in running:
            raise RuntimeBusy("container is not stopped", container=cid)
        if container.status.alive and init is not None and init.pid != container.pid:
            raise RuntimeBusy("another process than the one created", container=cid)
        del self._containers[cid]

    async def state(self, cid: str) -> RuntimeState | None:
        self._note("state", cid)
        container = self._containers.get(cid)
        if container is None:
            return None
        return RuntimeState(container.status, container.pid if container.status.alive else 0)

    async def update(self, cid: str, resources_json: bytes) -> None:
        self._note("update", cid, resources_json)
        self._find("update", cid)
        self.resources[cid] = resources_json

    async def pause(self, cid: str) -> None:
        self._note("pause", cid)
        self._find("pause", cid).status = RuntimeStatus.PAUSED

    async def resume(self, cid: str) -> None:
        self._note("resume", cid)
        self._find("resume", cid).status = RuntimeStatus.RUNNING

    async def probe(self) -> RuntimeInfo:
        return self.info

    async def containers(self) -> frozenset[str]:
        return frozenset(self._containers)


def _program(bundle: Path) -> str:
    try:
        document = msgspec.json.decode((bundle / "config.json").read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise RuntimeFailed("bundle has no good config.json", bundle=bundle.name) from error
    return str(document["process"]["args"][0])


def _write_pid(path: Path, pid: int) -> None:
    path.write_text(str(pid))
