"""A start is recorded before it happens, and noted before it is answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from sandbox.containers import ContainerEngine
from sandbox.endings import Endings as RealEndings
from sandbox.errors import RuntimeBusy, RuntimeFailed
from sandbox.host.clock import SystemClock
from sandbox.host.database import Connection
from sandbox.host.errors import PodwrightError, ResourceExhausted
from sandbox.model import Container, ContainerConfig
from sandbox.states import ContainerState
from sandbox.store import StateStore
from tests.fakes.runtime import FakeRuntime


class Anything:
    """Does nothing, at once."""

    def __getattr__(self, name: str) -> object:
        return lambda *_args, **_options: None


class Endings(Anything):
    """Notes which starts failed, and whether they were over then."""

    def __init__(self) -> None:
        self.begun = False
        self.failed: list[str] = []

    @contextmanager
    def starting(self, _container_id: str) -> Iterator[None]:
        self.begun = True
        yield
        self.begun = False

    async def start_failed(self, _container: Container, error: PodwrightError) -> None:
        assert not self.begun
        self.failed.append(str(error))


class Scene:
    """An engine with one created container."""

    def __init__(self, store: StateStore, runtime: FakeRuntime, group: asyncio.TaskGroup) -> None:
        self.store, self.runtime, self.endings = store, runtime, Endings()
        nothing = Anything()
        self.engine = ContainerEngine(
            paths=nothing,  # type: ignore[arg-type]
            store=store,
            runtimes={"": runtime},
            conmon=nothing,  # type: ignore[arg-type]
            exits=nothing,  # type: ignore[arg-type]
            endings=self.endings,  # type: ignore[arg-type]
            limits=nothing,  # type: ignore[arg-type]
            cgroups=nothing,  # type: ignore[arg-type]
            syscalls=nothing,  # type: ignore[arg-type]
            clock=SystemClock(),
            group=group,
        )

    async def created(self, directory: Path) -> Container:
        container = Container(
            id="b" * 64,
            pod_id="a" * 64,
            config=ContainerConfig(name="c"),
            state=ContainerState.CREATED,
            created_at_ns=1,
        )
        (directory / "config.json").write_text(json.dumps({"process": {"args": ["true"]}}))
        await self.runtime.create(directory, container.id, directory / "pid")
        self.runtime.calls.clear()
        await self.store.add_container(container)
        return container

    async def stored(self) -> Container:
        def work(connection: Connection) -> object:
            return connection.execute("SELECT document FROM containers").fetchall()[0][0]

        return msgspec.json.decode(await self.store._database.read(work), type=Container)  # type: ignore[arg-type]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[StateStore]:
    opened = await StateStore.open(tmp_path / "state.db")
    yield opened
    await opened.close()


@pytest.mark.parametrize("is_quick", [False, True])
async def test_a_start_is_noted_in_memory_and_on_disk(
    store: StateStore, tmp_path: Path, is_quick: bool
) -> None:
    async with asyncio.TaskGroup() as group:
        scene = Scene(store, FakeRuntime(is_quick=is_quick), group)
        container = await scene.created(tmp_path)
        running = await scene.engine.start(container.id)
        assert running.state is ContainerState.RUNNING
        assert store.containers[container.id] is running
        assert running.started_at_ns >= running.start_begun_ns > 0
        asked = [call.operation for call in scene.runtime.calls]
        assert asked == ["quick_start" if is_quick else "start"]
        assert (await scene.stored()).state is ContainerState.RUNNING
    assert not scene.endings.failed


@pytest.mark.parametrize("is_quick", [False, True])
async def test_without_the_record_of_the_intent_nothing_is_started(
    store: StateStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_quick: bool
) -> None:
    async def refuse(*_args: object, **_options: object) -> None:
        raise ResourceExhausted("database is full")

    async with asyncio.TaskGroup() as group:
        scene = Scene(store, FakeRuntime(is_quick=is_quick), group)
        container = await scene.created(tmp_path)
        monkeypatch.setattr(store._database, "write", refuse)
        with pytest.raises(ResourceExhausted):
            await scene.engine.start(container.id)
        monkeypatch.undo()
    assert scene.runtime.calls == []
    assert store.containers[container.id] is container
    assert not scene.endings.failed


async def test_the_intent_is_on_record_when_it_is_started(
    store: StateStore, tmp_path: Path
) -> None:
    class Curious(FakeRuntime):
        async def start(self, cid: str) -> None:
            assert (await scene.stored()).start_begun_ns > 0
            await super().start(cid)

    async with asyncio.TaskGroup() as group:
        scene = Scene(store, Curious(), group)
        container = await scene.created(tmp_path)
        await scene.engine.start(container.id)


async def test_what_cannot_be_started_quickly_is_the_runtime_s_to_start_or_to_explain(
    store: StateStore, tmp_path: Path
) -> None:
    async with asyncio.TaskGroup() as group:
        scene = Scene(store, FakeRuntime(is_quick=True), group)
        container = await scene.created(tmp_path)
        await scene.runtime.start(container.id)  # by somebody else
        with pytest.raises(RuntimeBusy):
            await scene.engine.start(container.id)
        assert [call.operation for call in scene.runtime.calls] == ["start", "start"]
    assert len(scene.endings.failed) == 1


async def test_a_failure_is_told_as_it_is(store: StateStore, tmp_path: Path) -> None:
    async with asyncio.TaskGroup() as group:
        runtime = FakeRuntime(fail={"start": [RuntimeFailed("no such program")]})
        scene = Scene(store, runtime, group)
        container = await scene.created(tmp_path)
        with pytest.raises(RuntimeFailed, match="no such program"):
            await scene.engine.start(container.id)
    assert scene.endings.failed == [str(RuntimeFailed("no such program"))]


async def test_what_ended_before_its_start_was_on_record_began_with_the_intent(
    store: StateStore, tmp_path: Path
) -> None:
    """As the daemon after one that was killed right after its answer sees it."""
    async with asyncio.TaskGroup() as group:
        scene = Scene(store, FakeRuntime(), group)
        container = await scene.created(tmp_path)
        begun = msgspec.structs.replace(container, start_begun_ns=100)
        await store.save(begun)
        nothing = Anything()
        endings = RealEndings(
            paths=nothing,  # type: ignore[arg-type]
            store=store,
            roots=nothing,  # type: ignore[arg-type]
            runtimes={},
            exits=nothing,  # type: ignore[arg-type]
            cgroups=nothing,  # type: ignore[arg-type]
            leavings=nothing,  # type: ignore[arg-type]
            limits=nothing,  # type: ignore[arg-type]
            syscalls=nothing,  # type: ignore[arg-type]
            clock=SystemClock(),
            group=group,
        )
        endings.begin_cleanup = nothing.begin_cleanup  # type: ignore[assignment,method-assign]
        await endings.record_exit(begun, 3, 90, oom=False, message="")
    ended = store.containers[container.id]
    assert (ended.state, ended.exit_code) == (ContainerState.EXITED, 3)
    assert (ended.started_at_ns, ended.finished_at_ns) == (100, 100)
