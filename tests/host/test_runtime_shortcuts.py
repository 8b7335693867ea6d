"""Starting without the runtime, running it from a read-only mount, cgroup moves kept ready."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from sandbox.host.cgroupfs import CgroupLayout
from sandbox.host.libc import LibcSyscalls
from sandbox.host.mountinfo import list_mounts
from sandbox.host.warmth import AttachWarmth, own_procs
from sandbox.monitor.request import Created
from sandbox.runtime import direct
from sandbox.runtime.crun import CommandRuntime
from sandbox.runtime.driver import RuntimeStatus
from sandbox.runtime.sealed import SealedProgram
from tests.host.runtime_node import RuntimeNode, alive, kill, until

pytestmark = [pytest.mark.root]


@pytest.fixture
async def node(tmp_path: Path, cgroup_path: str) -> AsyncIterator[RuntimeNode]:
    node = RuntimeNode(tmp_path, cgroup_path, "crun")
    yield node
    await node.clean()


async def created(node: RuntimeNode, *args: str, **changes: object) -> tuple[str, Created]:
    cid, _ = node.bundle(*args, **changes)  # type: ignore[arg-type]
    return cid, await node.conmon.create(node.request(cid))


def books(node: RuntimeNode, cid: str) -> Path:
    return node.handler.root / cid


async def test_a_started_container_runs_and_the_runtime_knows(node: RuntimeNode) -> None:
    assert direct.is_known(await node.runtime.probe())
    cid, _ = await created(node, "sh", "-c", "echo here; sleep 1000")
    assert (await node.runtime.state(cid)).status is RuntimeStatus.CREATED  # type: ignore[union-attr]
    assert direct.start(books(node, cid))
    await until(lambda: b"here" in node.log(cid))
    assert (await node.runtime.state(cid)).status is RuntimeStatus.RUNNING  # type: ignore[union-attr]
    assert not direct.start(books(node, cid)), "a second start is the runtime's to refuse"


async def test_with_the_setting_the_runtime_is_not_run(node: RuntimeNode, tmp_path: Path) -> None:
    """The program cannot start anything any more, and the container starts."""
    calls = tmp_path / "calls"
    wrapper = tmp_path / "crun"
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nexec {shutil.which("crun")} "$@"\n')
    wrapper.chmod(0o755)
    handler = type(node.handler)(name="crun", path=wrapper, root=node.handler.root)
    for wanted in (True, False):
        runtime = CommandRuntime(handler, runner=node.runner, clock=node.clock, direct_start=wanted)
        await runtime.probe()
        cid, _ = await created(node, "sleep", "1000")
        calls.write_text("")
        await runtime.start(cid)
        assert ("start" in calls.read_text()) is not wanted


async def test_a_start_that_was_cut_off_is_gone_through_with(node: RuntimeNode) -> None:
    """Killed between the two steps: the runtime says running, and nothing runs."""
    cid, made = await created(node, "sh", "-c", "echo here; sleep 1000")
    (books(node, cid) / "exec.fifo").unlink()
    assert (await node.runtime.state(cid)).status is RuntimeStatus.RUNNING  # type: ignore[union-attr]
    assert await node.runtime.complete_start(made.init)
    await until(lambda: b"here" in node.log(cid))
    assert not await node.runtime.complete_start(made.init)


async def test_poststart_hooks_are_run_by_the_runtime(node: RuntimeNode, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    # It reads what it is given: crun fails when a hook ends before.
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"/bin/cat > {mark}"]}
    cid, _ = await created(node, "sleep", "1000", hooks={"poststart": [hook]})
    assert not direct.start(books(node, cid))
    await node.runtime.start(cid)
    assert mark.exists()


async def test_a_dead_container_is_left_to_the_runtime_to_refuse(node: RuntimeNode) -> None:
    cid, made = await created(node, "sleep", "1000")
    kill(made.init)
    await until(lambda: not alive(made.init))
    assert not direct.start(books(node, cid))
    assert (books(node, cid) / "exec.fifo").exists(), "what the runtime looks at is as it was"


@pytest.mark.parametrize("planted", ["link", "file", "nothing", "config", "large", "link-config"])
def test_books_that_are_not_as_expected_are_left_alone(tmp_path: Path, planted: str) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"")
    where = tmp_path / "books"
    where.mkdir()
    config = where / "config.json"
    config.write_text('{"hooks": {}}')
    pipe = where / "exec.fifo"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if planted in ("link", "file", "nothing"):
            pipe.unlink()
        if planted == "link":
            pipe.symlink_to(target)
        elif planted == "file":
            pipe.write_bytes(b"")
        elif planted == "config":
            config.write_text('{"hooks": ')
        elif planted == "large":
            config.write_text('{"a": "' + "x" * (9 << 20) + '"}')
        elif planted == "link-config":
            config.rename(tmp_path / "config")
            config.symlink_to(tmp_path / "config")
        assert not direct.start(where)
        assert target.read_bytes() == b""
        assert os.read(reader, 1) == b"", "a byte was written to the pipe"
    finally:
        os.close(reader)


# The program on a read-only mount.


@pytest.fixture
def program(tmp_path: Path) -> Iterator[tuple[Path, SealedProgram]]:
    installed = tmp_path / "bin" / "tool"
    installed.parent.mkdir()
    shutil.copy("/bin/busybox", installed)
    sealed = SealedProgram(installed)
    yield installed, sealed
    sealed.unseal(syscalls=LibcSyscalls())


def test_nothing_can_be_written_to_a_sealed_program(
    program: tuple[Path, SealedProgram], tmp_path: Path
) -> None:
    installed, sealed = program
    assert sealed.path == installed
    sealed.seal(tmp_path / "sealed", syscalls=LibcSyscalls())
    assert sealed.path != installed
    assert sealed.path.samefile(installed)
    with pytest.raises(OSError, match="Read-only") as refused:
        sealed.path.open("r+b")
    assert refused.value.errno == errno.EROFS
    fd = os.open(sealed.path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Read-only"):
            # As through /proc/PID/exe of somebody who runs it (CVE-2019-5736).
            os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    finally:
        os.close(fd)


def test_an_upgraded_program_is_run_and_not_the_old_one(
    program: tuple[Path, SealedProgram], tmp_path: Path
) -> None:
    installed, sealed = program
    sealed.seal(tmp_path / "sealed", syscalls=LibcSyscalls())
    fresh = installed.with_name("fresh")
    shutil.copy("/bin/true", fresh)
    fresh.rename(installed)
    assert sealed.path == installed


def test_the_mount_of_a_killed_daemon_is_used_and_none_is_left(
    program: tuple[Path, SealedProgram], tmp_path: Path
) -> None:
    installed, sealed = program
    syscalls = LibcSyscalls()
    SealedProgram(installed).seal(tmp_path / "sealed", syscalls=syscalls)
    sealed.seal(tmp_path / "sealed", syscalls=syscalls)
    place = sealed.path
    assert [mount.target for mount in list_mounts()].count(place) == 1
    sealed.unseal(syscalls=syscalls)
    assert sealed.path == installed
    assert not place.exists()
    assert place not in {mount.target for mount in list_mounts()}


def test_the_mount_of_another_program_is_not_used(
    program: tuple[Path, SealedProgram], tmp_path: Path
) -> None:
    """As when the package was upgraded while no daemon ran."""
    installed, sealed = program
    syscalls = LibcSyscalls()
    SealedProgram(installed).seal(tmp_path / "sealed", syscalls=syscalls)
    fresh = installed.with_name("fresh")
    shutil.copy("/bin/true", fresh)
    fresh.rename(installed)
    sealed.seal(tmp_path / "sealed", syscalls=syscalls)
    assert sealed.path != installed
    assert sealed.path.samefile(installed)
    assert [mount.target for mount in list_mounts()].count(sealed.path) == 1


def test_a_program_that_is_not_there_is_not_sealed(tmp_path: Path) -> None:
    sealed = SealedProgram(tmp_path / "none")
    sealed.seal(tmp_path / "sealed", syscalls=LibcSyscalls())
    assert sealed.path == tmp_path / "none"


# Cgroup moves.


def test_a_move_changes_nothing_about_where_we_are() -> None:
    before = Path("/proc/self/cgroup").read_text()
    AttachWarmth(CgroupLayout.detect()).move()
    assert Path("/proc/self/cgroup").read_text() == before


async def test_moves_are_made_while_held_and_the_thread_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moved = threading.Semaphore(0)
    warmth = AttachWarmth(CgroupLayout.detect())
    real = warmth.move

    def move() -> None:
        real()
        moved.release()

    monkeypatch.setattr(warmth, "move", move)
    with warmth.held():
        for _ in range(3):
            assert await asyncio.to_thread(moved.acquire, timeout=60)
    warmth.close()
    assert "attach" not in {thread.name for thread in threading.enumerate()}
    with warmth.held():
        assert "attach" not in {thread.name for thread in threading.enumerate()}


def test_where_moves_are_impossible_calls_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    warmth = AttachWarmth(CgroupLayout(version=2, root=Path("/nonexistent")))
    with warmth.held():
        pass
    warmth.close()


@pytest.mark.parametrize(
    ("layout", "membership", "expected"),
    [
        (
            CgroupLayout(version=2, root=Path("/c")),
            "0::/system.slice/podwright.service\n",
            "/c/system.slice/podwright.service/cgroup.procs",
        ),
        (
            CgroupLayout(version=1, controllers={"pids": Path("/c/pids")}, root=Path("/c/unified")),
            "8:pids:/a\n0::/b\n",
            "/c/unified/b/cgroup.procs",
        ),
        (
            CgroupLayout(version=1, controllers={"cpu": Path("/c/cpu")}),
            "9:name=systemd:/x\n3:cpu,cpuacct:/a b\n",
            "/c/cpu/a b/cgroup.procs",
        ),
    ],
)
def test_the_own_group_is_found(
    layout: CgroupLayout, membership: str, expected: str, tmp_path: Path
) -> None:
    file = tmp_path / "cgroup"
    file.write_text(membership)
    assert own_procs(layout, file) == Path(expected)


@pytest.mark.parametrize("membership", ["0::/../..\n", "5:freezer:/\n", ""])
def test_a_group_out_of_sight_is_not_used(membership: str, tmp_path: Path) -> None:
    file = tmp_path / "cgroup"
    file.write_text(membership)
    with pytest.raises(LookupError):
        own_procs(CgroupLayout(version=2, root=Path("/c")), file)
