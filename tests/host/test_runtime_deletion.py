"""Dead containers are forgotten without running crun and runc, and what is left is what they leave.

What is not for us to delete is in tests/unit/sandbox/test_runtime_deletion.py; here are the books
that the programs write.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandbox.host.pidfd import Process
from sandbox.runtime import deletion
from sandbox.runtime.crun import CommandRuntime
from sandbox.runtime.driver import RuntimeStatus
from sandbox.settings import RuntimeHandler
from tests.host.runtime_node import RuntimeNode, alive, kill, until

pytestmark = [pytest.mark.root]


@pytest.fixture(params=["crun", "runc"])
async def node(
    request: pytest.FixtureRequest, tmp_path: Path, cgroup_path: str
) -> AsyncIterator[RuntimeNode]:
    node = RuntimeNode(tmp_path, cgroup_path, request.param)
    yield node
    await node.clean()


class Watched:
    """A runtime that writes down what it is run for."""

    def __init__(self, node: RuntimeNode, tmp_path: Path) -> None:
        self._node = node
        self._calls = tmp_path / "calls"
        self._wrapper = tmp_path / "wrapped" / node.handler.name
        self._wrapper.parent.mkdir()
        script = f'#!/bin/sh\necho "$@" >> {self._calls}\nexec {node.handler.path} "$@"\n'
        self._wrapper.write_text(script)
        self._wrapper.chmod(0o755)

    async def runtime(self, **settings: bool) -> CommandRuntime:
        old = self._node.handler
        runtime = CommandRuntime(
            RuntimeHandler(name=old.name, path=self._wrapper, root=old.root),
            runner=self._node.runner,
            clock=self._node.clock,
            **({"direct_start": True, "direct_delete": True} | settings),
        )
        await runtime.probe()
        self._calls.write_text("")
        return runtime

    @property
    def deletions(self) -> list[str]:
        return [line for line in self._calls.read_text().splitlines() if " delete " in line]


@pytest.fixture
def watched(node: RuntimeNode, tmp_path: Path) -> Watched:
    return Watched(node, tmp_path)


async def dead(node: RuntimeNode, **changes: object) -> str:
    cid, made = await node.run("sleep", "1000", **changes)
    kill(made.init)
    await until(lambda: not alive(made.init))
    return cid


async def test_the_program_on_this_machine_is_known(node: RuntimeNode) -> None:
    assert deletion.known(await node.runtime.probe()) is not None


@pytest.mark.parametrize("pid_namespace", [True, False])
async def test_a_dead_container_is_forgotten_without_the_program(
    node: RuntimeNode, watched: Watched, pid_namespace: bool
) -> None:
    runtime = await watched.runtime()
    cid = await dead(node, pid_namespace=pid_namespace)
    await runtime.delete(cid, force=True)
    assert watched.deletions == []
    assert cid not in await node.runtime.containers()
    assert await node.runtime.state(cid) is None
    await runtime.delete(cid, force=True)
    await node.cgroups.kill(node.cgroup(cid))
    await node.cgroups.remove(node.cgroup(cid))
    assert not any(path.exists() for path in node.cgroups.directories(node.cgroup(cid)))


@pytest.mark.parametrize("settings", [{"direct_delete": False}, {"direct_start": False}], ids=str)
async def test_switched_off_the_program_does_it(
    node: RuntimeNode, watched: Watched, settings: dict[str, bool]
) -> None:
    runtime = await watched.runtime(**settings)
    cid = await dead(node)
    await runtime.delete(cid)
    assert len(watched.deletions) == 1
    assert cid not in await node.runtime.containers()


async def test_a_living_container_is_the_programs_to_refuse(
    node: RuntimeNode, watched: Watched
) -> None:
    runtime = await watched.runtime()
    cid, made = await node.run("sleep", "1000")
    with pytest.raises(Exception, match=r"not stopped|stopped` state"):
        await runtime.delete(cid)
    assert len(watched.deletions) == 1
    process = Process.open(made.init.pid, made.init.start_ticks, made.init.boot_id)
    assert process is not None
    with process:
        assert process.alive()
    await runtime.delete(cid, force=True, init=made.init)
    assert cid not in await node.runtime.containers()


async def test_a_created_container_is_the_programs_to_end(
    node: RuntimeNode, watched: Watched
) -> None:
    runtime = await watched.runtime()
    cid, _ = node.bundle("sleep", "1000")
    made = await node.conmon.create(node.request(cid))
    await runtime.delete(cid, force=True, init=made.init)
    assert watched.deletions
    await until(lambda: not alive(made.init))


async def test_poststop_hooks_are_run_by_the_program(
    node: RuntimeNode, watched: Watched, tmp_path: Path
) -> None:
    runtime = await watched.runtime()
    mark = tmp_path / "mark"
    # It reads what it is given: crun fails when a hook ends before.
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"/bin/cat > {mark}"]}
    cid = await dead(node, hooks={"poststop": [hook]})
    await runtime.delete(cid, force=True)
    assert mark.exists()
    assert len(watched.deletions) == 1


async def test_one_that_was_cut_off_is_gone_through_with(
    node: RuntimeNode, watched: Watched
) -> None:
    """Killed while the directory was being emptied, whichever file had gone first."""
    runtime = await watched.runtime()
    first = await dead(node)
    names = sorted(path.name for path in (node.handler.root / first).iterdir())
    for name in names:
        cid = await dead(node)
        (node.handler.root / cid / name).unlink()
        await runtime.delete(cid, force=True)
        assert cid not in await node.runtime.containers(), name


async def test_an_unknown_version_is_left_to_the_program(
    node: RuntimeNode, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "_KNOWN", {})
    runtime = await watched.runtime()
    cid = await dead(node)
    state = await runtime.state(cid)
    assert state is not None
    assert state.status is RuntimeStatus.STOPPED
    await runtime.delete(cid)
    assert len(watched.deletions) == 1
