"""While the daemon runs: what is recorded and what the kernel has have drifted apart; what to do.

`sandbox.recovery` decides once, at the start, when nothing else happens. This decides again and
again beside calls in flight, so it is more careful: an object that a call works on is left alone,
and nothing is done about a difference that has not been there at the last look as well. Ids are 64
random hex digits that are never used twice, records are written before anything is made and erased
after everything is gone; so what carries an id without a record can only be a leftover, and a look
apart (a minute) is longer than a removal takes between its last file and its record.

| recorded                   | seen                               | repair                       |
|----------------------------|------------------------------------|------------------------------|
| pod READY                  | its pause process is gone          | NOTREADY                     |
| pod READY                  | a namespace of it is not pinned    | pin it, from the process     |
| pod CREATING, REMOVING     | no call works on it                | take it apart                |
| container CREATED, RUNNING | its first process is gone          | ask anew how it ended        |
| container EXITED           | a mount or the runtime still has it| clean up what it holds       |
| container EXITED           | its monitor lives                  | end the monitor              |
| container CREATING, REMOV. | no call works on it                | take it apart                |
| no record                  | anything that carries the id       | sweep it                     |
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sandbox.model import NamespaceMode
from sandbox.states import ContainerState, PodState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from sandbox.model import Container, PodSandbox


class Repair(enum.Enum):
    """Kinds of repairs; the values are labels of the metric."""

    POD_DEAD = "pod_dead"
    PIN_LOST = "pin_lost"
    POD_UNFINISHED = "pod_unfinished"
    CONTAINER_DEAD = "container_dead"
    CONTAINER_HOLDS = "container_holds"
    MONITOR_STAYS = "monitor_stays"
    CONTAINER_UNFINISHED = "container_unfinished"
    #: Of no recorded object: directories, pins, mounts, exit files, runtime state, monitors.
    TRACE = "trace"
    CGROUP = "cgroup"
    LEASE = "lease"
    ADDRESS = "address"


@dataclass(frozen=True, slots=True)
class Drift:
    """One difference: what to do about which id, and why (for the log)."""

    repair: Repair
    id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What the machine says at one moment.

    Attributes:
        living: ids of pods and containers whose recorded first process lives.
        monitored: ids of containers whose recorded monitor lives.
        holding: ids that are mounted or in the books of a runtime.
        pins: kinds of namespaces that are pinned, by pod.
        traces: ids that name something of ours.
        leased: ids that hold image layers.
        addressed: ids of pods that networks hold something for.
        cgroups: ids that were removed a short while ago and whose cgroup is there.
        busy: ids that a call works on.
    """

    living: Collection[str] = ()
    monitored: Collection[str] = ()
    holding: Collection[str] = ()
    pins: Mapping[str, Collection[str]] = field(default_factory=dict)
    traces: Collection[str] = ()
    leased: Collection[str] = ()
    addressed: Collection[str] = ()
    cgroups: Collection[str] = ()
    busy: Collection[str] = ()


def expected_pins(pod: PodSandbox) -> set[str]:
    """Kinds of namespaces that a ready pod has pinned."""
    wanted = pod.config.security.namespaces
    kinds = set()
    if wanted.network is not NamespaceMode.NODE:
        kinds |= {"net", "uts"}
    if wanted.ipc is not NamespaceMode.NODE:
        kinds.add("ipc")
    if wanted.pid is not NamespaceMode.NODE:
        kinds.add("pid")
    if wanted.user is not None and wanted.user.mode is not NamespaceMode.NODE:
        kinds.add("user")
    return kinds


def find(
    pods: Mapping[str, PodSandbox], containers: Mapping[str, Container], look: Look
) -> set[Drift]:
    """Every difference at this look; what a call works on is left out."""
    known = pods.keys() | containers.keys()
    found = {
        *_pods(pods.values(), look),
        *_containers(containers.values(), look),
        *_unknown(Repair.TRACE, look.traces, known, "no record of it"),
        *_unknown(Repair.LEASE, look.leased, known, "it holds layers and there is no record"),
        *_unknown(Repair.ADDRESS, look.addressed, known, "a network holds it without a record"),
        *_unknown(Repair.CGROUP, look.cgroups, known, "it was removed and its cgroup is there"),
    }
    return {drift for drift in found if drift.id not in look.busy}


def _pods(pods: Iterable[PodSandbox], look: Look) -> Iterator[Drift]:
    for pod in pods:
        if pod.state in (PodState.CREATING, PodState.REMOVING):
            yield Drift(Repair.POD_UNFINISHED, pod.id, f"{pod.state.name} and no call works on it")
        elif pod.state is PodState.READY and pod.id not in look.living:
            yield Drift(Repair.POD_DEAD, pod.id, "its pause process is gone")
        elif pod.state is PodState.READY:
            missing = expected_pins(pod) - set(look.pins.get(pod.id, ()))
            if missing:
                kinds = ", ".join(sorted(missing))
                yield Drift(Repair.PIN_LOST, pod.id, f"namespaces not pinned: {kinds}")


def _containers(containers: Iterable[Container], look: Look) -> Iterator[Drift]:
    for container in containers:
        state, me = container.state, container.id
        if state in (ContainerState.CREATING, ContainerState.REMOVING):
            reason = f"{state.name} and no call works on it"
            yield Drift(Repair.CONTAINER_UNFINISHED, me, reason)
        elif state in (ContainerState.CREATED, ContainerState.RUNNING):
            if me not in look.living:
                yield Drift(Repair.CONTAINER_DEAD, me, "its first process is gone")
        elif state is ContainerState.EXITED:
            if me in look.holding:
                yield Drift(Repair.CONTAINER_HOLDS, me, "it is mounted or in the runtime's books")
            if me in look.monitored:
                yield Drift(Repair.MONITOR_STAYS, me, "its monitor lives on")


def _unknown(
    repair: Repair, ids: Collection[str], known: Collection[str], reason: str
) -> Iterator[Drift]:
    return (Drift(repair, object_id, reason) for object_id in ids if object_id not in known)
