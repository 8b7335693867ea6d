"""Where pods and containers live in the cgroup tree, and how they are emptied and removed.

Two drivers, as the kubelet knows them:

- `cgroupfs`: a container's cgroup is `<parent>/<id>`; the OCI document says exactly that path.
- `systemd`: the parent is a slice (its last component counts: the kubelet may send the whole path)
  and each container a scope in it. The OCI document says `slice:podwright:id`, and the runtime has
  systemd make `podwright-<id>.scope`. The slice `a-b.slice` lies at `/a.slice/a-b.slice`
  (systemd.slice(5)).

A pod whose request names no parent gets one of its own, below `podwright`. Only such parents are
created, limited and removed by us; the kubelet's are the kubelet's. With systemd they are units, so
systemd makes, limits and forgets them: a slice that merely lost its directory would stay in its
books for ever.

What is stored about an object is the OCI text, since every real path follows from it.
"""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import InvalidArgument, NotFound, Unsupported
from sandbox.host.pidfd import is_zombie
from sandbox.host.threads import to_its_end
from sandbox.limits import Limit, check_memory, hugepage_limits, set_limits
from sandbox.slices import slice_properties

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox.host.cgroupfs import CgroupLayout
    from sandbox.host.clock import Clock
    from sandbox.host.systemd import Systemd
    from sandbox.model import LinuxResources
    from sandbox.settings import CgroupDriver

#: Name of the parent of pods without one, and prefix of our scopes.
NAME: Final = "podwright"

#: What crun calls the cgroup that it makes below a scope (crun(1), run.oci.systemd.subgroup).
_CRUN_SUBGROUP: Final = "container"

#: Where swap is limited: together with memory on version 1, by itself on version 2.
SWAP_FILES: Final = ("memory.memsw.limit_in_bytes", "memory.swap.max")

#: Pauses between looks at a cgroup that is being emptied (seconds): doubled from first to last.
_PAUSE_FIRST_S: Final = 0.002
_PAUSE_LAST_S: Final = 0.25


def default_parent(driver: CgroupDriver, pod_id: str) -> str:
    """The parent of a pod whose request names none."""
    return f"{NAME}-pod{pod_id}.slice" if driver == "systemd" else f"/{NAME}/pod{pod_id}"


def slice_path(name: str) -> str:
    """Where systemd puts a slice: `a-b.slice` -> `/a.slice/a-b.slice`; `-.slice` is the root.

    Raises:
        InvalidArgument: not the name of a slice.
    """
    stem = name.removesuffix(".slice")
    if name == "-.slice":
        return "/"
    parts = stem.split("-")
    if stem == name or "/" in name or not all(parts):
        raise InvalidArgument(
            "cgroup parent is not a systemd slice",
            cgroup_parent=name[:256],
            hint="the cgroup driver is systemd: the kubelet's cgroupDriver must be so too",
        )
    return "".join(f"/{'-'.join(parts[: count + 1])}.slice" for count in range(len(parts)))


def real_path(cgroup: str) -> str:
    """The path below each hierarchy's root that an OCI cgroupsPath stands for."""
    pieces = cgroup.split(":")
    if len(pieces) != 3:
        return cgroup
    parent, prefix, name = pieces
    return f"{slice_path(parent).rstrip('/')}/{prefix}-{name}.scope"


def limited_path(layout: CgroupLayout, cgroup: str) -> str:
    """The real path of the cgroup that has a container's limits, and all of its processes.

    With systemd and version 2, crun makes a cgroup below the scope, because systemd may at any time
    write its own idea of a scope's files; the scope itself has no limit then. What else a container
    may make of that name limits nobody but itself.
    """
    path = real_path(cgroup)
    if layout.version == 2 and layout.root is not None and path != cgroup:
        inner = f"{path}/{_CRUN_SUBGROUP}"
        if (layout.root / inner[1:]).is_dir():
            return inner
    return path


def _checked_parent(parent: str) -> str:
    parts = parent.split("/")
    if "\0" in parent or ":" in parent or any(part in {".", ".."} for part in parts):
        raise InvalidArgument("cgroup parent must be a plain path", cgroup_parent=parent[:256])
    return "/" + "/".join(part for part in parts if part)


