"""Whose memory kills the kernel counted, when groups of several containers are gone."""

from __future__ import annotations

from sandbox.monitor.kills import MemoryKills


class Kernel:
    """One pod's group, and what is left of its containers' groups."""

    def __init__(self) -> None:
        self.pod = 7
        self.own: dict[str, int] = {}

    async def oom_kills(self, cgroup: str) -> int | None:
        return self.own.get(cgroup)

    async def oom_kills_above(self, _cgroup: str) -> int | None:
        return self.pod

    def group_above(self, cgroup: str) -> str:
        return cgroup.rpartition("/")[0]


async def test_a_kill_is_told_of_one_container_only() -> None:
    kernel = Kernel()
    kills = MemoryKills(kernel)
    for name in "ab":
        await kills.begin(name, f"/pod/{name}")
    kernel.pod += 1
    assert await kills.unseen("a", "/pod/a") == 1
    kills.end("a", 1)
    assert await kills.unseen("b", "/pod/b") == 0
    kernel.pod += 1
    assert await kills.unseen("b", "/pod/b") == 1


async def test_kills_of_before_are_nobodys() -> None:
    kernel = Kernel()
    kills = MemoryKills(kernel)
    await kills.begin("a", "/pod/a")
    assert await kills.unseen("a", "/pod/a") == 0
    assert await kills.unseen("never begun", "/pod/x") == 0


async def test_another_pods_containers_keep_their_own_account() -> None:
    kernel = Kernel()
    kills = MemoryKills(kernel)
    await kills.begin("a", "/pod/a")
    await kills.begin("b", "/other/b")
    kills.end("a", 1)
    kernel.pod += 1
    assert await kills.unseen("b", "/other/b") == 1


async def test_what_is_begun_again_keeps_its_first_count() -> None:
    kernel = Kernel()
    kills = MemoryKills(kernel)
    await kills.begin("a", "/pod/a")
    kernel.pod += 1
    await kills.begin("a", "/pod/a")
    assert await kills.unseen("a", "/pod/a") == 1
