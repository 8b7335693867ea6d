"""Traces on the machine: which ids have left something behind, and how to take it away.

Works from names alone, without any record: every directory, pin, mount, exit file, runtime state
and cgroup of ours carries the id of its object. Only names of 64 hex digits in directories of ours
count.
"""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandbox.host import mounts
from sandbox.records import RECORD_SUFFIXES
from sandbox.steps import run_steps

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sandbox.cgroups import Cgroups
    from sandbox.host.namespaces import NamespaceWorker
    from sandbox.host.syscalls import Syscalls
    from sandbox.leavings import Leavings
    from sandbox.model import PodSandbox
    from sandbox.paths import Paths
    from sandbox.runtime.driver import OciRuntime

_ID: Final = re.compile(r"[0-9a-f]{64}")
#: Names of our cgroups: `<id>`, `pod<id>` (cgroupfs), `podwright-<id>.scope`,
#: `podwright-pod<id>.slice` (systemd).
_CGROUP_ID: Final = re.compile(r"(?:podwright-)?(?:pod)?([0-9a-f]{64})(?:\.scope|\.slice)?")


@dataclass(frozen=True, slots=True)
class Traces:
    """Which ids have something on the machine, by where it was found.

    Attributes:
        names: directories, pins, exit files and writable layers.
        mounted: something is mounted in a run directory of theirs.
        held: the books of an OCI runtime.
        shared: books that others may write as well (see `Sweeper`); of them a name alone says
            nothing, so nothing is taken for a leftover because of it.
        monitors: a monitor or runtime works on a run directory of theirs.
        pins: kinds of namespaces that are pinned, by pod.
    """

    names: frozenset[str]
    mounted: frozenset[str]
    held: frozenset[str]
    monitors: frozenset[str]
    pins: Mapping[str, frozenset[str]]
    shared: frozenset[str] = frozenset()

    @property
    def ids(self) -> frozenset[str]:
        """Every id that has left something which is certainly ours."""
        return self.names | self.mounted | self.held | self.monitors

    @property
    def holding(self) -> frozenset[str]:
        """Ids that are mounted or in the books of a runtime."""
        return self.mounted | self.held | self.shared


