"""A creation that is called off undoes itself to the end, however often it is called off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cri.pod_lifecycle import PodLifecycle
from sandbox.host.errors import Cancelled, PodwrightError
from sandbox.model import (
    NamespaceMode,
    NamespaceOptions,
    PodConfig,
    PodMetadata,
    PodSandbox,
    PodSecurity,
)
from sandbox.states import PodState
from sandbox.store import StateStore

SECURITY = PodSecurity(namespaces=NamespaceOptions(network=NamespaceMode.NODE))


class Engine:
    """Makes pods of nothing; both the making and the taking apart wait until they are let."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self.fails = False
        self.building, self.undoing = asyncio.Event(), asyncio.Event()
        self.may_undo = asyncio.Event()
        self.undone: list[str] = []

    def on_stopped(self, call: object) -> None:
        """Nothing stops."""

    async def reserve(self, config: PodConfig, handler: str) -> PodSandbox:
        name = config.metadata.attempt
        pod = PodSandbox(id=f"{name:064}", config=config, state=PodState.CREATING, created_at_ns=1)
        await self._store.add_pod(pod)
        return pod

    async def pin_namespaces(self, pod: PodSandbox, sysctls: object) -> dict[str, Path]:
        self.building.set()
        if self.fails:
            raise PodwrightError("as told")
        await asyncio.Event().wait()
        return {}

    async def dismantle(self, pod: PodSandbox) -> None:
        self.undoing.set()
        await self.may_undo.wait()
        self.undone.append(pod.id)


class Silent:
    """Hears of everything."""

    def __getattr__(self, name: str) -> object:
        return lambda *_args, **_options: None


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[StateStore]:
    opened = await StateStore.open(tmp_path / "state.db")
    yield opened
    await opened.close()


def attempt(number: int) -> PodConfig:
    metadata = PodMetadata(name="n", uid="u", namespace="ns", attempt=number)
    return PodConfig(metadata=metadata, security=SECURITY)


@pytest.mark.parametrize("fails", [False, True], ids=["called off before", "failed before"])
async def test_an_undo_is_not_called_off(store: StateStore, fails: bool) -> None:
    async with asyncio.TaskGroup() as group:
        engine = Engine(store)
        engine.fails = fails
        silent = Silent()
        pods = PodLifecycle(
            engine=engine,  # type: ignore[arg-type]
            network=silent,  # type: ignore[arg-type]
            store=store,
            containers=silent,  # type: ignore[arg-type]
            events=silent,  # type: ignore[arg-type]
            retries=silent,  # type: ignore[arg-type]
            group=group,
        )
        oldest = group.create_task(_outcome(pods, 0))
        await engine.building.wait()
        older = None if fails else group.create_task(_outcome(pods, 1))
        await engine.undoing.wait()
        newest = group.create_task(_outcome(pods, 2))
        for _ in range(20):
            await asyncio.sleep(0)
        assert engine.undone == []
        assert len(store.pods) == 1
        engine.building.clear()
        engine.may_undo.set()
        assert isinstance(await oldest, PodwrightError)
        await engine.building.wait()  # one of the newer ones has begun
        assert engine.undone == [f"{0:064}"]
        assert f"{0:064}" not in store.pods
        await pods.close(0)
        for caller in (older, newest):
            if caller is not None:
                assert isinstance(await caller, Cancelled | PodwrightError)
    assert not store.pods


async def _outcome(pods: PodLifecycle, number: int) -> object:
    try:
        return await pods.run(attempt(number), "")
    except PodwrightError as error:
        return error