class Cgroups:
    """Names, prepares, empties and removes cgroups; see the module text."""

    def __init__(
        self,
        layout: CgroupLayout,
        driver: CgroupDriver,
        *,
        clock: Clock,
        kill_s: float = 10.0,
        systemd: Systemd | None = None,
    ) -> None:
        """Use the hierarchies of `layout`.

        Args:
            layout: the machine's.
            driver: who makes groups.
            clock: for waits.
            kill_s: bounds one `kill` (seconds).
            systemd: makes the parents of pods without one; needed by that driver.
        """
        self._layout = layout
        self._driver = driver
        self._units = systemd if driver == "systemd" else None
        self._clock = clock
        self._kill_s = kill_s

    @property
    def layout(self) -> CgroupLayout:
        """The machine's hierarchies."""
        return self._layout

    @property
    def driver(self) -> CgroupDriver:
        """Who makes the cgroups."""
        return self._driver

    @property
    def systemd(self) -> bool:
        """Whether the runtime must be told to go through systemd."""
        return self._driver == "systemd"

    # Names.

    def pod_cgroup(self, parent: str, pod_id: str) -> str:
        """OCI cgroupsPath of a pod's pause process.

        Raises:
            InvalidArgument: the parent is no plain path, or no slice where one is needed.
        """
        return self.container_cgroup(parent, pod_id, pod_id)

    def container_cgroup(self, parent: str, pod_id: str, container_id: str) -> str:
        """OCI cgroupsPath of a container of the pod. Raises as `pod_cgroup`."""
        chosen = parent or default_parent(self._driver, pod_id)
        if self._driver == "systemd":
            name = _checked_parent(chosen).rpartition("/")[2]
            slice_path(name)
            return f"{name}:{NAME}:{container_id}"
        return f"{_checked_parent(chosen).rstrip('/')}/{container_id}"

    def parent_path(self, parent: str, pod_id: str) -> str:
        """Real path of the pod-level cgroup, the one all of the pod's containers are in."""
        cgroup = real_path(self.pod_cgroup(parent, pod_id))
        return cgroup.rpartition("/")[0] or "/"

    def directories(self, cgroup: str) -> list[Path]:
        """Every directory that an OCI cgroupsPath stands for, existing or not."""
        return self._layout.dirs(real_path(cgroup))

    # Life.

    async def prepare(self, cgroup: str, parent: str) -> None:
        """Make the pod-level cgroup above `cgroup`, with cpuset lists copied down on version 1.

        With systemd a slice that the request names comes along with its first scope.

        Raises:
            InvalidArgument, Busy, Denied: as the kernel says.
            Unavailable: systemd does not answer.
        """
        if self.systemd:
            if self._units is not None and not parent:
                await self._units.start_slice(cgroup.partition(":")[0], ())
            return
        above = real_path(cgroup).rpartition("/")[0]
        if above and (not parent or not await asyncio.to_thread(self._exists, above)):
            await to_its_end(partial(self._layout.create, above))

    def _exists(self, path: str) -> bool:
        return all(directory.is_dir() for directory in self._layout.dirs(path))

    async def limit_pod(self, parent: str, pod_id: str, resources: LinuxResources) -> None:
        """Set pod-level limits, only on a parent of our own; after `prepare`.

        Raises:
            FailedPrecondition: more memory is in use than the new limit.
            InvalidArgument: a value the kernel does not take; nothing has changed.
            Unsupported: a limit that systemd has no word for; nothing has changed.
        """
        if parent:
            return
        path = self.parent_path(parent, pod_id)
        if self.systemd:
            await self._limit_slice(path, resources)
            return

        def work() -> None:
            check_memory(self._layout, path, resources.memory_limit_bytes)
            wanted = pod_limits(resources, version=self._layout.version)
            wanted += hugepage_limits(self._layout, path, resources.hugepage_limits)
            set_limits(self._layout, path, [limit for limit in wanted if self._has(path, limit)])

        await to_its_end(work)

    async def _limit_slice(self, path: str, resources: LinuxResources) -> None:
        weight = shares_to_weight(resources.cpu_shares)
        properties = slice_properties(resources, weight, version=self._layout.version)
        if self._units is not None and properties:
            await asyncio.to_thread(check_memory, self._layout, path, resources.memory_limit_bytes)
            await self._units.set_properties(path.rpartition("/")[2], properties)

    def _has(self, path: str, limit: Limit) -> bool:
        """Whether this node can limit that; without swap accounting there is no file for swap."""
        if limit.controller not in self._layout.available:
            return False
        swap = limit.file in SWAP_FILES
        return not swap or self._layout.read(path, limit.controller, limit.file) is not None

    async def enter(self, path: str, pid: int) -> None:
        """Move a process into the cgroup at real path `path`, which is made if absent.

        Raises:
            NotFound: the process is gone.
        """

        def move() -> None:
            self._layout.create(path)
            for directory in self._layout.dirs(path):
                name = "cgroup.procs"
                try:
                    (directory / name).write_text(str(pid))
                except ProcessLookupError as error:
                    raise NotFound("process ended before it had its cgroup", pid=pid) from error

        await to_its_end(move)  # the number must still be that process's

    async def processes(self, cgroup: str) -> set[int]:
        """Process ids at and below."""
        return await asyncio.to_thread(self._layout.procs, real_path(cgroup), recursive=True)

    async def oom_kills(self, cgroup: str) -> int | None:
        """How many processes the kernel has killed there for lack of memory; None if unknown."""
        return await asyncio.to_thread(self._layout.oom_kills, real_path(cgroup))

    async def oom_kills_above(self, cgroup: str) -> int | None:
        """The same of the group it is in, which outlives it; see `monitor.kills`."""
        return await asyncio.to_thread(self._layout.oom_kills, self.group_above(cgroup))

    def group_above(self, cgroup: str) -> str:
        """The real path of the group that a container's is in."""
        return real_path(cgroup).rpartition("/")[0] or "/"

    async def kill(self, cgroup: str) -> bool:
        """SIGKILL everything at and below until it is empty; False if it would not become so.

        A process in uninterruptible sleep dies when its wait ends: call again.
        """
        path = real_path(cgroup)
        deadline_ns = self._clock.monotonic_ns() + int(self._kill_s * 1e9)
        pause_s = _PAUSE_FIRST_S
        while True:
            if not await asyncio.to_thread(self._kill, path):
                return True
            if self._clock.monotonic_ns() >= deadline_ns:
                return False
            await self._clock.sleep(pause_s)
            pause_s = min(pause_s * 2, _PAUSE_LAST_S)

    def _kill(self, path: str) -> bool:
        """SIGKILL; whether a process is there that has not ended. A zombie of a slow parent has."""
        self._layout.kill_all(path, signal.SIGKILL)
        return any(not is_zombie(pid) for pid in self._layout.procs(path, recursive=True))

    async def remove(self, cgroup: str) -> None:
        """Remove it from every hierarchy, with what the container made below; gone is success.

        Raises:
            Busy: processes are still in it.
            Unavailable: systemd does not answer, and it is a slice of ours.
        """
        path = real_path(cgroup)
        await asyncio.to_thread(self._layout.remove, path, clock=self._clock)
        name = path.rpartition("/")[2]
        if self._units is not None and name.startswith(f"{NAME}-pod") and name.endswith(".slice"):
            await self._units.stop(name)

    async def remove_pod(self, cgroup: str, parent: str, pod_id: str) -> None:
        """Remove the pause process's cgroup, then the pod-level one if it is ours.

        Raises:
            Busy: processes are still in it.
            Unavailable: as `remove`.
        """
        await self.remove(cgroup)
        if not parent:
            await self.remove(self.parent_path(parent, pod_id))


