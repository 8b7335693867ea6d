"""`PodStopping`: what begins when, and what a failure of one part leaves undone."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from cri.pod_stopping import PodStopping
from sandbox.host.errors import PodwrightError, Unavailable


class Pod(msgspec.Struct, frozen=True):
    id: str = "p"


class Parts:
    """Everything a stop works with; writes down what is called, and fails as it is told."""

    def __init__(self, *, attached=True, fail=(), head_start_s=3600.0):
        self.done = []
        self.fail = set(fail)
        self.attached = attached
        self.noting = asyncio.Event()
        self.noting.set()
        self.unplugging = asyncio.Event()
        self.unplugging.set()
        self.pods = {"p": Pod()}
        self.stopping = PodStopping(
            engine=self,
            network=self,
            store=self,
            containers=self,
            events=self,
            head_start_s=head_start_s,
        )
        self.turn = asyncio.Event()
        self.turn.set()
        self.processes_ended = asyncio.Event()

    def _do(self, name):
        self.done.append(name)
        if name in self.fail:
            raise Unavailable(f"{name} fails")

    async def note_stopped(self, pod_id):
        await self.noting.wait()
        self._do("noted")
        return True

    async def plug_out(self, pod, first=None):
        if not self.attached:
            return
        await self.turn.wait()
        self._do("looked up")
        await first()
        self._do("plugins")
        await self.unplugging.wait()
        self._do("unplugged")

    async def note_detached(self, pod):
        self._do("detached noted")

    async def kill_all_of(self, pod_id):
        self._do("containers")

    async def end_processes(self, pod):
        self._do("processes")

    async def let_go_beside(self, pod):
        self._do("other pins")
        self.processes_ended.set()

    async def let_go(self, pod):
        self._do("network pin")

    async def stop(self, pod):
        self._do("all again")

    def pod_stopped(self, pod):
        self._do("told")


async def settled():
    for _ in range(20):
        await asyncio.sleep(0)


async def test_plugins_begin_first_and_everything_else_beside_them():
    parts = Parts()
    parts.noting.clear()
    parts.unplugging.clear()
    stopping = asyncio.ensure_future(parts.stopping.stop("p"))
    await settled()
    assert parts.done == ["looked up"]  # and no plugin before the disk says that it is stopped

    parts.noting.set()
    await settled()
    assert parts.done == ["looked up", "noted", "plugins", "containers", "processes", "other pins"]

    parts.unplugging.set()
    assert await stopping
    assert parts.done[6:8] == ["unplugged", "told"]
    assert set(parts.done[8:]) == {"network pin", "detached noted"}


async def test_processes_do_not_wait_for_plugins_that_cannot_begin():
    parts = Parts(head_start_s=0)
    parts.turn.clear()
    stopping = asyncio.ensure_future(parts.stopping.stop("p"))
    await parts.processes_ended.wait()
    assert parts.done == ["noted", "containers", "processes", "other pins"]
    parts.turn.set()
    assert await stopping


async def test_a_pod_without_a_network_of_its_own_waits_for_none():
    parts = Parts(attached=False)
    assert await parts.stopping.stop("p")
    assert parts.done[-2:] == ["network pin", "detached noted"]
    assert "processes" in parts.done


async def test_an_unknown_pod_is_told_apart():
    assert not await Parts().stopping.stop("q")


@pytest.mark.parametrize("step", ["looked up", "plugins", "unplugged"])
async def test_where_the_network_cannot_be_detached_all_else_ends_and_its_pin_stays(step):
    parts = Parts(fail=[step])
    with pytest.raises(Unavailable, match=step):
        await parts.stopping.stop("p")
    assert {"containers", "processes", "other pins", "told"} <= set(parts.done)
    assert not {"network pin", "detached noted", "all again"} & set(parts.done)


async def test_a_container_that_does_not_end_is_reported_before_the_network():
    parts = Parts(fail=["containers", "unplugged"])
    with pytest.raises(Unavailable, match="containers"):
        await parts.stopping.stop("p")


@pytest.mark.parametrize("step", ["processes", "other pins"])
async def test_what_failed_beside_the_plugins_is_tried_again_with_the_rest(step):
    parts = Parts(fail=[step])
    assert await parts.stopping.stop("p")
    assert set(parts.done[-2:]) == {"all again", "detached noted"}


async def test_what_fails_again_is_reported_and_the_network_stays_detached():
    parts = Parts(fail=["processes", "all again"])
    with pytest.raises(PodwrightError, match="all again"):
        await parts.stopping.stop("p")
    assert "detached noted" in parts.done
