"""A stop of a container whose creation is undone meanwhile ends with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from cri.container_lifecycle import ContainerLifecycle
from sandbox.containers import ContainerEngine
from sandbox.host.clock import SystemClock
from sandbox.host.errors import PodwrightError
from sandbox.model import Container, ContainerConfig
from sandbox.states import ContainerState
from sandbox.store import StateStore

MADE = Container(
    id="b" * 64,
    pod_id="a" * 64,
    config=ContainerConfig(name="c"),
    state=ContainerState.CREATED,
    created_at_ns=1,
)


class Anything:
    """Does nothing, at once."""

    def __getattr__(self, name: str) -> object:
        return lambda *_args, **_options: None


class Endings(Anything):
    """Takes apart, or cannot."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.fails = False

    async def kill_everything(self, _container: Container) -> None:
        self.asked.set()

    async def dismantle(self, _container: Container) -> None:
        if self.fails:
            raise PodwrightError("as told")


class Images(Anything):
    """Holds nothing."""

    async def release(self, _container_id: str) -> None:
        """Nothing is held."""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[StateStore]:
    opened = await StateStore.open(tmp_path / "state.db")
    yield opened
    await opened.close()


@pytest.mark.parametrize("fails", [False, True], ids=["undone", "not undone"])
async def test_a_stop_waits_for_no_exit_of_what_is_taken_apart(
    store: StateStore, fails: bool
) -> None:
    await store.add_container(MADE)
    nothing, endings = Anything(), Endings()
    endings.fails = fails
    async with asyncio.TaskGroup() as group:
        engine = ContainerEngine(
            paths=nothing,  # type: ignore[arg-type]
            store=store,
            runtimes={},
            conmon=nothing,  # type: ignore[arg-type]
            exits=nothing,  # type: ignore[arg-type]
            endings=endings,  # type: ignore[arg-type]
            limits=nothing,  # type: ignore[arg-type]
            cgroups=nothing,  # type: ignore[arg-type]
            syscalls=nothing,  # type: ignore[arg-type]
            clock=SystemClock(),
            group=group,
        )
        containers = ContainerLifecycle(
            engine=engine,
            endings=endings,  # type: ignore[arg-type]
            composer=nothing,  # type: ignore[arg-type]
            execs=nothing,  # type: ignore[arg-type]
            images=Images(),  # type: ignore[arg-type]
            store=store,
            paths=nothing,  # type: ignore[arg-type]
            events=nothing,  # type: ignore[arg-type]
            retries=nothing,  # type: ignore[arg-type]
            group=group,
        )
        stopping = group.create_task(containers.stop(MADE.id, 0))
        await endings.asked.wait()
        assert not stopping.done()
        with pytest.raises(PodwrightError) if fails else nullcontext():
            await containers.finish(MADE)
        await stopping