#: cpu.shares 2..262144 of version 1 -> cpu.weight 1..10000 of version 2, linear, as runc and crun
#: have done since 2020 (kubernetes KEP-2254).
def shares_to_weight(shares: int) -> int:
    """CPU weight of version 2 for CPU shares of version 1."""
    bounded = min(max(shares, 2), 262_144)
    return 1 + (bounded - 2) * 9_999 // 262_142


def pod_limits(resources: LinuxResources, *, version: int) -> list[Limit]:
    """Each pod-level limit asked for but hugepages; 0 means not asked for."""
    period = resources.cpu_period_usec or 100_000
    quota, memory = resources.cpu_quota_usec, resources.memory_limit_bytes
    both = resources.memory_swap_limit_bytes
    if resources.unified and version == 1:
        raise Unsupported("unified limits of a pod need cgroup v2, this node has v1")
    limits: list[Limit] = []
    if version == 2:
        if resources.cpu_shares:
            limits.append(Limit("cpu", "cpu.weight", str(shares_to_weight(resources.cpu_shares))))
        if quota:
            limits.append(Limit("cpu", "cpu.max", f"{quota if quota > 0 else 'max'} {period}"))
        if memory:
            limits.append(Limit("memory", "memory.max", str(memory) if memory > 0 else "max"))
        if both:
            swap = str(max(0, both - max(0, memory))) if both > 0 else "max"
            limits.append(Limit("memory", SWAP_FILES[1], swap))
        limits += [
            Limit(key.partition(".")[0], key, value) for key, value in resources.unified.items()
        ]
    else:
        if resources.cpu_shares:
            limits.append(Limit("cpu", "cpu.shares", str(resources.cpu_shares)))
        if quota:
            limits.append(Limit("cpu", "cpu.cfs_period_us", str(period)))
            limits.append(Limit("cpu", "cpu.cfs_quota_us", str(quota)))
        if memory:
            limits.append(Limit("memory", "memory.limit_in_bytes", str(memory)))
        if both:
            limits.append(Limit("memory", SWAP_FILES[0], str(both)))
    if resources.cpuset_cpus:
        limits.append(Limit("cpuset", "cpuset.cpus", resources.cpuset_cpus))
    if resources.cpuset_mems:
        limits.append(Limit("cpuset", "cpuset.mems", resources.cpuset_mems))
    return limits
