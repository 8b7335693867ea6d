"""The guard of a command: it raises nothing, for it is a task of the daemon's own group."""

from __future__ import annotations

import asyncio
import errno
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from sandbox.host import files
from sandbox.host.clock import SystemClock
from sandbox.host.errors import ResourceExhausted
from sandbox.running import Running
from sandbox.runtime import proctree
from sandbox.settings import SandboxTimeouts


class Init:
    """A container's first process."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def wait(self) -> None:
        await self.ended.wait()


class Groups:
    """Cgroups that cannot be read."""

    async def kill(self, _path: str) -> bool:
        raise ResourceExhausted("no descriptor is left")


def command(directory: Path, signals: list[int]) -> Running:
    return Running(
        container_id="c",
        runtime_name="crun",
        cgroup_path="/none",
        directory=directory,
        argv=("crun",),
        spawned=SimpleNamespace(pid=5_000_000, pidfd=3, kill_group=signals.append),  # type: ignore[arg-type]
        cgroups=Groups(),  # type: ignore[arg-type]
        clock=SystemClock(),
        timeouts=SandboxTimeouts(operation_s=0.01, exec_drain_s=0.01),
    )


async def test_where_nobody_can_look_a_command_is_left_and_ends_with_its_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, looked = asyncio.get_running_loop(), asyncio.Event()
    signals: list[int] = []

    def snapshot() -> list[proctree.ProcessInfo]:
        loop.call_soon_threadsafe(looked.set)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(proctree, "snapshot", snapshot)
    running = command(tmp_path, signals)
    init = Init()
    guard = asyncio.create_task(running.guard(init))  # type: ignore[arg-type]
    await looked.wait()
    await asyncio.sleep(0.05)
    assert not guard.done()
    assert not running.late.is_set()
    assert signals == []
    init.ended.set()
    await guard
    assert signals == [signal.SIGKILL]


async def test_files_that_cannot_be_removed_end_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove_tree(_path: Path) -> None:
        raise ResourceExhausted("no descriptor is left")

    running = command(tmp_path / "exec", [])
    running.directory.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(files, "remove_tree", remove_tree)
        await running.clear()
    assert running.directory.exists()
    await running.clear()
    assert not running.directory.exists()
