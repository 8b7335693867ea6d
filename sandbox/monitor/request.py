"""What conmon is asked and what it answers: argument list and sync pipe, pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from sandbox.runtime.command import check_container_id, runtime_message

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox.model import ProcessRef
    from sandbox.runtime.driver import OciRuntime


@dataclass(frozen=True, slots=True)
class MonitorRequest:
    """What conmon has to know about a container.

    Attributes:
        container_id: ours.
        runtime: the OCI runtime that creates it.
        bundle: directory with config.json; also where conmon keeps its own files.
        exit_dir: where the exit file, named by the id, appears.
        cgroup_path: OCI cgroupsPath of the container, to clear it away after a failure.
        log_path: absolute path of the CRI log; empty discards the output.
        terminal: allocate a pseudo terminal.
        stdin: keep standard input open for attach; else it is /dev/null.
        stdin_once: the first attach that ends closes standard input.
    """

    container_id: str
    runtime: OciRuntime
    bundle: Path
    exit_dir: Path
    cgroup_path: str
    log_path: str = ""
    terminal: bool = False
    stdin: bool = False
    stdin_once: bool = False


@dataclass(frozen=True, slots=True)
class Created:
    """A created container and its monitor.

    `init.start_ticks` is 0 when the process had ended before it could be looked at; the exit
    watch finds that no such process lives and takes the exit file's word.
    """

    init: ProcessRef
    monitor: ProcessRef | None
    log_path: str

    @property
    def pid(self) -> int:
        """The container's first process."""
        return self.init.pid

    @property
    def monitor_pid(self) -> int:
        """Its conmon, 0 when that has ended already."""
        return self.monitor.pid if self.monitor is not None else 0


class _Report(msgspec.Struct):
    """A line on the sync pipe, --api-version 1."""

    data: int
    message: str = ""


def conmon_argv(
    conmon: Path, request: MonitorRequest, *, log: Path | None, systemd_cgroup: bool
) -> tuple[str, ...]:
    """The argument list; pure. Every value is attached to its option."""
    cid = check_container_id(request.container_id)
    bundle = request.bundle
    words = [
        str(conmon),
        "--api-version",
        f"--cid={cid}",
        f"--cuuid={cid}",
        f"--name={cid}",
        f"--bundle={bundle}",
        f"--runtime={request.runtime.program}",
        *(
            f"--runtime-arg={word}"
            for word in request.runtime.create_arguments(bundle / "runtime.log")
            # conmon adds this one itself.
            if word != "--systemd-cgroup"
        ),
        f"--container-pidfile={bundle / 'pid'}",
        f"--conmon-pidfile={bundle / 'conmon.pid'}",
        f"--exit-dir={request.exit_dir}",
        f"--persist-dir={bundle}",
        f"--log-path={f'k8s-file:{log}' if log is not None else 'none'}",
        "--log-level=error",
        "--full-attach",
        "--no-sync-log",
    ]
    if systemd_cgroup:
        words.append("--systemd-cgroup")
    if request.terminal:
        words.append("--terminal")
    if request.stdin:
        words.append("--stdin")
        if not request.stdin_once:
            words.append("--leave-stdin-open")
    return tuple(words)


def parse_report(line: bytes) -> tuple[int, str]:
    """(pid, "") or (-1, the runtime's words) from the sync pipe; -1 for what is no report. Pure."""
    text = line.decode("utf-8", "replace").strip()
    # conmon leaves one control character unescaped (0x1f); JSON allows none.
    text = "".join(char for char in text if ord(char) >= 0x20)
    try:
        report = msgspec.json.decode(text, type=_Report)
    except msgspec.DecodeError:
        return -1, text
    if report.data > 1:
        return report.data, ""
    return -1, runtime_message(report.message.encode())
