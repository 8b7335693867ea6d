"""What every `OciRuntime` must do: the fake and, behind the mark `root`, crun and runc."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandbox.errors import CommandNotFound, RuntimeBusy, RuntimeFailed
from sandbox.host.errors import InvalidArgument, PodwrightError
from sandbox.model import ProcessRef
from sandbox.runtime.driver import OciRuntime, RuntimeStatus
from tests.fakes.runtime import FakeRuntime
from tests.host.runtime_node import RuntimeNode

REAL = (pytest.mark.root, pytest.mark.slow)


class Bench:
    """A runtime and a way to make bundles for it."""

    def __init__(self, runtime: OciRuntime, root: Path, node: RuntimeNode | None) -> None:
        self.runtime = runtime
        self._root = root
        self._node = node

    def bundle(self, *args: str) -> tuple[str, Path]:
        if self._node is not None:
            return self._node.bundle(*args)
        cid = secrets.token_hex(32)
        directory = self._root / cid
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps({"process": {"args": args}}))
        return cid, directory

    async def created(self, *args: str) -> str:
        cid, bundle = self.bundle(*(args or ("/bin/sleep", "1000")))
        await self.runtime.create(bundle, cid, bundle / "pid")
        return cid

    async def running(self) -> str:
        cid = await self.created()
        await self.runtime.start(cid)
        return cid

    async def status(self, cid: str) -> RuntimeStatus | None:
        state = await self.runtime.state(cid)
        return state.status if state is not None else None

    async def until(self, cid: str, status: RuntimeStatus) -> None:
        while await self.status(cid) is not status:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.fixture(params=["fake", pytest.param("crun", marks=REAL), pytest.param("runc", marks=REAL)])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    if request.param == "fake":
        yield Bench(FakeRuntime(missing={"/bin/nope"}), tmp_path, None)
        return
    node = RuntimeNode(tmp_path / "node", request.getfixturevalue("cgroup_path"), request.param)
    yield Bench(node.runtime, tmp_path, node)
    await node.clean()


async def test_create_leaves_a_waiting_process(bench: Bench) -> None:
    cid, bundle = bench.bundle("/bin/sleep", "1000")
    pid = await bench.runtime.create(bundle, cid, bundle / "pid")
    state = await bench.runtime.state(cid)
    assert state is not None
    assert (state.status, state.pid) == (RuntimeStatus.CREATED, pid)
    assert int((bundle / "pid").read_text()) == pid
    assert await bench.runtime.containers() == {cid}


async def test_start_runs_it_once(bench: Bench) -> None:
    cid = await bench.created()
    await bench.runtime.start(cid)
    assert await bench.status(cid) is RuntimeStatus.RUNNING
    with pytest.raises(RuntimeBusy):
        await bench.runtime.start(cid)


async def test_an_id_is_taken_until_deleted(bench: Bench) -> None:
    cid, bundle = bench.bundle("/bin/sleep", "1000")
    await bench.runtime.create(bundle, cid, bundle / "pid")
    other, directory = bench.bundle("/bin/sleep", "1000")
    (directory / "config.json").write_bytes((bundle / "config.json").read_bytes())
    del other
    with pytest.raises(RuntimeBusy):
        await bench.runtime.create(directory, cid, directory / "pid")
    assert await bench.status(cid) is RuntimeStatus.CREATED


async def test_a_killed_container_is_stopped_and_can_be_deleted(bench: Bench) -> None:
    cid = await bench.running()
    await bench.runtime.kill(cid, 9)
    await bench.until(cid, RuntimeStatus.STOPPED)
    state = await bench.runtime.state(cid)
    assert state is not None
    assert state.pid == 0
    await bench.runtime.kill(cid, 9)
    # A zombie of an init that is slow to reap makes both runtimes refuse the plain form.
    await bench.runtime.delete(cid, force=True)
    assert await bench.runtime.state(cid) is None


async def test_deleting_a_running_container_needs_force(bench: Bench) -> None:
    cid = await bench.running()
    with pytest.raises(PodwrightError):
        await bench.runtime.delete(cid)
    assert await bench.status(cid) is RuntimeStatus.RUNNING
    await bench.runtime.delete(cid, force=True)
    assert await bench.runtime.state(cid) is None
    assert await bench.runtime.containers() == frozenset()


async def test_deleting_is_idempotent_and_unknown_is_success(bench: Bench) -> None:
    cid = await bench.running()
    for _ in range(2):
        await bench.runtime.delete(cid, force=True)
    await bench.runtime.delete("0" * 64)
    await bench.runtime.delete("0" * 64, force=True)
    await bench.runtime.kill("0" * 64, 9)


async def test_force_does_not_kill_a_process_that_is_not_the_one_named(bench: Bench) -> None:
    cid = await bench.running()
    wrong = ProcessRef(pid=2, start_ticks=1, boot_id="another")
    with pytest.raises(RuntimeBusy):
        await bench.runtime.delete(cid, force=True, init=wrong)
    assert await bench.status(cid) is RuntimeStatus.RUNNING


async def test_a_created_container_can_be_deleted(bench: Bench) -> None:
    cid = await bench.created()
    await bench.runtime.delete(cid, force=True)
    assert await bench.runtime.state(cid) is None


async def test_unknown_containers(bench: Bench) -> None:
    assert await bench.runtime.state("0" * 64) is None
    for call in (bench.runtime.start, bench.runtime.pause, bench.runtime.resume):
        with pytest.raises(PodwrightError):
            await call("0" * 64)
    with pytest.raises(PodwrightError):
        await bench.runtime.update("0" * 64, b"{}")


async def test_pause_and_resume(bench: Bench) -> None:
    cid = await bench.running()
    await bench.runtime.pause(cid)
    assert await bench.status(cid) is RuntimeStatus.PAUSED
    await bench.runtime.resume(cid)
    assert await bench.status(cid) is RuntimeStatus.RUNNING


async def test_update_takes_oci_resources(bench: Bench) -> None:
    cid = await bench.running()
    await bench.runtime.update(cid, b'{"cpu": {"shares": 512}}')
    assert await bench.status(cid) is RuntimeStatus.RUNNING


async def test_a_bad_bundle_leaves_nothing(bench: Bench) -> None:
    cid, bundle = bench.bundle("/bin/true")
    (bundle / "config.json").write_text("{")
    with pytest.raises(RuntimeFailed):
        await bench.runtime.create(bundle, cid, bundle / "pid")
    assert await bench.runtime.state(cid) is None


async def test_a_missing_program_is_told_by_create_or_by_start(bench: Bench) -> None:
    with pytest.raises(CommandNotFound, match="/bin/nope"):
        await bench.runtime.start(await bench.created("/bin/nope"))


@pytest.mark.parametrize("cid", ["", "--force", "../x", "a/b", "A", "a" * 200, "a\0b", "a b"])
async def test_ids_that_are_not_ours_are_refused(bench: Bench, cid: str) -> None:
    with pytest.raises(InvalidArgument):
        await bench.runtime.delete(cid, force=True)
    with pytest.raises(InvalidArgument):
        await bench.runtime.state(cid)


async def test_probe_names_the_program(bench: Bench) -> None:
    info = await bench.runtime.probe()
    assert info.name == bench.runtime.handler.name
    assert info.version[0].isdigit()


async def test_a_quick_start_is_a_start(bench: Bench) -> None:
    """Where there is one; what it cannot start it leaves to `start`."""
    cid = await bench.created()
    quick = bench.runtime.quick_start(cid)
    if quick is None:
        await bench.runtime.start(cid)
    else:
        assert await asyncio.to_thread(quick)
        assert not await asyncio.to_thread(quick), "a second time is refused"
    assert await bench.status(cid) is RuntimeStatus.RUNNING
    assert bench.runtime.has(cid)
    assert not bench.runtime.has("f" * 64)