class Sweeper:
    """Finds traces and removes them."""

    def __init__(
        self,
        *,
        paths: Paths,
        runtimes: Mapping[str, OciRuntime],
        namespaces: NamespaceWorker,
        cgroups: Cgroups,
        leavings: Leavings,
        syscalls: Syscalls,
        shared_books: Collection[str] = (),
    ) -> None:
        """Nothing is looked at yet.

        Args:
            paths: where everything lies.
            runtimes: those whose books can be read and whose programs run, by handler name.
            namespaces: holds pinned namespaces.
            cgroups: of pods and containers.
            leavings: finds helper programs.
            syscalls: unmounts.
            shared_books: handlers whose root is not below our run root: an operator has set it,
                perhaps to one that podman or another daemon uses too. Their containers are named
                by 64 hex digits as well, and are none of our business.
        """
        self._paths = paths
        self.runtimes = runtimes
        self._shared = shared_books
        self._namespaces = namespaces
        self._cgroups = cgroups
        self._leavings = leavings
        self._syscalls = syscalls

    async def look(self) -> Traces:
        """Every id that names something in a place of ours. Starts no program.

        Cgroups are not such a place: another runtime's are named by 64 hex digits too, under the
        same parents. They are only looked up for an id that was found elsewhere.
        """
        held: set[str] = set()
        shared: set[str] = set()
        for name, runtime in self.runtimes.items():
            (shared if name in self._shared else held).update(await runtime.containers())

        def work() -> Traces:
            mounted, pins = self._mounts()
            return Traces(
                names=frozenset(self._directory_traces()),
                mounted=frozenset(mounted),
                held=frozenset(filter(_ID.fullmatch, held)),
                monitors=frozenset(
                    filter(_ID.fullmatch, self._leavings.monitored(self._paths.containers))
                ),
                pins={pod_id: frozenset(kinds) for pod_id, kinds in pins.items()},
                shared=frozenset(filter(_ID.fullmatch, shared)),
            )

        return await asyncio.to_thread(work)

    def _mounts(self) -> tuple[set[str], dict[str, set[str]]]:
        """Ids with mounts in their run directories, and pinned namespaces by pod.

        Not by parsing every line: a node has thousands, and only the places of ours matter.
        """
        root = os.fsencode(self._paths.run_root)
        escaped = re.sub(rb"[ \t\n\\]", lambda m: b"\\%03o" % m[0][0], root)
        ours = re.compile(
            b" " + re.escape(escaped) + rb"/(pods|containers|namespaces)/([0-9a-f]{64})/([^/ ]+)"
        )
        mounted: set[str] = set()
        pins: dict[str, set[str]] = {}
        for place, object_id, rest in ours.findall(Path("/proc/self/mountinfo").read_bytes()):
            name = object_id.decode()
            if place == b"namespaces":
                pins.setdefault(name, set()).add(os.fsdecode(rest))
            else:
                mounted.add(name)
        return mounted, pins

    def has_cgroup(self, cgroup: str) -> bool:
        """Whether an OCI cgroupsPath exists in any hierarchy; blocking."""
        return any(directory.is_dir() for directory in self._cgroups.directories(cgroup))

    async def sweep_cgroup(self, cgroup: str) -> None:
        """Kill what is in a cgroup of ours and remove it."""
        await self._cgroups.kill(cgroup)
        await self._cgroups.remove(cgroup)

    async def pin_again(self, pod: PodSandbox, kinds: Collection[str]) -> None:
        """Pin namespaces of a ready pod again that somebody has unmounted, from its pause process.

        Raises:
            NotFound: the process is gone.
        """
        if pod.pause is None:
            return
        for kind in sorted(kinds):
            await self._namespaces.pin_process(
                pod.pause.pid,
                kind,
                self._paths.pins(pod.id) / kind,
                start_ticks=pod.pause.start_ticks,
            )

    async def end_calls(self, container_ids: Collection[str]) -> None:
        """End what a former life still has running on these containers in the runtimes."""
        await self._leavings.end_calls(container_ids)

    def _directory_traces(self) -> set[str]:
        paths = self._paths
        places = (paths.pods, paths.namespaces, paths.containers, paths.layers, paths.exits)
        found = {name for place in places for name in _names(place)}
        for kind in ("pods", "containers"):
            for name in _names(paths.records / kind):
                stem, dot, suffix = name.partition(".")
                if dot + suffix in RECORD_SUFFIXES:  # not what was put aside for a person
                    found.add(stem)
        return {name for name in found if _ID.fullmatch(name)}

    def _cgroup_traces(self) -> dict[str, list[str]]:
        """Cgroup paths (below each hierarchy's root) by id."""
        found: dict[str, list[str]] = {}
        for path in self._cgroups.layout.walk():
            match = _CGROUP_ID.fullmatch(path.rpartition("/")[2])
            if match:
                found.setdefault(match[1], []).append(path)
        return found

    async def sweep(self, object_id: str) -> None:
        """Take away all that carries the id; every step is tried, the first failure raised."""
        await run_steps(
            "trace",
            object_id,
            [
                ("helpers", lambda: self._leavings.kill_helpers(object_id)),
                ("processes and cgroups", lambda: self._sweep_cgroups(object_id)),
                ("runtime state", lambda: self._sweep_runtimes(object_id)),
                ("namespaces", lambda: self._namespaces.unpin(self._paths.pins(object_id))),
                ("directories", lambda: asyncio.to_thread(self._sweep_directories, object_id)),
            ],
        )

    async def _sweep_cgroups(self, object_id: str) -> None:
        found = await asyncio.to_thread(self._cgroup_traces)
        # Deepest first: a pod's cgroup can go only after its containers'.
        for path in sorted(found.get(object_id, ()), key=lambda p: -p.count("/")):
            await self._cgroups.kill(path)
            await self._cgroups.remove(path)

    async def _sweep_runtimes(self, object_id: str) -> None:
        for runtime in self.runtimes.values():
            if object_id in await runtime.containers():
                await runtime.delete(object_id, force=True)

    def _sweep_directories(self, object_id: str) -> None:
        paths = self._paths
        for directory in (paths.container(object_id), paths.pod(object_id), paths.layer(object_id)):
            mounts.clear_away(directory, syscalls=self._syscalls)
        paths.exit_file(object_id).unlink(missing_ok=True)
        for kind in ("pods", "containers"):
            for suffix in RECORD_SUFFIXES:
                (paths.records / kind / f"{object_id}{suffix}").unlink(missing_ok=True)


def _names(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in directory.iterdir()]
    except FileNotFoundError:
        return []
