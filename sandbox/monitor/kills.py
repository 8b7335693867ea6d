"""Whether a container was killed for lack of memory, also when its control group is gone already.

The kernel counts such kills in the group. With the systemd driver the group goes the moment it is
empty, before anybody has been told of the end; conmon's own mark then comes or does not. But on
version 2 a group's count includes those of groups that were below it, and keeps them when they go
(cgroup-v2.rst, "memory.events": hierarchical), and the pod's group stays. So the pod's count is
noted when a container is first watched and at each end: a container that ended by SIGKILL, whose
group cannot be asked any more, while the pod's count rose, was killed for memory.

Kills that were told of one container are not told of another. One case can be mistaken: another
container's process that was not its first was killed for memory, and this one, whose group is gone
too, by somebody else. It then says OOMKilled where Error would be right; without any of this every
second OOM kill said Error where systemd was quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from sandbox.host.errors import PodwrightError
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

#: What a shell and the CRI call an end by SIGKILL.
KILLED: Final = 128 + 9

_log = get_logger("kills")


class KillCounts(Protocol):
    """Where the kernel's counts are read; `sandbox.cgroups.Cgroups`."""

    async def oom_kills(self, cgroup: str) -> int | None:
        """Kills at and below a container's group; None when it is gone or does not say."""
        ...

    async def oom_kills_above(self, cgroup: str) -> int | None:
        """The same of the group that the container's is in."""
        ...

    def group_above(self, cgroup: str) -> str:
        """Its path."""
        ...


@dataclass(slots=True)
class _Noted:
    """Kills in the pod's group `above` that are not this container's."""

    above: str
    kills: int


class MemoryKills:
    """Tells whose kills the kernel counted. For one event loop."""

    def __init__(self, counts: KillCounts) -> None:
        self._counts = counts
        self._noted: dict[str, _Noted] = {}

    async def begin(self, container_id: str, cgroup: str) -> None:
        """Note what the pod's group had before this container could be killed."""
        if not cgroup or container_id in self._noted:
            return
        count = await self._ask(self._counts.oom_kills_above, cgroup)
        if count is not None:
            self._noted[container_id] = _Noted(self._counts.group_above(cgroup), count)

    async def own(self, cgroup: str) -> int | None:
        """What the container's own group counts; None when it cannot be asked."""
        return await self._ask(self._counts.oom_kills, cgroup) if cgroup else None

    async def unseen(self, container_id: str, cgroup: str) -> int:
        """Kills in the pod's group that nobody's end has explained since `begin`."""
        noted = self._noted.get(container_id)
        count = await self._ask(self._counts.oom_kills_above, cgroup) if noted else None
        return max(0, count - noted.kills) if noted and count is not None else 0

    def end(self, container_id: str, kills: int) -> None:
        """Forget a container; its `kills` are not those of the others in its pod."""
        noted = self._noted.pop(container_id, None)
        if noted is not None and kills:
            for other in self._noted.values():
                if other.above == noted.above:
                    other.kills += kills

    async def _ask(self, ask: Callable[[str], Awaitable[int | None]], cgroup: str) -> int | None:
        try:
            return await ask(cgroup)
        except PodwrightError as error:
            _log.warning("memory kills cannot be read", cgroup=cgroup, error=str(error))
            return None
