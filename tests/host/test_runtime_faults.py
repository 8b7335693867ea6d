"""crun and runc when they hang, are killed half-way, lose their files, or are called for pause."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from sandbox.errors import RuntimeBusy, RuntimeMissing, RuntimeTimeout
from sandbox.host.libc import LibcSyscalls
from sandbox.host.mounts import Mount, list_mounts, mount_one
from sandbox.runtime import proctree
from sandbox.runtime.driver import RuntimeStatus
from sandbox.settings import SandboxTimeouts
from tests.host.runtime_node import (
    RUNTIMES,
    RuntimeNode,
    alive,
    command_lines,
    identity,
    until,
)

pytestmark = [pytest.mark.root, pytest.mark.slow]

Make = Callable[..., RuntimeNode]


@pytest.fixture(params=RUNTIMES)
async def make(
    request: pytest.FixtureRequest, tmp_path: Path, cgroup_path: str
) -> AsyncIterator[Make]:
    nodes: list[RuntimeNode] = []

    def build(**changes: object) -> RuntimeNode:
        root = tmp_path / f"n{len(nodes)}"
        nodes.append(RuntimeNode(root, cgroup_path, request.param, **changes))
        return nodes[-1]

    yield build
    for node in nodes:
        await node.clean()


def slow_hook(tmp_path: Path) -> dict[str, object]:
    script = tmp_path / "hook"
    script.write_text("#!/bin/sh\nsleep 1235\n")
    script.chmod(0o755)
    hook = {"path": str(script), "args": ["hook"], "env": ["PATH=/bin:/usr/bin"]}
    return {"createRuntime": [hook]}


def open_files(pid: int) -> set[str]:
    found = set()
    for name in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile, as by the execution of the program
            found.add(str(name.readlink()))
    return found


def wrapper(tmp_path: Path, script: str) -> Path:
    path = tmp_path / "wrapped-runtime"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


async def test_a_pause_process_is_init_s_child_with_nothing_open(make: Make) -> None:
    node = make()
    cid, bundle = node.bundle("/bin/sleep", "1000")
    pid = await node.runtime.create(bundle, cid, bundle / "pid")
    await node.runtime.start(cid)
    (info,) = proctree.snapshot([pid])
    assert info.parent != os.getpid()
    # runc's start answers a moment before its init has become the program.
    await until(lambda: open_files(pid) == {"/dev/null"})


async def test_a_hanging_create_is_killed_and_forgotten(make: Make, tmp_path: Path) -> None:
    node = make(timeouts=SandboxTimeouts(create_s=0.5))
    cid, bundle = node.bundle("/bin/true", hooks=slow_hook(tmp_path))
    with pytest.raises(RuntimeTimeout):
        await node.runtime.create(bundle, cid, bundle / "pid")
    assert await node.runtime.state(cid) is None
    await node.cgroups.kill(node.cgroup(cid))
    await until(lambda: not command_lines(cid))
    await node.cgroups.remove(node.cgroup(cid))
    assert not any(directory.exists() for directory in node.cgroups.directories(node.cgroup(cid)))
    await until(lambda: not command_lines(str(tmp_path / "hook")))


@pytest.mark.cell("CC6", "HD7")
async def test_a_runtime_killed_in_a_hook_is_broken_not_gone(make: Make, tmp_path: Path) -> None:
    """Killed there, both leave a directory without a good state; `delete` must cope."""
    node = make()
    cid, bundle = node.bundle("/bin/true", hooks=slow_hook(tmp_path))
    spawned = await node.runner.spawn(
        (
            str(node.handler.path),
            f"--root={node.handler.root}",
            "create",
            f"--bundle={bundle}",
            cid,
        )
    )
    await until(lambda: command_lines(str(tmp_path / "hook")))
    spawned.kill_group()
    await spawned.wait()
    state = await node.runtime.state(cid)
    assert state is not None
    await node.cgroups.kill(node.cgroup(cid))
    await node.runtime.delete(cid, force=True)
    assert await node.runtime.state(cid) is None
    assert await node.runtime.containers() == frozenset()
    await node.cgroups.remove(node.cgroup(cid))
    await until(lambda: not command_lines(str(tmp_path / "hook")))


@pytest.mark.cell("HD7")
async def test_a_status_file_without_sense_is_broken_and_can_be_deleted(make: Make) -> None:
    node = make()
    cid, bundle = node.bundle("/bin/sleep", "1000")
    pid = await node.runtime.create(bundle, cid, bundle / "pid")
    name = "status" if node.handler.name == "crun" else "state.json"
    (node.handler.root / cid / name).write_text("{")
    state = await node.runtime.state(cid)
    assert state is not None
    assert state.status is RuntimeStatus.BROKEN
    ref = identity(pid)
    await node.runtime.delete(cid, force=True, init=ref)
    assert await node.runtime.containers() == frozenset()
    await node.cgroups.kill(node.cgroup(cid))
    await until(lambda: not alive(ref))


@pytest.mark.cell("HD7")
async def test_a_mount_left_among_the_books_goes_with_them(make: Make) -> None:
    """As by a runc that was killed while it mounted its own program there."""
    node = make()
    cid, bundle = node.bundle("/bin/sleep", "1000")
    await node.runtime.create(bundle, cid, bundle / "pid")
    left = node.handler.root / cid / "runc.1GJsOg"
    left.touch()
    mount_one(Mount("bind", str(node.handler.path), left), syscalls=LibcSyscalls())
    await node.runtime.delete(cid, force=True)
    assert await node.runtime.containers() == frozenset()
    assert not [mount for mount in list_mounts() if mount.target == left]


async def test_state_lost_behind_our_back(make: Make) -> None:
    node = make()
    cid, bundle = node.bundle("/bin/sleep", "1000")
    await node.runtime.create(bundle, cid, bundle / "pid")
    shutil.rmtree(node.handler.root / cid)
    assert await node.runtime.state(cid) is None
    await node.runtime.delete(cid, force=True)


async def test_a_frozen_process_is_busy_until_thawed(make: Make) -> None:
    node = make(timeouts=SandboxTimeouts(kill_s=0.3))
    cid, _ = await node.run("/bin/sleep", "1000")
    await node.runtime.pause(cid)
    with pytest.raises(RuntimeBusy, match="does not end"):
        await node.runtime.delete(cid, force=True)
    assert await node.cgroups.kill(node.cgroup(cid))
    await node.runtime.delete(cid, force=True)
    assert await node.runtime.containers() == frozenset()


async def test_a_runtime_that_hangs_is_killed_with_its_children(make: Make, tmp_path: Path) -> None:
    seconds = f"1236.{secrets.randbits(32)}"  # nobody else sleeps so long
    node = make(
        program=wrapper(tmp_path, f"sleep {seconds} & sleep {seconds}"),
        timeouts=SandboxTimeouts(operation_s=0.3),
    )
    with pytest.raises(RuntimeTimeout, match="start did not finish within"):
        await node.runtime.start("a" * 64)
    await until(lambda: not command_lines(seconds))


async def test_a_missing_runtime_is_told_with_its_path(make: Make, tmp_path: Path) -> None:
    node = make(program=tmp_path / "nowhere")
    for call in (node.runtime.start("a" * 64), node.runtime.probe()):
        with pytest.raises(RuntimeMissing, match="nowhere"):
            await call
    cid, bundle = node.bundle("/bin/true")
    with pytest.raises(RuntimeMissing, match="nowhere"):
        await node.runtime.create(bundle, cid, bundle / "pid")


async def test_endless_words_of_a_runtime_are_cut(make: Make, tmp_path: Path) -> None:
    node = make(program=wrapper(tmp_path, "head -c 3000000 /dev/zero | tr '\\0' x >&2; exit 1"))
    with pytest.raises(Exception, match="start failed") as caught:
        await node.runtime.start("a" * 64)
    assert len(str(caught.value)) < 4096


async def test_update_reaches_the_cgroup_and_refusals_are_told(make: Make) -> None:
    node = make()
    cid, _ = await node.run("/bin/sleep", "1000")
    await node.runtime.update(cid, b'{"cpu": {"shares": 777}}')
    assert node.cgroups.layout.read(node.cgroup(cid), "cpu", "cpu.shares") == "777"
    with pytest.raises(RuntimeBusy):
        await node.runtime.update(cid, b'{"memory": {"limit": 4096}}')


async def test_many_containers_at_once(make: Make) -> None:
    node = make()

    async def life() -> None:
        cid, bundle = node.bundle("/bin/sleep", "1000")
        await node.runtime.create(bundle, cid, bundle / "pid")
        await node.runtime.start(cid)
        await node.runtime.delete(cid, force=True)

    await asyncio.gather(*(life() for _ in range(8)))
    assert await node.runtime.containers() == frozenset()
