"""Programs are started beside the event loop, and a start that is called off leaves nothing."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path

import pytest

from sandbox.host.errors import NotFound
from sandbox.host.processes import HostProcessRunner
from sandbox.host.spawning import AUDIT_EVENT, SPAWNER_NAME
from tests.kit.held import children, descriptors


class Gate:
    """Holds the next start of a program until it is opened."""

    def __init__(self) -> None:
        self.closed = False
        self.reached = threading.Event()
        self.opened = threading.Event()
        sys.addaudithook(self._heard)  # for good: there is no way to take one back

    def _heard(self, event: str, _arguments: tuple[object, ...]) -> None:
        if event == AUDIT_EVENT and self.closed:
            self.closed = False
            self.reached.set()
            self.opened.wait()


@pytest.fixture
def gate() -> Gate:
    gate = Gate()
    gate.closed = True
    return gate


async def until_reached(gate: Gate) -> None:
    while not gate.reached.is_set():  # noqa: ASYNC110 - set by another thread
        await asyncio.sleep(0.001)


async def test_the_loop_goes_on_while_a_program_is_being_started(gate: Gate) -> None:
    running = asyncio.create_task(HostProcessRunner().run(["true"]))
    await until_reached(gate)  # by this loop, which therefore runs
    assert not running.done()
    gate.opened.set()
    assert (await running).exit_status == 0
    assert any(t.name.startswith(SPAWNER_NAME) for t in threading.enumerate())


async def test_a_start_that_is_called_off_leaves_no_program(gate: Gate, tmp_path: Path) -> None:
    before = children(os.getpid()), len(descriptors(os.getpid()))
    script = f"sleep 60; touch {tmp_path}/lived"
    starting = asyncio.create_task(HostProcessRunner().spawn(["sh", "-c", script]))
    await until_reached(gate)
    starting.cancel()
    starting.cancel()
    await asyncio.sleep(0)
    assert not starting.done()
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    while set(children(os.getpid())) - set(before[0]):  # noqa: ASYNC110 - the kernel sets no Event
        await asyncio.sleep(0.001)
    assert len(descriptors(os.getpid())) == before[1]
    assert not (tmp_path / "lived").exists()


async def test_a_directory_that_is_missing_is_not_taken_for_the_program(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as failed:
        await HostProcessRunner().run(["/bin/true"], cwd=tmp_path / "gone")
    assert "install" not in str(failed.value)
    with pytest.raises(NotFound, match="install"):
        await HostProcessRunner().run([str(tmp_path / "no-such-program")])
